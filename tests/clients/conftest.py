"""Doubles of Triton's two services: real servers on real ports, with scripted answers.

What they answer was read off a real tritonserver 2.51: the shape of errors, the closing response of
a gRPC stream, the status 400 on an event stream whose first event is an error.

The first word of a prompt picks the behaviour, see `script`.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, TypeAlias
from urllib.parse import unquote

import pytest
from tests.patience import PATIENCE_S
from tritonclient.grpc.service_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

from minitron_trt.clients.aio import AsyncClient
from minitron_trt.clients.client import Client
from minitron_trt.clients.grpc_api import grpc, service_pb2
from minitron_trt.clients.messages import RETURNED, TENSORS, GenerateRequest
from minitron_trt.clients.protocol_grpc import IS_FINAL, WANT_FINAL, pack_bytes

Ask: TypeAlias = Callable[..., list[str]]
Serve: TypeAlias = "Callable[..., contextlib.AbstractContextManager[TritonDouble]]"


MODELS: Final = ("ensemble", "tensorrt_llm_bls", "tensorrt_llm")


def unknown(model: str) -> str:
    """Return what Triton says of a model that it does not have."""
    return f"Request for unknown model: '{model}' is not found"


class RefusedByScriptError(Exception):
    """The script wants the server to answer with an error."""


class CutByScriptError(Exception):
    """The script wants the server to hang up."""


# The inputs that a double's model takes, with data types, as the text models declare them.
INPUTS: Final = {
    **TENSORS,
    "return_num_input_tokens": "BOOL",
    "return_num_output_tokens": "BOOL",
}


@dataclass
class ModelDouble:
    """What a double says of its model; `is_told` is how much of it: no config, or nothing."""

    inputs: dict[str, str] = field(default_factory=lambda: dict(INPUTS))
    outputs: tuple[str, ...] = ("text_output", "sequence_index", *sum(RETURNED.values(), ()))
    required: tuple[str, ...] = ("text_input", "max_tokens")
    decoupled: bool = True
    tells_config: bool = True
    tells_metadata: bool = True


@dataclass
class TritonDouble:
    """What a test may know about a double."""

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    connections: set[str] = field(default_factory=set)
    cancelled: threading.Event = field(default_factory=threading.Event)
    stopping: threading.Event = field(default_factory=threading.Event)
    ready: bool = True
    questions: int = 0
    busy: int = 0
    busy_reply: tuple[str, bytes] = ("application/json", b'{"error": "too many requests"}')
    headers: list[dict[str, str]] = field(default_factory=list)
    model: ModelDouble = field(default_factory=ModelDouble)

    def script(self, model: str, prompt: str) -> Iterator[str]:
        """Yield the pieces of an answer: `say` returns the rest of the prompt, word by word."""
        verb, _, rest = prompt.partition(" ")
        if model not in MODELS:
            raise RefusedByScriptError(unknown(model))
        if verb == "full" and self.busy:
            self.busy -= 1
            raise RefusedByScriptError("2 requests are waiting; try again later")
        if verb == "refuse":
            raise RefusedByScriptError(f"in ensemble 'ensemble', {rest}\nand a second line")
        words = re.findall(r"[^ ]+ ?", rest)
        yield from [""] if verb == "say" and not words else words
        if verb == "fail":
            raise RefusedByScriptError("broke midway")
        if verb == "cut":
            raise CutByScriptError
        if verb == "stall":
            self.stopping.wait(PATIENCE_S)
        while verb == "forever" and not self.stopping.is_set():
            yield "on and "
            time.sleep(0.005)


class GrpcDouble(GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Triton's gRPC service."""

    def __init__(self, double: TritonDouble) -> None:
        self._double = double

    def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ServerLiveResponse(live=True)

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        model = self._model(request.name, context, self._double.model.tells_metadata)
        reply = service_pb2.ModelMetadataResponse(name=request.name, platform="ensemble")
        for name, datatype in model.inputs.items():
            reply.inputs.add(name=name, datatype=datatype, shape=(-1, -1))
        for name in model.outputs:
            reply.outputs.add(name=name, datatype="BYTES", shape=(-1,))
        return reply

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        model = self._model(request.name, context, self._double.model.tells_config)
        reply = service_pb2.ModelConfigResponse()
        reply.config.model_transaction_policy.decoupled = model.decoupled
        for name in model.inputs:
            reply.config.input.add(name=name, optional=name not in model.required)
        return reply

    def _model(self, name: str, context: Any, is_told: bool) -> ModelDouble:
        self._double.questions += 1
        if not is_told:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not implemented!")
        if name not in MODELS:
            context.abort(grpc.StatusCode.NOT_FOUND, unknown(name))
        return self._double.model

    def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ServerReadyResponse(ready=self._double.ready)

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        record = _grpc_record(request)
        self._double.requests.append(record)
        try:
            pieces = list(self._double.script(request.model_name, record["text_input"]))
        except RefusedByScriptError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        # KServe's services send elements one by one, Triton's as bytes.
        response = service_pb2.ModelInferResponse(model_name=request.model_name, id=request.id)
        text = response.outputs.add(name="text_output", datatype="BYTES", shape=(1,))
        text.contents.bytes_contents.append("".join(pieces).encode())
        return response

    def ModelStreamInfer(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:  # noqa: N802
        complete = threading.Event()

        def note_cancellation() -> None:
            if not complete.is_set():
                self._double.cancelled.set()

        context.add_callback(note_cancellation)
        self._double.connections.add(context.peer())
        self._double.headers.append(dict(context.invocation_metadata()))
        for request in requests:
            yield from self._answer(request)
        complete.set()

    def _answer(self, request: Any) -> Iterator[Any]:
        record = _grpc_record(request)
        self._double.requests.append(record)
        if "input_ids" in record:
            yield _ids_response(request, record["input_ids"])
            return
        try:
            for text in self._double.script(request.model_name, record["text_input"]):
                yield _response(request, text)
        except RefusedByScriptError as error:
            yield service_pb2.ModelStreamInferResponse(error_message=str(error))
        except CutByScriptError:
            return
        if request.parameters[WANT_FINAL].bool_param:
            yield _response(request, None)


def _grpc_record(request: Any) -> dict[str, Any]:
    """Return a request as the JSON body that would say the same; numbers stay bytes."""
    record: dict[str, Any] = {"id": request.id, "model": request.model_name}
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        words = []
        while tensor.datatype == "BYTES" and raw:
            length = int.from_bytes(raw[:4], "little")
            words.append(raw[4 : 4 + length].decode())
            raw = raw[4 + length :]
        many = tensor.name.endswith("_words")
        record[tensor.name] = (words if many else words[0]) if words else raw
    return record


def _response(request: Any, text: str | None) -> Any:
    message = service_pb2.ModelStreamInferResponse()
    response = message.infer_response
    response.model_name, response.id = request.model_name, request.id
    response.parameters[IS_FINAL].bool_param = text is None
    if text is not None:
        response.outputs.add(name="text_output", datatype="BYTES", shape=(1,))
        response.raw_output_contents.append(pack_bytes(text.encode()))
    return message


def _ids_response(request: Any, ids: bytes) -> Any:
    """Return the ids of a request, with padding behind them."""
    message = _response(request, None)
    for name, data in (
        ("output_ids", ids + b"\2\0\0\0"),
        ("sequence_length", (len(ids) // 4).to_bytes(4, "little")),
    ):
        message.infer_response.outputs.add(name=name, datatype="INT32", shape=(1, 1))
        message.infer_response.raw_output_contents.append(data)
    return message


class HttpDouble(http.server.BaseHTTPRequestHandler):
    """Triton's HTTP service; events come in awkward splits."""

    protocol_version = "HTTP/1.1"
    double: TritonDouble

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Keep the tests' output clean."""

    def do_GET(self) -> None:
        self.double.connections.add(str(self.client_address))
        if self.path.startswith("/v2/models/"):
            self._tell(unquote(self.path.split("/")[3]), self.path.endswith("/config"))
            return
        if self.path == "/v2":
            self._send_json({"name": "triton"})
            return
        is_up = self.path == "/v2/health/live" or self.double.ready
        self._send(200 if is_up else 400, "text/plain", b"")

    def _tell(self, name: str, of_config: bool) -> None:
        model = self.double.model
        self.double.questions += 1
        if not (model.tells_config if of_config else model.tells_metadata):
            self._send(404, "text/html", b"<html>not here</html>")
        elif name not in MODELS:
            self._send(400, "application/json", _error(ValueError(unknown(name))))
        elif of_config:
            inputs = [
                {"name": name, "dims": [1], "optional": name not in model.required}
                for name in model.inputs
            ]
            policy = {"decoupled": model.decoupled}
            self._send_json({"name": name, "input": inputs, "model_transaction_policy": policy})
        else:
            inputs = [
                {"name": name, "datatype": datatype, "shape": [-1, -1]}
                for name, datatype in model.inputs.items()
            ]
            outputs = [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in model.outputs]
            self._send_json({"name": name, "inputs": inputs, "outputs": outputs})

    def _send_json(self, record: dict[str, Any]) -> None:
        self._send(200, "application/json", json.dumps(record).encode())

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        data = self.rfile.read(length)
        if len(data) < length:
            # The client left before it had asked.
            return
        body = json.loads(data)
        _, _, _, model, verb = self.path.split("/")
        model = unquote(model)
        if verb == "infer":
            self._infer(model, body)
            return
        self.double.requests.append({"model": model, **body})
        self.double.headers.append({name.lower(): value for name, value in self.headers.items()})
        if self.double.busy and not body.get("text_input", "").startswith("full"):
            self.double.busy -= 1
            self._send(503, *self.double.busy_reply)
            return
        if "input_ids" in body:
            ids = body["input_ids"]
            record = {"output_ids": [*ids, 2], "sequence_length": len(ids)}
            self._start_events(200)
            self._event(b"data: " + json.dumps(record).encode() + b"\n\n")
            self.wfile.write(b"0\r\n\r\n")
            return
        self.double.connections.add(str(self.client_address))
        pieces = self.double.script(model, body["text_input"])
        try:
            self._answer(pieces, verb)
        except (BrokenPipeError, ConnectionResetError):
            self.double.cancelled.set()
            self.close_connection = True
        except CutByScriptError:
            self.close_connection = True

    def _infer(self, model: str, body: dict[str, Any]) -> None:
        """Answer KServe's own call."""
        values = {each["name"]: each["data"][0] for each in body["inputs"]}
        assert all(each["shape"] == [1, 1] for each in body["inputs"])
        self.double.requests.append({"model": model, "id": body["id"], **values})
        try:
            text = "".join(self.double.script(model, values["text_input"]))
        except RefusedByScriptError as error:
            self._send(400, "application/json", _error(error))
            return
        output = {"name": "text_output", "datatype": "BYTES", "shape": [1], "data": [text]}
        self._send_json({"model_name": model, "outputs": [output]})

    def _answer(self, pieces: Iterator[str], verb: str) -> None:
        if verb == "generate":
            try:
                self._send(200, "application/json", _event("".join(pieces)))
            except RefusedByScriptError as error:
                self._send(400, "application/json", _error(error))
            return
        try:
            first = next(pieces, "")
        except RefusedByScriptError as error:
            if "unknown model" in str(error):
                self._send(404, "application/json", _error(error))
                return
            self._start_events(400)
            self._event(b"data: " + _error(error) + b"\n\n")
        else:
            self._start_events(200)
            # A comment, then two events in one write, the second one cut short.
            self._event(
                b": hello\n\n" + b"data: " + _event(first) + b"\n\nda", b'ta: {"text_output"'
            )
            self._event(b':""}\n\n')
            self._stream(pieces)
        self.wfile.write(b"0\r\n\r\n")

    def _stream(self, pieces: Iterator[str]) -> None:
        try:
            for text in pieces:
                data = b"data:" + _event(text) + b"\r\n\r\n"
                # Three bytes a write: every emoji is torn apart.
                self._event(*(data[at : at + 3] for at in range(0, len(data), 3)))
        except RefusedByScriptError as error:
            self._event(b"data: " + _error(error) + b"\n\n")

    def _start_events(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _event(self, *writes: bytes) -> None:
        for data in writes:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _event(text: str) -> bytes:
    record = {"model_name": "ensemble", "model_version": "1", "text_output": text}
    return json.dumps(record, ensure_ascii=False).encode()


def _error(error: Exception) -> bytes:
    return json.dumps({"error": str(error)}).encode()


class QuietServer(http.server.ThreadingHTTPServer):
    """An HTTP server whose threads do not outlive the test."""

    daemon_threads = True
    block_on_close = False
    disable_nagle_algorithm = True

    def __init__(self, port: int, handler: type[http.server.BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", port), handler)
        self._connections: list[socket.socket] = []

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self._connections.append(connection)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that left: its words would stand among the next test's."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def hang_up(self) -> None:
        """Close every connection, as the end of a process does."""
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def serve_grpc(port: int = 0) -> Iterator[TritonDouble]:
    """Run the double of Triton's gRPC service."""
    double = TritonDouble("")
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", -1)])
    add_GRPCInferenceServiceServicer_to_server(GrpcDouble(double), server)
    double.url = f"grpc://127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
    server.start()
    yield double
    double.stopping.set()
    server.stop(0).wait()


@contextlib.contextmanager
def serve_http(port: int = 0) -> Iterator[TritonDouble]:
    """Run the double of Triton's HTTP service."""
    double = TritonDouble("")
    handler = type("Handler", (HttpDouble,), {"double": double})
    with _serving(handler, port) as double.url:
        yield double
        double.stopping.set()


@contextlib.contextmanager
def _serving(handler: type[http.server.BaseHTTPRequestHandler], port: int = 0) -> Iterator[str]:
    with QuietServer(port, handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        server.hang_up()
        thread.join()


@pytest.fixture(params=[serve_grpc, serve_http], ids=["grpc", "http"])
def serve(request: pytest.FixtureRequest) -> Serve:
    """Each of the two doubles in turn, to be started on a port."""
    function: Serve = request.param
    return function


@pytest.fixture
def triton(serve: Serve) -> Iterator[TritonDouble]:
    """Each of the two doubles in turn, running."""
    with serve() as double:
        yield double


@pytest.fixture
def triton_grpc() -> Iterator[TritonDouble]:
    """The double of Triton's gRPC service, running."""
    with serve_grpc() as double:
        yield double


@pytest.fixture
def triton_http() -> Iterator[TritonDouble]:
    """The double of Triton's HTTP service, running."""
    with serve_http() as double:
        yield double


@pytest.fixture
def kserve(triton: TritonDouble) -> TritonDouble:
    """Each of the two doubles as a service that has KServe's own calls only."""
    triton.model.tells_config = False
    triton.model.inputs = {"text_input": "BYTES", "stream": "BOOL"}
    triton.model.outputs = ("text_output",)
    return triton


def ask_sync(url: str, request: GenerateRequest, **settings: Any) -> list[str]:
    """Return the pieces of an answer through Client."""
    with Client.connect(url, **settings) as client, client.stream(request) as texts:
        return [text.text for text in texts]


def ask_async(url: str, request: GenerateRequest, **settings: Any) -> list[str]:
    """Return the pieces of an answer through AsyncClient."""

    async def ask() -> list[str]:
        async with AsyncClient.connect(url, **settings) as client, client.stream(request) as texts:
            return [text.text async for text in texts]

    return asyncio.run(ask())


@pytest.fixture(params=[ask_sync, ask_async], ids=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Each of the two clients in turn."""
    function: Ask = request.param
    return function


class WebSite(http.server.BaseHTTPRequestHandler):
    """A web server that has nothing to do with Triton."""

    paths: ClassVar[set[str]] = set()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Keep the tests' output clean."""

    def do_GET(self) -> None:
        self.paths.add(self.path)
        body = b"<html>not here</html>"
        self.send_response(404)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def web_port() -> Iterator[int]:
    """The port of a web server that is not Triton."""
    with _serving(WebSite) as url:
        yield int(url.rpartition(":")[2])


@pytest.fixture
def closed_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield int(listener.getsockname()[1])


@pytest.fixture
def other_grpc_port() -> Iterator[int]:
    """The port of a gRPC server that is not Triton."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(0).wait()
