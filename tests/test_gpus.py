"""The table of GPUs: names, rates, and which precision and feature runs where."""

from __future__ import annotations

import pytest

from minitron_trt import gpus
from minitron_trt.errors import UnsupportedError, UsageError
from minitron_trt.gpus import (
    ARCHITECTURES,
    FEATURES,
    GPUS,
    SMS,
    Sure,
    check_support,
    find_gpu,
    find_target,
    support,
)
from minitron_trt.quantization.precisions import PRECISIONS


@pytest.mark.parametrize(
    ("name", "found", "sm"),
    [
        ("ampere", "ampere", 80),
        ("Lovelace", "ada", 89),
        ("hopper", "hopper", 90),
        ("blackwell", "blackwell", 100),
        ("blackwell_rtx", "blackwell-rtx", 120),
        ("A100", "A100-80GB", 80),
        ("a100-40gb", "A100-40GB", 80),
        ("h100", "H100-SXM", 90),
        ("H100 PCIe", "H100-PCIe", 90),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB", 80),
        ("NVIDIA H100 80GB HBM3", "H100-SXM", 90),
        ("NVIDIA L40S", "L40S", 89),
        ("NVIDIA GeForce RTX 4090", "RTX-4090", 89),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX-PRO-6000", 120),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX-PRO-6000-Workstation", 120),
        ("sm103", "sm103", 103),
        ("SM_86", "sm86", 86),
    ],
)
def test_architectures_products_and_what_nvidia_smi_says_are_known(
    name: str, found: str, sm: int
) -> None:
    target = find_target(name)

    assert (target.name, target.sm) == (found, sm)


def test_no_two_entries_share_a_name() -> None:
    names = [
        *(spelling for gpu in GPUS for spelling in (gpu.name, *gpu.aliases)),
        *(spelling for a in ARCHITECTURES for spelling in (a.name, *a.aliases)),
    ]

    assert sorted(set(names)) == sorted(names)
    assert all(find_target(gpu.name).gpu is gpu for gpu in GPUS)


def test_every_feature_has_a_letter_for_each_sm() -> None:
    assert {name: len(letters) for name, letters in gpus._CELLS.items()} == dict.fromkeys(
        FEATURES, len(SMS)
    )


def test_every_sm_belongs_to_one_architecture_and_has_a_product() -> None:
    assert list(SMS) == sorted({sm for architecture in ARCHITECTURES for sm in architecture.sms})
    assert {gpu.sm for gpu in GPUS} == set(SMS)
    assert all(find_target(f"sm{sm}").gpu.sm == sm for sm in SMS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("H10", "GPU or architecture 'H10' is not known; did you mean A10 or H100-SXM or H100-NVL"),
        ("hoper", "GPU or architecture 'hoper' is not known; did you mean hopper or ampere"),
    ],
)
def test_an_unknown_gpu_is_answered_with_the_nearest_names(name: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_target(name)

    assert str(caught.value) == message


def test_a_name_like_no_other_is_answered_with_all_names() -> None:
    with pytest.raises(UsageError, match=r"known are ampere, ada, .*, B200, .*, RTX-5090$"):
        find_target("zzzz")


@pytest.mark.parametrize(
    ("feature", "gpu", "message"),
    [
        (
            *("fp8", "A100"),
            "A100-80GB (SM80) cannot run fp8: it needs FP8 tensor cores, SM89 (Ada) or newer; "
            "use w8a16 or w4a16-awq or bf16",
        ),
        (
            *("w8a16", "B200"),
            "B200 (SM100) cannot run w8a16: TensorRT-LLM's builder refuses it on this "
            "architecture; use fp8 or bf16",
        ),
        (
            *("w4a16-awq", "B200"),
            "B200 (SM100) cannot run w4a16-awq: TensorRT-LLM's builder refuses it on this "
            "architecture; use nvfp4 or fp8 or bf16",
        ),
        (
            *("nvfp4", "H100"),
            "H100-SXM (SM90) cannot run nvfp4: it needs FP4 tensor cores, SM100 (Blackwell) or "
            "newer; use w4a8-awq or fp8 or w4a16-awq or bf16",
        ),
        (
            *("fp8-rowwise", "RTX-5090"),
            "RTX-5090 (SM120) cannot run fp8-rowwise: TensorRT-LLM does not list it for this "
            "architecture; use fp8 or w8a16 or bf16",
        ),
        (
            *("kv-int8", "B200"),
            "B200 (SM100) cannot run kv-int8: TensorRT-LLM's builder refuses it on this "
            "architecture; use kv-fp8",
        ),
        (
            *("gemm-swiglu-plugin", "A100"),
            "A100-80GB (SM80) cannot run gemm-swiglu-plugin: it is written for SM90 (Hopper)",
        ),
    ],
    ids=lambda value: value if len(value) < 20 else "",
)
def test_what_a_gpu_cannot_run_is_refused_with_what_to_use_instead(
    feature: str, gpu: str, message: str
) -> None:
    with pytest.raises(UnsupportedError) as caught:
        check_support(feature, find_target(gpu))

    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("gpu", "precisions"),
    [
        ("A100", "bf16 fp16 w8a16 w4a16 w4a16-awq"),
        ("A10", "bf16 fp16 w8a16 w4a16 w4a16-awq"),
        ("L40", "bf16 fp16 fp8 fp8-rowwise w8a16 w4a16 w4a16-awq w4a8-awq"),
        ("H100", "bf16 fp16 fp8 fp8-rowwise w8a16 w4a16 w4a16-awq w4a8-awq"),
        ("B200", "bf16 fp16 fp8 nvfp4"),
        ("B300", "bf16 fp16 fp8 nvfp4"),
        ("RTX PRO 6000", "bf16 fp16 fp8 w8a16 w4a16 nvfp4"),
    ],
)
def test_precisions_by_gpu_are_those_of_the_contract(gpu: str, precisions: str) -> None:
    target = find_target(gpu)

    assert [p for p in PRECISIONS if support(p, target).supported] == precisions.split()


@pytest.mark.parametrize("sm", SMS)
@pytest.mark.parametrize("feature", FEATURES)
def test_every_alternative_runs_on_the_target(feature: str, sm: int) -> None:
    target = find_target(f"sm{sm}")
    verdict = support(feature, target)

    assert all(support(other, target).supported for other in verdict.alternatives)
    assert not (verdict.supported and verdict.alternatives)
    assert verdict.alternatives or verdict.supported or feature not in PRECISIONS


def test_what_nobody_has_run_says_so() -> None:
    assert support("bf16", find_target("H100")).sure is Sure.TESTED
    assert support("fp8", find_target("L40")).sure is Sure.TESTED
    assert support("w4a8-awq", find_target("L40")).sure is Sure.DOCUMENTED
    assert support("bf16", find_target("RTX PRO 6000")).sure is Sure.UNVERIFIED


def test_a_precision_that_does_not_exist_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="'int3' is not known; expected one of bf16, fp16, "):
        support("int3", find_target("H100"))


def test_rates_follow_the_format_that_the_gpu_multiplies_in() -> None:
    names = ("bf16", "w4a16-awq", "fp8", "w4a8-awq", "nvfp4")

    assert [find_gpu("B200").tflops(name) for name in names] == [2250, 2250, 4500, 4500, 9000]
    assert [find_gpu("H100").tflops(name) for name in names[:4]] == [989, 989, 1979, 1979]
    assert find_gpu("A100").tflops("bf16") == 312


def test_memory_is_what_nvidia_smi_reports() -> None:
    assert find_gpu("H100").memory_bytes == 81559 * 1024 * 1024
