"""Every tensor of the text models, over gRPC and HTTP: sampling as transformers, and statistics."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.triton_repo.conftest import Served
from tests.triton_repo.output_shapes import (
    EVERYTHING,
    RUNTIME_OUTPUTS,
    TEXT_OUTPUTS,
    Sizes,
    declared_dims,
    expected_shapes,
    sent_shapes,
)
from tests.triton_repo.runtimes.runtime_calls import inputs_of, prompt
from tests.triton_repo.runtimes.test_runtime import (
    COUNT,
    PENALTIES,
    REPETITION,
    TOLERANCE,
    greedy,
    hf_ids,
    logits_of,
)
from tests.triton_repo.text_calls import TYPES, Answered, RefusalError, ask, tensors
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.server

PROMPT = "Complete the paragraph: our solar system is"
FRONT_MODELS = ("ensemble", "tensorrt_llm_bls")

Ask = Callable[..., Answered]


@dataclass(frozen=True)
class Expected:
    """The served model in transformers, and the prompt's ids; it computes each answer once."""

    model: Any
    tokenizer: Any
    ids: list[int]
    _answers: dict[object, list[int]] = field(default_factory=dict)
    _logits: dict[object, NDArray[np.float32]] = field(default_factory=dict)

    def text(self, ids: list[int]) -> str:
        """Return the text of an answer's ids."""
        decoded: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return decoded

    def greedy(self, **options: Any) -> list[int]:
        """Return the ids that transformers generates."""
        return self._once(tuple(options.items()), lambda: hf_ids(self.model, self.ids, **options))

    def penalized(self, presence: float, frequency: float, temperature: float) -> list[int]:
        """Return the ids that transformers' logits give under penalties of prompt and answer."""

        def penalize(scores: NDArray[Any], whole: list[int]) -> NDArray[Any]:
            counts = np.bincount(whole, minlength=len(scores))
            left: NDArray[Any] = scores / temperature - presence * (counts > 0) - frequency * counts
            return left

        what = (presence, frequency, temperature)
        return self._once(what, lambda: greedy(self.model, self.ids, penalize))

    def logits(self, answer: list[int]) -> NDArray[np.float32]:
        """Return transformers' logits after every token of the prompt and an answer."""
        what = tuple(answer)
        if what not in self._logits:
            self._logits[what] = logits_of(self.model, self.ids + answer)
        return self._logits[what]

    def _once(self, what: object, compute: Callable[[], list[int]]) -> list[int]:
        if what not in self._answers:
            self._answers[what] = compute()
        return self._answers[what]

    @property
    def vocab(self) -> int:
        """Return how many logits there are."""
        return int(self.model.config.vocab_size)


@pytest.fixture(scope="module")
def expected(served: Served) -> Expected:
    """What transformers has to say."""
    tokenizer: Any = AutoTokenizer.from_pretrained(served.model)
    model: Any = AutoModelForCausalLM.from_pretrained(served.model, dtype=torch.bfloat16)
    return Expected(model, tokenizer, tokenizer(PROMPT)["input_ids"])


@pytest.fixture(params=["grpc", "http"])
def protocol(request: pytest.FixtureRequest) -> str:
    """Return each protocol."""
    return str(request.param)


@pytest.fixture(params=FRONT_MODELS)
def asked(request: pytest.FixtureRequest, served: Served, protocol: str) -> Ask:
    """Return a call of each text model by each protocol; nothing ends it but its length."""

    def call(**inputs: Any) -> Answered:
        given = {"text_input": PROMPT, "max_tokens": COUNT, "end_id": 0, **inputs}
        return ask(served.endpoints, protocol, request.param, **given)

    return call


@pytest.mark.parametrize("model", FRONT_MODELS)
def test_outputs_are_declared_as_upstream(served: Served, model: str) -> None:
    dims = {name: declared for name, (declared, _) in TEXT_OUTPUTS.items()}

    assert declared_dims(served.endpoints, model) == dims


@pytest.mark.parametrize("model", FRONT_MODELS)
@pytest.mark.parametrize("sequences", [1, 2])
@pytest.mark.parametrize("stream", [True, False])
def test_outputs_have_the_shapes_that_upstream_sends(
    served: Served, expected: Expected, model: str, sequences: int, stream: bool
) -> None:
    """What marks the end has no outputs; of upstream's ensemble it has the last text."""
    inputs = {"text_input": PROMPT, "max_tokens": 3, "end_id": 0, "stream": stream, **EVERYTHING}
    if sequences > 1:
        inputs["num_return_sequences"] = sequences
    responses = sent_shapes(served.endpoints, model, tensors(inputs))
    sizes = Sizes(len(expected.ids), expected.vocab, tokens=1 if stream else 3)
    shapes = expected_shapes(TEXT_OUTPUTS, sizes)
    early = {name: shape for name, shape in shapes.items() if name != "finish_reason"}
    if sequences == 1:
        early = {name: early[name] for name in early if not name.endswith("_index")}

    assert responses.pop() == {}
    assert len(responses) == sequences * (3 if stream else 1)
    assert responses[-1] == {**early, "finish_reason": (1,)}
    assert all(response == early for response in responses[:-sequences])


def test_the_runtimes_outputs_are_declared_and_sent_as_upstream(
    served: Served, expected: Expected
) -> None:
    """Its responses have all that a generation's have; what marks the end brings the last one."""
    dims = {name: declared for name, (declared, _) in RUNTIME_OUTPUTS.items()}
    # Sent by a server of the context phase only.
    dims["context_phase_params"] = (-1,)
    inputs = inputs_of({**prompt(expected.ids, 3), "streaming": True, **EVERYTHING})
    responses = sent_shapes(served.endpoints, "tensorrt_llm", inputs)
    shapes = expected_shapes(RUNTIME_OUTPUTS, Sizes(len(expected.ids), expected.vocab))
    # Of one sequence, without a request id.
    for name in ("batch_index", "sequence_index", "stream_id"):
        del shapes[name]

    assert declared_dims(served.endpoints, "tensorrt_llm") == dims
    assert len(responses) == 3
    assert responses[-1] == shapes


def test_repetition_is_penalized_as_in_transformers(asked: Ask, expected: Expected) -> None:
    ids = expected.greedy(repetition_penalty=REPETITION)

    assert ids != expected.greedy()
    assert asked(repetition_penalty=REPETITION).text == expected.text(ids)


def test_presence_and_frequency_of_prompt_and_answer_are_penalized(
    asked: Ask, expected: Expected
) -> None:
    presence, frequency, temperature = PENALTIES[-1]
    ids = expected.penalized(presence, frequency, temperature)
    answer = asked(presence_penalty=presence, frequency_penalty=frequency, temperature=temperature)

    assert ids != expected.greedy()
    assert answer.text == expected.text(ids)


def test_an_end_id_counts_from_min_tokens_on(asked: Ask, expected: Expected) -> None:
    plain = expected.greedy()
    end = next(token for at, token in enumerate(plain) if at > 2 and token not in plain[:at])
    later = expected.greedy(min_new_tokens=12, eos_token_id=end)

    assert asked(end_id=end, pad_id=end).text == expected.text(plain[: plain.index(end)])
    answer = asked(end_id=end, min_tokens=12)
    assert answer.text == expected.text(later).removesuffix(expected.text([end]))
    assert len(later) >= 12


def test_sampling_is_drawn_from_what_top_k_and_top_p_leave(asked: Ask, expected: Expected) -> None:
    best = expected.text(expected.greedy())
    drawn = [asked(top_k=50, temperature=9.0, seed=seed).text for seed in (1, 1, 2)]

    assert asked(top_k=1, temperature=9.0, seed=3).text == best
    assert asked(top_p=1e-6, temperature=9.0, seed=3).text == best
    assert drawn[0] == drawn[1]
    assert best not in drawn
    assert drawn[2] != drawn[0]


@pytest.mark.parametrize("stream", [True, False])
def test_log_probs_are_of_the_models_own_distribution(
    asked: Ask, expected: Expected, stream: bool
) -> None:
    responses = asked(stream=stream, return_log_probs=True).responses
    found = [p for r in responses for p in _list(r["output_log_probs"])]
    ids = expected.greedy()
    logits = torch.from_numpy(expected.logits(ids))
    wanted = logits[len(expected.ids) - 1 : -1].log_softmax(-1)[range(COUNT), ids].numpy()

    assert len(responses) == (COUNT if stream else 1)
    assert np.abs(np.array(found) - wanted).max() < TOLERANCE
    assert responses[-1]["cum_log_probs"] == pytest.approx(sum(found), abs=1e-3)


@pytest.mark.parametrize("stream", [True, False])
def test_logits_of_prompt_and_answer_are_transformers(
    asked: Ask, expected: Expected, stream: bool
) -> None:
    wishes = {"return_context_logits": True, "return_generation_logits": True}
    first, *later = asked(stream=stream, max_tokens=6, **wishes).responses
    context = np.array(first["context_logits"]).reshape(-1, expected.vocab)
    made = [np.array(r["generation_logits"]).reshape(-1, expected.vocab) for r in (first, *later)]
    wanted = expected.logits(expected.greedy()[:6])

    assert all(r["context_logits"] == first["context_logits"] for r in later)
    assert np.abs(context - wanted[: len(expected.ids)]).max() < TOLERANCE
    assert np.abs(np.concatenate(made) - wanted[len(expected.ids) - 1 : -1]).max() < TOLERANCE


def test_tokens_are_counted_and_timed(asked: Ask, expected: Expected) -> None:
    wishes = ("return_num_input_tokens", "return_num_output_tokens", "return_perf_metrics")
    *early, last = asked(stream=True, max_tokens=4, **dict.fromkeys(wishes, True)).responses
    names = ("arrival", "first_scheduled", "first_token", "last_token")
    times = [last[f"{name}_time_ns"] for name in names]

    assert [r["num_input_tokens"] for r in (*early, last)] == [len(expected.ids)] * 4
    assert [r["num_output_tokens"] for r in (*early, last)] == [1] * 4
    assert times == sorted(times)
    assert [r["arrival_time_ns"] for r in early] == [times[0]] * 3
    assert [r["kv_cache_alloc_total_blocks"] for r in (*early, last)] == [1] * 4


def test_sequences_are_numbered(asked: Ask) -> None:
    responses = asked(
        num_return_sequences=3, top_k=50, temperature=9.0, seed=7, return_log_probs=True
    ).responses

    assert sorted(r["sequence_index"] for r in responses) == [0, 1, 2]
    assert [r["batch_index"] for r in responses] == [0, 0, 0]
    assert len({r["text_output"] for r in responses}) == 3
    assert all(r["cum_log_probs"] < 0 for r in responses)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"beam_width": 2}, "beam search"),
        ({"lora_task_id": 1}, "LoRA adapters"),
        ({"lora_config": [[1, 1, 1]]}, "LoRA adapters"),
        ({"lora_weights": [[1.0]]}, "LoRA adapters"),
        ({"prompt_embedding_table": [[1.0]]}, "a prompt table"),
        ({"prompt_table_extra_id": 1}, "a prompt table"),
        ({"prompt_vocab_size": 1}, "a prompt table"),
        ({"guided_decoding_guide_type": "json"}, "guided decoding"),
        ({"guided_decoding_guide": "{}"}, "guided decoding"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_the_reference_runtime_lacks_is_refused_by_name(
    asked: Ask, protocol: str, inputs: dict[str, Any], said: str
) -> None:
    (name,) = inputs
    if protocol == "http" and isinstance(inputs[name], list):
        pytest.skip("a tensor of two axes goes in no request of generate")
    with pytest.raises(RefusalError, match=f"{name}.* needs {said}"):
        asked(**inputs)


def test_without_beams_their_penalty_changes_nothing(asked: Ask, expected: Expected) -> None:
    best = expected.text(expected.greedy())

    assert asked(beam_width=1, length_penalty=2.0).text == best


def test_every_input_is_exercised_here_or_among_the_texts() -> None:
    """Fails when the contract gets an input that no test of these files sends."""
    here = {
        "text_input",
        "max_tokens",
        "end_id",
        "pad_id",
        "repetition_penalty",
        "temperature",
        "presence_penalty",
        "frequency_penalty",
        "min_tokens",
        "top_k",
        "top_p",
        "seed",
        "stream",
        "return_log_probs",
        "return_context_logits",
        "return_generation_logits",
        "return_num_input_tokens",
        "return_num_output_tokens",
        "return_perf_metrics",
        "num_return_sequences",
        "beam_width",
        "length_penalty",
        "lora_task_id",
        "lora_config",
        "lora_weights",
        "prompt_embedding_table",
        "prompt_table_extra_id",
        "prompt_vocab_size",
        "guided_decoding_guide_type",
        "guided_decoding_guide",
    }
    # test_server_text, but for the bad words of test_server.
    among_texts = {
        "stop_words",
        "bad_words",
        "embedding_bias_words",
        "embedding_bias_weights",
        "exclude_input_in_output",
        "apply_chat_template",
    }

    # test_foreign_clients.
    by_scripts = {"decoder_text_input"}
    # test_drafts_served.
    of_drafts = {"num_draft_tokens", "use_draft_logits"}

    assert here | among_texts | by_scripts | of_drafts == set(TYPES)


def _list(value: Any) -> list[float]:
    found = value if isinstance(value, list) else [value]
    assert all(math.isfinite(one) for one in found)
    return found
