"""Context attention: TensorRT-LLM's silent switches, applied and said beforehand."""

from __future__ import annotations

import itertools

import pytest

from minitron_trt.build.engine_model import PRESETS, EngineModel
from minitron_trt.build.recipe.context_attention import choose_attention
from minitron_trt.build.recipe.request import BuildRequest
from minitron_trt.errors import MinitronError, UnsupportedError, UsageError
from minitron_trt.gpus import find_target


def attention_of(
    precision: str, kv_cache: str | None, gpu: str = "H100", **options: object
) -> tuple[bool, bool]:
    """Return whether context attention is paged, and whether it is FP8."""
    model = EngineModel("m", PRESETS["minitron-4b"], precision, kv_cache)
    request = BuildRequest(**options)  # type: ignore[arg-type]
    chosen = choose_attention(model, find_target(gpu), request)

    assert chosen.why_paged
    assert chosen.why_fp8
    return chosen.paged, chosen.fp8


@pytest.mark.parametrize(
    ("precision", "kv_cache", "paged", "fp8"),
    [
        ("bf16", None, True, False),
        ("bf16", "fp8", False, False),
        ("bf16", "int8", False, False),
        ("fp8", None, True, False),
        ("fp8", "fp8", True, True),
        ("fp8", "int8", False, False),
        ("w4a8-awq", "fp8", True, True),
        ("fp8-rowwise", "fp8", False, False),
        ("w4a16-awq", None, True, False),
    ],
)
def test_without_options_reuse_is_kept_where_it_can_be(
    precision: str, kv_cache: str | None, paged: bool, fp8: bool
) -> None:
    assert attention_of(precision, kv_cache) == (paged, fp8)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"kv_cache_reuse": False}, (False, True)),
        ({"kv_cache_reuse": False, "fp8_context_fmha": False}, (False, False)),
        ({"fp8_context_fmha": True}, (False, True)),
        ({"kv_cache_type": "continuous"}, (False, True)),
    ],
    ids=str,
)
def test_fp8_weights_get_fp8_attention_where_nothing_is_paged(
    options: dict[str, object], found: tuple[bool, bool]
) -> None:
    assert attention_of("fp8", None, **options) == found  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("precision", "kv_cache", "gpu", "options", "error", "message"),
    [
        (
            *("bf16", "fp8", "H100", {"kv_cache_reuse": True}, UsageError),
            "--kv-cache-reuse cannot be met: an FP8 KV cache with bf16 weights has no paged "
            "context attention",
        ),
        (
            *("fp8", "int8", "H100", {"kv_cache_reuse": True}, UsageError),
            "--kv-cache-reuse cannot be met: an INT8 KV cache has no paged context attention",
        ),
        (
            *("bf16", None, "H100", {"fp8_context_fmha": True}, UsageError),
            "--fp8-context-fmha cannot be met: bf16 weights have no FP8 context attention",
        ),
        (
            *("bf16", None, "A100", {"fp8_context_fmha": True}, UnsupportedError),
            "A100-80GB (SM80) cannot run fp8-context-fmha: it needs FP8 tensor cores, SM89 (Ada) "
            "or newer",
        ),
        (
            "fp8",
            None,
            "H100",
            {"fp8_context_fmha": True, "kv_cache_reuse": True},
            UsageError,
            "--kv-cache-reuse cannot be met: FP8 context attention beside paged blocks needs an "
            "FP8 KV cache",
        ),
        (
            *("fp8", "fp8", "H100", {"fp8_context_fmha": False}, UsageError),
            "TensorRT-LLM forces FP8 context attention on with paged blocks and an FP8 KV cache; "
            "add --no-kv-cache-reuse or leave --no-fp8-context-fmha out",
        ),
        (
            "fp8",
            None,
            "H100",
            {"kv_cache_type": "continuous", "kv_cache_reuse": True},
            UsageError,
            "--kv-cache-reuse cannot be met: the KV cache is continuous",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, (dict, str)) and len(value) < 9 else "",
)
def test_an_option_that_would_be_switched_off_silently_is_refused(
    precision: str,
    kv_cache: str | None,
    gpu: str,
    options: dict[str, object],
    error: type[MinitronError],
    message: str,
) -> None:
    with pytest.raises(error) as caught:
        attention_of(precision, kv_cache, gpu, **options)

    assert str(caught.value) == message


def test_no_outcome_is_one_that_tensorrt_llm_would_change() -> None:
    """Its own rules, as the contract has them, leave every outcome as it is."""
    switch = (None, True, False)
    options = itertools.product(
        ("bf16", "fp8", "w4a8-awq", "fp8-rowwise"),
        (None, "fp8", "int8"),
        switch,
        switch,
        ("paged", "continuous"),
    )
    for precision, kv_cache, reuse, fp8_asked, kind in options:
        try:
            paged, fp8 = attention_of(
                precision,
                kv_cache,
                kv_cache_reuse=reuse,
                fp8_context_fmha=fp8_asked,
                kv_cache_type=kind,
            )
        except UsageError:
            continue
        fp8_weights = precision in ("fp8", "w4a8-awq")

        assert not (fp8 and not fp8_weights)
        assert not (paged and (kind != "paged" or kv_cache == "int8"))
        assert not (paged and kv_cache == "fp8" and not fp8_weights)
        assert fp8 == (kv_cache == "fp8") if paged and fp8_weights else True
