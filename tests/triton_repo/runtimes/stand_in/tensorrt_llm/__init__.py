"""A stand-in for TensorRT-LLM's LLM class: its published signatures over transformers, on a CPU.

Not TensorRT-LLM: it shows that our Triton model asks and reads as LLM's documentation has it, and
that the text is right when LLM's tokens are. It guides nothing: it says what it was asked to.
"""

from tensorrt_llm.llm import LLM
from tensorrt_llm.sampling_params import GuidedDecodingParams, SamplingParams

__all__ = ["LLM", "GuidedDecodingParams", "SamplingParams"]
