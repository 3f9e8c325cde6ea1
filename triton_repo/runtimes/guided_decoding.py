"""What TensorRT-LLM's C++ backend must know of a tokenizer to guide an answer with xgrammar.

The record is that of TensorRT-LLM's `generate_xgrammar_tokenizer_info.py`, which needs TensorRT-LLM
to run; all of it is in tokenizer.json.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from minitron_trt.convert.source.tokenizer_folder import TOKENIZER_JSON, SourceTokenizer
from minitron_trt.errors import BadInputError
from minitron_trt.records import read_text

INFO_NAME: Final = "xgrammar_tokenizer_info.json"


def tokenizer_info(tokenizer: SourceTokenizer, end_ids: Sequence[int]) -> str:
    """Return the record as JSON; BadInputError when there is no usable tokenizer.json."""
    path = next((path for path in tokenizer.files if path.name == TOKENIZER_JSON), None)
    if path is None and TOKENIZER_JSON not in tokenizer.texts:
        raise BadInputError(
            f"guided_decoding_backend needs the tokenizer's {TOKENIZER_JSON}, which is not there"
        )
    text = tokenizer.texts.get(TOKENIZER_JSON) or read_text(Path(str(path)))
    try:
        ids = _ids(json.loads(text))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInputError(f"{path} is not a tokenizer of Hugging Face ({error!r})") from error
    record = {
        # To xgrammar a token's place is its id; TensorRT-LLM sorts them the same way.
        "encoded_vocab": sorted(ids, key=ids.__getitem__),
        "tokenizer_str": text,
        "stop_token_ids": list(end_ids),
    }
    return json.dumps(record, ensure_ascii=False)


def _ids(tokenizer: dict[str, Any]) -> dict[str, int]:
    """Return the id of every token."""
    known = tokenizer["model"]["vocab"]
    if isinstance(known, list):
        # Unigram: pairs of token and score, in the order of their ids.
        known = {token: index for index, (token, _) in enumerate(known)}
    added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    return {**known, **added}
