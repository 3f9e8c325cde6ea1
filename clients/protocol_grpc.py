"""The exchange with Triton in protocol buffers, apart from the connection."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from minitron_trt.clients.faults import BrokenProtocolError, Fault, refusal
from minitron_trt.clients.grpc_api import service_pb2
from minitron_trt.clients.messages import (
    FINISH_REASON,
    SEQUENCE_INDEX,
    TENSORS,
    TEXT,
    GenerateRequest,
)
from minitron_trt.clients.protocol import Piece

# A model may send its last text first and close the stream later. Triton forwards that closing
# response, which has no tensors, only to requests with this parameter.
WANT_FINAL: Final = "triton_enable_empty_final_response"
IS_FINAL: Final = "triton_final_response"
_FORMATS: Final[Mapping[str, str]] = MappingProxyType(
    {"INT32": "<i", "INT64": "<q", "UINT64": "<Q", "FP16": "<e", "FP32": "<f", "BOOL": "<?"}
)
_LENGTH: Final = struct.Struct("<I")


def encode(request: GenerateRequest) -> Any:
    """Return the ModelInferRequest of a request: each tensor that is set, with batch size 1."""
    message = service_pb2.ModelInferRequest(model_name=request.model, id=request.request_id)
    message.parameters[WANT_FINAL].bool_param = True
    for name, value in request.inputs().items():
        values = value if isinstance(value, tuple) else (value,)
        message.inputs.add(name=name, datatype=TENSORS[name], shape=(1, len(values)))
        message.raw_input_contents.append(_pack(TENSORS[name], values))
    for name in request.outputs():
        message.outputs.add(name=name)
    return message


def _pack(datatype: str, values: Sequence[Any]) -> bytes:
    if datatype == "BYTES":
        return b"".join(pack_bytes(value.encode()) for value in values)
    return b"".join(struct.pack(_FORMATS[datatype], value) for value in values)


def pack_bytes(value: bytes) -> bytes:
    """Return one element of a BYTES tensor."""
    return _LENGTH.pack(len(value)) + value


def decode(message: Any) -> Piece:
    """Read a ModelStreamInferResponse.

    RefusedError when the server reports an error, BrokenProtocolError when the text cannot be read.
    """
    if message.error_message:
        raise refusal(message.error_message)
    response = message.infer_response
    final = response.parameters[IS_FINAL].bool_param if IS_FINAL in response.parameters else False
    tensors = {
        output.name: _unpack(output, response.raw_output_contents, index)
        for index, output in enumerate(response.outputs)
    }
    if not tensors.get(TEXT):
        # The closing response of a stream carries no tensors.
        if final:
            return Piece(final=True)
        raise BrokenProtocolError(
            Fault.ABSENT, f"a response with {sorted(tensors)}, without {TEXT}"
        )
    texts = tuple(tensors.pop(TEXT))
    reasons = [reason.decode() for reason in tensors.pop(FINISH_REASON, ())]
    sequence = next(iter(tensors.pop(SEQUENCE_INDEX, ())), 0)
    return Piece(
        texts,
        final=final,
        sequence=sequence,
        finish_reason=next(filter(None, reasons), None),
        outputs=tensors,
    )


def _unpack(output: Any, buffers: Sequence[bytes], index: int) -> Sequence[Any]:
    """Return the elements of a tensor, flat."""
    if output.contents.bytes_contents:
        return list(output.contents.bytes_contents)
    data = buffers[index] if index < len(buffers) else b""
    if output.datatype == "BYTES" or output.name == TEXT:
        return _unpack_bytes(output.name, data)
    form = _FORMATS.get(output.datatype, "")
    if not form or len(data) % struct.calcsize(form):
        raise BrokenProtocolError(
            Fault.ABSENT, f"{output.name} in {len(data)} bytes that are no {output.datatype} tensor"
        )
    return [value for (value,) in struct.iter_unpack(form, data)]


def _unpack_bytes(name: str, data: bytes) -> list[bytes]:
    """Return the elements of a BYTES tensor."""
    values, at = [], 0
    while at < len(data):
        start = at + _LENGTH.size
        end = start + _LENGTH.unpack_from(data, at)[0] if start <= len(data) else -1
        if not start <= end <= len(data):
            raise BrokenProtocolError(
                Fault.ABSENT, f"{name} in {len(data)} bytes that are no BYTES tensor"
            )
        values.append(data[start:end])
        at = end
    return values
