"""A gRPC service that answers as no server should: the prompt picks how."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from tests.patience import PATIENCE_S
from tritonclient.grpc.service_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

from minitron_trt.clients.grpc_api import grpc, service_pb2
from minitron_trt.clients.protocol_grpc import IS_FINAL, pack_bytes

Tensor = tuple[str, str, list[int], bytes]
HI: Final = pack_bytes(b"hi")
TEXT: Final[Tensor] = ("text_output", "BYTES", [1, 1], HI)


def response(*tensors: Tensor, final: bool | None = True, raw: bool = True, error: str = "") -> Any:
    message = service_pb2.ModelStreamInferResponse(error_message=error)
    infer = message.infer_response
    infer.model_name = "ensemble"
    for name, datatype, shape, data in tensors:
        infer.outputs.add(name=name, datatype=datatype, shape=shape)
        if raw:
            infer.raw_output_contents.append(data)
    if final is not None:
        infer.parameters[IS_FINAL].bool_param = final
    return message


def more_buffers() -> Any:
    message = response(TEXT)
    message.infer_response.raw_output_contents.append(pack_bytes(b"x"))
    return message


def typed() -> Any:
    message = response(TEXT, final=None, raw=False)
    message.infer_response.outputs[0].contents.bytes_contents.append(b"hi")
    return message


def forever() -> Iterator[Any]:
    while True:
        yield response(("text_output", "BYTES", [1, 1], pack_bytes(b"x " * 1000)), final=False)


def with_(name: str, datatype: str, data: bytes, shape: list[int] | None = None) -> list[Any]:
    return [response(TEXT, (name, datatype, shape or [1, 1], data))]


def lone(datatype: str, shape: list[int], data: bytes) -> list[Any]:
    return [response(("text_output", datatype, shape, data))]


CASES: Final[dict[str, Callable[[], Iterable[Any]]]] = {
    "good": lambda: [response(TEXT)],
    "wrong dtype": lambda: lone("FP32", [1, 1], b"\0\0\0\0"),
    "unknown dtype": lambda: lone("ZZZ", [1, 1], b"\1\0\0\0"),
    "wrong shape": lambda: lone("BYTES", [1, 5], HI),
    "negative shape": lambda: lone("BYTES", [-1, -1], HI),
    "huge shape": lambda: lone("BYTES", [2**40, 2**20], HI),
    "short raw": lambda: lone("BYTES", [1, 1], b"\xff\xff\xff\x7fab"),
    "empty raw": lambda: lone("BYTES", [1, 1], b""),
    "no raw": lambda: [response(TEXT, raw=False)],
    "3 bytes raw": lambda: lone("BYTES", [1, 1], b"abc"),
    "more raws": lambda: [more_buffers()],
    "no text": lambda: [response()],
    "bad utf8": lambda: lone("BYTES", [1, 1], pack_bytes(b"\xff\xfe\xc3")),
    "esc": lambda: lone("BYTES", [1, 1], pack_bytes(b"a\x1b]0;pwn\x07\x1b[2Jb")),
    "error esc": lambda: [response(error="bad\x1b[2J\nline2")],
    "never final": lambda: [response(TEXT, final=False)],
    "no final param": lambda: [response(TEXT, final=None)],
    "after final": lambda: [response(TEXT), response(TEXT)],
    "no responses": lambda: [],
    "endless": forever,
    "seq dtype": lambda: with_("sequence_index", "FP32", b"\0\0\xc0\x7f"),
    "seq bytes": lambda: with_("sequence_index", "BYTES", pack_bytes(b"q")),
    "seq empty": lambda: with_("sequence_index", "INT32", b"", [0]),
    "odd fp32": lambda: with_("output_log_probs", "FP32", b"\0\0\0"),
    "odd bf16": lambda: with_("x", "BF16", b"\0\0\0"),
    "reason int": lambda: with_("finish_reason", "INT32", b"\1\0\0\0"),
    "reason bad utf8": lambda: with_("finish_reason", "BYTES", pack_bytes(b"\xff")),
    "contents not raw": lambda: [typed()],
    "large": lambda: lone("BYTES", [1, 1], pack_bytes(b"y" * 2_000_000)),
}
CODES: Final = [code.name for code in grpc.StatusCode if code.name != "OK"]


class HostileGrpc(GRPCInferenceServiceServicer):  # type: ignore[misc]
    """The service; it has no metadata to tell."""

    def __init__(self) -> None:
        self.stopping = threading.Event()

    def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ServerLiveResponse(live=True)

    def ModelStreamInfer(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:  # noqa: N802
        case = next(requests).raw_input_contents[0][4:].decode()
        if case in CODES:
            context.abort(grpc.StatusCode[case], "det\x1b[31m\nails")
        if case == "exception":
            raise ValueError("boom")
        if case == "silent":
            self.stopping.wait(PATIENCE_S)
            return
        for message in CASES[case]():
            if not context.is_active():
                return
            yield message


@contextlib.contextmanager
def hostile_grpc() -> Iterator[str]:
    """Run the service and yield its URL."""
    options = [("grpc.max_send_message_length", -1)]
    server = grpc.server(ThreadPoolExecutor(150), options=options)
    service = HostileGrpc()
    add_GRPCInferenceServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"grpc://127.0.0.1:{port}"
    service.stopping.set()
    server.stop(0)
