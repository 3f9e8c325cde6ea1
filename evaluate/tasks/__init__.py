"""Tasks of lm-evaluation-harness, asked of a checkpoint, a folder, a GGUF file or a server."""
