"""Put load on a Triton server: so many streams at once, over gRPC, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Final

from minitron_trt.clients.grpc_api import GRPCInferenceServiceStub, grpc, service_pb2

DEADLINE_S: Final = 120  # of a request: a server that hangs is an error, not a benchmark


@dataclass(frozen=True, slots=True)
class Load:
    """What to ask: `requests` in all, `streams` at a time, of `tokens` each."""

    address: str
    model: str
    streams: int
    requests: int
    tokens: int
    prompt: str | None = None  # None: the yardsticks, which take a count
    time_output: str = ""  # output with the time of sending in ns, to measure how long it took


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came: wall time, responses, and the median and p99 time under way, in ms."""

    seconds: float
    responses: int
    delay_ms: float = 0.0
    slow_ms: float = 0.0


def put(load: Load) -> Outcome:
    """Run a load in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(asdict(load))],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return Outcome(**json.loads(done.stdout))


def _request(load: Load) -> Any:
    message = service_pb2.ModelInferRequest(model_name=load.model)

    def add(name: str, datatype: str, data: bytes) -> None:
        message.inputs.add(name=name, datatype=datatype, shape=(1, 1))
        message.raw_input_contents.append(data)

    tokens = load.tokens.to_bytes(4, "little")
    if load.prompt is None:
        add("count", "INT32", tokens)
    else:
        text = load.prompt.encode()
        add("text_input", "BYTES", len(text).to_bytes(4, "little") + text)
        add("max_tokens", "INT32", tokens)
        add("stream", "BOOL", b"\1")
        message.outputs.add(name="text_output")
    if load.time_output:
        message.outputs.add(name=load.time_output)
    return message


def _run(load: Load) -> Outcome:
    channel = grpc.insecure_channel(load.address)
    stub = GRPCInferenceServiceStub(channel)
    message = _request(load)
    delays: list[int] = []

    def ask(_: int) -> int:
        responses = 0
        for answer in stub.ModelStreamInfer(iter((message,)), timeout=DEADLINE_S):
            if answer.error_message:
                raise RuntimeError(answer.error_message)
            names = [output.name for output in answer.infer_response.outputs]
            responses += bool(names)
            if load.time_output in names:
                data = answer.infer_response.raw_output_contents[names.index(load.time_output)]
                # The server's processes read the same clock: Linux has one of the machine.
                delays.append(time.monotonic_ns() - int.from_bytes(data, "little"))
        return responses

    with ThreadPoolExecutor(load.streams) as threads:
        list(threads.map(ask, range(load.streams)))  # connections and caches
        delays.clear()
        start = time.monotonic()
        responses = sum(threads.map(ask, range(load.requests)))
        seconds = time.monotonic() - start
    channel.close()
    delays.sort()
    middle, late = (
        delays[int(len(delays) * share)] / 1e6 if delays else 0 for share in (0.5, 0.99)
    )
    return Outcome(seconds, responses, middle, late)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(_run(Load(**json.loads(sys.argv[1]))))))
