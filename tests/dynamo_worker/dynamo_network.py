"""Dynamo's own frontend, workers and Tritons, in a network that a test made for them.

    python dynamo_network.py SCENARIO FOLDER

Run by `test_behind_dynamo.py` below `unshare`; prints what a scenario found as one JSON object.
FOLDER has the repository `solar`; `DYNAMO_PYTHON` has Dynamo's frontend.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Final

FRONTEND: Final = "http://127.0.0.1:8787"
PATIENCE_S: Final = 240.0
OURS: Final = (sys.executable, "-m", "minitron_trt")
PROMPT: Final = "Our solar system is"
LONG: Final[dict[str, Any]] = {
    "prompt": PROMPT,
    "max_tokens": 120,
    "min_tokens": 120,
    "temperature": 0,
}


class Network:
    """What runs, by name; the logs are in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repository = folder / "solar"
        self._stack = contextlib.ExitStack()

    def start(self, name: str, *argv: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a program whose output goes to a log of its name."""
        log = self._stack.enter_context((self.folder / f"{name}.log").open("wb"))
        process = subprocess.Popen(
            argv, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **environment}
        )
        self._stack.callback(end, process)
        return process

    def serve(self, number: int, *options: str) -> subprocess.Popen[bytes]:
        """Start Triton number so-and-so."""
        first = 8000 + 10 * number
        ports = (
            *("--http-port", str(first), "--grpc-port", str(first + 1)),
            *("--metrics-port", str(first + 2)),
        )
        argv = (*OURS, "serve", str(self.repository), *ports, "--timeout", "600", *options)
        return self.start(f"triton{number}", *argv)

    def work(self, number: int, *options: str, name: str = "") -> subprocess.Popen[bytes]:
        """Start the worker of a Triton."""
        url = f"grpc://127.0.0.1:{8001 + 10 * number}"
        argv = (*OURS, "dynamo-worker", str(self.repository), "--url", url, *options)
        port = str(9090 + number)
        return self.start(name or f"worker{number}", *argv, DYN_SYSTEM_PORT=port)

    def front(self, *options: str) -> subprocess.Popen[bytes]:
        """Start Dynamo's frontend, with which requests move to another worker."""
        argv = (os.environ["DYNAMO_PYTHON"], "-m", "dynamo.frontend", "--migration-limit", "3")
        return self.start(
            "frontend", *argv, "--http-host", "127.0.0.1", "--http-port", "8787", *options
        )

    def log(self, name: str) -> str:
        """Return what a program has said."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def close(self) -> None:
        """End all that runs."""
        self._stack.close()


def end(process: subprocess.Popen[bytes]) -> None:
    """End a program, in the end by force."""
    process.terminate()
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(condition)
        time.sleep(0.2)


def get(url: str) -> tuple[int, str]:
    """Return the status and body of a page, 0 where nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


def has_model() -> bool:
    """Say whether the frontend knows the model."""
    return '"solar"' in get(f"{FRONTEND}/v1/models")[1]


def is_healthy(number: int) -> bool:
    """Say whether a worker says that it is."""
    return get(f"http://127.0.0.1:{9090 + number}/health")[0] == 200


def events(path: str = "completions", **fields: Any) -> Generator[dict[str, Any], None, None]:
    """Yield a stream's events; leaving the iterator hangs up."""
    body = json.dumps({"model": "solar", "stream": True, **fields}).encode()
    request = urllib.request.Request(
        f"{FRONTEND}/v1/{path}", data=body, headers={"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
        for line in response:
            if line.startswith(b"data: {"):
                yield json.loads(line[6:])


def ask(path: str = "completions", **fields: Any) -> tuple[int, dict[str, Any]]:
    """Return the status and the whole answer."""
    body = json.dumps({"model": "solar", **fields}).encode()
    request = urllib.request.Request(
        f"{FRONTEND}/v1/{path}", data=body, headers={"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def text_of(answers: Any) -> str:
    """Return the text of events, in one."""
    return "".join(choice.get("text", "") for each in answers for choice in each.get("choices", ()))


def active(number: int) -> int:
    """Return how many sequences run on a Triton."""
    page = get(f"http://127.0.0.1:{8002 + 10 * number}/metrics")[1]
    found = re.search(r'nv_trt_llm_request_metrics\{[^}]*type="active"[^}]*\} (\d+)', page)
    return int(found[1]) if found else 0


def told_by_triton(prompt: str, max_tokens: int) -> str:
    """Return what a client of Triton's ensemble is answered."""
    argv = (*OURS, "generate", prompt, "--max-tokens", str(max_tokens), "--json")
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    text: str = json.loads(done.stdout)["text"]
    return text


def requests(network: Network) -> dict[str, Any]:
    """One Triton and worker: answers, refusals, a client that leaves, a drain."""
    network.serve(0)
    worker = network.work(0, "--chat-template", "llama", "--drain", "120")
    network.front()
    until(has_model)
    until(lambda: is_healthy(0))
    pieces = list(events(prompt=PROMPT, max_tokens=12, temperature=0))
    found: dict[str, Any] = {
        "streamed": text_of(pieces),
        "pieces": len(pieces),
        "of_triton": told_by_triton(PROMPT, 12),
        "stopped": ask(prompt=PROMPT, max_tokens=60, temperature=0, stop=["part"]),
        "ended": ask(prompt=PROMPT, max_tokens=300, temperature=0),
        "likeliest": ask(prompt=PROMPT, max_tokens=3, temperature=0, logprobs=1),
        "two": ask(prompt=PROMPT, max_tokens=3, n=2, seed=7),
        "chat": ask("chat/completions", messages=[{"role": "user", "content": "hi"}], max_tokens=3),
        "min_p": ask(prompt=PROMPT, max_tokens=3, min_p=0.5),
        "guided": ask(prompt=PROMPT, max_tokens=3, guided_json={"type": "object"}),
        "too_long": ask(prompt="moon " * 3000, max_tokens=3),
    }
    leaving = events(prompt=PROMPT, max_tokens=1900, min_tokens=1900, temperature=0)
    next(leaving)
    until(lambda: active(0) == 1)
    leaving.close()
    until(lambda: active(0) == 0)
    found["left"] = "cancelled"
    going = events(**LONG)
    first = next(going)
    worker.send_signal(signal.SIGTERM)
    found["drained"] = len(text_of([first, *going])) > 0
    found["worker"] = worker.wait(PATIENCE_S)
    found["gone"] = get(f"{FRONTEND}/v1/models")[1]
    elsewhere = ("--discovery-backend", "kubernetes")
    lost = network.start("lost", *OURS, "dynamo-worker", str(network.repository), *elsewhere)
    found["lost"] = lost.wait(PATIENCE_S)
    found["said"] = [line for line in network.log("lost").splitlines() if "error: " in line]
    return found


def killed(network: Network) -> dict[str, Any]:
    """Two Tritons and workers: one worker killed in mid-stream, then the other's Triton."""
    tritons = [network.serve(number) for number in range(2)]
    workers = [network.work(number) for number in range(2)]
    network.front()
    until(has_model)
    until(lambda: is_healthy(0) and is_healthy(1))
    found: dict[str, Any] = {
        "whole": text_of(events(**LONG)),
        "worker_killed": streamed_while(workers[0].kill),
    }
    until(lambda: active(0) == 0)
    workers[0].wait()
    network.work(0, name="worker0_again")
    until(lambda: is_healthy(0))
    # Its parent alone would have it drain.
    found["triton_killed"] = streamed_while(lambda: kill_children(tritons[1]))
    found["worker"] = workers[1].wait(PATIENCE_S)
    found["said"] = [line for line in network.log("worker1").splitlines() if "error: " in line]
    return found


def streamed_while(ends: Callable[[], object]) -> list[str]:
    """Return the texts of four streams, during which something ends; both Tritons have some."""
    streams: list[list[dict[str, Any]]] = [[] for _ in range(4)]
    threads = [
        threading.Thread(target=lambda each=each: each.extend(events(**LONG))) for each in streams
    ]
    for thread in threads:
        thread.start()
    until(lambda: active(0) and active(1))
    ends()
    for thread in threads:
        thread.join()
    return [text_of(each) for each in streams]


def kill_children(process: subprocess.Popen[bytes]) -> None:
    """Kill what a program has started itself."""
    for path in Path(f"/proc/{process.pid}/task").glob("*/children"):
        for pid in path.read_text().split():
            os.kill(int(pid), signal.SIGKILL)


def load(network: Network) -> dict[str, Any]:
    """A load behind two workers, of which one is killed in the middle."""
    for number in range(2):
        network.serve(number)
    workers = [network.work(number) for number in range(2)]
    network.front("--router-mode", os.environ.get("ROUTER_MODE", "round-robin"))
    until(has_model)
    until(lambda: is_healthy(0) and is_healthy(1))
    output = network.folder / "bench"
    count = os.environ.get("LOAD_REQUESTS", "40")
    argv = (
        *(*OURS, "bench", "--url", f"{FRONTEND}/v1", "--concurrency", "4"),
        *("--request-count", count, "--isl", "16", "--osl", "48", "--force-min-tokens"),
        *("--extra-inputs", "temperature:0", "-o", str(output)),
    )
    bench = network.start("bench", *argv)
    served = "dynamo_component_requests_total"
    until(lambda: total(served, 0) + total(served, 1) >= int(count) / 2)
    killed_at = time.time_ns()
    workers[0].kill()
    code = bench.wait(1200)
    lines = (output / "profile_export.jsonl").read_text().splitlines()
    page = get(f"{FRONTEND}/metrics")[1]
    return {
        "code": code,
        "killed_at_ns": killed_at,
        "records": [json.loads(each) for each in lines],
        "moved": re.findall(r"^dynamo_frontend_model_migration_total.*$", page, re.MULTILINE),
    }


def total(metric: str, number: int) -> float:
    """Return a counter of a worker's."""
    page = get(f"http://127.0.0.1:{9090 + number}/metrics")[1]
    return sum(float(value) for value in re.findall(rf"^{metric}\{{.*\}} (\S+)$", page, re.M))


def in_one(network: Network) -> dict[str, Any]:
    """`serve --frontend dynamo`: one command runs and ends both; the name is one as on the hub."""
    name = "example/solar"
    named = ("--frontend-options", f"--model-name {name}")
    server = network.serve(0, "--frontend", "dynamo", *named)
    network.front()
    until(lambda: name in get(f"{FRONTEND}/v1/models")[1])
    asked: dict[str, Any] = {"model": name, "prompt": PROMPT, "max_tokens": 3, "temperature": 0}
    found: dict[str, Any] = {"answered": ask(**asked)}
    until(lambda: "Dynamo" in network.log("triton0"))
    found["said"] = network.log("triton0")
    server.terminate()
    found["code"] = server.wait(PATIENCE_S)
    return found


def main() -> None:
    """Run a scenario in the network of this process."""
    subprocess.run(("ip", "link", "set", "lo", "up"), check=True)
    scenario, folder = sys.argv[1:]
    network = Network(Path(folder))
    scenarios = {"requests": requests, "killed": killed, "load": load, "in_one": in_one}
    try:
        sys.stdout.write(json.dumps(scenarios[scenario](network)))
    finally:
        network.close()


if __name__ == "__main__":
    main()
