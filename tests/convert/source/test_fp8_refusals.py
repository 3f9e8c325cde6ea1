"""FP8 folders that cannot be right, and quantizations that TensorRT-LLM has no form of."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip(
    "torch", reason="FP8 folders are made with torch: pip install minitron-trt[quantize]"
)

from safetensors.torch import save_file  # noqa: E402
from tests.convert.source.fp8_folders import (  # noqa: E402
    AUTOFP8,
    FP8_DTYPE,
    Tensors,
    by_hand,
    load_file,
)

from minitron_trt.convert.source.quantization_config import read_quantization  # noqa: E402
from minitron_trt.errors import MinitronError  # noqa: E402

MakeModel = Callable[..., Path]
Refusal = Callable[..., str]
DOWN, QUERY = "model.layers.1.mlp.down_proj", "model.layers.0.self_attn.q_proj"
FP8 = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor"}
ROWWISE = {"quant_method": "modelopt", "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"}
BF16 = "which is not supported; convert the bf16 model instead"


def changed(folder: Path, changes: Callable[[Tensors], Any]) -> Path:
    """Change the tensors of a folder."""
    tensors = load_file(folder / "model.safetensors")
    changes(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def compressed(weights: Any = FP8, inputs: Any = FP8, **more: Any) -> dict[str, Any]:
    """Return a compressed-tensors config."""
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    record = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    return {**record, "config_groups": {"group_0": group}, "ignore": ["lm_head"], **more}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (-1.0, "-1"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (1e-40, "1e-40"),
    ],
)
@pytest.mark.parametrize("scale", ["weight_scale", "input_scale"])
def test_a_number_that_cannot_be_a_scale_is_refused(
    scale: str, value: float, shown: str, make_model: MakeModel, refusal: Refusal
) -> None:
    name = f"{DOWN}.{scale}"
    folder = changed(
        by_hand(make_model("llama")), lambda t: t.update({name: torch.tensor([value])})
    )

    assert refusal(folder, 3) == (
        f"SOURCE/model.safetensors: {name} is {shown}; a scale is a finite normal number above 0: "
        "quantize the model again"
    )


def test_one_bad_scale_among_the_rows_is_refused(make_model: MakeModel, refusal: Refusal) -> None:
    folder = by_hand(make_model("llama"), ROWWISE, rowwise=True)
    changed(folder, lambda tensors: tensors[f"{DOWN}.weight_scale"][3:4].fill_(0))

    assert refusal(folder, 3) == (
        f"SOURCE/model.safetensors: {DOWN}.weight_scale is 0 at 3; a scale is a finite normal "
        "number above 0: quantize the model again"
    )


LISTED = "is listed as not quantized in the folder's quantization config; expected BF16, F16, F32"
UNLISTED = (
    "is not listed as left in its own format in the folder's quantization config; expected F8_E4M3"
)
LACKS = "expected by its quantization config: download it again or quantize it again"
KV_SCALE = "model.layers.1.self_attn.v_proj.v_scale"


def kv_scales(tensors: Tensors) -> None:
    """Add the scales of every layer's cache but one."""
    for layer in range(3):
        for part in "kv":
            name = f"model.layers.{layer}.self_attn.{part}_proj.{part}_scale"
            tensors[name] = torch.tensor(0.5)
    del tensors[KV_SCALE]


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        (
            lambda t: t.pop(f"{QUERY}.weight_scale"),
            *(3, f"the source lacks tensor {QUERY}.weight_scale; {LACKS}"),
        ),
        (
            lambda t: t.pop(f"{DOWN}.input_scale"),
            *(3, f"the source lacks tensor {DOWN}.input_scale; {LACKS}"),
        ),
        (
            lambda t: t.update({f"{DOWN}.weight_scale": torch.ones(2)}),
            *(3, f"tensor {DOWN}.weight_scale is [2]; expected one number"),
        ),
        (
            lambda t: t.update({f"{DOWN}.weight_scale": torch.ones(1, dtype=torch.int32)}),
            *(3, f"tensor {DOWN}.weight_scale is I32; expected one of BF16, F16, F32"),
        ),
        (
            lambda t: t.update({f"{DOWN}.weight": t[f"{DOWN}.weight"].bfloat16()}),
            *(3, f"tensor {DOWN}.weight is BF16 but {UNLISTED}"),
        ),
        (
            lambda t: t.update({f"{DOWN}.weight": t[f"{DOWN}.weight"].to(torch.float8_e5m2)}),
            *(3, f"tensor {DOWN}.weight is F8_E5M2 but {UNLISTED}"),
        ),
        (
            lambda t: t.update({f"{DOWN}.weight": t[f"{DOWN}.weight"][:-1].clone()}),
            *(3, f"tensor {DOWN}.weight is [39, 48]; config.json implies [40, 48]"),
        ),
        (
            lambda t: t.pop(f"{DOWN}.weight"),
            *(3, f"the source lacks tensor {DOWN}.weight; expected by its config.json"),
        ),
        (
            lambda t: t.update({"model.norm.weight": t["model.norm.weight"].to(FP8_DTYPE)}),
            *(3, "tensor model.norm.weight is F8_E4M3; expected one of BF16, F16, F32"),
        ),
        (
            lambda t: t.update({f"{DOWN}.weight_zero_point": torch.zeros(1)}),
            *(
                3,
                f"the source has tensor {DOWN}.weight_zero_point, which its architecture does not",
            ),
        ),
        (
            lambda t: t.update({"lm_head.weight": t["lm_head.weight"].to(FP8_DTYPE)}),
            *(4, "tensor lm_head.weight is F8_E4M3, and TensorRT-LLM keeps it wide; convert the"),
        ),
        (kv_scales, 3, f"the source lacks tensor {KV_SCALE}; {LACKS}"),
    ],
    ids=range(12),
)
def test_tensors_that_do_not_fit_their_config_are_named(
    changes: Callable[[Tensors], Any],
    code: int,
    message: str,
    make_model: MakeModel,
    refusal: Refusal,
) -> None:
    line = refusal(changed(by_hand(make_model("llama")), changes), code)

    assert line.startswith(message)


@pytest.mark.parametrize(
    ("quantization", "rowwise", "message"),
    [
        (
            {**AUTOFP8, "ignored_layers": [DOWN]},
            False,
            f"tensor {DOWN}.weight is F8_E4M3 but {LISTED}",
        ),
        (
            {**AUTOFP8, "kv_cache_scheme": "static"},
            False,
            f"the source lacks tensor model.layers.0.self_attn.k_proj.k_scale; {LACKS}",
        ),
        (AUTOFP8, True, f"tensor {QUERY}.weight_scale is [96]; expected one number"),
        (
            ROWWISE,
            False,
            f"tensor {QUERY}.weight_scale is []; expected one number for each of the 96 rows of "
            "its weight",
        ),
        (
            {},
            False,
            "tensor model.layers.0.mlp.down_proj.weight is F8_E4M3 but the folder does not say how "
            "it was quantized; expected hf_quant_config.json, or quantization_config in "
            "config.json",
        ),
        (["fp8"], False, "config.json: quantization_config is ['fp8']; expected an object"),
        (
            compressed(config_groups=[]),
            False,
            "config.json: quantization_config: config_groups has 0 groups, " + BF16,
        ),
        (
            compressed(ignore="lm_head"),
            False,
            "config.json: quantization_config: ignore is 'lm_head'; expected a list of names",
        ),
        (
            compressed(ignore=["re:*"]),
            False,
            "config.json: quantization_config: ignore has a bad pattern (nothing to repeat at "
            "position 0)",
        ),
    ],
    ids=range(9),
)
def test_a_config_that_does_not_fit_its_tensors_is_refused(
    quantization: Any, rowwise: bool, message: str, make_model: MakeModel, refusal: Refusal
) -> None:
    folder = by_hand(make_model("llama"), quantization, rowwise)

    assert refusal(folder, 4 if message.endswith(BF16) else 3) == message


def test_two_descriptions_must_agree(make_model: MakeModel, refusal: Refusal) -> None:
    folder = by_hand(make_model("llama"))
    record = {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}
    (folder / "hf_quant_config.json").write_text(json.dumps(record))

    assert refusal(folder, 3) == (
        "config.json: quantization_config and hf_quant_config.json describe different "
        "quantizations; expected one: download the folder again"
    )


INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
TOKEN = {**FP8, "strategy": "token", "dynamic": True}
GROUP = "config_groups: group_0"


@pytest.mark.parametrize(
    ("quantization", "what"),
    [
        ({"quant_method": "gptq", "bits": 4}, "quant_method 'gptq'"),
        (
            {"quant_method": "modelopt", "quant_algo": "NVFP4"},
            "quant_algo 'NVFP4', which is not supported; serve the folder as it is (minitron-trt "
            "triton-repo), or convert the bf16 model",
        ),
        (
            {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"},
            "quant_algo 'MIXED_PRECISION'",
        ),
        (
            {**ROWWISE, "quant_algo": "FP8", "kv_cache_quant_algo": "NVFP4"},
            "kv_cache_quant_algo 'NVFP4'",
        ),
        (
            {**AUTOFP8, "activation_scheme": "dynamic"},
            "quant_method 'fp8' with activation_scheme 'dynamic'",
        ),
        (
            {**AUTOFP8, "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
            "quant_method 'fp8' with activation_scheme 'dynamic' and weight_block_size",
        ),
        (compressed(format="pack-quantized"), "format 'pack-quantized'"),
        (
            compressed(sparsity_config={"format": "sparse-24-bitmask"}),
            "sparsity_config 'sparse-24-",
        ),
        (compressed(transform_config={"config_groups": {"R1": {}}}), "a transform_config"),
        (compressed({**FP8, "type": "int"}), f"{GROUP}: weights has numbers of int8 by tensor"),
        (compressed(INT4), f"{GROUP}: weights has numbers of int4 by group"),
        (
            compressed({**FP8, "symmetric": False}),
            f"{GROUP}: weights has numbers of asymmetric float8 by tensor",
        ),
        (
            compressed({**FP8, "strategy": "block"}, {**TOKEN, "strategy": "group"}),
            f"{GROUP} has weights by block with inputs by dynamic group",
        ),
        (compressed(FP8, TOKEN), f"{GROUP} has weights by tensor with inputs by dynamic token"),
        (compressed(FP8, None), f"{GROUP} has no input_activations"),
        (
            compressed(kv_cache_scheme={**FP8, "dynamic": True}),
            "kv_cache_scheme has scales by dynamic tensor",
        ),
        (compressed(kv_cache_scheme=INT4), "kv_cache_scheme has numbers of int4 by group"),
        (compressed(config_groups={"a": {}, "b": {}}), "config_groups has 2 groups"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_quantizations_are_refused_by_name(
    quantization: dict[str, Any], what: str, make_model: MakeModel, refusal: Refusal
) -> None:
    line = refusal(by_hand(make_model("llama"), quantization), 4)

    assert line.startswith("config.json: quantization_config")
    assert what in line
    assert line.endswith(BF16.partition("; ")[2])
    assert BF16 in line or "serve the folder" in what


@pytest.mark.parametrize(
    "precision", ["fp8-rowwise", "w8a16", "w4a16", "w4a16-awq", "w4a8-awq", "nvfp4"]
)
def test_what_would_round_a_second_time_is_refused(
    precision: str, make_model: MakeModel, refusal: Refusal
) -> None:
    folder = by_hand(make_model("llama"))

    assert refusal(folder, 4, "--precision", precision) == (
        f"--precision {precision} would round a second time what the source has rounded to fp8; "
        "convert the bf16 model, or use --precision fp8, bf16 or fp16"
    )


@pytest.mark.parametrize("kv_cache", ["fp8", "int8"])
def test_a_kv_cache_without_stored_scales_is_refused(
    kv_cache: str, make_model: MakeModel, refusal: Refusal
) -> None:
    assert refusal(by_hand(make_model("llama")), 4, "--kv-cache", kv_cache) == (
        f"--kv-cache {kv_cache} needs scales, which an FP8 source must bring along and this one "
        "does not; convert the bf16 model"
    )


def keys_of(record: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every key of nested objects."""
    for key, value in record.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from keys_of(value, (*path, key))


@pytest.mark.parametrize("value", [None, True, 1.5, "x", [], [None], {}, {"a": []}], ids=repr)
@pytest.mark.parametrize(
    "record",
    [{**ROWWISE, "ignore": ["lm_head"]}, compressed(kv_cache_scheme=dict(FP8)), AUTOFP8],
    ids=["modelopt", "compressed-tensors", "autofp8"],
)
def test_a_value_of_another_type_is_understood_or_refused(
    record: dict[str, Any], value: Any, tmp_path: Path
) -> None:
    for path in keys_of(record):
        changed_record = copy.deepcopy(record)
        inner = changed_record
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        with contextlib.suppress(MinitronError):
            read_quantization(tmp_path, {"quantization_config": changed_record})
