"""The exchange with Triton in protocol buffers, without its input and output."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from minitron_trt.clients.faults import BrokenProtocolError, Fault, refusal
from minitron_trt.clients.grpc_api import service_pb2
from minitron_trt.clients.messages import OUTPUT, TENSORS, GenerateRequest
from minitron_trt.clients.protocol import Piece

# Without it, a model that closes its stream apart from its last text ends without a sign.
WANT_FINAL: Final = "triton_enable_empty_final_response"
IS_FINAL: Final = "triton_final_response"
_PACK: Final[Mapping[str, str]] = MappingProxyType(
    {"INT32": "<i", "UINT64": "<Q", "FP32": "<f", "BOOL": "<?"}
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
    message.outputs.add(name=OUTPUT)
    return message


def _pack(datatype: str, values: Sequence[Any]) -> bytes:
    if datatype == "BYTES":
        return b"".join(pack_bytes(value.encode()) for value in values)
    return b"".join(struct.pack(_PACK[datatype], value) for value in values)


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
    names = [output.name for output in response.outputs]
    if OUTPUT not in names:
        # The closing response of a stream carries no tensors.
        if final:
            return Piece(b"", final=True)
        raise BrokenProtocolError(Fault.ABSENT, f"a response with {names}, without {OUTPUT}")
    index = names.index(OUTPUT)
    contents = response.outputs[index].contents.bytes_contents
    if contents:
        return Piece(contents[0], final)
    return Piece(_unpack_first(response.raw_output_contents, index), final)


def _unpack_first(buffers: Sequence[bytes], index: int) -> bytes:
    """Return the first element of a BYTES tensor."""
    data = buffers[index] if index < len(buffers) else b""
    end = _LENGTH.size + _LENGTH.unpack_from(data)[0] if len(data) >= _LENGTH.size else -1
    if not 0 <= end <= len(data):
        raise BrokenProtocolError(
            Fault.ABSENT, f"{OUTPUT} in {len(data)} bytes that are no BYTES tensor"
        )
    return data[_LENGTH.size : end]
