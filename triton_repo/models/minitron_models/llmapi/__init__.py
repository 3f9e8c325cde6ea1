"""What the model `tensorrt_llm` of the runtime llmapi has besides."""
