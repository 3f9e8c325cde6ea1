"""What the model `tensorrt_llm` of the reference runtime has besides."""
