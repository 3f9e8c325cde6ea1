"""A model that counts slowly, and `minitron-trt serve` of it: what stops and cuts can be seen."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
from tests.patience import PATIENCE_S

from minitron_trt.triton_repo.serving.server_options import Endpoints, free_endpoints

CONFIG = """name: "ticker"
backend: "python"
max_batch_size: 0
input [ { name: "count" data_type: TYPE_INT32 dims: [1] } ]
output [ { name: "tick" data_type: TYPE_INT32 dims: [1] } ]
model_transaction_policy { decoupled: true }
instance_group [ { count: 1 kind: KIND_CPU } ]
"""
MODEL = """
import threading, time
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            count = int(pb.get_input_tensor_by_name(request, "count").as_numpy()[0])
            answer = (request.get_response_sender(), count)
            threading.Thread(target=self.tick, args=answer).start()

    def tick(self, sender, count):
        for number in range(count):
            tick = pb.Tensor("tick", np.array([number], np.int32))
            sender.send(pb.InferenceResponse([tick]))
            time.sleep(0.1)
        sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
END = "end"


def write_ticker(folder: Path, name: str = "ticker", **parameters: str) -> Path:
    """Write a repository as others would, with no manifest of ours, or add a model to it."""
    text = CONFIG.replace('"ticker"', f'"{name}"')
    for key, value in parameters.items():
        text += f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
    (folder / name / "1").mkdir(parents=True)
    (folder / name / "config.pbtxt").write_text(text)
    (folder / name / "1/model.py").write_text(MODEL)
    return folder


@contextlib.contextmanager
def serve(
    repository: Path, *options: str, environment: dict[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """Run `minitron-trt serve` as a person would, until it says that it is ready."""
    endpoints = free_endpoints()
    arguments = ["serve", str(repository), "--json", *ports(endpoints), *options]
    with subprocess.Popen(
        [sys.executable, "-m", "minitron_trt", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            record = json.loads(line)
            start = process.stderr.readline()
            assert start.startswith(f"starting tritonserver ({record['runner']}) with ")
            loaded = [process.stderr.readline() for _ in record["models"]]
            assert sorted(loaded) == [f"{name} is loaded\n" for name in sorted(record["models"])]
            yield process, record
        finally:
            process.kill()


def ports(endpoints: Endpoints) -> tuple[str, ...]:
    """Return the options of three ports."""
    return (
        f"--http-port={endpoints.http_port}",
        f"--grpc-port={endpoints.grpc_port}",
        f"--metrics-port={endpoints.metrics_port}",
    )


class Stream:
    """A request under way: `next` gives a tick, END, or the error that ended it."""

    def __init__(self, run: Callable[[Callable[[Any], None]], None]) -> None:
        self._items: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=run, args=(self._items.put,), daemon=True).start()

    def next(self, timeout_s: float = PATIENCE_S) -> Any:
        """Return the next item; queue.Empty when none comes."""
        return self._items.get(timeout=timeout_s)

    def rest(self) -> list[Any]:
        """Return what comes until the stream ends, its end included."""
        items = [self.next()]
        while isinstance(items[-1], int):
            items.append(self.next())
        return items


def stream(url: str, count: int) -> Stream:
    """Ask for ticks over the URL's protocol."""
    run = _run_grpc if url.startswith("grpc") else _run_http
    return Stream(lambda put: run(url, count, put))


def _run_grpc(url: str, count: int, put: Callable[[Any], None]) -> None:
    ended = threading.Event()

    def take(result: Any, error: Any) -> None:
        if error is not None:
            put(error)
            ended.set()
        elif result.get_response().parameters["triton_final_response"].bool_param:
            put(END)
            ended.set()
        else:
            put(int(result.as_numpy("tick")[0]))

    with grpc.InferenceServerClient(url.removeprefix("grpc://")) as client:
        client.start_stream(take)
        tensor = grpc.InferInput("count", [1], "INT32")
        tensor.set_data_from_numpy(np.array([count], np.int32))
        client.async_stream_infer("ticker", [tensor], enable_empty_final_response=True)
        ended.wait(PATIENCE_S)
        # Else the server waits for the next request on the stream.
        client.stop_stream()


def _events(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the objects of an event stream."""
    for line in lines:
        if line.strip():
            yield json.loads(line.removeprefix(b"data: "))


def _run_http(url: str, count: int, put: Callable[[Any], None]) -> None:
    body = json.dumps({"count": count}).encode()
    request = urllib.request.Request(f"{url}/v2/models/ticker/generate_stream", data=body)
    ticks = 0
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            for event in _events(answer):
                if "error" in event:
                    put(RuntimeError(event["error"]))
                    return
                put(int(event["tick"]))
                ticks += 1
    except OSError as error:
        put(error)
        return
    # An event stream has no length: Triton's own end cannot be told from a lost connection.
    put(END if ticks == count else ConnectionError(f"{ticks} of {count} ticks"))


def group_of(pid: int) -> list[int]:
    """Return the processes of a session that are alive."""
    return [found for found, fields in processes() if int(fields[3]) == pid]


def children() -> list[int]:
    """Return the processes that this one started and that are alive."""
    return [found for found, fields in processes() if int(fields[1]) == os.getpid()]


def processes() -> Iterator[tuple[int, list[str]]]:
    """Yield id and the fields after the name (state, parent, group, session) of what is alive."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[0] != "Z":
                    yield int(entry.name), fields


def wait_until_gone(pid: int, seconds: float = PATIENCE_S) -> list[int]:
    """Return what is left of a session after at most so many seconds."""
    deadline = time.monotonic() + seconds
    while (left := group_of(pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left
