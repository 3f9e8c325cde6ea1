"""Stage three: a checkpoint or engine becomes a Triton model repository, and Triton serves it."""
