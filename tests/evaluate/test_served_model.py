"""A model on a server that is asked for logits: what it must give, and what is said where it fails.

A double of the transport plays engines that cannot be built here; a real server is asked in
tests/triton_repo/test_evaluate_served.py.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, ClassVar
from weakref import ref

import numpy as np
import pytest
from numpy.typing import NDArray

from minitron_trt.clients.client import Client
from minitron_trt.clients.deadlines import Deadlines
from minitron_trt.clients.messages import Chunk, GenerateRequest
from minitron_trt.clients.model_interface import InputTensor, ModelInterface
from minitron_trt.clients.transport import EchoTransport
from minitron_trt.errors import BadInputError, MinitronError, RefusedError
from minitron_trt.evaluate.evaluated_model import name_of
from minitron_trt.evaluate.perplexity import log_likelihoods
from minitron_trt.evaluate.scoring import scores_name
from minitron_trt.evaluate.served_model import PROBE_TEXTS, ServedLogits, probe
from minitron_trt.evaluate.tasks.questions import Continuation, Likelihood
from minitron_trt.evaluate.tasks.served_answers import ServedAnswers
from minitron_trt.evaluate.text_tokens import TextTokens
from minitron_trt.samples import sample_folder

VOCAB = 40
NAMES = ("input_ids", "return_context_logits", "max_tokens", "exclude_input_in_output", "stream")
RUNTIME = ModelInterface(
    {name: InputTensor("INT32") for name in NAMES}, frozenset({"output_ids", "context_logits"})
)
HOW = "engines give them that were built with: minitron-trt build --gather-logits context"


class LogitsDouble(EchoTransport):
    """Answers each prompt of n tokens with the first n rows of a table, or with something else."""

    def __init__(self, answer: Any, interface: ModelInterface = RUNTIME) -> None:
        super().__init__()
        self.answer, self.model = answer, interface
        self.tokens: dict[str, int] = {}

    def stream(
        self, request: GenerateRequest, deadlines: Deadlines
    ) -> Generator[Chunk, None, None]:
        """Yield the logits."""
        self.requests.append(request)
        if request.text_input:
            yield Chunk(".", outputs={"num_input_tokens": [self.tokens[request.text_input]]})
            return
        if isinstance(self.answer, Exception):
            raise self.answer
        values = np.asarray(self.answer)[: len(request.input_ids)].ravel().tolist()
        outputs: dict[str, Sequence[Any]] = {"context_logits": values} if values else {}
        yield Chunk("", token_ids=[1], outputs=outputs)
        yield Chunk("", final=True)

    def interface(self, request: GenerateRequest, deadlines: Deadlines) -> ModelInterface:
        """Return the model's inputs."""
        return self.model


def served(double: LogitsDouble) -> ServedLogits:
    """Return the logits of a double."""
    return ServedLogits(Client(double), "grpc://host:8001", "tensorrt_llm")


TABLE = np.random.default_rng(5).normal(0, 3, (64, VOCAB)).astype(np.float32)


def test_a_prompt_is_sent_as_far_as_its_logits_are_wanted() -> None:
    double = LogitsDouble(TABLE)
    logits = served(double)(np.arange(10, dtype=np.int32), range(4, 9))
    (request,) = double.requests

    assert logits.tolist() == TABLE[4:9].tolist()
    assert request.input_ids == tuple(range(9))
    assert (request.return_context_logits, request.max_tokens, request.stream) == (True, 1, False)


def test_models_that_differ_in_a_logit_are_told_apart() -> None:
    other = TABLE.copy()
    other[3, 7] += 1e-3
    same, again, differs = (
        probe(served(LogitsDouble(each)), None) for each in (TABLE, TABLE, other)
    )

    assert same == again
    assert same.vocab == differs.vocab == VOCAB
    assert same.identity != differs.identity


TEXT_ONLY = ModelInterface({"text_input": InputTensor("BYTES")}, frozenset({"text_output"}))
PARTLY = np.vstack([TABLE[:8], np.zeros((56, VOCAB), np.float32)])


@pytest.mark.parametrize(
    ("double", "kind", "message"),
    [
        (LogitsDouble(TABLE, TEXT_ONLY), RefusedError, "has no input_ids and no return_context_"),
        (LogitsDouble(()), RefusedError, f"gave 0 context logits of 16 tokens; {HOW}"),
        (LogitsDouble(TABLE.ravel()[:15]), RefusedError, f"gave 15 context logits .*; {HOW}"),
        (LogitsDouble(RefusedError("not so")), RefusedError, f"not so; {HOW}"),
        (LogitsDouble(PARTLY), BadInputError, "set enable_kv_cache_reuse=false"),
    ],
    ids=["text model", "none", "too few", "refused", "of a cache"],
)
def test_a_server_without_context_logits_is_refused_in_one_line(
    double: LogitsDouble, kind: type[MinitronError], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        probe(served(double), None)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("differences", "agrees"),
    [((0, 0, 0), True), ((-1, -1, -1), True), ((-1, 0, 0), False), ((1, 1, 1), False)],
)
def test_a_server_whose_text_model_counts_other_tokens_is_refused(
    differences: tuple[int, ...], agrees: bool
) -> None:
    path = sample_folder("solar-llama") / "tokenizer.json"
    double = LogitsDouble(TABLE)
    for text, difference in zip(PROBE_TEXTS, differences, strict=True):
        double.tokens[text] = len(TextTokens.of(text, path).ids) + difference
    if agrees:
        assert probe(served(double), path).vocab == VOCAB
        return
    with pytest.raises(BadInputError, match="pass --tokenizer with the folder of the model that"):
        probe(served(double), path)


@pytest.mark.parametrize("url", ["grpc://host:8001/", "http://host:80/triton"])
def test_scores_of_a_server_below_a_path_are_one_file(url: str, tmp_path: Path) -> None:
    path = tmp_path / scores_name(name_of(url), "0" * 64)
    path.write_bytes(b"")

    assert path.parent == tmp_path


def test_logits_that_are_no_numbers_are_refused_when_they_are_scored() -> None:
    table = TABLE.copy()
    table[3, 4] = np.nan

    with pytest.raises(BadInputError, match="logits are NaN or infinite"):
        log_likelihoods(served(LogitsDouble(table))(np.arange(8, dtype=np.int32), range(8)))


class WatchedLogits(ServedLogits):
    """Logits of a double that remember which of their arrays are still there."""

    __slots__ = ()
    given: ClassVar[list[ref[NDArray[np.float32]]]] = []

    def __call__(self, ids: NDArray[np.int32], rows: range) -> NDArray[np.float32]:
        """Return the logits."""
        logits = ServedLogits.__call__(self, ids, rows)
        self.given.append(ref(logits))
        return logits

    def kept(self) -> int:
        """Return how many arrays are there."""
        return sum(array() is not None for array in self.given)


def test_no_more_logits_are_kept_than_are_asked_for_at_once() -> None:
    logits = WatchedLogits(Client(LogitsDouble(TABLE)), "grpc://host:8001", "tensorrt_llm")
    answers = ServedAnswers(logits, text_model="ensemble", tokenizer_json=None, concurrency=2)
    continuations = [Continuation((5, at), (6, 7)) for at in range(20)]
    found = [(place, answer, logits.kept()) for place, answer in answers.score(continuations)]
    expected = Likelihood.of_logits(TABLE[1:3], (6, 7))

    assert sorted((place, answer) for place, answer, _ in found) == [
        (place, expected) for place in range(20)
    ]
    assert len(logits.given) == 21
    assert max(kept for *_, kept in found) <= 2
