"""What the text models read when they load: their parameters and their tokenizer.

Shared by them, each carries a copy; needs only transformers, so that it runs in any container.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def parameter(args: Mapping[str, str], key: str, default: str | None = None) -> str:
    """Return a parameter of config.pbtxt; ValueError when it has neither it nor a default."""
    found = json.loads(args["model_config"])["parameters"].get(key)
    if found is not None:
        return str(found["string_value"])
    if default is None:
        raise ValueError(f"config.pbtxt of {args['model_name']} lacks the parameter {key}")
    return default


def flag(args: Mapping[str, str], key: str, default: bool) -> bool:
    """Return a parameter that is true or false."""
    value = parameter(args, key, str(default)).lower()
    if value not in ("true", "false"):
        raise ValueError(f"the parameter {key} is {value!r}; expected true or false")
    return value == "true"


def leave_out_torch() -> None:
    """Have transformers not load torch into this process; a tokenizer has no use for it.

    It would be most of the time that a text model takes to start, and most of its memory.
    """
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]


def load_tokenizer(args: Mapping[str, str]) -> Any:
    """Return the Hugging Face tokenizer that lies beside the model; no code of it is run."""
    from transformers import AutoTokenizer

    folder = Path(args["model_repository"], args["model_version"], parameter(args, "tokenizer_dir"))
    return AutoTokenizer.from_pretrained(
        folder, local_files_only=True, clean_up_tokenization_spaces=False
    )
