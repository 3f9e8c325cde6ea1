"""Precisions: what each one stores, its arithmetic, and the number formats beneath."""
