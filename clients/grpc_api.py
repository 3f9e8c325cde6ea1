"""The libraries that come without types, imported here and nowhere else.

Triton's protocol buffers and stubs are those of tritonclient. Its client classes are not used: each
has one stream at a time, and cancelling that ends every request on it.
"""

from typing import Any

import grpc
import tritonclient.grpc.service_pb2
import tritonclient.grpc.service_pb2_grpc
from grpc import aio

__all__ = ["GRPCInferenceServiceStub", "aio", "grpc", "service_pb2"]

service_pb2: Any = tritonclient.grpc.service_pb2
GRPCInferenceServiceStub: Any = tritonclient.grpc.service_pb2_grpc.GRPCInferenceServiceStub
