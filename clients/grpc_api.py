"""The libraries that come without types, imported here and nowhere else.

Triton's protocol buffers and stubs are those of tritonclient. Its client classes are not used: each
has one stream at a time, and cancelling that ends every request on it.
"""

import grpc
from grpc import aio
from tritonclient.grpc import service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

__all__ = ["GRPCInferenceServiceStub", "aio", "grpc", "service_pb2"]
