"""Requests that no client should send: each is answered or refused, and the server stays up."""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.triton_repo.conftest import Served

from minitron_trt.clients.client import Client
from minitron_trt.clients.grpc_api import GRPCInferenceServiceStub, grpc, service_pb2
from minitron_trt.clients.messages import GenerateRequest
from minitron_trt.triton_repo.contract.runtime_tensors import tensorrt_llm
from minitron_trt.triton_repo.contract.tensors import (
    POSTPROCESSING_TENSORS,
    PREPROCESSING_TENSORS,
    ElementTypes,
    Tensor,
    bls_model,
    text_model,
)

# One sample: what is looked at here does not depend on the model.
pytestmark = [
    pytest.mark.server,
    pytest.mark.parametrize("served", ["solar-llama"], indirect=True, scope="session"),
]

TYPES: Final = ElementTypes()
MODELS: Final = {
    "ensemble": text_model(TYPES),
    "tensorrt_llm_bls": bls_model(TYPES),
    "tensorrt_llm": tensorrt_llm(TYPES, reports_streams=True),
    "preprocessing": PREPROCESSING_TENSORS,
    "postprocessing": POSTPROCESSING_TENSORS,
}
# An optional input of each model that sees its own requests.
BESIDE: Final = {
    "tensorrt_llm_bls": {"temperature": ("FP32", [1, 1], b"\0\0\x80?")},
    "tensorrt_llm": {"temperature": ("FP32", [1, 1], b"\0\0\x80?")},
    "preprocessing": {"END_ID": ("INT32", [1, 1], b"\0" * 4)},
    "postprocessing": {"SEQUENCE_INDEX": ("INT32", [1, 1], b"\0" * 4)},
}
SIZES: Final = {
    **{"BOOL": 1, "UINT8": 1, "FP16": 2, "INT32": 4, "FP32": 4, "INT64": 8, "UINT64": 8},
}
WRONG_TYPE: Final = {"INT32": "FP32", "FP32": "INT64", "BYTES": "INT32"}
PLAIN: Final[dict[str, Any]] = {
    "text_input": b"Hello",
    "QUERY": b"Hello",
    "max_tokens": 2,
    "REQUEST_OUTPUT_LEN": 2,
    "request_output_len": 2,
    "input_lengths": 1,
    "input_ids": 5,
    "TOKENS_BATCH": 5,
    "SEQUENCE_LENGTH": 1,
}
ANSWER_S: Final = 30  # a hang, not a limit of speed


def datatype(tensor: Tensor) -> str:
    """Return the protocol's name of a tensor's type."""
    return "BYTES" if tensor.type == "STRING" else tensor.type


def pack(value: Any) -> bytes:
    """Return an element in the protocol's form."""
    if isinstance(value, bytes):
        return len(value).to_bytes(4, "little") + value
    return struct.pack("<i", value)


def plain(model: str) -> dict[str, tuple[str, list[int], bytes]]:
    """Return the inputs of a request that is in order."""
    inputs = {}
    for tensor in MODELS[model].inputs:
        if not tensor.optional or tensor.name == "input_ids":
            shape = [1, *(1 for _ in tensor.dims)]
            inputs[tensor.name] = (datatype(tensor), shape, pack(PLAIN[tensor.name]))
    return inputs


def mutations(tensor: Tensor) -> Iterator[tuple[str, list[int], bytes]]:
    """Yield wrong and extreme forms of one input: type, shape, bytes."""
    kind = datatype(tensor)
    shape = [1, *(1 for _ in tensor.dims)]
    size = SIZES.get(kind, 0)
    garbage = random.Random(tensor.name).randbytes(4096)
    one = pack(b"\xff\xfe") if kind == "BYTES" else b"\xff" * size
    yield WRONG_TYPE.get(kind, "INT32"), shape, pack(1)
    yield kind, [1, 0], b""
    yield kind, [2, *shape[1:]], one * 2
    yield kind, [*shape, 1, 1], one
    yield kind, shape, one
    yield kind, shape, b"\xff"
    yield kind, [1, 2**31], one
    if kind == "BYTES":
        yield kind, shape, pack(garbage)
        yield kind, shape, b"\xff\xff\xff\x7f"
        yield kind, shape, pack(b"")
        return
    yield kind, shape, b"\0" * size
    yield kind, shape, b"\xff" * (size - 1) + b"\x7f"
    count = len(garbage) // size
    many = [1, 2, count // 2] if len(tensor.dims) == 2 else [1, count]
    yield kind, many, garbage
    if kind == "FP32":
        for number in (float("nan"), float("inf"), -1.0, 1e38, 1e-45):
            yield kind, shape, struct.pack("<f", number)


def ask(stub: Any, model: str, inputs: dict[str, tuple[str, list[int], bytes]]) -> str:
    """Send a request; return the error, or nothing when there was none. Fails on a hang."""
    message = service_pb2.ModelInferRequest(model_name=model)
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    for name, (kind, shape, data) in inputs.items():
        message.inputs.add(name=name, datatype=kind, shape=shape)
        message.raw_input_contents.append(data)
    try:
        for answer in stub.ModelStreamInfer(iter((message,)), timeout=ANSWER_S):
            if answer.error_message:
                return str(answer.error_message)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            pytest.fail(f"{model} hangs on {inputs}")
        return str(error.details())
    return ""


@pytest.fixture(scope="module")
def stub(served: Served) -> Iterator[Any]:
    """The gRPC service."""
    with grpc.insecure_channel(served.endpoints.grpc_url.removeprefix("grpc://")) as channel:
        yield GRPCInferenceServiceStub(channel)


def processes(group: int) -> set[str]:
    """Return the processes of a server: one per model beside its own."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == group:
            found.add(stat.parent.name)
    return found


@contextlib.contextmanager
def staying_up(url: str, pid: int) -> Iterator[None]:
    """Fail unless the server afterwards answers as before, from the same processes."""
    request = GenerateRequest("Hello", max_tokens=8, stream=False)
    with Client.connect(url, timeout_s=ANSWER_S) as client:
        text, group = client.generate(request), processes(pid)
        yield
        assert client.ready()
        assert client.generate(request) == text
    assert processes(pid) == group


@pytest.fixture
def unharmed(served: Served) -> Iterator[None]:
    """Fail unless the server then answers as before, from the same processes."""
    with staying_up(served.endpoints.grpc_url, served.pid):
        yield


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("model", MODELS)
def test_every_input_may_be_wrong_in_every_way(stub: Any, model: str) -> None:
    """Most are refused; what is legal is answered. None hangs or brings a model down."""
    assert ask(stub, model, plain(model)) == ""
    refused = 0
    for tensor in MODELS[model].inputs:
        for mutation in mutations(tensor):
            refused += bool(ask(stub, model, {**plain(model), tensor.name: mutation}))

    assert refused > 3 * len(MODELS[model].inputs)


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("model", MODELS)
def test_a_missing_input_is_named(stub: Any, model: str) -> None:
    for name in plain(model):
        if name != "input_ids":
            inputs = {other: value for other, value in plain(model).items() if other != name}
            assert name in ask(stub, model, inputs)


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("model", sorted(BESIDE))
def test_a_missing_input_is_named_beside_an_optional_one(stub: Any, model: str) -> None:
    """Triton counts inputs before it looks at their names, so that the model itself has to look."""
    for name in plain(model):
        if name != "input_ids":
            inputs = {other: value for other, value in plain(model).items() if other != name}
            said = ask(stub, model, {**inputs, **BESIDE[model]})
            assert f"{name} " in said
            assert "Traceback" not in said


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("model", MODELS)
def test_an_unknown_input_is_named(stub: Any, model: str) -> None:
    inputs = {**plain(model), "temprature": ("FP32", [1, 1], b"\0" * 4)}

    assert "temprature" in ask(stub, model, inputs)


def test_text_of_any_kind_is_answered(served: Served) -> None:
    with Client.connect(served.endpoints.grpc_url) as client:
        fuzz_text(client)


def fuzz_text(client: Client) -> None:
    """Ask for the continuation of any text with any words, one request after another."""
    words = st.lists(st.text(max_size=8), max_size=3)

    @settings(max_examples=60, suppress_health_check=list(HealthCheck))
    @given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40), words, words)
    def check(text: str, stop_words: list[str], bad_words: list[str]) -> None:
        request = GenerateRequest(
            text, max_tokens=4, stop_words=stop_words, bad_words=bad_words, seed=1, temperature=2.0
        )
        answer = client.generate(request)
        assert not any(word in answer for word in stop_words if word)

    call: Callable[[], None] = check
    call()
