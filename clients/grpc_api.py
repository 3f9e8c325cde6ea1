"""The libraries that come without types, imported here and nowhere else.

Triton's protocol buffers and stubs are those of tritonclient. Its client classes are not used: each
has one stream at a time, and cancelling that ends every request on it.
"""

from typing import Any

import grpc
import tritonclient.grpc.service_pb2
import tritonclient.grpc.service_pb2_grpc
from grpc import aio

__all__ = ["GRPCInferenceServiceStub", "aio", "grpc", "open_stub", "service_pb2"]

service_pb2: Any = tritonclient.grpc.service_pb2
GRPCInferenceServiceStub: Any = tritonclient.grpc.service_pb2_grpc.GRPCInferenceServiceStub


def open_stub(channel: Any) -> Any:
    """Return what calls Triton through a channel; ModelStreamInfer takes one request.

    On the wire that is a stream of requests that ends after the first. grpc takes a thread for each
    call with such a stream, and none for a call with one request.
    """
    stub = GRPCInferenceServiceStub(channel)
    stub.ModelStreamInfer = channel.unary_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        request_serializer=service_pb2.ModelInferRequest.SerializeToString,
        response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
    )
    return stub
