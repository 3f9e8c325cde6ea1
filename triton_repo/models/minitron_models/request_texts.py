"""Reading from a request for text what becomes ids."""

from __future__ import annotations

from collections.abc import Mapping

from minitron_models.text_encoder import TextTensors
from minitron_models.triton_io import scalar, tensor
from minitron_models.triton_types import TritonRequest


def read_text_tensors(request: TritonRequest, names: Mapping[str, str]) -> TextTensors:
    """Return a request's text and words; `names` goes from the client's inputs to the model's.

    ValueError names the input that should hold one value and holds several.
    """
    return TextTensors(
        text=tensor(request, names["text_input"]),
        stop_words=tensor(request, names["stop_words"]),
        bad_words=tensor(request, names["bad_words"]),
        bias_words=tensor(request, names["embedding_bias_words"]),
        bias_weights=tensor(request, names["embedding_bias_weights"]),
        end_id=scalar(request, names["end_id"]),
        pad_id=scalar(request, names["pad_id"]),
        table_id=scalar(request, names["prompt_table_extra_id"]),
        chat=scalar(request, names["apply_chat_template"]),
    )
