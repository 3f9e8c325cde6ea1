"""TensorRT-LLM's own Python on our checkpoints and plans: configs, model classes, loader, rules.

It runs where `tensorrt_llm` can be imported, and under a double of NVIDIA's libraries on a checkout
that TENSORRT_LLM_SOURCE names (`hollow_libraries.py`). Nothing is built and nothing computed.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest
from tests.build.trtllm.hollow_libraries import install
from tests.calibrations import calibrate_once as calibrate_once
from tests.conftest import CONFIGS

from minitron_trt.build.engine_model import PRESETS, EngineModel
from minitron_trt.build.recipe.engine_recipe import choose_recipe
from minitron_trt.build.recipe.request import PROFILES, BuildRequest
from minitron_trt.checkpoint import Checkpoint, trtllm_config
from minitron_trt.convert.calibration.text import CalibrationText
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.errors import MinitronError
from minitron_trt.gpus import find_target
from minitron_trt.quantization.number_formats import NUMPY_DTYPES
from minitron_trt.quantization.precisions import PRECISIONS

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
MakeModel = Callable[..., Path]

# Divided by two ranks, still whole groups of AWQ's and pairs of NVFP4's blocks.
SIZES: Final[dict[str, Any]] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 32,
    "vocab_size": 130,
}
SHARDINGS: Final = ((1, 1), (2, 1), (1, 2), (2, 2))
FORMATS: Final = (
    *((kind, precision, None) for kind in ("llama", "nemotron") for precision in PRECISIONS),
    ("mistral", "bf16", None),
    ("nemotron", "bf16", "fp8"),
    ("llama", "w8a16", "int8"),
    ("llama", "fp8", "fp8"),
    ("llama", "fp8", "int8"),
    ("llama", "nvfp4", "fp8"),
)


@pytest.fixture(scope="module")
def upstream() -> Iterator[Any]:
    """Return the parts of TensorRT-LLM that are asked."""
    with pytest.MonkeyPatch.context() as patch:
        try:
            if source := os.environ.get("TENSORRT_LLM_SOURCE"):
                install(Path(source))
            import torch
            from tensorrt_llm import builder, models
            from tensorrt_llm.commands import build
            from tensorrt_llm.models import modeling_utils
        except Exception as error:  # whatever its libraries lack
            pytest.skip(f"NOT CHECKED against TensorRT-LLM's own Python: {error}")
        if not torch.cuda.is_available():
            # Without a GPU upstream cannot ask which one it lays weights out for.
            hopper = SimpleNamespace(major=9, minor=0)
            patch.setattr(torch.cuda, "get_device_properties", lambda *_: hopper)
        yield SimpleNamespace(
            torch=torch, builder=builder, build=build, models=models, modeling=modeling_utils
        )


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> CalibrationText:
    """Return ready token ids, so that no tokenizer is needed."""
    path = tmp_path_factory.mktemp("text") / "ids.jsonl"
    rows = [[(7 * row + 3 * at) % 130 for at in range(32)] for row in range(4)]
    path.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    return CalibrationText(str(path), samples=4, length=32, batch=2)


@pytest.mark.usefixtures("calibrate_once")
@pytest.mark.parametrize(("kind", "precision", "kv_cache"), FORMATS)
def test_each_rank_is_loaded_by_upstreams_own_classes(
    kind: str,
    precision: str,
    kv_cache: str | None,
    upstream: Any,
    calibration: CalibrationText,
    make_model: MakeModel,
    tmp_path: Path,
) -> None:
    source = make_model(kind, **SIZES)
    if CONFIGS[kind]["architectures"][0] in PRECISIONS[precision].refused:
        pytest.skip(f"TensorRT-LLM does not list {precision} for this graph")
    for tp, pp in SHARDINGS:
        folder = tmp_path / f"{tp} {pp}"
        options = ConvertOptions(precision, kv_cache, calibration=calibration, tp=tp, pp=pp)
        convert(str(source), folder, options)
        for rank in range(tp * pp):
            check_rank(upstream, folder, rank)


def check_rank(upstream: Any, folder: Path, rank: int) -> None:
    """Load a rank as upstream does; its parameters are all there, nothing is left over."""
    checkpoint = Checkpoint.open(folder)
    config = upstream.modeling.PretrainedConfig.from_checkpoint(str(folder))
    config.set_rank(rank)
    model = upstream.models.MODEL_MAP[config.architecture].from_checkpoint(
        str(folder), config=config
    )
    parameters = dict(model.named_parameters())
    from safetensors.torch import load_file

    stored = upstream.modeling.preprocess_weights(
        load_file(folder / f"rank{rank}.safetensors"), config
    )
    spec = checkpoint.spec

    assert (config.hidden_size, config.head_size, config.rotary_embedding_dim) == (
        spec.hidden,
        spec.head_size,
        spec.rotary_size,
    )
    assert config.quant_algo == checkpoint.precision.algorithm
    assert (config.mapping.tp_size, config.mapping.pp_size, config.mapping.rank) == (
        checkpoint.parallelism.tp,
        checkpoint.parallelism.pp,
        rank,
    )
    assert all(parameter.is_inited() for parameter in parameters.values())
    left = stored.keys() - parameters.keys()
    if checkpoint.precision.algorithm == "W4A8_AWQ":
        # Upstream folds it into other tensors, and keeps it beside them.
        left = {name for name in left if not name.endswith(".activation_scaling_factor")}
    assert left == set()
    if checkpoint.precision.algorithm is None:
        for name, entry in checkpoint.tensors(rank).items():
            data = entry.path.read_bytes()[entry.offset : entry.offset + entry.size_bytes]
            value = parameters[name].raw_value
            assert value.itemsize == NUMPY_DTYPES[entry.dtype].itemsize
            assert value.tobytes() == data, name


class StopError(Exception):
    """Raised where upstream's rules are passed and its network begins."""


GPU_NAMES: Final = ("A100", "L40", "H100", "B200")


@pytest.mark.parametrize("preset", PRESETS)
def test_plans_pass_upstreams_parser_and_rules_unchanged(
    preset: str, upstream: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = 0
    parallel_and_caches = ((1, None), (2, None), (1, "fp8"), (2, "int8"))
    for gpu, precision, profile, (tp, kv_cache) in itertools.product(
        GPU_NAMES, PRECISIONS, PROFILES, parallel_and_caches
    ):
        target = find_target(gpu)
        model = EngineModel(preset, PRESETS[preset], kv_cache=kv_cache).stored_as(precision)
        try:
            recipe = choose_recipe(model.sharded_for(tp), target, BuildRequest(profile=profile))
        except MinitronError:
            continue
        parallelism = recipe.model.parallelism
        config = trtllm_config(model.spec, PRECISIONS[precision], parallelism, kv_cache)
        argv = recipe.argv("checkpoint", "engine")
        built = passed_rules(upstream, config, argv, target.sm, monkeypatch)
        passed += 1
        plugins = built.plugin_config.model_dump()
        asked = {setting.flag: setting.value for setting in recipe.settings}

        for flag in plugins.keys() & asked.keys():
            value = {True: "enable", False: "disable", None: "disable"}.get(
                plugins[flag], plugins[flag]
            )
            # `auto` becomes the model's dtype.
            assert value == asked[flag] or asked[flag] == "auto", (flag, shlex.join(argv))
        for limit in ("max_batch_size", "max_seq_len", "max_input_len", "max_num_tokens"):
            assert getattr(built, limit) == asked[limit], (limit, shlex.join(argv))
    assert passed > 60


def passed_rules(
    upstream: Any,
    config: dict[str, Any],
    argv: list[str],
    sm: int,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """Return the settings that upstream would build with, its overriding done."""
    args = upstream.build.parse_arguments().parse_args(argv[1:])
    plugins = upstream.build.PluginConfig.from_arguments(args)
    plugins.validate()
    settings = upstream.build.BuildConfig(
        max_input_len=args.max_input_len,
        max_seq_len=args.max_seq_len,
        max_batch_size=args.max_batch_size,
        max_beam_width=args.max_beam_width,
        max_num_tokens=args.max_num_tokens,
        opt_num_tokens=args.opt_num_tokens,
        kv_cache_type=args.kv_cache_type,
        strongly_typed=True,
        plugin_config=plugins,
    )
    built: list[Any] = []

    def stop(model: object, settings: object) -> None:
        built.append(settings)
        raise StopError

    pretrained = upstream.modeling.PretrainedConfig.from_dict(config)
    with monkeypatch.context() as patch:
        patch.setattr(upstream.builder, "get_sm_version", lambda: sm)
        patch.setattr(upstream.builder, "optimize_model_with_config", stop)
        with pytest.raises(StopError):
            upstream.builder.build(SimpleNamespace(config=pretrained), settings)
    return built[0]
