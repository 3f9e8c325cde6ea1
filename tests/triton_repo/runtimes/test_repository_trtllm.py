"""Repositories of engines: reviewed configs for four GPUs, and what does not fit is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.build.engines import add_manifest, write_engine
from tests.triton_repo.engines import SERVED_AS, engine_for, sample_engine
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from minitron_trt.errors import BadInputError, MinitronError, UnsupportedError
from minitron_trt.samples import NAMES, sample_folder
from minitron_trt.triton_repo.model_config import from_text
from minitron_trt.triton_repo.model_repository import ModelRepository
from minitron_trt.triton_repo.parameters import PARAMETERS
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.runtimes.runtime_names import TRTLLM
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

GOLDEN = Path(__file__).parents[2] / "golden" / "triton_repo" / "trtllm"


def emit(engine: Path, output: Path, **options: Any) -> ModelRepository:
    """Write a repository for an engine."""
    return emit_repository(engine, output, ServingRecipe(**options))


def parameters(repository: ModelRepository) -> dict[str, str]:
    """Return the parameters of tensorrt_llm."""
    found = repository.configs["tensorrt_llm"].parameters
    return {key: value.string_value for key, value in found.items()}


@pytest.mark.parametrize("gpu", SERVED_AS)
def test_the_config_of_each_gpu_is_the_reviewed_one(tmp_path: Path, gpu: str) -> None:
    """To accept a change: read the new text, then copy it to tests/golden/triton_repo/trtllm."""
    engine = engine_for(tmp_path / "engine", gpu)

    repository = emit(engine, tmp_path / "r")

    text = (repository.folder / "tensorrt_llm/config.pbtxt").read_text()
    assert text == (GOLDEN / f"{gpu.lower()}.pbtxt").read_text()
    assert from_text(text, gpu).backend == "tensorrtllm"


@pytest.mark.slow
def test_the_ensemble_asks_the_backend_for_nothing_of_ours(tmp_path: Path) -> None:
    repository = emit(engine_for(tmp_path / "engine", "H100"), tmp_path / "r")

    text = (repository.folder / "ensemble/config.pbtxt").read_text()
    assert text == (GOLDEN / "ensemble.pbtxt").read_text()
    _, generate, _ = repository.configs["ensemble"].ensemble_scheduling.step
    assert {"stream_id", "finish_reason"}.isdisjoint({*generate.input_map, *generate.output_map})


@pytest.mark.slow
def test_the_manifest_says_what_a_server_needs(tmp_path: Path) -> None:
    engine = engine_for(tmp_path / "engine", "B200")

    repository = emit(engine, tmp_path / "r", mount="/srv/models/")

    facts = json.loads((repository.folder / "minitron.json").read_text())
    assert {key: facts[key] for key in ("runtime", "tp", "pp", "world_size", "sm")} == {
        "runtime": "trtllm",
        "tp": 2,
        "pp": 1,
        "world_size": 2,
        "sm": 100,
    }
    assert facts["image"] == "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"
    assert (facts["tensorrt_llm"], facts["mount"]) == ("1.2.1", "/srv/models/")
    assert parameters(repository)["gpt_model_path"] == "/srv/models/tensorrt_llm/1/engine"


def test_the_engine_lies_inside_with_a_tokenizer_for_each_text_model(tmp_path: Path) -> None:
    engine = sample_engine(tmp_path / "engine")

    folder = emit(engine, tmp_path / "r").folder

    assert (folder / "tensorrt_llm/1/engine/rank0.engine").samefile(engine / "rank0.engine")
    assert not list((folder / "tensorrt_llm").rglob("*.py"))
    for model in ("preprocessing", "postprocessing", "tensorrt_llm_bls"):
        assert (folder / model / "1/tokenizer/tokenizer.json").is_file()


def test_keys_that_the_backend_reads_without_a_default_are_there_and_empty(tmp_path: Path) -> None:
    found = parameters(emit(sample_engine(tmp_path / "engine"), tmp_path / "r"))

    keys = ("tokenizer_dir", "guided_decoding_backend", "xgrammar_tokenizer_info_path")
    assert [found[key] for key in keys] == ["", "", ""]


def test_an_engine_without_paged_context_has_neither_chunks_nor_reuse(tmp_path: Path) -> None:
    engine = sample_engine(tmp_path / "engine", plugin_config={"use_paged_context_fmha": False})

    found = parameters(emit(engine, tmp_path / "r"))

    assert (found["enable_chunked_context"], found["enable_kv_cache_reuse"]) == ("false", "false")


def test_every_parameter_can_be_set_and_is_written_as_given(tmp_path: Path) -> None:
    examples = {
        "a whole number of at least 1": "1",
        "a whole number of at least 0": "0",
        "true or false": "true",
        "a number above 0, at most 1": "0.25",
        "a number from 0 to 1": "0",
        "whole numbers with commas between": "1024,2048",
        "numbers with commas between, semicolons between instances": "0",
        "some text": "/x",
    }
    given = {
        p.name: examples.get(p.kind.expected) or p.kind.expected.split()[2].rstrip(",")
        for p in PARAMETERS["tensorrt_llm"]
        if TRTLLM in p.runtimes
    }

    repository = emit(
        sample_engine(tmp_path / "engine"), tmp_path / "r", settings={"tensorrt_llm": given}
    )

    assert given.items() <= parameters(repository).items()
    assert len(given) > 40


@pytest.mark.parametrize("sample", NAMES)
def test_guided_decoding_gets_what_transformers_says_of_the_tokenizer(
    tmp_path: Path, sample: str
) -> None:
    engine = sample_engine(tmp_path / "engine", max_beam_width=1)
    settings = {"tensorrt_llm": {"guided_decoding_backend": "xgrammar"}}

    repository = emit(engine, tmp_path / "r", settings=settings, tokenizer=sample_folder(sample))

    name = "tensorrt_llm/1/xgrammar_tokenizer_info.json"
    record = json.loads((repository.folder / name).read_text())
    tokenizer: Any = AutoTokenizer.from_pretrained(sample_folder(sample))
    vocabulary = tokenizer.get_vocab()
    assert parameters(repository)["xgrammar_tokenizer_info_path"] == f"/models/{name}"
    assert record["encoded_vocab"] == sorted(vocabulary, key=vocabulary.get)
    assert (
        Tokenizer.from_str(record["tokenizer_str"]).to_str() == tokenizer.backend_tokenizer.to_str()
    )
    assert tokenizer.eos_token_id in record["stop_token_ids"]


def test_an_engine_of_others_gets_tokenizer_and_end_ids_from_a_folder(tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "engine", size_bytes=1000)
    with pytest.raises(BadInputError, match=r"has no tokenizer.*pass --tokenizer"):
        emit(engine, tmp_path / "r")
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copyfile(sample_folder("solar-llama") / "tokenizer.json", bare / "tokenizer.json")
    with pytest.raises(BadInputError, match="which ids end a text"):
        emit(engine, tmp_path / "r", tokenizer=bare)

    repository = emit(engine, tmp_path / "r", tokenizer=sample_folder("solar-llama"))

    end_ids = repository.configs["preprocessing"].parameters["end_ids"].string_value
    generation = sample_folder("solar-llama") / "generation_config.json"
    eos = json.loads(generation.read_text())["eos_token_id"]
    assert json.loads(end_ids) == (eos if isinstance(eos, list) else [eos])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_batch_size": 65}, "--max-batch-size 65 exceeds the engine's 4"),
        ({"max_seq_len": 99}, "cannot change the engine's 1024"),
        ({"stream_interval": 2}, "sends every token"),
        ({"tp": 2}, "the engine is for TP 1 and PP 1"),
        ({"max_beam_width": "2"}, "max_beam_width 2 exceeds the engine's 1"),
        ({"decoding_mode": "beam_search"}, "needs an engine built with --max-beam-width"),
        ({"decoding_mode": "medusa"}, "speculative_decoding_mode"),
        ({"enable_chunked_context": "true"}, "use_paged_context_fmha"),
        ({"enable_kv_cache_reuse": "true"}, "use_paged_context_fmha"),
        ({"gpu_device_ids": "0,1"}, "the engine has 1 ranks"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_the_engine_was_not_built_for_is_refused(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    engine = sample_engine(tmp_path / "engine", plugin_config={"use_paged_context_fmha": False})
    fields = {key: value for key, value in options.items() if not isinstance(value, str)}
    settings = {"tensorrt_llm": {k: v for k, v in options.items() if isinstance(v, str)}}

    with pytest.raises(UnsupportedError, match=words):
        emit(engine, tmp_path / "r", **fields, settings=settings)

    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("pretrained", "words"),
    [({"logits_dtype": "bfloat16"}, "logits_dtype is bfloat16"), ({"dtype": "int8"}, "dtype is")],
    ids=["logits", "weights"],
)
def test_element_types_that_the_backend_lacks_are_refused(
    tmp_path: Path, pretrained: dict[str, str], words: str
) -> None:
    engine = write_engine(tmp_path / "engine", size_bytes=1000, pretrained=pretrained)

    with pytest.raises(MinitronError, match=words):
        emit(engine, tmp_path / "r", tokenizer=sample_folder("solar-llama"))


@pytest.mark.parametrize("mode", [2, 1], ids=["drafts", "none"])
def test_of_an_engine_that_takes_drafts_it_is_said_who_has_to_send_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    """2 is TensorRT-LLM's SpeculativeDecodingMode.DRAFT_TOKENS_EXTERNAL, as its config has it."""
    engine = sample_engine(tmp_path / "engine", speculative_decoding_mode=mode)

    emit(engine, tmp_path / "r")

    said = "takes drafts from clients of tensorrt_llm (draft_input_ids)"
    assert (said in caplog.text) is (mode == 2)


@pytest.mark.slow
def test_float16_engines_have_float16_tables_and_logits(tmp_path: Path) -> None:
    pretrained = {"logits_dtype": "float16", "dtype": "float16"}
    engine = write_engine(tmp_path / "engine", size_bytes=1000, pretrained=pretrained)

    repository = emit(engine, tmp_path / "r", tokenizer=sample_folder("solar-llama"))

    types = {
        tensor.name: tensor.data_type
        for name in ("tensorrt_llm", "ensemble", "tensorrt_llm_bls")
        for tensor in (*repository.configs[name].input, *repository.configs[name].output)
    }
    half = from_text('name: "x" input { data_type: TYPE_FP16 }', "x").input[0].data_type
    assert types["generation_logits"] == types["prompt_embedding_table"] == half


def test_a_plan_of_tensorrt_itself_is_refused_with_the_ways_out(tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "engine", size_bytes=1000)
    (engine / "rank0.engine").rename(engine / "engine.plan")
    add_manifest(engine, compiler={"name": "tensorrt-rtx", "version": "1.7.1.116"})

    with pytest.raises(UnsupportedError, match=r"--compiler trtllm, or serve the checkpoint"):
        emit(engine, tmp_path / "r")
