"""Stage one: a Hugging Face checkpoint becomes a TensorRT-LLM checkpoint."""
