"""The files that a model repository gets copies of; Triton imports them by their own names."""
