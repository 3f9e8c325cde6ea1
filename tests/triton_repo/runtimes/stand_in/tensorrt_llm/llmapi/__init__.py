"""The stand-in's `tensorrt_llm.llmapi`."""

from tensorrt_llm.sampling_params import GuidedDecodingParams

__all__ = ["GuidedDecodingParams"]
