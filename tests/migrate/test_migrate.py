"""Off engines: what becomes of weights and of every setting, judged by transformers and `check`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import Result
from safetensors.torch import load_file, save_file
from tests.build.engines import BUILD, write_engine
from tests.convert.source.fp8_folders import by_hand
from tests.triton_repo.upstream import write_upstream
from transformers import AutoModelForCausalLM

from minitron_trt.build.engine import write_engine_manifest
from minitron_trt.checkpoint import Checkpoint
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.migrate.fates import UNKNOWN, Fate, Ledger
from minitron_trt.migrate.origin import open_origin
from minitron_trt.migrate.setting_rules import PARAMETERS
from minitron_trt.samples import sample_folder
from minitron_trt.triton_repo import parameters
from minitron_trt.triton_repo.check.repository_check import check_repository
from minitron_trt.triton_repo.command import triton_repo
from minitron_trt.triton_repo.contract.model_names import TENSORRT_LLM
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

pytestmark = pytest.mark.slow

LLAMA, NEMOTRON = "solar-llama", "solar-nemotron"
SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "max_position_embeddings",
)
UPSTREAM_PRETRAINED: dict[str, Any] = {
    **dict.fromkeys(("mlp_bias", "attn_bias", "residual_mlp", "qk_layernorm"), False),
    "disable_weight_only_quant_plugin": False,
    "remove_duplicated_kv_heads": False,
    "use_parallel_embedding": False,
    "share_embedding_table": False,
    "embedding_sharding_dim": 0,
    "moe": {"num_experts": 0, "top_k": 0, "normalization_mode": None, "tp_mode": 0},
    "hidden_act": "silu",
    "position_embedding_type": "rope_gpt_neox",
    "rotary_base": 500000.0,
    "mapping": {
        **dict.fromkeys(("world_size", "cp_size", "tp_size", "pp_size"), 1),
        **dict.fromkeys(("moe_tp_size", "moe_ep_size"), 1),
        "gpus_per_node": 8,
    },
}
UPSTREAM_BUILD: dict[str, Any] = {
    **dict.fromkeys(("opt_batch_size", "builder_opt", "force_num_profiles"), None),
    **dict.fromkeys(("gather_context_logits", "gather_generation_logits"), False),
    **dict.fromkeys(("enable_debug_output", "use_refit", "weight_sparsity"), False),
    **dict.fromkeys(("weight_streaming", "use_strip_plan"), False),
    "opt_num_tokens": 256,
    "max_prompt_embedding_table_size": 0,
    "kv_cache_type": "PAGED",
    "strongly_typed": True,
    "profiling_verbosity": "layer_names_only",
    "max_draft_len": 0,
    "speculative_decoding_mode": 1,
    "input_timing_cache": None,
    "output_timing_cache": "model.cache",
    "lora_config": {"lora_dir": [], "max_lora_rank": 64, "lora_target_modules": []},
    "auto_parallel_config": {"world_size": 1, "cluster_key": "A100-SXM-80GB"},
    "max_encoder_input_len": 1024,
    "use_fused_mlp": "enable",
    "plugin_config": {
        "dtype": "float16",
        **dict.fromkeys(("bert_attention_plugin", "gpt_attention_plugin"), "auto"),
        **dict.fromkeys(("moe_plugin", "mamba_conv1d_plugin"), "auto"),
        **dict.fromkeys(("gemm_plugin", "nccl_plugin", "lora_plugin", "lookup_plugin")),
        **dict.fromkeys(("context_fmha", "paged_kv_cache", "remove_input_padding"), True),
        **dict.fromkeys(("enable_xqa", "use_fused_mlp"), True),
        **dict.fromkeys(("reduce_fusion", "multiple_profiles", "paged_state"), False),
        **dict.fromkeys(("streamingllm", "manage_weights", "use_fp8_context_fmha"), False),
        "tokens_per_block": 64,
        "use_paged_context_fmha": False,
    },
}
FILE = "model.safetensors"
Migrate = Callable[..., dict[str, Any]]


@pytest.fixture
def migrate(command: Callable[..., Result], tmp_path: Path) -> Migrate:
    """Return a migration to tmp_path/migrated whose value is its report."""

    def run(source: Path, *options: object) -> dict[str, Any]:
        result = command("migrate", source, "-o", tmp_path / "migrated", *options, "--json")

        assert result.exit_code == 0, result.stderr
        report: dict[str, Any] = json.loads(result.stdout)
        return report

    return run


def checkpoint_of(sample: str, folder: Path, **options: Any) -> Path:
    """Return a checkpoint of a sample."""
    convert(str(sample_folder(sample)), folder, ConvertOptions(**options))
    return folder


def fates(report: dict[str, Any]) -> dict[str, str]:
    """Return the fate of each setting by its name; the last of a name, as the report goes."""
    return {setting["name"]: setting["fate"] for setting in report["settings"]}


def strangers(folder: Path) -> Path:
    """Take from a checkpoint what only this tool writes."""
    for path in folder.iterdir():
        if path.name != "config.json" and path.suffix != ".safetensors":
            path.unlink()
    return folder


def sample_engine(folder: Path, **build: Any) -> Path:
    """Write an engine of the Llama sample's sizes, without a manifest."""
    config = json.loads((sample_folder(LLAMA) / "config.json").read_text())
    pretrained = {name: config[name] for name in SIZES} | {"head_size": config["head_dim"]}
    return write_engine(folder, size_bytes=1000, build=build, pretrained=pretrained)


@pytest.mark.parametrize(
    ("precision", "tp", "pp"),
    [
        ("bf16", 2, 3),
        # More ranks than key/value heads: these are repeated.
        ("bf16", 4, 1),
        ("fp16", 2, 2),
        ("fp8-rowwise", 2, 1),
        ("nvfp4", 2, 2),
    ],
)
def test_llamas_weights_are_bitwise_those_of_format_hf(
    migrate: Migrate, tmp_path: Path, precision: str, tp: int, pp: int
) -> None:
    options = ConvertOptions(precision=precision, form="hf")
    convert(str(sample_folder(LLAMA)), tmp_path / "hf", options)

    migrate(checkpoint_of(LLAMA, tmp_path / "checkpoint", precision=precision, tp=tp, pp=pp))

    migrated, expected = (
        (folder / FILE).read_bytes() for folder in (tmp_path / "migrated/model", tmp_path / "hf")
    )
    assert migrated == expected
    files = {path.name for path in (tmp_path / "migrated/model").iterdir()}
    assert files == {path.name for path in (tmp_path / "hf").iterdir()}


def test_weights_with_scales_are_those_of_format_hf(migrate: Migrate, tmp_path: Path) -> None:
    """Keys and values have one scale in a checkpoint, the larger."""
    source = tmp_path / "source"
    shutil.copytree(sample_folder(LLAMA), source)
    tensors = load_file(by_hand(source) / FILE)
    for layer in range(4):
        for part, scale in (("k", 1.5), ("v", 0.5)):
            name = f"model.layers.{layer}.self_attn.{part}_proj.{part}_scale"
            tensors[name] = torch.tensor([scale + layer])
    save_file({name: values.clone() for name, values in tensors.items()}, source / FILE)
    convert(str(source), tmp_path / "hf", ConvertOptions(form="hf"))
    convert(str(source), tmp_path / "checkpoint", ConvertOptions(tp=2, pp=2))

    report = migrate(tmp_path / "checkpoint")

    migrated, expected = (
        load_file(folder / FILE) for folder in (tmp_path / "migrated/model", tmp_path / "hf")
    )
    assert migrated.keys() == expected.keys()
    for name, values in expected.items():
        larger = expected[name.replace("v_proj.v_scale", "k_proj.k_scale")]
        assert torch.equal(migrated[name].float(), larger.float()), (name, values)
    assert report["lost"] < 5
    blocks = [
        json.loads((folder / "hf_quant_config.json").read_text())
        for folder in (tmp_path / "migrated/model", tmp_path / "hf")
    ]
    assert blocks[0] == blocks[1]


def same_weights(folder: Path) -> bool:
    """Say whether a folder has the Llama sample's tensors."""
    ours, theirs = (load_file(f / FILE) for f in (folder, sample_folder(LLAMA)))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in theirs)


def logits(folder: Path) -> torch.Tensor:
    """Return what transformers makes of a few ids."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    with torch.inference_mode():
        return model(torch.arange(2, 40)[None]).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("sample", [LLAMA, NEMOTRON])
def test_transformers_computes_equal_logits(migrate: Migrate, tmp_path: Path, sample: str) -> None:
    report = migrate(checkpoint_of(sample, tmp_path / "checkpoint", tp=2, pp=2))

    assert torch.equal(logits(tmp_path / "migrated/model"), logits(sample_folder(sample)))
    assert report["changed"] == 0


def test_a_checkpoint_converted_again_is_the_same(migrate: Migrate, tmp_path: Path) -> None:
    """The 1 that Nemotron's norms have added is taken away and added again."""
    checkpoint = checkpoint_of(NEMOTRON, tmp_path / "checkpoint", tp=2)
    migrate(checkpoint)

    again = tmp_path / "again"
    convert(str(tmp_path / "migrated/model"), again, ConvertOptions(tp=2))

    for name in ("rank0.safetensors", "rank1.safetensors", "config.json"):
        assert (again / name).read_bytes() == (checkpoint / name).read_bytes()


def test_the_ids_that_end_a_text_are_those_of_the_source(migrate: Migrate, tmp_path: Path) -> None:
    migrate(checkpoint_of(LLAMA, tmp_path / "checkpoint"))

    ours, theirs = (
        json.loads((folder / "config.json").read_text())
        for folder in (tmp_path / "migrated/model", sample_folder(LLAMA))
    )
    for key in ("bos_token_id", "eos_token_id"):
        assert ours[key] == theirs[key]


def test_an_embedding_that_the_ranks_share_is_joined(migrate: Migrate, tmp_path: Path) -> None:
    """As ModelOpt, and TensorRT-LLM with --use_parallel_embedding, write it."""
    folder = strangers(checkpoint_of(NEMOTRON, tmp_path / "checkpoint", tp=2))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"use_parallel_embedding": True}))
    name = "transformer.vocab_embedding.weight"
    for rank in range(2):
        path = folder / f"rank{rank}.safetensors"
        tensors = load_file(path)
        tensors[name] = tensors[name].chunk(2)[rank].clone()
        save_file(tensors, path)

    migrate(folder, "--tokenizer", sample_folder(NEMOTRON))

    embedding = "model.embed_tokens.weight"
    migrated, source = (
        load_file(model / FILE)[embedding]
        for model in (tmp_path / "migrated/model", sample_folder(NEMOTRON))
    )
    assert torch.equal(migrated, source)


def test_an_upstream_repository_becomes_one_that_check_finds_nothing_wrong_with(
    migrate: Migrate, tmp_path: Path
) -> None:
    values = {
        "kv_cache_free_gpu_mem_fraction": "0.8",
        "enable_chunked_context": "true",
        "max_attention_window_size": "512,1024",
        "batch_scheduler_policy": "max_utilization",
        "max_queue_size": "32",
        "lora_cache_max_adapter_size": "64",
        "decoding_mode": "medusa",
        "skip_special_tokens": "False",
    }
    upstream = write_upstream(tmp_path / "upstream", values)
    shutil.rmtree(tmp_path / "upstream-engine")
    plugins = {**BUILD["plugin_config"], "gemm_plugin": "auto", "lora_plugin": None}
    sample_engine(tmp_path / "upstream-engine", plugin_config=plugins, max_seq_len=1024)

    report = migrate(upstream)

    repository = tmp_path / "migrated/repository"
    arguments = yaml.safe_load((repository / "tensorrt_llm/1/model.yaml").read_text())
    assert not check_repository(repository).findings
    assert arguments == {
        "model": "model",
        "backend": "pytorch",
        "tensor_parallel_size": 1,
        "pipeline_parallel_size": 1,
        "max_batch_size": 4,
        "max_seq_len": 1024,
        "max_num_tokens": 8192,
        "stream_interval": 1,
        "kv_cache_config": {
            "enable_block_reuse": True,
            "free_gpu_memory_fraction": 0.8,
            "max_attention_window": [512, 1024],
        },
        "enable_chunked_prefill": True,
        "scheduler_config": {"capacity_scheduler_policy": "MAX_UTILIZATION"},
    }
    met = fates(report)
    lost = {"lora_cache_max_adapter_size", "decoding_mode", "gemm_plugin", "preferred_batch_size"}
    assert {name for name, fate in met.items() if fate == "lost"} >= lost
    assert {met["skip_special_tokens"], met["max_queue_size"], met["max_seq_len"]} == {"carried"}
    assert json.loads((tmp_path / "migrated/migration.json").read_text()) == {
        key: value for key, value in report.items() if key != "migration"
    }


@pytest.mark.parametrize("name", ["a_draft", "tensorrt_llm_draft"])
def test_of_a_model_that_drafts_nothing_is_taken(name: str, tmp_path: Path) -> None:
    """A draft model has as little of the memory as it needs; the other is to have the rest."""
    fraction = "kv_cache_free_gpu_mem_fraction"
    upstream = write_upstream(tmp_path / "upstream", {fraction: "0.8"})
    shutil.copytree(upstream / "tensorrt_llm", upstream / name)
    config = upstream / name / "config.pbtxt"
    text = config.read_text().replace('name: "tensorrt_llm"', f'name: "{name}"', 1)
    config.write_text(text.replace('"0.8"', '"0.1"'))

    ledger = open_origin(upstream).ledger

    assert ledger.targets["llm.kv_cache_config.free_gpu_memory_fraction"] == "0.8"
    (draft,) = (each for each in ledger.settings if each.section == f"{name}/config.pbtxt")
    assert (draft.name, draft.value, draft.fate) == ("name", name, Fate.LOST)
    assert "--set llm.speculative_config" in draft.reason


def test_an_engine_of_ours_gives_back_the_weights_of_its_checkpoint(
    migrate: Migrate, tmp_path: Path
) -> None:
    """By the repository alone: its engine names the checkpoint, whose digest says which."""
    checkpoint = checkpoint_of(LLAMA, tmp_path / "checkpoint")
    engine = sample_engine(tmp_path / "engine", max_batch_size=8, max_seq_len=1024)
    write_engine_manifest(engine, Checkpoint.open(checkpoint), {"tokens": {"eos_ids": [1023]}})
    settings = {"tensorrt_llm": {"enable_chunked_context": "true"}}
    emit_repository(engine, tmp_path / "repository", ServingRecipe(settings=settings))

    report = migrate(tmp_path / "repository")

    arguments = yaml.safe_load(
        (tmp_path / "migrated/repository/tensorrt_llm/1/model.yaml").read_text()
    )
    assert same_weights(tmp_path / "migrated/model")
    assert (arguments["max_batch_size"], arguments["enable_chunked_prefill"]) == (8, True)
    assert report["model"] == "model"
    named = {s["becomes"].split()[0] for s in report["settings"] if s["becomes"].startswith("--")}
    options = {
        word for option in triton_repo.params for word in option.opts + option.secondary_opts
    }
    assert named
    assert named <= options


def test_every_setting_of_an_engine_of_upstream_is_known(migrate: Migrate, tmp_path: Path) -> None:
    """The keys are those that TensorRT-LLM 0.13 wrote for a Llama, and 1.x has all but a few."""
    engine = sample_engine(tmp_path / "engine", **UPSTREAM_BUILD)
    config = json.loads((engine / "config.json").read_text())
    config["pretrained_config"] |= UPSTREAM_PRETRAINED
    (engine / "config.json").write_text(json.dumps(config))

    report = migrate(engine, "--model", sample_folder(LLAMA))

    settings = report["settings"]
    assert [s["name"] for s in settings if s["reason"] == UNKNOWN.reason] == []
    lost = {s["name"] for s in settings if s["fate"] == "lost"}
    on = {"bert_attention_plugin", "gpt_attention_plugin", "moe_plugin", "mamba_conv1d_plugin"}
    on |= {"context_fmha", "enable_xqa", "use_fused_mlp", "dtype"}
    assert lost == on | {
        "auto_parallel_config",
        "gpus_per_node",
        "moe_ep_size",
        "moe_tp_size",
        "opt_num_tokens",
        "output_timing_cache",
        "profiling_verbosity",
        "strongly_typed",
        "max_encoder_input_len",
        "version",
    }


def test_an_engine_alone_is_served_from_the_model_that_is_named(
    migrate: Migrate, tmp_path: Path
) -> None:
    config = sample_engine(tmp_path / "engine", max_seq_len=4096) / "config.json"

    report = migrate(config, "--model", sample_folder(LLAMA))

    model = tmp_path / "migrated/repository/tensorrt_llm/1/model/model.safetensors"
    assert model.read_bytes() == (sample_folder(LLAMA) / FILE).read_bytes()
    cut = next(s for s in report["settings"] if s["name"] == "max_seq_len")
    assert (cut["value"], cut["becomes"], cut["fate"]) == ("4096", "--max-seq-len 2048", "changed")


@pytest.mark.parametrize(
    ("dtype", "algorithm", "fate"),
    [
        ("bfloat16", None, "carried"),
        ("float16", None, "changed"),
        ("bfloat16", "FP8", "carried"),
        ("bfloat16", "NVFP4", "changed"),
    ],
)
def test_an_engines_precision_is_compared_with_what_its_model_is_stored_in(
    migrate: Migrate, tmp_path: Path, dtype: str, algorithm: str | None, fate: str
) -> None:
    """Whichever of its files says so; the FP8 folder does in config.json alone."""
    model = tmp_path / "model"
    shutil.copytree(sample_folder(LLAMA), model)
    if algorithm:
        by_hand(model, {"quant_method": "modelopt", "quant_algo": "FP8"})
    engine = sample_engine(tmp_path / "engine")
    config = json.loads((engine / "config.json").read_text())
    config["pretrained_config"] |= {"dtype": dtype, "quantization": {"quant_algo": algorithm}}
    (engine / "config.json").write_text(json.dumps(config))

    report = migrate(engine, "--model", model)

    weights = next(s for s in report["settings"] if s["name"] == "precision")
    stored = "fp8" if algorithm else "bf16"
    assert (weights["fate"], weights["becomes"]) == (fate, f"the model's weights, {stored}")


@pytest.mark.parametrize(
    ("kv", "fate", "becomes"),
    [("FP8", "changed", "llm.kv_cache_config.dtype=fp8"), ("INT8", "lost", "")],
)
def test_a_quantized_engine_says_what_its_model_is_not(
    migrate: Migrate, tmp_path: Path, kv: str, fate: str, becomes: str
) -> None:
    engine = sample_engine(tmp_path / "engine")
    config = json.loads((engine / "config.json").read_text())
    config["pretrained_config"]["quantization"] |= {"quant_algo": "FP8", "kv_cache_quant_algo": kv}
    (engine / "config.json").write_text(json.dumps(config))

    report = migrate(engine, "--model", sample_folder(LLAMA))

    settings = {s["name"]: s for s in report["settings"] if s["section"] == "weights"}
    assert settings["precision"]["fate"] == "changed"
    assert "--format hf --precision fp8" in settings["precision"]["reason"]
    assert (settings["kv_cache"]["fate"], settings["kv_cache"]["becomes"]) == (fate, becomes)


def test_weights_that_the_builder_quantizes_come_out_as_they_are(
    migrate: Migrate, tmp_path: Path
) -> None:
    report = migrate(checkpoint_of(LLAMA, tmp_path / "checkpoint", precision="w8a16"))

    assert same_weights(tmp_path / "migrated/model")
    assert fates(report)["precision"] == "changed"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"attn_bias": True}, "attn_bias is True"),
        ({"q_scaling": 2.0}, "q_scaling is 2.0"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"moe": {"num_experts": 8}}, "8 experts"),
        ({"position_embedding_type": "alibi"}, "position_embedding_type is 'alibi'"),
    ],
)
def test_another_graph_than_the_class_has_is_refused(
    command: Callable[..., Result], tmp_path: Path, change: dict[str, Any], line: str
) -> None:
    folder = strangers(checkpoint_of(LLAMA, tmp_path / "checkpoint"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))

    result = command("migrate", folder, "-o", tmp_path / "out")

    assert (result.exit_code, line in result.stderr, result.stderr.count("\n")) == (4, True, 1)
    assert not (tmp_path / "out").exists()


def engine_alone(folder: Path) -> list[object]:
    """Return the words for an engine without a model."""
    return [sample_engine(folder / "engine")]


def engine_of_another(folder: Path) -> list[object]:
    """Return the words for an engine and the model of another."""
    return [write_engine(folder / "engine", size_bytes=9), "--model", sample_folder(LLAMA)]


def without_tokenizer(folder: Path) -> list[object]:
    """Return the words for a checkpoint of others."""
    return [strangers(checkpoint_of(LLAMA, folder / "checkpoint"))]


def without_a_rank(folder: Path) -> list[object]:
    """Return the words for a checkpoint of others that lost a rank."""
    [checkpoint] = without_tokenizer(folder)
    (Path(str(checkpoint)) / "rank0.safetensors").unlink()
    return [checkpoint]


def without_a_form(folder: Path) -> list[object]:
    """Return the words for a checkpoint in a format that no Hugging Face folder has."""
    checkpoint = strangers(checkpoint_of(LLAMA, folder / "checkpoint"))
    config = json.loads((checkpoint / "config.json").read_text())
    config["quantization"] |= {"quant_algo": "W4A16_AWQ"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    return [checkpoint, "--tokenizer", sample_folder(LLAMA)]


def unfilled(folder: Path) -> list[object]:
    """Return the words for a repository with a placeholder where a number belongs."""
    upstream = write_upstream(folder / "upstream")
    path = upstream / "tensorrt_llm/config.pbtxt"
    path.write_text(path.read_text().replace("max_batch_size: 4", "max_batch_size: ${x}"))
    return [upstream]


def odd_window(folder: Path) -> list[object]:
    """Return the words for a repository with a value of another kind."""
    return [write_upstream(folder / "upstream", {"max_attention_window_size": "long"})]


def odd_records(folder: Path) -> list[object]:
    """Return the words for an engine whose config has lists for records."""
    engine = sample_engine(folder / "engine", lora_config=[1], max_draft_len={"a": 1})
    config = json.loads((engine / "config.json").read_text())
    config["pretrained_config"] |= {"moe": [1], "q_scaling": "x"}
    (engine / "config.json").write_text(json.dumps(config))
    return [engine, "--model", sample_folder(LLAMA)]


def truncated(folder: Path) -> list[object]:
    """Return the words for a checkpoint with a rank cut short."""
    checkpoint = strangers(checkpoint_of(LLAMA, folder / "checkpoint", tp=2))
    path = checkpoint / "rank1.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    return [checkpoint, "--tokenizer", sample_folder(LLAMA)]


@pytest.mark.parametrize(
    ("words", "exit_code", "line"),
    [
        (engine_alone, 3, "--model FOLDER, hub id or checkpoint"),
        (engine_of_another, 3, "is not the model of this engine: layers 4, expected 32"),
        (without_tokenizer, 3, "pass --tokenizer"),
        (without_a_rank, 3, "has no rank0.safetensors"),
        (without_a_form, 4, "w4a16-awq, which no Hugging Face folder holds"),
        (unfilled, 3, "minitron-trt check"),
        (odd_window, 3, "max_attention_window_size is 'long'"),
        (odd_records, 4, "q_scaling is 'x'"),
        (truncated, 3, "truncated or damaged"),
        (lambda folder: [folder / "nothing"], 3, "is not there"),
        (lambda _: [sample_folder(LLAMA)], 4, "minitron-trt triton-repo"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_cannot_be_migrated_is_refused_in_one_line(
    command: Callable[..., Result],
    tmp_path: Path,
    words: Callable[[Path], list[object]],
    exit_code: int,
    line: str,
) -> None:
    result = command("migrate", *words(tmp_path), "-o", tmp_path / "out")

    assert (result.exit_code, result.stderr.count("\n")) == (exit_code, 1), result.stderr
    assert line in result.stderr
    assert not list(tmp_path.glob("*out*"))


def test_the_report_comes_without_writing(command: Callable[..., Result], tmp_path: Path) -> None:
    upstream = write_upstream(tmp_path / "upstream")
    shutil.rmtree(tmp_path / "upstream-engine")

    result = command("migrate", upstream, "--dry-run")

    assert result.exit_code == 0
    assert "tensorrt_llm/config.pbtxt" in result.stdout
    assert "max_batch_size 4 → --max-batch-size 4" in result.stdout


def test_a_tied_head_stays_tied(migrate: Migrate, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(sample_folder(LLAMA), source)
    tensors = load_file(source / FILE)
    save_file({n: v.clone() for n, v in tensors.items() if n != "lm_head.weight"}, source / FILE)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    convert(str(source), tmp_path / "checkpoint", ConvertOptions(tp=2))

    migrate(tmp_path / "checkpoint")

    migrated = load_file(tmp_path / "migrated/model" / FILE)
    assert migrated.keys() == tensors.keys() - {"lm_head.weight"}
    written = json.loads((tmp_path / "migrated/model/config.json").read_text())
    assert written["tie_word_embeddings"] is True


def test_every_parameter_that_triton_repo_knows_has_a_fate() -> None:
    silent = {
        model: [parameter.name for parameter in known if parameter.name not in PARAMETERS[model]]
        for model, known in parameters.PARAMETERS.items()
    }

    assert not any(silent.values()), silent


@pytest.mark.parametrize(
    ("values", "fates_met", "targets"),
    [
        # A default sets nothing, and is taken back all the same by what comes later.
        (("1", "4"), ["changed", "carried"], {"llm.max_beam_width": "4"}),
        (("4", "1"), ["changed", "carried"], {"llm.max_beam_width": "1"}),
        (("1", "1"), ["carried", "carried"], {}),
        (("2", "4", "2"), ["carried", "changed", "carried"], {"llm.max_beam_width": "2"}),
    ],
)
def test_the_last_section_decides_and_the_others_are_told(
    values: tuple[str, ...], fates_met: list[str], targets: dict[str, str]
) -> None:
    ledger = Ledger()
    for number, value in enumerate(values):
        ledger.take(f"section {number}", {"max_beam_width": value}, PARAMETERS[TENSORRT_LLM])

    assert [setting.fate.value for setting in ledger.settings] == fates_met
    assert ledger.targets == targets
    became = {setting.becomes for setting in ledger.settings}
    assert became == {f"llm.max_beam_width={values[-1]}"}
