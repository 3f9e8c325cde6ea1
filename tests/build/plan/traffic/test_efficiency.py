"""What is fitted to NVIDIA's figures, and how far it can be trusted."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

import pytest

from minitron_trt.build.engine_model import PRESETS, EngineModel
from minitron_trt.build.plan.roofline import Work
from minitron_trt.build.plan.traffic.efficiency import (
    efficiency,
    errors_without,
    fitted_as,
    uncertainty,
)
from minitron_trt.build.plan.traffic.published import Measurement, measurements
from minitron_trt.gpus import find_gpu
from minitron_trt.quantization.precisions import PRECISIONS

MINITRON = EngineModel("minitron-8b", PRESETS["minitron-8b"])
COLUMNS = (
    ("H100-SXM", "fp8"),
    ("H100-SXM", "bf16"),
    ("A100-80GB", "bf16"),
    ("A100-80GB-PCIe", "bf16"),
    ("L40S", "fp8"),
    ("GH200", "fp8"),
)
# Llama-3.1-8B, TensorRT-LLM 0.15, rounded.
TABLE = {
    (128, 128): (27792, 16117, 6553, 5159, 8983, 30803),
    (128, 2048): (19965, 9894, 5220, 4640, 5297, 20771),
    (1000, 1000): (14797, 7721, 3753, 3328, 4014, 15955),
    (2048, 128): (3496, 1972, 790, 631, 1056, 4012),
    (2048, 2048): (8980, 4371, 2367, 2125, 2163, 9073),
    (20000, 2000): (1379, 622, 330, 299, 326, 1460),
}


def engines_of_8b() -> list[int]:
    return [
        index
        for index, figure in enumerate(measurements())
        if figure.source == "TensorRT-LLM 0.15.0" and figure.model.name == "Llama-3.1-8B"
    ]


def test_the_figures_are_those_that_nvidia_published() -> None:
    found = {
        (figure.input_len, figure.output_len, figure.gpu.name, figure.model.precision): round(
            figure.tokens_per_s
        )
        for figure in (measurements()[index] for index in engines_of_8b())
    }

    assert len(found) == 54
    assert {
        (*lengths, *column): figure
        for lengths, figures in TABLE.items()
        for column, figure in zip(COLUMNS, figures, strict=True)
    }.items() <= found.items()


def test_a_requests_work_is_its_prompt_its_tokens_and_its_share_of_the_steps() -> None:
    figure = next(
        each
        for each in measurements()
        if each.source == "ModelOpt" and each.model.precision == "bf16" and each.batch == 8
    )
    layer = 6144 * 4096 + 4096 * 4096 + 3 * 14336 * 4096
    head = 2 * 128256 * 4096
    prompt = 2048 * 2 * 32 * (layer + 2 * 1024 * 4096) + head
    tokens = 127 * (2 * 32 * (layer + 2 * (2048 + 64) * 4096) + head)
    weights = 2 * (32 * (layer + 2 * 4096) + 4096 + 128256 * 4096)
    cached = 127 * (2048 + 64) * 32 * 2 * 8 * 128 * 2

    assert figure.work.arithmetic_s == pytest.approx((prompt + tokens) / 989e12)
    assert figure.work.memory_s == pytest.approx((weights * 128 / 8 + cached) / 4.8e12)
    assert figure.work.layers == 32 * 128 / 8
    assert figure.work.link_s == 0


def test_four_ranks_send_each_sum_in_a_ring() -> None:
    figure = next(
        each
        for each in measurements()
        if each.model.parallelism.tp == 4 and (each.input_len, each.output_len) == (128, 128)
    )
    # Two sums a layer, of 16 bits; sent and received twice, but for the rank's own quarter.
    moved = (128 + 127) * 2 * 80 * 8192 * 2 * 2 * 2 * 3 / 4

    assert figure.gpu.name == "H100-SXM"
    assert figure.work.link_s == pytest.approx(moved / 900e9)


def test_no_resource_gives_more_than_its_full_rate() -> None:
    found = efficiency()

    assert set(found.arithmetic) == {"bf16", "fp8", "nvfp4", "w4a16-awq", "w4a8-awq"}
    for share in (*found.arithmetic.values(), found.memory, found.link or 0.0):
        assert 0.2 < share < 1
    assert 0 < found.layer_s < 200e-6


def test_all_precisions_are_fitted_as_one_that_was_measured() -> None:
    assert {fitted_as(name) for name in PRECISIONS} <= set(efficiency().arithmetic)


def test_each_figure_is_predicted_from_the_others() -> None:
    errors = [abs(error or 0.0) for error in errors_without("figure")]

    assert len(errors) == len(measurements()) == 322
    assert median(errors) < 0.08
    assert sorted(errors)[int(0.9 * len(errors))] < 0.22
    assert median(errors[index] for index in engines_of_8b()) < 0.08


@pytest.mark.parametrize(
    ("left_out", "bound"), [("gpu", 0.09), ("model", 0.08), ("model or gpu", 0.1)]
)
def test_other_gpus_and_models_are_predicted_nearly_as_well(left_out: str, bound: float) -> None:
    errors = [abs(error) for error in errors_without(left_out) if error is not None]

    assert len(errors) > 150
    assert median(errors) < bound


def test_what_only_one_model_was_measured_with_says_nothing_of_others() -> None:
    by_model = dict(zip(map(id, measurements()), errors_without("model"), strict=True))

    def unknown(figure: Measurement) -> bool:
        return figure.model.precision == "nvfp4" or figure.model.parallelism.tp > 1

    assert all(
        (by_model[id(figure)] is None) == unknown(figure)
        for figure in measurements()
        if figure.model.name == "Llama-3.1-70B"
    )


def test_uncertainty_goes_by_what_was_measured() -> None:
    h100, l40 = find_gpu("H100"), find_gpu("L40")
    llama = next(each.model for each in measurements() if each.model.name == "Llama-3.1-8B")

    inside = uncertainty(replace(llama, name="mine", precision="bf16"), h100)
    outside = uncertainty(MINITRON, h100)
    farther = uncertainty(MINITRON, l40)
    fp4 = uncertainty(MINITRON.stored_as("nvfp4"), find_gpu("B200"))

    assert (inside.model_published, inside.gpu_published) == (True, True)
    assert inside.outside == inside.leave_one_out == outside.leave_one_out
    assert (outside.model_published, outside.gpu_published) == (False, True)
    assert (farther.model_published, farther.gpu_published) == (False, False)
    assert fp4.outside is None
    assert fp4.spread == fp4.leave_one_out
    assert farther.spread.median > inside.spread.median


@pytest.mark.parametrize("tp", [1, 8])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_each_precision_has_an_uncertainty(precision: str, tp: int) -> None:
    model = MINITRON.stored_as(precision).sharded_for(tp)
    found = uncertainty(model, find_gpu("B200"))

    assert efficiency().knows(model)
    assert 0 < found.spread.median <= found.spread.ninth_decile < 1
    assert (found.outside is None) == (tp > 1 or found.precision not in ("bf16", "fp8"))


def test_times_add_up_over_resources() -> None:
    found = replace(efficiency(), arithmetic={"bf16": 0.5}, memory=0.8, link=0.25, layer_s=1e-5)

    assert found.seconds(Work(1.0, 2.0, 3.0, 4), "fp16") == pytest.approx(2 + 2.5 + 12 + 4e-5)
