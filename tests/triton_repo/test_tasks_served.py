"""Answers of a real tritonserver, over both of its protocols, and lm-eval that asks for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tests.lm_eval_runs import NEEDED, eval_tasks, values_of
from tests.triton_repo.conftest import Served
from tokenizers import Tokenizer

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.errors import BadInputError, RefusedError
from minitron_trt.evaluate.served_model import ServerSettings, connected
from minitron_trt.evaluate.tasks.computed_answers import ComputedAnswers
from minitron_trt.evaluate.tasks.questions import Continuation, TaskPrompt
from minitron_trt.evaluate.tasks.served_answers import ServedAnswers
from minitron_trt.executor.reference import ReferenceModel
from minitron_trt.samples import sample_folder

pytestmark = [
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.parametrize("served", ["solar-llama"], indirect=True, scope="session"),
]

SAMPLE = sample_folder("solar-llama")
CONTINUATIONS = [
    Continuation((1022, 84, 300, 12), (45, 6, 700)),
    Continuation((1022, 84, 300, 12), (45, 6, 701)),
    Continuation((1022,), (500,)),
]
PROMPTS = [
    TaskPrompt("Our solar system is", 24, stops=(".", "\n"), sampling={}, seed=1),
    TaskPrompt("The Sun is", 16, stops=(" the",), sampling={}, seed=2),
    TaskPrompt("Question: Why is Mars red? Answer:", 16, stops=(), sampling={}, seed=3),
]


class SampleTokens:
    """The sample's tokenizer, by the tokenizers library."""

    def __init__(self) -> None:
        self._tokenizer = Tokenizer.from_file(str(SAMPLE / "tokenizer.json"))

    def encode_prompt(self, text: str, room: int) -> list[int]:
        return list(self._tokenizer.encode(text).ids)[-room:]

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens)))


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_server_answers_as_its_checkpoint_does(
    served: Served, protocol: str, checkpoint: Checkpoint
) -> None:
    reference = ReferenceModel(checkpoint, slots=2, max_seq_len=256, dtype=torch.bfloat16)
    computed = ComputedAnswers(reference, SampleTokens(), end_ids=[1023])
    url = getattr(served.endpoints, f"{protocol}_url")
    with connected(url, ServerSettings()) as logits:
        answers = ServedAnswers(
            logits,
            text_model="ensemble",
            tokenizer_json=SAMPLE / "tokenizer.json",
            concurrency=3,
        )
        scored = dict(answers.score(CONTINUATIONS))
        said = dict(answers.generate(PROMPTS))

    for place, likelihood in computed.score(CONTINUATIONS):
        # In bf16, and several tokens a step round otherwise than one.
        assert scored[place].total == pytest.approx(likelihood.total, abs=0.2)
        assert scored[place].is_greedy == likelihood.is_greedy
    assert said == dict(computed.generate(PROMPTS))


def test_a_server_without_logits_or_with_another_tokenizer_is_refused(served: Served) -> None:
    def first_score(model: str, tokenizer_json: Path) -> None:
        with connected(served.endpoints.grpc_url, ServerSettings(model)) as logits:
            answers = ServedAnswers(
                logits, text_model="ensemble", tokenizer_json=tokenizer_json, concurrency=2
            )
            next(answers.score(CONTINUATIONS))

    with pytest.raises(RefusedError, match="has no input_ids, so that its logits cannot be had"):
        first_score("ensemble", SAMPLE / "tokenizer.json")
    with pytest.raises(BadInputError, match="pass --tokenizer with the folder"):
        first_score("tensorrt_llm", sample_folder("austen-nemotron") / "tokenizer.json")


@NEEDED
def test_lm_eval_has_the_same_of_a_server_as_of_its_checkpoint(
    served: Served, checkpoint: Checkpoint
) -> None:
    result = eval_tasks(
        checkpoint.folder,
        served.endpoints.grpc_url,
        served.endpoints.http_url,
        "--tasks=persuasion_next,solar_rest",
        f"--tokenizer={SAMPLE}",
        "--dtype=bfloat16",
        "--json",
    )

    assert result.returncode == 0, result.stderr
    expected, *others = [values_of(model) for model in json.loads(result.stdout)["models"]]
    assert expected["solar_rest", "exact_match"] > 0
    assert others == [expected, expected]


@NEEDED
@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--tasks", "persuasion_next"), 2, "is a server, which does not say which tokens a text"),
        (
            ("--tasks", "persuasion_next", "--tokenizer", SAMPLE, "--server-model", "ensemble"),
            7,
            "has no input_ids, so that its logits cannot be had",
        ),
        (("--tasks", "solar_rest", "--text-model", "absent"), 7, "absent"),
    ],
    ids=["no tokenizer", "no logits", "unknown model"],
)
def test_what_a_server_cannot_answer_is_said_in_one_line(
    served: Served, options: tuple[object, ...], code: int, message: str
) -> None:
    result = eval_tasks(served.endpoints.grpc_url, *options)

    assert (result.returncode, result.stderr.count("\n")) == (code, 1), result.stderr
    assert message in result.stderr
