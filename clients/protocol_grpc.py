"""The exchange with Triton in protocol buffers, apart from the connection."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Generator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from minitron_trt.clients.faults import BrokenProtocolError, refusal
from minitron_trt.clients.grpc_api import grpc, service_pb2
from minitron_trt.clients.messages import FINISH_REASON, LOGITS, OUTPUT_IDS, TEXT
from minitron_trt.clients.model_interface import TEXT_MODEL, InferCall, ModelInterface
from minitron_trt.clients.protocol import Piece, piece_of
from minitron_trt.errors import RefusedError

# A model may send its last text first and close the stream later. Triton forwards that closing
# response, which has no tensors, only to requests with this parameter.
WANT_FINAL: Final = "triton_enable_empty_final_response"
IS_FINAL: Final = "triton_final_response"
# KServe's raw contents are little-endian. struct has no letter for BF16, and no tensor that is sent
# or read here is of it.
_FORMATS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "BOOL": "<?",
        "INT8": "<b",
        "INT16": "<h",
        "INT32": "<i",
        "INT64": "<q",
        "UINT8": "<B",
        "UINT16": "<H",
        "UINT32": "<I",
        "UINT64": "<Q",
        "FP16": "<e",
        "FP32": "<f",
        "FP64": "<d",
    }
)
_CONTENTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "BOOL": "bool_contents",
        **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
        **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
        "INT64": "int64_contents",
        "UINT64": "uint64_contents",
        "FP32": "fp32_contents",
        "FP64": "fp64_contents",
    }
)
"""Where the elements are that a service sends one by one, and not as bytes."""
_LENGTH: Final = struct.Struct("<I")


def encode(call: InferCall) -> Any:
    """Return the ModelInferRequest of a request."""
    request = call.request
    message = service_pb2.ModelInferRequest(model_name=request.model, id=request.request_id)
    if not call.is_plain:
        message.parameters[WANT_FINAL].bool_param = True
    for each in call.inputs:
        message.inputs.add(name=each.name, datatype=each.datatype, shape=each.shape)
        message.raw_input_contents.append(_pack(each.name, each.datatype, each.values))
    for name in call.outputs:
        message.outputs.add(name=name)
    return message


def _pack(name: str, datatype: str, values: Sequence[Any]) -> bytes:
    if datatype == "BYTES":
        return b"".join(pack_bytes(str(value).encode()) for value in values)
    try:
        form = _FORMATS[datatype]
        return b"".join(struct.pack(form, value) for value in values)
    except (KeyError, struct.error, OverflowError) as error:
        raise RefusedError(
            f"the model's input {name} is of type {datatype}, which cannot hold {values!r}; "
            "leave it out, or ask another model",
            field=name,
        ) from error


def pack_bytes(value: bytes) -> bytes:
    """Return one element of a BYTES tensor."""
    return _LENGTH.pack(len(value)) + value


def decode(message: Any) -> Piece:
    """Read a ModelStreamInferResponse.

    RefusedError when the server reports an error, BrokenProtocolError when the text cannot be read.
    """
    if message.error_message:
        raise refusal(message.error_message)
    return decode_response(message.infer_response)


def decode_response(response: Any) -> Piece:
    """Read a ModelInferResponse."""
    final = response.parameters[IS_FINAL].bool_param if IS_FINAL in response.parameters else None
    buffers = response.raw_output_contents
    tensors: dict[str, Sequence[Any]] = {
        output.name: _unpack(output, buffers, index)
        for index, output in enumerate(response.outputs)
    }
    if not tensors.get(TEXT) and OUTPUT_IDS not in tensors:
        # The closing response of a stream carries no tensors.
        if final and not tensors:
            return Piece(final=True)
        raise BrokenProtocolError(f"a response with {sorted(tensors)}, without {TEXT}")
    if FINISH_REASON in tensors:
        tensors[FINISH_REASON] = [
            each.decode(errors="replace") if isinstance(each, bytes) else each
            for each in tensors[FINISH_REASON]
        ]
    return piece_of(tensors, final=final, size=sum(map(len, buffers)))


def _unpack(output: Any, buffers: Sequence[bytes], index: int) -> Sequence[Any]:
    """Return the elements of a tensor, flat."""
    if not buffers:
        return list(getattr(output.contents, _CONTENTS.get(output.datatype, "bytes_contents")))
    data = buffers[index] if index < len(buffers) else b""
    if output.datatype == "BYTES":
        return _unpack_bytes(output.name, data)
    form = _FORMATS.get(output.datatype, "")
    if not form or len(data) % struct.calcsize(form):
        raise BrokenProtocolError(
            f"{output.name} in {len(data)} bytes that are no {output.datatype} tensor"
        )
    if output.name in LOGITS and output.datatype == "FP32":
        # Of a long prompt's logits a list would take eight times the bytes, and minutes.
        return array("f", data)
    return [value for (value,) in struct.iter_unpack(form, data)]


def _unpack_bytes(name: str, data: bytes) -> list[bytes]:
    """Return the elements of a BYTES tensor."""
    values, at = [], 0
    while at < len(data):
        start = at + _LENGTH.size
        end = start + _LENGTH.unpack_from(data, at)[0] if start <= len(data) else -1
        if not start <= end <= len(data):
            raise BrokenProtocolError(f"{name} in {len(data)} bytes that are no BYTES tensor")
        values.append(data[start:end])
        at = end
    return values


Question: TypeAlias = "Generator[tuple[str, Any], Any, ModelInterface]"
"""Yields a method with its message, is sent the answer or the RpcError, returns the interface."""


def ask_interface(model: str) -> Question:
    """Return what a model takes and gives; the RpcError when the server does not know it.

    A server that keeps that to itself, but lives, is taken for one with TensorRT-LLM's model of
    text.
    """
    metadata = yield "ModelMetadata", service_pb2.ModelMetadataRequest(name=model)
    if isinstance(metadata, grpc.RpcError):
        if not _keeps_to_itself(metadata):
            raise metadata
        live = yield "ServerLive", service_pb2.ServerLiveRequest()
        if isinstance(live, grpc.RpcError):
            raise live
        return TEXT_MODEL
    config = yield "ModelConfig", service_pb2.ModelConfigRequest(name=model)
    is_known = not isinstance(config, grpc.RpcError)
    if not is_known and not _keeps_to_itself(config):
        raise config
    # Others than Triton leave the policy out.
    tells = is_known and config.config.HasField("model_transaction_policy")
    return ModelInterface.of_metadata(
        {each.name: (each.datatype, each.shape) for each in metadata.inputs},
        [each.name for each in metadata.outputs],
        required=[each.name for each in config.config.input if not each.optional]
        if is_known
        else (),
        is_decoupled=config.config.model_transaction_policy.decoupled if tells else None,
        is_triton=is_known or config.code() is not grpc.StatusCode.UNIMPLEMENTED,
    )


def _keeps_to_itself(error: Any) -> bool:
    """Say whether a service answers, but does not tell: it cannot, or an administrator forbids."""
    # Triton's word for a call without the header that it is restricted to.
    is_restricted = "restricted" in (error.details() or "")
    return error.code() is grpc.StatusCode.UNIMPLEMENTED or is_restricted
