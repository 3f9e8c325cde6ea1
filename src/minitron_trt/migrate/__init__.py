"""Off engines: checkpoints, engines and their repositories become what PyTorch's runtime serves."""
