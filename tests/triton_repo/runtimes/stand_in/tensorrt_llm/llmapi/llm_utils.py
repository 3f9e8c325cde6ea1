"""The stand-in's `tensorrt_llm.llmapi.llm_utils`."""

from __future__ import annotations

from typing import Any


def update_llm_args_with_extra_dict(
    llm_args: dict[str, Any], llm_args_dict: dict[str, Any]
) -> dict[str, Any]:
    """Join arguments; the real one also makes classes of nested records."""
    return llm_args | llm_args_dict
