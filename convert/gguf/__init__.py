"""GGUF files: read, and turned back into the Hugging Face model that they were made from."""
