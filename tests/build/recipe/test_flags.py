"""The data file of trtllm-build's flags, and the check of arguments against it."""

from __future__ import annotations

import pytest

from minitron_trt.build.recipe.flags import Flag, check_arguments, flags_of, minor_of
from minitron_trt.errors import UnsupportedError, UsageError

CONTRACT = [
    Flag("max_batch_size", "int", (), 2048),
    Flag("max_num_tokens", "int", (), 8192),
    Flag("max_seq_len", "int"),
    Flag("kv_cache_type", "choice", ("continuous", "paged", "disabled")),
    Flag("weight_streaming", "switch"),
    Flag("gather_generation_logits", "switch", deprecated=True),
    Flag("use_paged_context_fmha", "choice", ("enable", "disable"), "enable"),
    Flag("multiple_profiles", "choice", ("enable", "disable"), "disable"),
    Flag("gemm_swiglu_plugin", "choice", ("fp8", "disable"), "disable"),
    Flag(
        "gemm_plugin",
        "choice",
        ("auto", "float16", "float32", "bfloat16", "int32", "fp8", "nvfp4", "disable"),
        "disable",
    ),
    Flag("tokens_per_block", "int", (), 32),
]


@pytest.mark.parametrize("flag", CONTRACT, ids=lambda flag: flag.name)
def test_flags_are_those_of_the_contract(flag: Flag) -> None:
    assert flags_of("1.2.1")[flag.name] == flag


def test_auto_parallel_went_with_1_2() -> None:
    gone = set(flags_of("1.1.0")) - set(flags_of("1.2.1"))

    assert gone == {"auto_parallel", "gpus_per_node", "cluster_key"}
    assert set(flags_of("1.0.0")) == set(flags_of("1.1.0"))


def test_defaults_are_values_that_their_flags_take() -> None:
    for flag in flags_of("1.2.1").values():
        if flag.default is not None:
            flag.check(str(flag.default))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--gemm_plugin=fast", "--gemm_plugin is 'fast'; expected auto, float16, "),
        ("--max_batch_size=many", "--max_batch_size is 'many'; expected a whole number"),
        ("--max_batch_size=-1", "--max_batch_size is '-1'; expected a whole number"),
        ("--weight_streaming=enable", "--weight_streaming takes no value"),
        ("--max_batch_size", "--max_batch_size takes a value"),
    ],
)
def test_a_value_that_a_flag_does_not_take_is_refused(argument: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_arguments([argument], "1.2.1")


def test_a_flag_that_a_version_lacks_is_refused() -> None:
    check_arguments(["--auto_parallel=2"], "1.1")
    with pytest.raises(UnsupportedError, match=r"TensorRT-LLM 1\.2\.1 has no flag --auto_parallel"):
        check_arguments(["--auto_parallel=2"], "1.2.1")


@pytest.mark.parametrize(
    ("version", "minor"), [("1.2.1", "1.2"), ("1.2.0rc8", "1.2"), ("1.0.0", "1.0"), ("1.1", "1.1")]
)
def test_a_version_is_known_by_its_first_two_numbers(version: str, minor: str) -> None:
    assert minor_of(version) == minor


def test_a_version_without_the_engine_builder_is_answered_with_the_way_out() -> None:
    with pytest.raises(UnsupportedError) as caught:
        minor_of("1.3.0rc26")

    assert str(caught.value) == (
        "TensorRT-LLM 1.3.0rc26 is newer than 1.2.1, the last release with an engine builder "
        "(1.3.0rc20 is the last pre-release, and its flags are not known here); build with "
        "--trtllm-version 1.2.1, or serve the model without an engine: "
        "minitron-trt triton-repo MODEL --runtime llmapi"
    )


@pytest.mark.parametrize(
    ("version", "error"), [("0.21", UnsupportedError), ("newest", UsageError), ("", UsageError)]
)
def test_other_versions_are_refused(version: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        minor_of(version)
