"""HTTP requests that no client should send: each gets an answer or words, and no server ends.

Triton itself parses the JSON and says 500 where it does not like it; TRITONS_OWN lists its words.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.triton_repo.conftest import Served
from tests.triton_repo.test_fuzz import ANSWER_S, MODELS, datatype, plain, staying_up

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving.runners import running_server
from minitron_trt.triton_repo.serving.server_options import Endpoints, ServerOptions, free_endpoints
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

pytestmark = pytest.mark.server
# One sample: what is looked at here does not depend on the model.
ONE_SAMPLE = pytest.mark.parametrize("served", ["solar-llama"], indirect=True, scope="session")
VERBS = pytest.mark.parametrize("verb", ["generate", "generate_stream"])

TEXT: Final[Mapping[str, Any]] = {"text_input": "Hello", "max_tokens": 2}
BODIES: Final[Mapping[str, Mapping[str, Any]]] = {
    "ensemble": TEXT,
    "tensorrt_llm_bls": TEXT,
    "tensorrt_llm": {"input_ids": [5], "input_lengths": 1, "request_output_len": 2},
}
EVERY_MODEL = pytest.mark.parametrize("model", BODIES)
TRITONS_OWN: Final = (
    "failed to parse the request JSON buffer",
    "attempt to get members for non-object",
    "Unable to parse ",
    "Expected JSON object for keyword",
    "parameter key ",  # that holds a zero byte
)
"""How the errors begin for which Triton's own parser answers 500 instead of 400."""

NO_OBJECTS: Final = (
    *(b"", b"{", b"nonsense", b"\xff\xfe\x00", b"[1]", b"3", b"null", b'"text"', b"true"),
    *(b"[" * 20_000 + b"]" * 20_000, b"[" * 20_000, b'{"id": "' * 1000),
    *(b'{"id": "\xff"', b'{"id": "\\ud800"}', b'{"id": "x"} and more', b"{'id': 'x'}"),
)
WRONG: Final[Mapping[str, tuple[Any, ...]]] = {
    "BYTES": (3, 1.5, True, None, {}, [3], [None], ["x", 1], [["x"], 1]),
    "BOOL": ("true", 1, 0.0, None, {}, [2], [None]),
    "FP32": ("1.0", True, None, {}, ["x"], [None], [[], 1.0]),
    "INT32": ("3", 1.5, True, None, {}, ["x"], 2**64, -(2**64), 10**30, math.nan, math.inf),
}
"""By datatype: what Triton does not take for an element."""


class Reply(NamedTuple):
    """What a server answered."""

    status: int
    records: list[dict[str, Any]]

    @property
    def error(self) -> str:
        """Return the words of a refusal, or nothing."""
        return str(self.records[-1].get("error", "")) if self.records else ""


def post(
    endpoints: Endpoints, path: str, body: bytes, headers: Mapping[str, str] | None = None
) -> Reply:
    """Send a body; an error of the socket's when the server hangs or drops it."""
    connection = http.client.HTTPConnection("127.0.0.1", endpoints.http_port, timeout=ANSWER_S)
    with contextlib.closing(connection):
        connection.request("POST", f"/v2/models/{path}", body, dict(headers or {}))
        with connection.getresponse() as response:
            # An error may repeat bytes of the request that are no text.
            text = response.read().decode(errors="replace")
    lines = (line.removeprefix("data: ") for line in text.split("\n\n"))
    return Reply(response.status, [json.loads(line) for line in lines if line])


def is_refused(reply: Reply) -> bool:
    """Say whether the server gave an error of the client's, with words."""
    tritons = reply.status == 500 and reply.error.startswith(TRITONS_OWN)
    return bool(reply.error) and (400 <= reply.status < 500 or tritons)


def is_answered(reply: Reply) -> bool:
    """Say whether a request to generate was answered."""
    texts = (record.get("text_output", record.get("output_ids")) for record in reply.records)
    return reply.status == 200 and bool(reply.records) and None not in texts


def ask(endpoints: Endpoints, model: str, verb: str, body: Any) -> Reply:
    """Post a value as JSON."""
    return post(endpoints, f"{model}/{verb}", json.dumps(body).encode())


@pytest.fixture
def unharmed(served: Served) -> Iterator[None]:
    """Fail unless the server then answers as before, from the same processes."""
    with staying_up(served.endpoints.grpc_url, served.pid):
        yield


@ONE_SAMPLE
@VERBS
@EVERY_MODEL
@pytest.mark.usefixtures("unharmed")
def test_a_body_that_is_no_object_is_refused(served: Served, model: str, verb: str) -> None:
    for body in NO_OBJECTS:
        reply = post(served.endpoints, f"{model}/{verb}", body)

        assert is_refused(reply), (body[:40], reply)


@ONE_SAMPLE
@VERBS
@EVERY_MODEL
@pytest.mark.usefixtures("unharmed")
def test_an_input_of_another_type_is_refused(served: Served, model: str, verb: str) -> None:
    for tensor in MODELS[model].inputs:
        for value in WRONG.get(datatype(tensor), WRONG["INT32"]):
            reply = ask(served.endpoints, model, verb, {**BODIES[model], tensor.name: value})

            assert is_refused(reply), (tensor.name, value, reply)


@ONE_SAMPLE
@EVERY_MODEL
@pytest.mark.usefixtures("unharmed")
def test_an_input_of_another_shape_is_answered_or_refused(served: Served, model: str) -> None:
    for tensor in MODELS[model].inputs:
        one = {"BYTES": "x", "BOOL": False, "FP32": 0.5}.get(datatype(tensor), 1)
        shapes: tuple[Any, ...] = (
            [one, one],
            [[one, one]],
            [[one], [one]],
            [[[one]]],
            [one] * 5000,
        )
        for value in (*shapes, [], [[]]):
            body = {**BODIES[model], tensor.name: value}
            reply = ask(served.endpoints, model, "generate_stream", body)

            assert is_refused(reply) or is_answered(reply), (tensor.name, str(value)[:40], reply)


@ONE_SAMPLE
@VERBS
@EVERY_MODEL
@pytest.mark.usefixtures("unharmed")
def test_numbers_out_of_range_are_refused(served: Served, model: str, verb: str) -> None:
    """Triton keeps the low 32 bits of a number; 2**31 arrives as the lowest one."""
    whole = [name for name, value in BODIES[model].items() if not isinstance(value, str)]
    for name in whole:
        for value in (-1, 0, -(2**31), 2**31, 2**63 - 1):
            if (name, value) != ("input_ids", 0):
                body = {**BODIES[model], name: value}
                assert is_refused(ask(served.endpoints, model, verb, body)), (name, value)
    for number in (-1.0, math.nan, math.inf, -math.inf, 1e300):
        reply = ask(served.endpoints, model, verb, {**BODIES[model], "temperature": number})

        assert reply.status == 400
        assert reply.error.rpartition("'ensemble', ")[2].startswith("temperature is ")


@ONE_SAMPLE
@VERBS
@EVERY_MODEL
@pytest.mark.usefixtures("unharmed")
def test_a_missing_input_is_named(served: Served, model: str, verb: str) -> None:
    required = [tensor.name for tensor in MODELS[model].inputs if not tensor.optional]
    for name in required:
        body = {key: value for key, value in BODIES[model].items() if key != name}
        reply = ask(served.endpoints, model, verb, body)

        assert reply.status == 400
        assert name in reply.error


@ONE_SAMPLE
@VERBS
@pytest.mark.parametrize("name", TEXT)
@pytest.mark.usefixtures("unharmed")
def test_a_missing_input_beside_an_optional_one_gets_no_text(
    served: Served, name: str, verb: str
) -> None:
    """Triton counts the inputs before it looks at names, and its ensembles then end in silence."""
    body = {**TEXT, "temperature": 1.0}
    del body[name]
    named = ask(served.endpoints, "tensorrt_llm_bls", verb, body)
    silent = ask(served.endpoints, "ensemble", verb, body)

    assert (named.status, name in named.error) == (400, True)
    assert is_told_to_stream(silent) if verb == "generate" else silent == Reply(200, [])


@ONE_SAMPLE
@VERBS
@EVERY_MODEL
@pytest.mark.usefixtures("unharmed")
def test_an_unknown_input_is_a_parameter_or_is_named(served: Served, model: str, verb: str) -> None:
    """Triton makes parameters of them, which may be numbers, words, and true or false."""
    for scalar in (1, 1.5, "warm", True):
        body = {**BODIES[model], "temprature": scalar}
        assert is_answered(ask(served.endpoints, model, verb, body))
    for other in (None, [1], {"a": 1}):
        reply = ask(served.endpoints, model, verb, {**BODIES[model], "temprature": other})

        assert reply.status == 400
        assert "'temprature' has invalid type" in reply.error


def is_told_to_stream(reply: Reply) -> bool:
    """Say whether `generate` refused what is not one response, for which Triton's status is 200."""
    return reply.status == 200 and reply.error.startswith("generate expects model to produce")


@ONE_SAMPLE
@EVERY_MODEL
@pytest.mark.usefixtures("unharmed")
def test_any_json_is_answered_or_refused(served: Served, model: str) -> None:
    fuzz_json(served.endpoints, model)


def fuzz_json(endpoints: Endpoints, model: str) -> None:
    """Put any values into any fields of a request that is in order."""
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
    values = st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=6,
    )
    # `stop` ends a request, and is answered with nothing.
    names = sorted({tensor.name for tensor in MODELS[model].inputs} - {"stop"})
    fields = st.dictionaries(st.sampled_from([*names, "id"]) | st.text(max_size=5), values)

    @settings(max_examples=80, suppress_health_check=list(HealthCheck))
    @given(fields, st.sampled_from(["generate", "generate_stream"]))
    def check(given_fields: dict[str, Any], verb: str) -> None:
        reply = ask(endpoints, model, verb, {**BODIES[model], **given_fields})
        assert is_refused(reply) or is_answered(reply) or is_told_to_stream(reply), reply

    call: Callable[[], None] = check
    call()


@ONE_SAMPLE
@EVERY_MODEL
@pytest.mark.usefixtures("unharmed")
def test_a_damaged_body_is_answered_or_refused(served: Served, model: str) -> None:
    fuzz_bytes(served.endpoints, model)


def fuzz_bytes(endpoints: Endpoints, model: str) -> None:
    """Overwrite a part of a request that is in order with any bytes."""
    whole = json.dumps(BODIES[model]).encode()
    places = st.integers(0, len(whole))

    @settings(max_examples=80, suppress_health_check=list(HealthCheck))
    @given(places, places, st.binary(max_size=12))
    def check(start: int, end: int, damage: bytes) -> None:
        reply = post(endpoints, f"{model}/generate", whole[:start] + damage + whole[end:])
        assert is_refused(reply) or is_answered(reply), reply

    call: Callable[[], None] = check
    call()


INFER_MODELS: Final = (*BODIES, "preprocessing")
SIZES: Final[tuple[Any, ...]] = (
    *(0, 1, 3, 100, 2**31, 2**32, 2**63, 2**64 - 1, 2**64, 10**30),
    *(-1, -(2**63), "9", "", 1.5, True, [9], {}),
)
LENGTHS: Final[tuple[Callable[[int], object], ...]] = (
    *(lambda length: length - 1, lambda length: length + 1, lambda length: -length),
    *(lambda length: 0, lambda length: 1, lambda length: 2**31, lambda length: 2**64),
    *(lambda length: "", lambda length: "many", lambda length: "0x10", lambda length: 10**30),
)
"""From the length of the JSON, the one that a request claims."""


def infer(
    endpoints: Endpoints,
    model: str,
    claim: Callable[[int], object] = lambda length: length,
    rest: bytes = b"",
    **parameters: Any,
) -> Reply:
    """Send tensors as bytes behind the JSON, with the first one's parameters changed."""
    tensors = plain(model)
    inputs: list[dict[str, Any]] = [
        {
            "name": name,
            "datatype": kind,
            "shape": shape,
            "parameters": {"binary_data_size": len(data)},
        }
        for name, (kind, shape, data) in tensors.items()
    ]
    inputs[0]["parameters"].update(parameters)
    header = json.dumps({"inputs": inputs}).encode()
    body = header + b"".join(data for _, _, data in tensors.values()) + rest
    headers = {"Inference-Header-Content-Length": str(claim(len(header)))}
    return post(endpoints, f"{model}/infer", body, headers)


@pytest.fixture(scope="module")
def single(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoints]:
    """A server whose models send one response, which is what `infer` is for."""
    repository = tmp_path_factory.mktemp("single") / "repository"
    emit_repository(checkpoint.folder, repository, ServingRecipe(max_batch_size=4, decoupled=False))
    with (
        running_server(
            repository, ServerOptions(free_endpoints(), drain_s=3), timeout_s=300
        ) as server,
        staying_up(server.endpoints.grpc_url, server.pid),
    ):
        yield server.endpoints


@pytest.mark.parametrize("model", INFER_MODELS)
def test_a_length_or_size_that_lies_is_refused(single: Endpoints, model: str) -> None:
    assert infer(single, model).status == 200
    for claim in LENGTHS:
        assert is_refused(infer(single, model, claim)), claim(1000)
    for size in SIZES:
        assert is_refused(infer(single, model, binary_data_size=size)), size
    assert is_refused(infer(single, model, rest=b"more"))
    assert infer(single, model).status == 200


@ONE_SAMPLE
@EVERY_MODEL
@pytest.mark.usefixtures("unharmed")
def test_infer_is_refused_by_models_that_stream(served: Served, model: str) -> None:
    """Triton's own limit, and its own status, whatever the body says of itself."""
    for claim in (lambda length: length, *LENGTHS):
        reply = infer(served.endpoints, model, claim)

        assert reply.status == 501
        assert "decoupled" in reply.error


@ONE_SAMPLE
@EVERY_MODEL
@pytest.mark.usefixtures("unharmed")
def test_a_length_that_lies_does_not_harm_generate(served: Served, model: str) -> None:
    body = json.dumps(BODIES[model]).encode()
    for claim in LENGTHS:
        headers = {"Inference-Header-Content-Length": str(claim(len(body)))}
        reply = post(served.endpoints, f"{model}/generate", body, headers)

        assert is_refused(reply) or is_answered(reply), (claim(1000), reply)
