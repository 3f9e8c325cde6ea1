"""Convert, build and deploy NVIDIA Minitron models with TensorRT-LLM and Triton."""

__version__ = "0.1.0"
