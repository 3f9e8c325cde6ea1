"""TensorRT-LLM's own compiler: here, in docker, or as a cluster's job."""
