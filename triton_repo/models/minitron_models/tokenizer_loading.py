"""Loading the tokenizer that lies beside a text model: with transformers alone, without torch."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minitron_models.config_parameters import parameter


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
