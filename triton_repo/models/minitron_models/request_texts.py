"""Reading from a request for text what becomes ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minitron_models.text_encoder import TextTensors
from minitron_models.triton_io import tensor
from minitron_models.triton_types import TritonRequest
from numpy.typing import NDArray

_TENSORS = {
    "text": "text_input",
    "stop_words": "stop_words",
    "bad_words": "bad_words",
    "bias_words": "embedding_bias_words",
    "bias_weights": "embedding_bias_weights",
}
_SCALARS = {
    "end_id": "end_id",
    "pad_id": "pad_id",
    "table_id": "prompt_table_extra_id",
    "chat": "apply_chat_template",
}
"""From fields of TextTensors to the client's inputs."""


def read_text_rows(request: TritonRequest, names: Mapping[str, str]) -> list[TextTensors]:
    """Return the text and words of each row; `names` goes from the client's inputs to the model's.

    Triton has seen to it that all inputs have as many rows.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for field, name in (_TENSORS | _SCALARS).items():
        array = tensor(request, names[name])
        if array is not None:
            arrays[field] = array
    if "text" not in arrays:
        # Triton counts the inputs of a request, and optional ones make up for it.
        raise ValueError(f"{names['text_input']} is missing; expected some text")
    return [
        TextTensors(**{field: _row(field, array, row) for field, array in arrays.items()})
        for row in range(len(arrays["text"]))
    ]


def _row(field: str, array: NDArray[Any], row: int) -> Any:
    return array[row : row + 1] if field in _TENSORS else array[row].item()
