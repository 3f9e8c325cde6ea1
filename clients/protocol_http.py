"""The exchange with Triton in JSON, apart from the connection."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import quote

import msgspec

from minitron_trt.clients.faults import BrokenProtocolError, refusal
from minitron_trt.clients.messages import OUTPUT_IDS, TEXT
from minitron_trt.clients.model_interface import InferCall
from minitron_trt.clients.protocol import Piece, piece_of

_HEADER: Final = frozenset({"model_name", "model_version", "id"})
# Parameters of the response, which gRPC has beside the tensors and JSON among them.
_PARAMETERS: Final = frozenset({"sequence_id", "sequence_start", "sequence_end"})
_NO_TENSORS: Final = _HEADER | _PARAMETERS
_ELEMENTS: Final = frozenset({str, int, float, bool})


def http_path(call: InferCall) -> str:
    """Return the path that a request is posted to."""
    # Triton refuses a second response of generate.
    streams = call.streams or call.request.sequences > 1
    verb = "infer" if call.is_plain else "generate_stream" if streams else "generate"
    return f"{model_path(call.request.model)}/{verb}"


def model_path(model: str) -> str:
    """Return where a model says what it takes and gives."""
    return f"/v2/models/{quote(model, safe='')}"


def http_body(call: InferCall) -> dict[str, Any]:
    """Return the JSON object to post: for generate keyed by tensor, for KServe with its shapes."""
    if not call.is_plain:
        return {"id": call.request.request_id, **{each.name: each.value for each in call.inputs}}
    return {
        "id": call.request.request_id,
        "inputs": [
            {
                "name": each.name,
                "shape": each.shape,
                "datatype": each.datatype,
                "data": each.values,
            }
            for each in call.inputs
        ],
        "outputs": [{"name": name} for name in call.outputs],
    }


def decode_event(data: str | bytes) -> Piece:
    """Read the data of one event, or the body of a plain answer.

    RefusedError when the server reports an error, BrokenProtocolError for what is not Triton's.
    """
    record = json_object(data)
    if record is None:
        raise _not_triton(data)
    if "error" in record:
        raise refusal(text_of(record["error"]))
    if isinstance(record.get("outputs"), list):
        tensors = _plain_tensors(record["outputs"])
    else:
        tensors = {
            # Of nearly every tensor the one element, which is looked at no further.
            name: (value,) if type(value) in _ELEMENTS else _values(value)
            for name, value in record.items()
            if name not in _NO_TENSORS
        }
    if not tensors.get(TEXT) and OUTPUT_IDS not in tensors:
        raise _not_triton(data)
    return piece_of(tensors, final=None, size=len(data))


def json_object(data: str | bytes) -> dict[str, Any] | None:
    """Return a JSON object, None for anything else."""
    # msgspec raises a RecursionError for JSON that is nested very deep.
    try:
        record = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        record = _lenient(data)
    return record if isinstance(record, dict) else None


def _lenient(data: str | bytes) -> Any:
    """Return JSON that has numbers or characters which strict JSON does not know, else None."""
    try:
        return json.loads(data if isinstance(data, str) else data.decode(errors="replace"))
    except (ValueError, RecursionError):
        return None


def _plain_tensors(outputs: Sequence[Any]) -> dict[str, Sequence[Any]]:
    """Return the tensors of KServe's own answer."""
    try:
        return {output["name"]: _values(output["data"]) for output in outputs}
    except (TypeError, KeyError, IndexError) as error:
        raise BrokenProtocolError("outputs that are no list of tensors") from error


def _values(value: Any) -> Sequence[Any]:
    # A tensor of one element comes as the element itself, a longer one as a list.
    values = value if isinstance(value, list) else () if value is None else (value,)
    for each in values:
        if isinstance(each, (list, dict)):
            raise BrokenProtocolError("a tensor whose elements are no numbers and no texts")
    return values


def text_of(reason: Any) -> str:
    """Return a server's reason as text, whatever JSON it is."""
    return reason if isinstance(reason, str) else json.dumps(reason, ensure_ascii=False)


def _not_triton(data: str | bytes) -> BrokenProtocolError:
    text = data if isinstance(data, str) else data[:200].decode(errors="replace")
    return BrokenProtocolError(f"an answer without {TEXT}: {text[:60]!r}")
