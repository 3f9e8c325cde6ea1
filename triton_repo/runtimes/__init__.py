"""What generates the tokens behind the model `tensorrt_llm`: a plan for each kind of artifact."""
