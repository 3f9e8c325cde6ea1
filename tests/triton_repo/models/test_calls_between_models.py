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
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from minitron_models.open_streams import OpenStream
from minitron_models.token_texts import TokenTexts
from tests.triton_repo.models.tokenizers_of_kinds import TOKENIZERS

TOKENIZER = TOKENIZERS["sample"]
WORDS: list[int] = TOKENIZER("the family of worlds", add_special_tokens=False)["input_ids"]
ONE = np.ones((1, 1), np.int32)
OVER_THE_STUB = tuple(
    f"minitron_models.{name}"
    for name in ("triton_io", "model_calls", "stream_readers", "client_watch", "bls_relay")
)
"""Modules that take Triton's own by its name when they are imported."""


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
def stub(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stand-in, over which the modules under test are loaded."""
    stub: Any = types.ModuleType("triton_python_backend_utils")
    stub.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    stub.Tensor, stub.InferenceResponse, stub.TritonError = Named, Message, Failure
    stub.answers = []

    class Call:
        """Stands in for a request to another model."""

        def __init__(self, **options: Any) -> None:
            self.options = options

        def exec(self, *, decoupled: bool = False) -> Any:
            if not decoupled:
                return stub.postprocessing(self.options["inputs"][1].value)
            stub.answers[-1][1].append(self.options["model_name"])
            return stub.answers[-1][0]

    stub.InferenceRequest = Call
    stub.get_input_tensor_by_name = lambda request, name: request.inputs.get(name)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", stub)
    for name in OVER_THE_STUB:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield stub
    for name in OVER_THE_STUB:
        sys.modules.pop(name, None)


@pytest.fixture
def triton_io(stub: Any) -> Any:
    """How requests are read and answered, over the stand-in."""
    del stub
    return importlib.import_module("minitron_models.triton_io")


@pytest.fixture
def model_calls(stub: Any) -> Any:
    """How other models are called, over the stand-in."""
    del stub
    return importlib.import_module("minitron_models.model_calls")


class Collecting:
    """Stands in for a sender: keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, bool]] = []
        self.cancelled = False

    def is_cancelled(self) -> bool:
        return self.cancelled

    def send(self, outputs: Any) -> None:
        reason = outputs["finish_reason"].item().decode() if "finish_reason" in outputs else ""
        self.sent.append((outputs["text_output"].item().decode(), reason, False))

    def close(self) -> None:
        self.sent.append(("", "", True))


class Engine:
    """Stands in for TensorRT-LLM's own model, which knows no timeout and does not say its end."""

    def __init__(self, parts: Iterable[list[int]]) -> None:
        self.ended = threading.Event()
        self._parts = parts

    def end(self, _: str) -> None:
        self.ended.set()

    def check_client(self, client: Any) -> bool:
        return not client.is_cancelled()

    def generate(self, *_: Any) -> Iterator[dict[str, Any]]:
        for ids in self._parts:
            if self.ended.is_set():
                return
            yield self._tensors(ids)

    def _tensors(self, ids: list[int]) -> dict[str, Any]:
        counts = np.array([[len(ids)]], np.int32)
        tokens = np.array([[ids]], np.int32).reshape(1, 1, -1)
        return {"output_ids": tokens, "sequence_length": counts}


class BatchEngine(Engine):
    """The same with a batch: before the ids of a part stands the row that they are of."""

    def _tensors(self, ids: list[int]) -> dict[str, Any]:
        return {**super()._tensors(ids[1:]), "batch_index": np.array([[ids[0]]], np.int32)}


@pytest.fixture
def relayed(stub: Any) -> Callable[..., list[tuple[str, str, bool]]]:
    """What tensorrt_llm_bls makes of an engine's responses: text, why it ended, whether last."""
    del stub
    relay = importlib.import_module("minitron_models.bls_relay")

    def run(
        engine: Engine, sender: Collecting, timeout_us: int = 0, lengths: Sequence[int] = (10**6,)
    ) -> list[tuple[str, str, bool]]:
        request = relay.RelayedRequest(
            streams=[OpenStream(names=(), max_tokens=length, streaming=True) for length in lengths],
            inputs={},
            sequences=len(lengths),
            statistics=(),
            timeout_us=timeout_us,
            reports_streams=False,
            accumulate=False,
        )
        token_texts = TokenTexts(TOKENIZER.backend_tokenizer, skip_special=True)
        watch = relay.ClientWatch(engine.end)
        relay.BlsRelay(engine, watch, token_texts, request, sender).run()
        return sender.sent

    return run


def test_a_response_without_ids_is_not_the_end_of_a_relayed_stream(relayed: Any) -> None:
    """TensorRT-LLM's own model may send one; its end is that no more responses come."""
    sent = relayed(Engine([WORDS[:3], [], WORDS[3:]]), Collecting())

    assert "".join(text for text, _, _ in sent) == "the family of worlds"
    assert [(reason, last) for _, reason, last in sent] == [
        ("", False),
        ("", False),
        ("stop", False),
        ("", True),
    ]


def test_the_rows_of_a_relayed_batch_go_on_and_end_each_by_itself(relayed: Any) -> None:
    parts = [[0, *WORDS[:2]], [1, *WORDS[:1]], [0, *WORDS[2:]], [1, *WORDS[1:]]]
    sent = relayed(BatchEngine(parts), Collecting(), lengths=(len(WORDS), 10**6))
    texts = [text for text, _, _ in sent]

    assert texts[0] + texts[2] == texts[1] + texts[3] + texts[4] == "the family of worlds"
    assert [reason for _, reason, _ in sent] == ["", "", "length", "", "stop", ""]


def slowly(ids: list[int]) -> Iterator[list[int]]:
    """Yield ids for a minute."""
    for _ in range(6000):
        time.sleep(0.01)
        yield ids


def test_a_relayed_answer_ends_when_its_time_is_up(relayed: Any) -> None:
    engine = Engine(slowly(WORDS))
    sent = relayed(engine, Collecting(), timeout_us=100_000)

    assert engine.ended.is_set()
    assert [(reason, last) for _, reason, last in sent[-2:]] == [("timeout", False), ("", True)]
    assert all(text for text, _, _ in sent[:-2])


def test_a_relayed_answer_ends_when_its_client_leaves(relayed: Any) -> None:
    engine, sender = Engine(slowly(WORDS)), Collecting()
    threading.Timer(0.1, lambda: setattr(sender, "cancelled", True)).start()
    sent = relayed(engine, sender)

    assert engine.ended.is_set()
    assert sent[-1] == ("", "", True)
    assert not any(reason for _, reason, _ in sent)


@pytest.fixture
def readers(stub: Any) -> Any:
    """The readers of a runtime, over the stand-in."""
    del stub
    return importlib.import_module("minitron_models.stream_readers").StreamReaders()


def answer_with(stub: Any, *responses: Message) -> Responses:
    """Have the next call of tensorrt_llm give these responses."""
    call = Responses(*responses)
    stub.answers.append((call, []))
    return call


def test_outputs_that_were_not_asked_for_never_reach_the_stub(triton_io: Any) -> None:
    request = Request("output_ids")
    sender = triton_io.Sender(request)

    sender.send({"output_ids": ONE, "sequence_length": ONE})
    sender.send({"sequence_length": ONE, "output_ids": ONE}, last=True)

    assert request.sent == [(["output_ids"], 0), (["output_ids"], 1)]


def test_a_request_ends_with_an_error_or_without_a_word(triton_io: Any) -> None:
    failed, closed = Request(), Request()

    triton_io.Sender(failed).fail("no", 3)
    triton_io.Sender(closed).close()

    assert (failed.sent, closed.sent) == ([("no", 1)], [(None, 1)])


def test_a_call_is_held_until_the_stub_has_answered_a_later_question(
    stub: Any, model_calls: Any
) -> None:
    model, client = model_calls.TokenModel(), Request()
    call = answer_with(stub, Message(), Message())
    before = sys.getrefcount(call)

    assert len(list(model.generate("id", ["output_ids"], 0, {"input_ids": ONE}))) == 2
    assert sys.getrefcount(call) == before + 1
    client.cancelled = True  # the stub knows it, and does not ask the server again
    assert not model.check_client(client)
    assert sys.getrefcount(call) == before + 1
    client.cancelled = False
    assert model.check_client(client)
    assert sys.getrefcount(call) == before


def test_what_tensorrt_llm_refuses_is_raised_with_its_code(stub: Any, model_calls: Any) -> None:
    model = model_calls.TokenModel()
    call = answer_with(stub, Message(error=Failure("too long", 3)), Message())
    before = sys.getrefcount(call)

    with pytest.raises(model_calls.ModelError, match="too long") as caught:
        list(model.generate("id", ["output_ids"], 0, {}))

    assert caught.value.code == 3
    assert sys.getrefcount(call) > before


def test_stopping_what_has_ended_by_itself_is_no_error(stub: Any, model_calls: Any) -> None:
    answer_with(stub, Message(error=Failure("there is no such request", 3)))

    model_calls.TokenModel().stop("id", 7)

    assert stub.answers[-1][1] == ["tensorrt_llm"]


def answer_of(stream_id: int) -> dict[str, Any]:
    """Return a response of a stream."""
    return {"stream_id": np.array([[stream_id]], np.uint64)}


def sender_of(readers: Any, *stream_ids: int) -> Any:
    """Return the sender of a request of streams, a row each."""
    ids = np.array([[stream_id] for stream_id in stream_ids], np.uint64)
    return readers.sender(Request(stream_id=Named("stream_id", ids)))


def test_a_stream_has_no_reader_once_its_responses_stop_arriving(readers: Any, stub: Any) -> None:
    questions: list[list[int]] = []
    arrived = {1: 2, 2: 1, 3: -1, 4: 0}

    def postprocessing(stream_ids: Any) -> Message:
        questions.append(stream_ids[0].tolist())
        counts = np.array([[arrived[stream_id] for stream_id in questions[-1]]], np.int32)
        return Message([Named("WATCHED_RESPONSES", counts)])

    stub.postprocessing = postprocessing
    senders = {stream_id: sender_of(readers, stream_id) for stream_id in arrived}
    assert (readers.find_abandoned(), questions) == ([], [])
    for stream_id, sender in senders.items():
        sender.send(answer_of(stream_id))
        sender.send(answer_of(stream_id))

    assert readers.find_abandoned() == [2, 4]
    senders[2].send(answer_of(2), last=True)
    senders[4].fail("cancelled", 1)
    assert readers.find_abandoned() == []
    assert questions == [[1, 2, 3, 4], [1, 3]]


def test_each_stream_of_a_batch_is_counted(readers: Any, stub: Any) -> None:
    asked: list[list[int]] = []

    def postprocessing(stream_ids: Any) -> Message:
        asked.append(stream_ids[0].tolist())
        return Message([Named("WATCHED_RESPONSES", np.ones((1, len(asked[-1])), np.int32))])

    stub.postprocessing = postprocessing
    sender = sender_of(readers, 5, 6)
    for stream_id in (5, 6, 6):
        sender.send(answer_of(stream_id))

    assert readers.find_abandoned() == [6]
    sender.send(answer_of(5), last=True)
    assert (readers.find_abandoned(), asked) == ([], [[5, 6]])


def test_without_postprocessing_nobody_is_missed_which_is_said_once(
    readers: Any, stub: Any
) -> None:
    logged: list[str] = []
    stub.Logger = types.SimpleNamespace(log_warn=logged.append)
    stub.postprocessing = lambda _: Message(error=Failure("no such model", 5))
    sender_of(readers, 1).send(answer_of(1))
    readers.sender(Request()).send({})

    assert (readers.find_abandoned(), readers.find_abandoned()) == ([], [])
    assert logged == ["cannot tell who reads the ensemble's streams: no such model"]
