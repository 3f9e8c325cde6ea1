"""How the models call and answer: around what Triton's Python stub cannot bear.

`triton_python_backend_utils` exists in Triton's stub only; here is a stand-in for the little of it
that is used.
"""

from __future__ import annotations

import importlib
import sys
import threading
import time
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from minitron_models.decode import Vocabulary
from minitron_models.stream import Stream
from tests.triton_repo.models.tokenizers_of_kinds import TOKENIZERS

TOKENIZER = TOKENIZERS["sample"]
WORDS: list[int] = TOKENIZER("the family of worlds", add_special_tokens=False)["input_ids"]
ONE = np.ones((1, 1), np.int32)


class Responses:
    """Stands in for the responses of a decoupled call."""

    def __init__(self, *responses: Any) -> None:
        self._responses = iter(responses)

    def __iter__(self) -> Iterator[Any]:
        return self._responses


class Named:
    """Stands in for a tensor."""

    def __init__(self, name: str, value: Any) -> None:
        self.name, self.value = name, value
        self.as_numpy = lambda: value


class Message:
    """Stands in for a response."""

    def __init__(self, tensors: Any = (), error: Any = None) -> None:
        self.names = [tensor.name for tensor in tensors]
        self.output_tensors = lambda: tensors
        self.error = lambda: error
        self.has_error = lambda: error is not None


class Failure:
    """Stands in for TritonError."""

    INTERNAL = 1

    def __init__(self, message: str, code: int) -> None:
        self.message, self.code = (lambda: message), (lambda: code)


class Request:
    """Stands in for a request of a client: one that asks for outputs, and its sender."""

    def __init__(self, *wanted: str, **inputs: Any) -> None:
        self.inputs = inputs
        self.requested_output_names = lambda: list(wanted)
        self.get_response_sender = lambda: self
        self.sent: list[tuple[Any, int]] = []
        self.cancelled = False

    def send(self, response: Any = None, flags: int = 0) -> None:
        failed = response is not None and response.has_error()
        said = response.error().message() if failed else response and response.names
        self.sent.append((said, flags))

    def is_cancelled(self) -> bool:
        return self.cancelled


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module under test, loaded over the stand-in."""
    stub: Any = types.ModuleType("triton_python_backend_utils")
    stub.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    stub.Tensor, stub.InferenceResponse, stub.TritonError = Named, Message, Failure
    stub.answers = []

    class Call:
        """Stands in for a request to another model."""

        def __init__(self, **asked: Any) -> None:
            self.asked = asked

        def exec(self, *, decoupled: bool = False) -> Any:
            if not decoupled:
                return stub.postprocessing(self.asked["inputs"][1].value)
            stub.answers[-1][1].append(self.asked["model_name"])
            return stub.answers[-1][0]

    stub.InferenceRequest = Call
    stub.get_input_tensor_by_name = lambda request, name: request.inputs.get(name)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", stub)
    for name in ("minitron_models.requests", "minitron_models.readers", "minitron_models.watch"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("minitron_models.requests")
    yield module
    for name in ("minitron_models.requests", "minitron_models.readers", "minitron_models.watch"):
        sys.modules.pop(name, None)


class Collecting:
    """Stands in for a sender: keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, bool]] = []
        self.cancelled = False

    def is_cancelled(self) -> bool:
        return self.cancelled

    def send(self, outputs: Any, *, last: bool = False) -> None:
        reason = outputs["finish_reason"].item().decode() if "finish_reason" in outputs else ""
        self.sent.append((outputs["text_output"].item().decode(), reason, last))

    def close(self) -> None:
        self.sent.append(("", "", True))


class Engine:
    """Stands in for TensorRT-LLM's own model, which knows no timeout and does not say its end."""

    def __init__(self, parts: Iterable[list[int]]) -> None:
        self.ended = threading.Event()
        self._parts = parts

    def end(self, _: str) -> None:
        self.ended.set()

    def is_left(self, asker: Any) -> bool:
        return bool(asker.is_cancelled())

    def generate(self, *_: Any) -> Iterator[dict[str, Any]]:
        for ids in self._parts:
            if self.ended.is_set():
                return
            counts = np.array([[len(ids)]], np.int32)
            tokens = np.array([[ids]], np.int32).reshape(1, 1, -1)
            yield {"output_ids": tokens, "sequence_length": counts}


@pytest.fixture
def relayed(requests: Any) -> Iterator[Callable[..., list[tuple[str, str, bool]]]]:
    """What tensorrt_llm_bls makes of an engine's responses: text, why it ended, whether last."""
    del requests
    relay = importlib.import_module("minitron_models.relay")

    def run(engine: Engine, sender: Collecting, timeout_us: int = 0) -> list[tuple[str, str, bool]]:
        asked = relay.Relayed(
            stream=Stream(names=(), max_tokens=10**6, streaming=True),
            inputs={},
            sequences=1,
            statistics=(),
            timeout_us=timeout_us,
            ours=False,
            accumulate=False,
        )
        vocabulary = Vocabulary(TOKENIZER, skip_special=True)
        relay.Relay(engine, relay.Watch(engine.end), vocabulary, asked, sender).run()
        return sender.sent

    yield run
    del sys.modules["minitron_models.relay"]


def test_a_response_without_ids_is_not_the_end_of_a_relayed_stream(relayed: Any) -> None:
    """TensorRT-LLM's own model may send one; its end is that no more responses come."""
    sent = relayed(Engine([WORDS[:3], [], WORDS[3:]]), Collecting())

    assert "".join(text for text, _, _ in sent) == "the family of worlds"
    assert [(reason, last) for _, reason, last in sent] == [
        ("", False),
        ("", False),
        ("stop", True),
    ]


def slowly(ids: list[int]) -> Iterator[list[int]]:
    """Yield ids for a minute."""
    for _ in range(6000):
        time.sleep(0.01)
        yield ids


def test_a_relayed_answer_ends_when_its_time_is_up(relayed: Any) -> None:
    engine = Engine(slowly(WORDS))
    sent = relayed(engine, Collecting(), timeout_us=100_000)

    assert engine.ended.is_set()
    assert [(reason, last) for _, reason, last in sent[-1:]] == [("timeout", True)]
    assert all(text for text, _, _ in sent[:-1])


def test_a_relayed_answer_ends_when_its_client_leaves(relayed: Any) -> None:
    engine, sender = Engine(slowly(WORDS)), Collecting()
    threading.Timer(0.1, lambda: setattr(sender, "cancelled", True)).start()
    sent = relayed(engine, sender)

    assert engine.ended.is_set()
    assert sent[-1] == ("", "", True)
    assert not any(reason for _, reason, _ in sent)


@pytest.fixture
def readers(requests: Any) -> Any:
    """The readers of a runtime, over the stand-in."""
    del requests
    return importlib.import_module("minitron_models.readers").Readers()


def answer_with(module: Any, *responses: Message) -> Responses:
    """Have the next call of tensorrt_llm give these responses."""
    found = Responses(*responses)
    module.pb_utils.answers.append((found, []))
    return found


def test_outputs_that_were_not_asked_for_never_reach_the_stub(requests: Any) -> None:
    request = Request("output_ids")
    sender = requests.Sender(request)

    sender.send({"output_ids": ONE, "sequence_length": ONE})
    sender.send({"sequence_length": ONE, "output_ids": ONE}, last=True)

    assert request.sent == [(["output_ids"], 0), (["output_ids"], 1)]


def test_a_request_ends_with_an_error_or_without_a_word(requests: Any) -> None:
    failed, closed = Request(), Request()

    requests.Sender(failed).fail("no", 3)
    requests.Sender(closed).close()

    assert (failed.sent, closed.sent) == ([("no", 1)], [(None, 1)])


def test_a_call_is_held_until_the_stub_has_answered_a_later_question(requests: Any) -> None:
    model, asker = requests.TokenModel(), Request()
    call = answer_with(requests, Message(), Message())
    before = sys.getrefcount(call)

    assert len(list(model.generate("id", ["output_ids"], 0, {"input_ids": ONE}))) == 2
    assert sys.getrefcount(call) == before + 1
    asker.cancelled = True  # the stub knows it, and does not ask the server again
    assert model.is_left(asker)
    assert sys.getrefcount(call) == before + 1
    asker.cancelled = False
    assert not model.is_left(asker)
    assert sys.getrefcount(call) == before


def test_what_tensorrt_llm_refuses_is_raised_with_its_code(requests: Any) -> None:
    model = requests.TokenModel()
    call = answer_with(requests, Message(error=Failure("too long", 3)), Message())
    before = sys.getrefcount(call)

    with pytest.raises(requests.ModelError, match="too long") as caught:
        list(model.generate("id", ["output_ids"], 0, {}))

    assert caught.value.code == 3
    assert sys.getrefcount(call) > before


def test_stopping_what_has_ended_by_itself_is_no_error(requests: Any) -> None:
    answer_with(requests, Message(error=Failure("there is no such request", 3)))

    requests.TokenModel().stop("id", 7)

    assert requests.pb_utils.answers[-1][1] == ["tensorrt_llm"]


def sender_of(readers: Any, stream_id: int) -> Any:
    """Return the sender of a request that carries a stream's id."""
    return readers.sender(Request(stream_id=Named("stream_id", np.array([[stream_id]], np.uint64))))


def test_a_stream_has_no_reader_once_its_responses_stop_arriving(
    readers: Any, requests: Any
) -> None:
    asked: list[list[int]] = []
    arrived = {1: 2, 2: 1, 3: -1, 4: 0}

    def postprocessing(stream_ids: Any) -> Message:
        asked.append(stream_ids[0].tolist())
        counts = np.array([[arrived[stream_id] for stream_id in asked[-1]]], np.int32)
        return Message([Named("WATCHED_RESPONSES", counts)])

    requests.pb_utils.postprocessing = postprocessing
    senders = {stream_id: sender_of(readers, stream_id) for stream_id in arrived}
    assert (readers.gone(), asked) == ([], [])
    for sender in senders.values():
        sender.send({})
        sender.send({})

    assert readers.gone() == [2, 4]
    senders[2].send({}, last=True)
    senders[4].fail("cancelled", 1)
    assert readers.gone() == []
    assert asked == [[1, 2, 3, 4], [1, 3]]


def test_without_postprocessing_nobody_is_missed_which_is_said_once(
    readers: Any, requests: Any
) -> None:
    logged: list[str] = []
    requests.pb_utils.Logger = types.SimpleNamespace(log_warn=logged.append)
    requests.pb_utils.postprocessing = lambda _: Message(error=Failure("no such model", 5))
    sender_of(readers, 1).send({})
    readers.sender(Request()).send({})

    assert (readers.gone(), readers.gone()) == ([], [])
    assert logged == ["cannot tell who reads the ensemble's streams: no such model"]
