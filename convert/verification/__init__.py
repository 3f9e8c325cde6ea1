"""Whether a checkpoint computes what its source does."""
