"""A config.json in any spelling: what transformers 4.57 and 5 compute, or a refusal.

The two versions are asked themselves, on generated configs: the frequencies that they turn heads
with, shapes, window and ties. `PYTHON_457` names the Python of an environment with 4.57.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.convert.source.transformers_reading import answer_of as ask_5

from minitron_trt.convert.source.class_defaults import CLASS_DEFAULTS
from minitron_trt.convert.source.hf_config import HfConfig, config_record, read_spec
from minitron_trt.errors import MinitronError
from minitron_trt.executor.rotary import inverse_frequencies
from minitron_trt.spec import ModelSpec

Ask = Callable[[Any], dict[str, Any]]
SIZES: Final[dict[str, Any]] = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "head_dim": 8,
    "vocab_size": 131,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
ARCHITECTURES: Final = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "nemotron": "NemotronForCausalLM",
}
STRETCH: Final[dict[str, Any]] = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def with_some(required: dict[str, Any], **optional: st.SearchStrategy[Any]) -> Any:
    """Return objects with what is required and any of the rest."""
    return st.fixed_dictionaries({k: st.just(v) for k, v in required.items()}, optional=optional)


THETAS = st.sampled_from([10000.0, 500000.0, 10000])
SHARES = st.sampled_from([0.5, 0.25, 1.0])
INNER = {"rope_theta": THETAS, "partial_rotary_factor": SHARES}
OBJECTS = st.one_of(
    st.none(),
    with_some({}, **INNER),
    with_some({"rope_type": "default"}, **INNER),
    with_some({"type": "default"}, **INNER),
    with_some({**STRETCH, "rope_type": "llama3"}, **INNER),
    with_some({**STRETCH, "type": "llama3"}, **INNER),
    with_some({**STRETCH, "rope_type": "llama3", "factor": 4.0}, **INNER),
    with_some({"rope_type": "linear", "factor": 2.0}),
    with_some(STRETCH),
)
RECORDS = st.builds(
    lambda kind, record: {**SIZES, "model_type": kind, **record},
    st.sampled_from(list(ARCHITECTURES)),
    with_some(
        {},
        rope_theta=THETAS,
        rope_scaling=OBJECTS,
        rope_parameters=OBJECTS,
        partial_rotary_factor=st.one_of(SHARES, st.none()),
        rope_percent=SHARES,
        original_max_position_embeddings=st.sampled_from([32, 16]),
        sliding_window=st.sampled_from([None, 16, 4096]),
        num_key_value_heads=st.sampled_from([None, 4, 16]),
        rms_norm_eps=st.sampled_from([1e-5, 1e-6]),
        norm_eps=st.sampled_from([1e-5, 1e-6]),
        layer_norm_eps=st.sampled_from([1e-5, 1e-6]),
        tie_word_embeddings=st.booleans(),
    ),
)


def facts_of(spec: ModelSpec) -> dict[str, Any]:
    """Return the facts as `reading_of` has them; no window shorter than the context is let by."""
    return {
        "key_rows": spec.kv_size,
        "embedding": [spec.vocab, spec.hidden],
        "inner": spec.intermediate,
        "layers": spec.layers,
        "heads": spec.heads,
        "epsilon": spec.norm_epsilon,
        "tied": spec.tied,
    }


def check_same(spec: ModelSpec, reading: dict[str, Any]) -> None:
    frequencies, window = reading.pop("frequencies"), reading.pop("window")

    assert facts_of(spec) == reading
    assert window is None or window >= spec.max_positions
    np.testing.assert_allclose(inverse_frequencies(spec), frequencies, rtol=2e-6)


def check_reading(record: dict[str, Any], ask: Ask) -> None:
    """Check that a config which is not refused has the facts that transformers takes."""
    try:
        spec = read_spec(HfConfig(record), head_size=8)
    except MinitronError:
        return
    reading = ask(record)
    if "fails" not in reading:
        check_same(spec, reading)


@pytest.mark.transformers_5
@pytest.mark.slow
@settings(max_examples=40)
@given(record=RECORDS)
def test_what_is_read_is_what_transformers_5_computes(record: dict[str, Any]) -> None:
    check_reading(record, ask_5)


@pytest.mark.slow
@settings(max_examples=40)
@given(record=RECORDS.filter(lambda record: not record.get("rope_parameters")))
def test_what_is_read_is_what_transformers_4_57_computes(
    record: dict[str, Any], ask_457: Ask
) -> None:
    check_reading(record, ask_457)


LLAMA3 = {**STRETCH, "rope_type": "llama3"}


@pytest.mark.slow
@pytest.mark.transformers_5
@pytest.mark.parametrize(
    ("kind", "record"),
    [
        ("llama", {}),
        ("llama", {"rope_theta": 500000.0, "rope_scaling": LLAMA3}),
        ("llama", {"rope_parameters": {**LLAMA3, "rope_theta": 500000.0}}),
        (
            "llama",
            {"rope_theta": 5e5, "rope_scaling": LLAMA3, "rope_parameters": LLAMA3},
        ),
        ("llama", {"rope_theta": 5e5, "rope_scaling": {**LLAMA3, "rope_theta": 5e5}}),
        ("mistral", {}),
        ("mistral", {"rope_theta": 1e6, "sliding_window": None, "num_key_value_heads": 4}),
        ("mistral", {"rope_theta": 1e6, "rope_scaling": {**STRETCH, "type": "llama3"}}),
        ("nemotron", {"num_key_value_heads": 4}),
        (
            "nemotron",
            {"num_key_value_heads": 4, "partial_rotary_factor": 0.25, "rope_percent": 0.25},
        ),
        (
            "nemotron",
            {
                "num_key_value_heads": 4,
                "rope_parameters": {**LLAMA3, "rope_theta": 1e5, "partial_rotary_factor": 1.0},
            },
        ),
    ],
    ids=str,
)
def test_spellings_that_agree_are_converted(kind: str, record: dict[str, Any]) -> None:
    record = {**SIZES, "model_type": kind, **record}

    check_same(read_spec(HfConfig(record), head_size=8), ask_5(record))


def check_defaults(ask: Ask) -> None:
    for kind, architecture in ARCHITECTURES.items():
        table, known = dict(CLASS_DEFAULTS[architecture]), ask(kind)
        # The class of 5 says what None means.
        known["num_key_value_heads"] = {
            table["num_attention_heads"]: table["num_key_value_heads"],
        }.get(known["num_key_value_heads"], known["num_key_value_heads"])

        assert {key: known[key] for key in table} == table
        assert HfConfig({"model_type": kind}).family.architecture == architecture


def test_the_defaults_of_the_classes_are_those_of_transformers_5() -> None:
    check_defaults(ask_5)


def test_the_defaults_of_the_classes_are_those_of_transformers_4_57(ask_457: Ask) -> None:
    check_defaults(ask_457)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_config_of_nothing_but_its_type_is_that_of_the_class(kind: str) -> None:
    window = {"sliding_window": None} if kind == "mistral" else {}
    spec = read_spec(HfConfig({"model_type": kind, **window}), head_size=128)

    assert spec.max_positions == CLASS_DEFAULTS[ARCHITECTURES[kind]]["max_position_embeddings"]
    assert spec.kv_heads == (8 if kind == "mistral" else spec.heads)


WRITTEN: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("llama", {"rope_theta": 5e5, "rope_scaling": LLAMA3, "num_key_value_heads": 4}),
    ("llama", {"tie_word_embeddings": True}),
    ("mistral", {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}),
    ("nemotron", {"num_key_value_heads": 4, "partial_rotary_factor": 0.25, "norm_eps": 1e-6}),
)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "record"), WRITTEN, ids=str)
@pytest.mark.parametrize("version", ["5", "4.57"])
def test_a_config_that_is_written_is_read_alike_by_both(
    kind: str, record: dict[str, Any], version: str, request: pytest.FixtureRequest
) -> None:
    ask = ask_5 if version == "5" else request.getfixturevalue("ask_457")
    spec = read_spec(HfConfig({**SIZES, "model_type": kind, **record}), head_size=8)
    written = config_record(spec)

    assert read_spec(HfConfig(written), head_size=8) == spec
    check_same(spec, ask(written))
