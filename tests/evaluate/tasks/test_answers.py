"""Continuations that share a context are scored as if alone; answers end where a text stops."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.errors import BadInputError, UsageError
from minitron_trt.evaluate.tasks.computed_answers import ComputedAnswers
from minitron_trt.evaluate.tasks.questions import (
    Continuation,
    Likelihood,
    TaskPrompt,
    sampling_of,
)
from minitron_trt.executor.reference import ReferenceModel
from minitron_trt.executor.step import Floats, StepBatch
from minitron_trt.samples import sample_folder

pytestmark = pytest.mark.slow

SAMPLE = sample_folder("solar-llama")


class SampleTokens:
    """The sample's tokenizer, by the tokenizers library."""

    def __init__(self) -> None:
        self._tokenizer = Tokenizer.from_file(str(SAMPLE / "tokenizer.json"))

    def encode_prompt(self, text: str, room: int) -> list[int]:
        return list(self._tokenizer.encode(text).ids)[-room:]

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens)))


class NanModel:
    """A double of a model whose weights are damaged."""

    slots = 2
    max_seq_len = 64
    vocab = 1024

    def step(self, batch: StepBatch) -> Floats:
        rows = len(batch.lengths) if batch.logit_rows is None else len(batch.logit_rows)
        return np.full((rows, self.vocab), np.nan, np.float32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("answers") / "checkpoint"
    convert(str(SAMPLE), folder, ConvertOptions())
    return Checkpoint.open(folder)


def model(checkpoint: Checkpoint, *, slots: int) -> ReferenceModel:
    return ReferenceModel(checkpoint, slots=slots, max_seq_len=1024, dtype=torch.float32)


def alone(reference: ReferenceModel, context: Sequence[int], tokens: Sequence[int]) -> Likelihood:
    """Return a continuation's likelihood by one step over all of it."""
    ids = np.array([*context, *tokens[:-1]], np.int32)
    logits = reference.forward(
        StepBatch(
            input_ids=ids,
            positions=np.arange(len(ids), dtype=np.int32),
            slots=np.zeros(1, np.int32),
            lengths=np.array([len(ids)], np.int32),
        ),
        all_logits=True,
    )
    rows = torch.log_softmax(logits[len(context) - 1 :].double(), dim=-1).numpy()
    total = sum(rows[at, token] for at, token in enumerate(tokens))
    return Likelihood(float(total), bool((rows.argmax(1) == tokens).all()))


def test_continuations_are_scored_as_if_each_were_alone(checkpoint: Checkpoint) -> None:
    random = np.random.default_rng(5)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(map(int, random.integers(4, 1000, count)))

    # Longer than a chunk; sharing a context with one token, several, and more than are scored at
    # once; more contexts than slots.
    shared, long = ids(9), ids(700)
    asked = [Continuation(shared, ids(count)) for count in (1, 5, 130)]
    asked += [Continuation(long, ids(count)) for count in (3, 1)]
    asked += [Continuation(ids(count), ids(4)) for count in (1, 2, 30)]
    reference = model(checkpoint, slots=1)
    expected = [alone(reference, *continuation) for continuation in asked]
    answers = ComputedAnswers(model(checkpoint, slots=2), SampleTokens(), end_ids=[1023])
    found = dict(answers.score(asked))

    assert sorted(found) == list(range(len(asked)))
    for place, likelihood in enumerate(expected):
        assert found[place].total == pytest.approx(likelihood.total, abs=2e-3, rel=1e-5)
        assert found[place].is_greedy == likelihood.is_greedy


def test_what_a_model_would_say_is_greedy(checkpoint: Checkpoint) -> None:
    tokens = SampleTokens()
    answers = ComputedAnswers(model(checkpoint, slots=2), tokens, end_ids=[1023])
    prompt = TaskPrompt("Our solar system is", 12, stops=(), sampling={}, seed=1)
    [(_, text)] = answers.generate([prompt])
    context = tokens.encode_prompt(prompt.text, 1000)
    said = tokens.encode_prompt(prompt.text + text, 1000)[len(context) :]
    [(_, likelihood)] = answers.score([Continuation(tuple(context), tuple(said))])

    assert likelihood.is_greedy
    assert -len(said) < likelihood.total < 0


def test_an_answer_ends_before_the_first_text_that_stops_it(checkpoint: Checkpoint) -> None:
    answers = ComputedAnswers(model(checkpoint, slots=2), SampleTokens(), end_ids=[1023])
    plain = TaskPrompt("The Sun is", 40, stops=(), sampling={}, seed=1)
    stopped = [
        TaskPrompt(plain.text, 40, stops=(stop, ""), sampling={}, seed=1)
        for stop in (".", " the", "never")
    ]
    found = dict(answers.generate([plain, *stopped]))

    assert "." in found[0]
    assert found[1] == found[0].partition(".")[0]
    assert found[2] == found[0].partition(" the")[0]
    assert found[3] == found[0]


def test_draws_differ_by_their_seed_alone(checkpoint: Checkpoint) -> None:
    sampling = sampling_of({"do_sample": True, "temperature": 2.0, "top_p": 0.95})
    prompts = [
        TaskPrompt("The Sun is", 12, stops=(), sampling=sampling, seed=seed) for seed in (1, 2, 1)
    ]
    answers = ComputedAnswers(model(checkpoint, slots=3), SampleTokens(), end_ids=[1023])
    found = dict(answers.generate(prompts))

    assert found[0] == found[2] != found[1]


def test_logits_that_are_nan_are_refused() -> None:
    answers = ComputedAnswers(NanModel(), SampleTokens(), end_ids=[1023])

    with pytest.raises(BadInputError, match="logits are NaN"):
        list(answers.score([Continuation((5,), (6,))]))
    with pytest.raises(BadInputError, match=r"could not be generated: .* best logit is nan"):
        list(answers.generate([TaskPrompt("The Sun", 4, stops=(), sampling={}, seed=1)]))


@pytest.mark.parametrize(
    ("options", "sampling"),
    [
        ({"do_sample": False, "temperature": 0.0}, {}),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.9}, {}),
        ({"do_sample": True, "temperature": 0}, {}),
        ({"do_sample": True, "temperature": "0.2"}, {"temperature": 0.2, "top_p": 1.0}),
        ({"do_sample": True, "top_k": 40}, {"top_k": 40, "top_p": 1.0}),
        ({"do_sample": False, "repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
    ],
    ids=["greedy", "not asked to draw", "cold", "by temperature", "by top-k", "penalty"],
)
def test_lm_evals_options_are_tensorrt_llms(
    options: dict[str, object], sampling: dict[str, float]
) -> None:
    assert sampling_of(options) == sampling


def test_an_option_of_generation_that_is_not_known_is_named() -> None:
    with pytest.raises(UsageError, match="'num_beams' is no option of generation here"):
        sampling_of({"do_sample": False, "num_beams": 4})


@pytest.mark.parametrize(("name", "value"), [("temperature", "warm"), ("top_k", 0.5)])
def test_an_option_of_generation_that_is_no_number_is_named(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"{name} is {value!r}; expected a number"):
        sampling_of({"do_sample": True, name: value})


def test_a_likelihood_is_of_the_tokens_alone() -> None:
    rows = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]]))

    assert Likelihood.of(rows, (0, 1)).total == pytest.approx(math.log(0.7) + math.log(0.3))
    assert not Likelihood.of(rows, (0, 1)).is_greedy
    assert Likelihood.of(rows, (0, 2)).is_greedy
