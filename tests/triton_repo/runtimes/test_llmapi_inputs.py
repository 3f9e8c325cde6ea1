"""What tensorrt_llm's inputs mean to TensorRT-LLM's LLM class, and what is refused by which name.

A stand-in takes the place of its SamplingParams, as of Triton's module in a model's process.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minitron_trt.errors import UsageError
from minitron_trt.samples import sample_folder
from minitron_trt.triton_repo.contract.runtime_tensors import tensorrt_llm
from minitron_trt.triton_repo.contract.tensors import ElementTypes
from minitron_trt.triton_repo.runtimes.llmapi_runtime import HfFolder, plan_llmapi
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

DTYPES = {
    **{"INT32": np.int32, "FP32": np.float32, "FP16": np.float16, "UINT64": np.uint64},
    **{"BOOL": np.bool_, "UINT8": np.uint8, "STRING": np.object_},
}
INPUTS = {
    tensor.name: tensor for tensor in tensorrt_llm(ElementTypes(), reports_streams=True).inputs
}
WITHOUT_BEAMS = {"len_penalty", "early_stopping", "beam_search_diversity_rate"}
"""What means nothing unless there are beams."""
STAND_INS = ("triton_python_backend_utils", "tensorrt_llm", "llmapi_", "minitron_re")


class Request:
    """Stands in for a request of one row."""

    def __init__(self, timeout_us: int, values: dict[str, Any]) -> None:
        given = {"input_ids": [5, 6, 7], "input_lengths": 3, "request_output_len": 9, **values}
        self.timeout = lambda: timeout_us
        self.inputs = {
            name: np.array([value if isinstance(value, list) else [value]], _dtype(name))
            for name, value in given.items()
            if value is not None
        }


def _dtype(name: str) -> Any:
    return DTYPES[INPUTS[name].type]


class Array:
    """Stands in for a tensor of Triton's stub."""

    def __init__(self, value: Any) -> None:
        self.as_numpy = lambda: value


class Models:
    """The modules under test, and shorter ways to call them."""

    def __init__(self) -> None:
        self.calls: Any = importlib.import_module("minitron_models.llmapi.llm_call")
        self.model: Any = importlib.import_module("tensorrt_llm_llmapi.model")

    def read(self, timeout_us: int = 0, excludes_input: bool = False, **values: Any) -> Any:
        """Return what a request asks of a model that knows all, but beams."""
        return self.read_by(self.abilities(), timeout_us, excludes_input, **values)

    def read_by(
        self, abilities: Any, timeout_us: int = 0, excludes_input: bool = False, **values: Any
    ) -> Any:
        """Return what a request asks of a model."""
        return self.calls.read_llm_call(Request(timeout_us, values), abilities, excludes_input)

    def params(self, abilities: Any = None, **values: Any) -> Any:
        """Return the SamplingParams that LLM is given."""
        return self.model._sampling_params(self.read_by(abilities or self.abilities(), **values))

    def abilities(self, **changes: Any) -> Any:
        """Return what a model can do: everything, but for beams."""
        known = {"every_penalty": True, "guided": True, "streaming": True}
        return self.calls.Abilities(**{**known, **changes})


@pytest.fixture(scope="module")
def models() -> Iterator[Models]:
    """The modules, loaded over the stand-ins, of which nothing stays."""
    stub: Any = types.ModuleType("triton_python_backend_utils")
    stub.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1

    def find(request: Request, name: str) -> Array | None:
        return Array(request.inputs[name]) if name in request.inputs else None

    stub.get_input_tensor_by_name = find
    with pytest.MonkeyPatch.context() as patch:
        _forget()
        patch.setitem(sys.modules, "triton_python_backend_utils", stub)
        patch.syspath_prepend(str(Path(__file__).with_name("stand_in")))
        yield Models()
    _forget()


def _forget() -> None:
    for name in tuple(sys.modules):
        if name.startswith(STAND_INS):
            del sys.modules[name]


def test_what_is_not_given_is_left_to_llm(models: Models) -> None:
    asked, params = models.read(), models.params()

    assert (asked.prompt, asked.sequences, asked.rows) == ([5, 6, 7], 1, 1)
    assert (asked.streaming, asked.excludes_input, asked.timeout_s) == (False, False, None)
    assert (params.max_tokens, params.n, params.detokenize) == (9, 1, False)
    for name in ("temperature", "top_k", "top_p", "seed", "min_tokens", "repetition_penalty"):
        assert getattr(params, name) is None
    assert (params.logprobs, params.embedding_bias, params.stop_token_ids) == (None, None, None)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"temperature": 0.5}, {"temperature": 0.5}),
        ({"runtime_top_k": 4}, {"top_k": 4}),
        ({"runtime_top_p": 0.75}, {"top_p": 0.75}),
        ({"runtime_top_p_min": 0.125}, {"top_p_min": 0.125}),
        ({"runtime_top_p_decay": 0.5}, {"top_p_decay": 0.5}),
        ({"runtime_top_p_reset_ids": 8}, {"top_p_reset_ids": 8}),
        ({"repetition_penalty": 1.5}, {"repetition_penalty": 1.5}),
        ({"presence_penalty": 0.25}, {"presence_penalty": 0.25}),
        ({"frequency_penalty": -0.5}, {"frequency_penalty": -0.5}),
        ({"min_tokens": 3}, {"min_tokens": 3}),
        ({"seed": 2**63}, {"seed": 2**63}),
        ({"num_return_sequences": 2, "runtime_top_k": 5}, {"n": 2, "top_k": 5}),
        ({"request_output_len": 4}, {"max_tokens": 4}),
        ({"end_id": 2}, {"end_id": 2, "pad_id": 2, "ignore_eos": False}),
        ({"end_id": 2, "pad_id": 0}, {"end_id": 2, "pad_id": 0}),
        ({}, {"end_id": -1, "pad_id": -1, "ignore_eos": True}),
        ({"stop_words_list": [[8, 9, 10], [1, 3, -1]]}, {"stop_token_ids": [8]}),
        ({"bad_words_list": [[4, 5], [2, -1]]}, {"bad": [], "_bad_word_ids": [[4, 5]]}),
        ({"return_log_probs": True}, {"logprobs": 1}),
        ({"return_context_logits": True}, {"return_context_logits": True}),
        ({"return_generation_logits": True}, {"return_generation_logits": True}),
        ({"return_perf_metrics": True}, {"return_perf_metrics": True}),
    ],
    ids=str,
)
def test_an_input_arrives_as_a_field_of_sampling_params(
    models: Models, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    params = models.params(**given)

    assert {name: getattr(params, name) for name in expected} == expected


def test_a_bias_arrives_as_a_tensor_of_the_vocabulary(models: Models) -> None:
    bias = models.params(embedding_bias=[0.0, -2.5, 4.0]).embedding_bias

    assert (str(bias.dtype), bias.tolist()) == ("torch.float32", [0.0, -2.5, 4.0])


@pytest.mark.parametrize(
    ("kind", "field"), [("json_schema", "json"), ("regex", "regex"), ("ebnf_grammar", "grammar")]
)
def test_a_guide_arrives(models: Models, kind: str, field: str) -> None:
    guide: dict[str, Any] = {
        "guided_decoding_guide_type": kind.encode(),
        "guided_decoding_guide": b"text",
    }

    assert getattr(models.params(**guide).guided_decoding, field) == "text"


def test_a_word_of_several_ids_is_looked_for_in_what_comes(models: Models) -> None:
    asked = models.read(stop_words_list=[[8, 9, 10], [2, 3, -1]])

    assert (asked.stop_words, asked.in_steps, asked.streaming) == ([[8, 9]], True, False)


@pytest.mark.parametrize("offsets", [[5, -1, -1], [2, 1, -1], [0, 2, -1], [2, -1, 3], [-7, 2, -1]])
def test_words_that_are_packed_in_another_way_are_refused(
    models: Models, offsets: list[int]
) -> None:
    for name in ("stop_words_list", "bad_words_list"):
        words: dict[str, Any] = {name: [[8, 9, 10], offsets]}
        with pytest.raises(ValueError, match=rf"{name} has the offsets .* among 3 ids, rising"):
            models.read(**words)


def test_a_timeout_in_microseconds_arrives_in_seconds(models: Models) -> None:
    assert models.read(timeout_us=2_500_000).timeout_s == 2.5


def test_a_request_decides_about_its_prompt_before_the_parameter(models: Models) -> None:
    for parameter in (True, False):
        assert models.read(excludes_input=parameter).excludes_input is parameter
        asked = models.read(excludes_input=parameter, exclude_input_in_output=not parameter)
        assert asked.excludes_input is not parameter


def test_context_logits_are_computed_beside_the_cache_of_others(models: Models) -> None:
    salts = [models.model._cache_salt(models.read(return_context_logits=True)) for _ in range(2)]

    assert salts[0] != salts[1]
    assert models.model._cache_salt(models.read()) is None


@pytest.mark.parametrize(
    ("given", "neutral"),
    [
        ({"repetition_penalty": 1.5}, 1.0),
        ({"presence_penalty": 0.25}, 0.0),
        ({"frequency_penalty": -0.5}, 0.0),
        ({"runtime_top_p_min": 0.125}, 1e-6),
        ({"runtime_top_p_decay": 0.5}, 1.0),
        ({"runtime_top_p_reset_ids": 8}, -1),
        ({"bad_words_list": [[4, 5], [2, -1]]}, [[0], [-1]]),
    ],
    ids=str,
)
def test_what_the_default_sampler_ignores_is_refused_unless_it_changes_nothing(
    models: Models, given: dict[str, Any], neutral: Any
) -> None:
    (name,) = given
    plain = models.abilities(every_penalty=False)

    with pytest.raises(ValueError, match=f"{name.removesuffix('_list')} .*TRTLLMSampler in model"):
        models.read_by(plain, **given)
    assert models.read_by(plain, **{name: neutral}).sampling == models.read_by(plain).sampling


@pytest.mark.parametrize("name", sorted(INPUTS))
def test_every_input_of_the_contract_means_something_or_is_refused_by_name(
    models: Models, name: str
) -> None:
    """Whatever is neither refused nor read would be ignored, and only a few inputs may be."""
    value: Any = {"BOOL": True, "STRING": b"json", "FP32": 0.5, "FP16": 0.5}.get(
        INPUTS[name].type, 3
    )
    if name in ("stop_words_list", "bad_words_list"):
        value = [[8], [1]]
    given: dict[str, Any] = {"input_ids": [5, 6, 7, 8], "runtime_top_k": 5, "end_id": 2}
    plain = models.read(**given)
    try:
        changed = models.read(**{**given, name: value})
    except ValueError as error:
        refusal = str(error)
    else:
        refusal = ""
        ignored = changed == plain and changed.bias is None

    # `stop` is read before all others; the length is what it is without being given. Text models
    # have no decoder of its own, whose tensors other clients send all the same.
    known = {*WITHOUT_BEAMS, "stop", "input_lengths", "decoder_input_ids", "decoder_input_lengths"}
    assert name in refusal if refusal else ignored is (name in known)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"input_ids": None}, "input_lengths is 3 but input_ids holds 0 ids"),
        ({"input_lengths": 4}, "input_lengths is 4 but input_ids holds 3 ids"),
        ({"request_output_len": 0}, "max_tokens is 0; expected at least 1"),
        ({"num_return_sequences": 0}, "num_return_sequences is 0; expected at least 1"),
        ({"temperature": [1.0, 2.0]}, "temperature holds 2 values"),
        ({"beam_width": 2}, "beam_width is 2, but max_beam_width is 1 in model.yaml"),
        ({"guided_decoding_guide": b"x"}, "without guided_decoding_guide_type"),
    ],
    ids=str,
)
def test_a_tensor_that_is_wrong_is_named(
    models: Models, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        models.read(**values)


def test_beams_are_searched_where_the_model_has_as_many(models: Models) -> None:
    """The docs of 1.2: max_beam_width has to be best_of; n are given back."""
    wide = models.abilities(beams=4, every_penalty=False)
    words: dict[str, Any] = {"stop_words_list": [[8, 9], [2, -1]]}
    asked = models.read_by(wide, beam_width=4, len_penalty=0.0, early_stopping=True, **words)
    params = models.model._sampling_params(asked)

    assert (asked.sequences, asked.rows, asked.in_steps) == (1, 4, False)
    assert (params.use_beam_search, params.best_of, params.n) == (True, 4, 4)
    assert models.read_by(wide, beam_width=4, num_return_sequences=1).rows == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"beam_width": None}, "beam_width is 1, but max_beam_width is 4 in model.yaml"),
        ({"beam_width": 3}, "beam_width is 3, .* takes no other; expected 4"),
        ({"streaming": True}, "streaming is true, but beam_width is 4"),
        ({"num_return_sequences": 2}, "num_return_sequences is 2, but beam_width is 4"),
        ({"len_penalty": 1.0}, "len_penalty is 1.0, which .* beam search ignores"),
        ({"beam_search_diversity_rate": 0.5}, "beam_search_diversity_rate is 0.5"),
        ({"early_stopping": False}, "early_stopping is False"),
    ],
    ids=str,
)
def test_what_a_search_cannot_do_is_refused(
    models: Models, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        models.read_by(models.abilities(beams=4), **{"beam_width": 4, **values})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_beam_width": "0"}, "llm.max_beam_width is 0; expected a whole number"),
        ({"max_beam_width": "2", "sampler_type": "TRTLLMSampler"}, "needs TorchSampler; leave"),
        ({"max_beam_width": "2", "speculative_config.x": "1"}, "no beams with a speculative"),
    ],
    ids=str,
)
def test_arguments_that_make_beams_wrong_are_refused(
    settings: dict[str, str], message: str
) -> None:
    source = HfFolder.open(sample_folder("solar-llama"))

    with pytest.raises(UsageError, match=message):
        plan_llmapi(source, ServingRecipe(settings={"llm": settings}))


def test_beams_are_served_with_the_sampler_that_is_right_about_them() -> None:
    source = HfFolder.open(sample_folder("solar-llama"))
    served = plan_llmapi(source, ServingRecipe(settings={"llm": {"max_beam_width": "2"}}))

    assert 'max_beam_width: 2\nsampler_type: "TorchSampler"\n' in served.texts["model.yaml"]
