"""Model folders as they are found: located, opened, and read into checked facts and tensors."""
