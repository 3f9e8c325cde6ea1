"""The machine that this runs on: its memory and GPUs, and the processes that are started on it."""
