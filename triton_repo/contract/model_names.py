"""The names of a repository's models, which are TensorRT-LLM's: clients and models call by them."""

from __future__ import annotations

from typing import Final

PREPROCESSING: Final = "preprocessing"
TENSORRT_LLM: Final = "tensorrt_llm"
POSTPROCESSING: Final = "postprocessing"
TENSORRT_LLM_DRAFT: Final = "tensorrt_llm_draft"
"""The smaller model that drafts, where there is one: as TensorRT-LLM's guide calls it."""
ENSEMBLE: Final = "ensemble"
TENSORRT_LLM_BLS: Final = "tensorrt_llm_bls"
MODELS: Final = (PREPROCESSING, TENSORRT_LLM, POSTPROCESSING, ENSEMBLE, TENSORRT_LLM_BLS)
TEXT_MODELS: Final = (PREPROCESSING, POSTPROCESSING, TENSORRT_LLM_BLS)
"""Those that have a tokenizer of their own."""
