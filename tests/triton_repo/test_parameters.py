"""`--set` takes what TensorRT-LLM's configs have, by its names, and says what is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from tests.triton_repo.engines import sample_engine

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.errors import ProcessError, UnsupportedError, UsageError
from minitron_trt.samples import sample_folder
from minitron_trt.triton_repo.model_config import from_text
from minitron_trt.triton_repo.parameters import PARAMETERS, parse_settings, table
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.runtimes.llmapi_runtime import LLM_ARGUMENTS
from minitron_trt.triton_repo.runtimes.reference_runtime import plan_reference
from minitron_trt.triton_repo.runtimes.runtime import Runtime
from minitron_trt.triton_repo.runtimes.runtime_names import RUNTIMES
from minitron_trt.triton_repo.serving.runners import running_server
from minitron_trt.triton_repo.serving.server_options import ServerOptions, free_endpoints
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

Command = Callable[..., Result]


def parse(runtime: str, *pairs: str) -> dict[str, dict[str, str]]:
    """Read pairs for a runtime."""
    return parse_settings(pairs, runtime, LLM_ARGUMENTS)


def test_values_are_kept_by_model_and_key() -> None:
    assert parse(
        "trtllm",
        "tensorrt_llm.kv_cache_free_gpu_mem_fraction=0.8",
        "tensorrt_llm.batching_strategy=inflight_batching",
        "tensorrt_llm.normalize_log_probs=False",
        "preprocessing.add_special_tokens=false",
        "tensorrt_llm.medusa_choices={0},{0,0}",
    ) == {
        "tensorrt_llm": {
            "kv_cache_free_gpu_mem_fraction": "0.8",
            "gpt_model_type": "inflight_batching",
            "normalize_log_probs": "false",
            "medusa_choices": "{0},{0,0}",
        },
        "preprocessing": {"add_special_tokens": "false"},
    }


@pytest.mark.parametrize(
    ("runtime", "pair", "words"),
    [
        ("trtllm", "max_beam_width=2", "not of the form model.parameter=value"),
        ("trtllm", "tensorrt_llm.max_beam_width", "not of the form model.parameter=value"),
        (
            "trtllm",
            "tensorrt-llm.max_beam_width=2",
            "did you mean tensorrt_llm or tensorrt_llm_bls?",
        ),
        (
            "trtllm",
            "tensorrt_llm.max_beem_width=2",
            "no parameter 'max_beem_width'; did you mean max_",
        ),
        ("trtllm", "tensorrt_llm.max_beam_width=two", "'two'; expected a whole number of at least"),
        ("trtllm", "tensorrt_llm.kv_cache_free_gpu_mem_fraction=90", "a number above 0, at most 1"),
        ("trtllm", "tensorrt_llm.gpu_weights_percent=1.5", "a number from 0 to 1"),
        ("trtllm", "tensorrt_llm.kv_cache_free_gpu_mem_fraction=nan", "a number above 0"),
        ("trtllm", "tensorrt_llm.batch_scheduler_policy=fair", "one of guaranteed_no_evict, max_u"),
        ("trtllm", "tensorrt_llm.enable_chunked_context=yes", "expected true or false"),
        ("trtllm", "tensorrt_llm.gpu_device_ids=0-3", "numbers with commas between"),
        ("trtllm", "tensorrt_llm.max_attention_window_size=1,,2", "whole numbers with commas"),
        ("trtllm", "tensorrt_llm.max_queue_size=9", "an option of its own: --max-queue-size"),
        ("trtllm", "tensorrt_llm.decoupled_mode=false", "--decoupled or --no-decoupled"),
        ("trtllm", "postprocessing.postprocessing_instance_count=5", "has one instance"),
        ("trtllm", "tensorrt_llm.logits_datatype=TYPE_FP16", "the engine decides it"),
        ("reference", "tensorrt_llm.max_beam_width=2", "is of the runtime trtllm; this repository"),
        ("reference", "llm.dtype=float16", "names the model 'llm'"),
        (
            "llmapi",
            "llm.kv_cache_confg=1",
            "LLM has no argument 'kv_cache_confg'; did you mean kv_",
        ),
    ],
)
def test_what_is_wrong_is_said_with_what_is_right(runtime: str, pair: str, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        parse(runtime, pair)


def test_the_reference_runtime_takes_one_gpu(checkpoint: Checkpoint, tmp_path: Path) -> None:
    def planned(ids: str) -> Runtime:
        settings = parse("reference", f"tensorrt_llm.gpu_device_ids={ids}")
        return plan_reference(checkpoint, ServingRecipe(settings=settings))

    assert planned("1").config.parameters["gpu_device_ids"].string_value == "1"
    with pytest.raises(UnsupportedError, match="one GPU: name one"):
        planned("0,1")


@pytest.mark.slow
@pytest.mark.server
def test_a_gpu_that_is_not_there_is_named_as_the_model_loads(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    settings = parse("reference", "tensorrt_llm.gpu_device_ids=99")
    emit_repository(checkpoint.folder, tmp_path / "served", ServingRecipe(settings=settings))
    server = running_server(
        tmp_path / "served", ServerOptions(free_endpoints(), drain_s=3), timeout_s=300
    )

    with (
        pytest.raises(ProcessError, match=r"gpu_device_ids is '99'; expected one of the \d+"),
        server,
    ):
        pass


def test_every_parameter_is_listed_once_with_its_values(command: Command) -> None:
    result = command("triton-repo", "--list-parameters")

    assert (result.exit_code, result.output) == (0, table() + "\n")
    for model, parameters in PARAMETERS.items():
        names = [parameter.name for parameter in parameters]
        assert len(set(names)) == len(names)
        assert all(f"{model}.{name}" in result.output for name in names)


@pytest.mark.slow
def test_the_runtime_follows_from_the_artifact(
    checkpoint: Checkpoint, tmp_path: Path, command: Command
) -> None:
    artifacts = {
        "reference": checkpoint.folder,
        "trtllm": sample_engine(tmp_path / "engine"),
        "llmapi": sample_folder("solar-llama"),
    }
    for runtime in RUNTIMES:
        result = command("triton-repo", artifacts[runtime], "-o", tmp_path / runtime, "--json")
        assert (result.exit_code, json.loads(result.stdout)["runtime"]) == (0, runtime)


def test_the_output_of_convert_for_hugging_face_is_served_by_the_pytorch_runtime(
    tmp_path: Path, command: Command
) -> None:
    folder = tmp_path / "hf"
    command("convert", sample_folder("solar-llama"), "-o", folder, "--format", "hf")

    result = command("triton-repo", folder, "-o", tmp_path / "r", "--tp", "2")

    model = tmp_path / "r/tensorrt_llm/1/model"
    assert (result.exit_code, result.stderr) == (0, "")
    assert {"config.json", "tokenizer.json"} <= {path.name for path in model.iterdir()}
    assert next(model.glob("*.safetensors")).samefile(next(folder.glob("*.safetensors")))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["{engine}", "--runtime", "llmapi"], 4, "a Hugging Face folder, or the output of"),
        (["{checkpoint}", "--runtime", "trtllm"], 4, "an engine: run minitron-trt build"),
        (["{repository}"], 3, "is a repository; expected a checkpoint"),
        (["{checkpoint}", "--set", "tensorrt_llm.max_beam_width=2"], 2, "of the runtime trtllm"),
        (["{engine}", "--set", "tensorrt_llm.max_beam_width=2"], 4, "exceeds the engine's 1"),
        (["{checkpoint}", "--tp", "2"], 2, "--tp means nothing to the runtime reference"),
        (["{hf}", "--mount", "/m"], 2, "--mount means nothing to the runtime llmapi"),
        (["{engine}", "--mount", "models"], 2, "not an absolute path"),
        (["{hf}", "--set", "llm.model=other"], 2, "it is the folder beside the model"),
        (["{hf}", "--set", "llm.tensor_parallel_size=2"], 2, "cannot be set: use --tp"),
        (["{hf}", "--set", "llm.kv_cache_config.enable_block_reuse.x=1"], 2, "has no fields"),
        (["{hf}", "--set", "llm.kv_cache_config..dtype=x"], 2, "..dtype has an empty name"),
        (["{hf}", "--set", "llm.kv_cache_config.=x"], 2, "llm.kv_cache_config. has an empty name"),
        (["{hf}", "--max-seq-len", "99999"], 2, "exceeds the 2048 positions"),
        (["{empty}"], 3, "has no *.safetensors"),
    ],
)
def test_the_command_refuses_with_one_line(
    checkpoint: Checkpoint,
    tmp_path: Path,
    command: Command,
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    (tmp_path / "repository").mkdir()
    record = {"schema_version": 1, "kind": "repository", "files": {}}
    (tmp_path / "repository/minitron.json").write_text(json.dumps(record))
    (tmp_path / "empty").mkdir()
    config = (sample_folder("solar-llama") / "config.json").read_text()
    (tmp_path / "empty/config.json").write_text(config)
    places = {
        "checkpoint": checkpoint.folder,
        "engine": sample_engine(tmp_path / "engine"),
        "repository": tmp_path / "repository",
        "hf": sample_folder("solar-llama"),
        "empty": tmp_path / "empty",
    }

    result = command(
        "triton-repo", *(a.format(**places) for a in arguments), "-o", tmp_path / "out"
    )

    assert (result.exit_code, (tmp_path / "out").exists()) == (code, False)
    assert words in result.stderr
    assert result.stderr.count("\n") == 1 or code == 2


def test_settings_reach_the_configs(tmp_path: Path, command: Command) -> None:
    engine = sample_engine(tmp_path / "engine", max_beam_width=4)
    command(
        "triton-repo",
        engine,
        "--output",
        tmp_path / "r",
        "--no-skip-special-tokens",
        "--set=tensorrt_llm.max_beam_width=2",
        "--set=tensorrt_llm.gpu_device_ids=1",
        "--set=postprocessing.skip_special_tokens=true",
        "--preprocessing-instances=3",
        "--no-decoupled",
        "--max-queue-delay-us=500",
        "--apply-chat-template",
    )

    configs = {
        name: from_text((tmp_path / "r" / name / "config.pbtxt").read_text(), name)
        for name in (*PARAMETERS, "ensemble")
    }
    values = {
        name: {key: value.string_value for key, value in config.parameters.items()}
        for name, config in configs.items()
    }
    runtime = configs["tensorrt_llm"]
    assert values["tensorrt_llm"]["max_beam_width"] == "2"
    assert values["tensorrt_llm"]["gpu_device_ids"] == "1"
    assert values["postprocessing"]["skip_special_tokens"] == "true"
    assert values["tensorrt_llm_bls"]["skip_special_tokens"] == "false"
    assert values["preprocessing"]["apply_chat_template"] == "true"
    assert values["tensorrt_llm_bls"]["finish_reason"] == "false"
    assert configs["preprocessing"].instance_group[0].count == 3
    assert configs["postprocessing"].instance_group[0].count == 1
    assert runtime.dynamic_batching.max_queue_delay_microseconds == 500
    assert not runtime.model_transaction_policy.decoupled
    assert not configs["tensorrt_llm_bls"].model_transaction_policy.decoupled
