"""Our network on TensorRT's API, compiled without a GPU, or on one for itself."""
