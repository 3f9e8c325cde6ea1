"""`check` on repositories of ours, on templates nobody filled in, and as a command."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from tests.build.engines import write_engine
from tests.triton_repo.upstream import templates, write_templates, write_upstream

from minitron_trt.artifacts import Manifest
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.errors import BadInputError
from minitron_trt.samples import sample_folder
from minitron_trt.triton_repo.check.repository_check import check_repository
from minitron_trt.triton_repo.contract.model_names import MODELS
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving.served_repository import ServedRepository
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

pytestmark = pytest.mark.slow

Command = Callable[..., Result]
Lines = list[str]
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, a model folder and an engine (a hole with a config), all of one sample."""
    root = tmp_path_factory.mktemp("artifacts")
    model = sample_folder("solar-llama")
    convert(str(model), root / "reference", ConvertOptions())
    shutil.copytree(model, root / "llmapi")
    engine = write_engine(root / "trtllm", size_bytes=1000, pretrained={"vocab_size": 1024})
    for name in TOKENIZER:
        shutil.copy(model / name, engine / name)
    return root


@pytest.fixture
def emit(artifacts: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Return a writer of a repository of ours for a runtime."""

    def write(runtime: str) -> Path:
        folder = tmp_path / runtime
        emit_repository(artifacts / runtime, folder, ServingRecipe())
        # Links to the artifact must not carry changes back to it.
        return shutil.copytree(folder, tmp_path / f"copy of {runtime}")

    return write


def resign(folder: Path, **facts: object) -> None:
    """Write the manifest again over what is there, so that only the fault itself is found."""
    record = json.loads((folder / "minitron.json").read_text())
    for name in ("schema_version", "kind", "tool_version", "source", "files"):
        del record[name]
    Manifest("repository", {}, {**record, **facts}).write(folder)


def edit(path: Path, pattern: str, new: str) -> None:
    """Replace what a pattern finds once."""
    text, count = re.subn(pattern, new, path.read_text(), count=1)
    assert count == 1
    path.write_text(text)


def lines(folder: Path) -> Lines:
    """Return what check finds, without the folder's own path."""
    return [
        f"{finding.severity} {finding.place} {finding.message}".replace(str(folder), "REPO")
        for finding in check_repository(folder).findings
    ]


@pytest.mark.parametrize("runtime", ["reference", "trtllm", "llmapi"])
def test_our_repositories_have_nothing_wrong(emit: Callable[[str], Path], runtime: str) -> None:
    assert lines(emit(runtime)) == []


def test_every_placeholder_of_every_template_is_named(tmp_path: Path) -> None:
    folder = write_templates(tmp_path / "repository")
    expected = {
        (f"{name}/config.pbtxt", number, match[1])
        for name, text in templates().items()
        for number, line in enumerate(text.splitlines(), 1)
        for match in re.finditer(r"\$\{(\w+)\}", line.partition("#")[0])
    }

    found = check_repository(folder).findings

    assert len(expected) == 81
    assert {(f.file, f.line, re.findall(r"\$\{(\w+)\}", f.found)[0]) for f in found} == expected
    assert len(found) == len(expected)


def test_placeholders_are_errors_where_upstream_needs_a_value(tmp_path: Path) -> None:
    errors = check_repository(write_templates(tmp_path / "repository")).errors

    assert {re.findall(r"\$\{(\w+)\}", error.found)[0] for error in errors} == {
        "triton_backend",
        "triton_max_batch_size",
        "decoupled_mode",
        "batching_strategy",
        "max_queue_delay_microseconds",
        "max_queue_size",
        "engine_dir",
        "tokenizer_dir",
        "encoder_input_features_data_type",
        "logits_datatype",
        "prompt_embedding_table_data_type",
        "preprocessing_instance_count",
        "postprocessing_instance_count",
        "bls_instance_count",
    }


def test_a_filled_template_passes_with_warnings_only(tmp_path: Path, command: Command) -> None:
    result = command("check", write_upstream(tmp_path / "repository"))

    assert (result.exit_code, result.stderr) == (0, "")
    assert "error" not in result.stdout
    assert "output[19].name: 'kv_cache_alloc_total_blocks' is there twice" in result.stdout


ENGINE = "tensorrt_llm/1/engine/config.json"
TEXT_MODELS = ("preprocessing", "postprocessing", "tensorrt_llm_bls")


def give(model: str, key: str, value: str) -> Callable[[Path], None]:
    """Return a fault: a parameter gets a value."""
    pattern = rf'(key: "{key}"\s+value \{{\s+string_value: ).*'
    return lambda r: edit(r / model / "config.pbtxt", pattern, rf'\g<1>"{value}"')


def replaced(file: str, pattern: str, new: str) -> Callable[[Path], None]:
    """Return a fault: what a pattern finds in a file is something else."""
    return lambda r: edit(r / file, pattern, new)


def several(*faults: Callable[[Path], None]) -> Callable[[Path], None]:
    """Return faults that make one together."""

    def apply(folder: Path) -> None:
        for fault in faults:
            fault(folder)

    return apply


def gone(*files: str) -> Callable[[Path], None]:
    """Return a fault: files are missing."""
    return several(*((lambda r, f=file: (r / f).unlink()) for file in files))


def in_tokenizers(file: str, pattern: str, new: str) -> Callable[[Path], None]:
    """Return a fault: the same in every model's tokenizer."""
    return several(
        *(replaced(f"{model}/1/tokenizer/{file}", pattern, new) for model in TEXT_MODELS)
    )


def at(model: str, key: str, severity: str = "error") -> str:
    return f'{severity} {model}/config.pbtxt:N parameters["{key}"]: '


PAST_THE_VOCABULARY = (
    r'\1, {"id": 1024, "content": "<pad>", "single_word": false, "lstrip": false, '
    r'"rstrip": false, "normalized": false, "special": true}'
)

OURS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "engine's batch": (
        "trtllm",
        replaced(ENGINE, '"max_batch_size": 64', '"max_batch_size": 32'),
        "warning tensorrt_llm/config.pbtxt:N max_batch_size: is 64; expected at most the engine's ",
    ),
    "engine's attention": (
        "trtllm",
        several(
            replaced(ENGINE, '(use_paged_context_fmha"): true', r"\1: false"),
            give("tensorrt_llm", "enable_kv_cache_reuse", "false"),
        ),
        at("tensorrt_llm", "enable_chunked_context") + "is true, but the engine lacks use_paged",
    ),
    "engine's rank": (
        "trtllm",
        gone("tensorrt_llm/1/engine/rank0.engine"),
        at("tensorrt_llm", "gpt_model_path") + "REPO/tensorrt_llm/1/engine lacks rank0.engine",
    ),
    "checkpoint's rank": (
        "reference",
        gone("tensorrt_llm/1/checkpoint/rank0.safetensors"),
        at("tensorrt_llm", "gpt_model_path"),
    ),
    "model's weights": (
        "llmapi",
        gone("tensorrt_llm/1/model/model.safetensors"),
        "error tensorrt_llm/1/model.yaml model: model has no weights",
    ),
    "vocabulary": (
        "trtllm",
        several(
            replaced(ENGINE, '"vocab_size": 1024', '"vocab_size": 900'),
            *(give(model, "end_ids", "[2]") for model in ("preprocessing", "tensorrt_llm_bls")),
        ),
        at("preprocessing", "tokenizer_dir") + "the tokenizer has ids up to 1023, the model 900",
    ),
    "end id": (
        "reference",
        give("preprocessing", "end_ids", "[5000]"),
        at("preprocessing", "end_ids") + "5000 is no id of the model; expected 0 to 1023",
    ),
    "end ids as text": (
        "reference",
        give("tensorrt_llm_bls", "end_ids", "</s>"),
        at("tensorrt_llm_bls", "end_ids") + "is '</s>'; expected a list of ids like [2, 3]",
    ),
    "end ids that are no JSON": (
        "reference",
        give("preprocessing", "end_ids", "[1e999]"),
        at("preprocessing", "end_ids") + "is '[1e999]'; expected a list of ids like [2, 3]",
    ),
    "end ids without an end": (
        "reference",
        give("preprocessing", "end_ids", "[" * 5000),
        at("preprocessing", "end_ids") + "is '[[[",
    ),
    "a number that nothing holds": (
        "reference",
        give("preprocessing", "max_prompt_characters", "9" * 5000),
        at("preprocessing", "max_prompt_characters") + "is '999",
    ),
    "a model's folder that no file system has": (
        "llmapi",
        replaced("tensorrt_llm/1/model.yaml", "model: .*", f"model: {'m' * 300}"),
        "error tensorrt_llm/1/model.yaml model: there is no folder 'mmm",
    ),
    "a model.yaml that is no YAML": (
        "llmapi",
        replaced("tensorrt_llm/1/model.yaml", "stream_interval: 1", "stream_interval: ["),
        "error tensorrt_llm/1/model.yaml is not the arguments of the LLM class (",
    ),
    "a model.yaml without a batch": (
        "llmapi",
        replaced("tensorrt_llm/1/model.yaml", "max_batch_size: [0-9]+", "# as LLM has it"),
        "error tensorrt_llm/1/model.yaml is not the arguments of the LLM class (Object missing",
    ),
    "no end id": (
        "reference",
        give("preprocessing", "end_ids", "[]"),
        at("preprocessing", "end_ids", "warning") + "is empty: an answer goes on until its token",
    ),
    "another end id than the tokenizer's": (
        "reference",
        give("preprocessing", "end_ids", "[2, 3]"),
        at("preprocessing", "end_ids", "warning") + "2, 3 is not the tokenizer's eos_token "
        "'<|end_of_text|>' (1023)",
    ),
    "a token past the vocabulary": (
        "reference",
        in_tokenizers("tokenizer.json", r"(\{[^{]*<.end_of_text.>[^{]*\})", PAST_THE_VOCABULARY),
        at("preprocessing", "tokenizer_dir", "warning") + "'<pad>' (1024) of the tokenizer is past",
    ),
    "a pad token that is not in the vocabulary": (
        "reference",
        in_tokenizers("tokenizer_config.json", pattern="{", new='{"pad_token": "<pad>", '),
        at("preprocessing", "tokenizer_dir", "warning") + "pad_token '<pad>' is not in the "
        "vocabulary and becomes id 1024",
    ),
    "another tokenizer": (
        "reference",
        replaced("postprocessing/1/tokenizer/tokenizer.json", "{", "{ "),
        at("postprocessing", "tokenizer_dir") + "its tokenizer.json is not the one of preproc",
    ),
    "no tokenizer": (
        "reference",
        gone(*(f"postprocessing/1/tokenizer/{name}" for name in TOKENIZER[:2])),
        at("postprocessing", "tokenizer_dir") + "REPO/postprocessing/1/tokenizer holds no token",
    ),
    "no eos": (
        "reference",
        several(
            *(
                replaced(
                    f"{model}/1/tokenizer/tokenizer_config.json",
                    pattern='"eos_token": "[^"]*"',
                    new='"eos_token": "<gone>"',
                )
                for model in TEXT_MODELS
            )
        ),
        at("preprocessing", "tokenizer_dir") + "eos_token '<gone>' is not in the vocabulary",
    ),
    "no JSON": (
        "reference",
        several(
            *(replaced(f"{model}/1/tokenizer/tokenizer.json", "{", "[") for model in TEXT_MODELS)
        ),
        at("preprocessing", "tokenizer_dir") + "REPO/preprocessing/1/tokenizer/tokenizer.json is",
    ),
    "contract": (
        "reference",
        replaced(
            "tensorrt_llm/config.pbtxt",
            pattern=r'input \{\s+name: "early_stopping"[^}]*\}\s+optional: true\s+\}\n',
            new="",
        ),
        "error tensorrt_llm/config.pbtxt input: lacks early_stopping",
    ),
    "instances that share state": (
        "reference",
        replaced("postprocessing/config.pbtxt", "count: 1", "count: 2"),
        "error postprocessing/config.pbtxt:N instance_group[0].count: is 2; expected 1",
    ),
    "value": (
        "reference",
        give("postprocessing", "skip_special_tokens", "1"),
        at("postprocessing", "skip_special_tokens") + "is '1'; expected true or false",
    ),
}


@pytest.mark.parametrize(("runtime", "fault", "said"), OURS.values(), ids=OURS)
def test_a_fault_in_our_repository_is_one_finding(
    emit: Callable[[str], Path], runtime: str, fault: Callable[[Path], None], said: str
) -> None:
    folder = emit(runtime)
    fault(folder)
    resign(folder)

    found = [re.sub(r"(pbtxt):\d+", r"\1:N", line) for line in lines(folder)]

    assert len(found) == 1, found
    assert found[0].startswith(said)


def test_the_manifest_is_compared_with_the_files(emit: Callable[[str], Path]) -> None:
    folder = emit("reference")
    (folder / "tensorrt_llm/1/minitron_models/triton_io.py").unlink()
    with (folder / "ensemble/config.pbtxt").open("a") as file:
        file.write("# a comment\n")

    assert [line.partition(";")[0] for line in lines(folder)] == [
        "note ensemble/config.pbtxt edited since it was made",
        "error tensorrt_llm/1/minitron_models/triton_io.py is missing",
    ]


def test_configuration_may_be_edited_and_its_contents_are_checked(
    emit: Callable[[str], Path],
) -> None:
    """A digit that leaves the size as it is is seen, too."""
    folder = emit("reference")
    config = folder / "postprocessing/config.pbtxt"
    size = config.stat().st_size
    edit(config, "max_batch_size: ", "max_batch_size:\t")
    tokenizers = sorted(folder.glob("*/1/tokenizer/tokenizer_config.json"))
    for tokenizer in tokenizers:
        tokenizer.write_text(f"{tokenizer.read_text()}\n")

    assert config.stat().st_size == size
    assert lines(folder) == [
        f"note {path.relative_to(folder)} edited since it was made"
        for path in sorted([*tokenizers, config])
    ]
    edit(config, "max_batch_size:\t", "max_batch_size: x")
    assert any(line.startswith("error postprocessing/config.pbtxt") for line in lines(folder))


def test_a_repository_with_edited_configuration_is_served(emit: Callable[[str], Path]) -> None:
    folder = emit("reference")
    edit(folder / "postprocessing/config.pbtxt", "max_batch_size: ", "# ours\nmax_batch_size: ")

    assert ServedRepository.open(folder).models == MODELS
    edit(folder / "postprocessing/config.pbtxt", "max_batch_size: ", "max_batch_size: x")
    with pytest.raises(BadInputError, match=r"postprocessing/config\.pbtxt"):
        ServedRepository.open(folder)


def test_code_and_weights_stay_as_they_were_made(emit: Callable[[str], Path]) -> None:
    folder = emit("reference")
    code = folder / "tensorrt_llm/1/model.py"
    code.write_text(code.read_text().swapcase())
    weights = folder / "tensorrt_llm/1/checkpoint/rank0.safetensors"
    with weights.open("ab") as file:
        file.write(b"0")

    assert {line.partition(";")[0] for line in lines(folder)} >= {
        "error tensorrt_llm/1/model.py has other contents",
        f"error tensorrt_llm/1/checkpoint/rank0.safetensors is {weights.stat().st_size} bytes",
    }
    with pytest.raises(BadInputError, match=r"rank0\.safetensors is \d+ bytes; the manifest says"):
        ServedRepository.open(folder)


def test_a_manifest_of_another_runtime_is_an_error(emit: Callable[[str], Path]) -> None:
    folder = emit("trtllm")
    resign(folder, runtime="llama.cpp")

    assert "error minitron.json runtime: is 'llama.cpp'; expected one of reference, trtllm, " in (
        "\n".join(lines(folder))
    )


def test_a_backend_may_have_a_library_of_another_name(tmp_path: Path) -> None:
    model = tmp_path / "repository" / "own"
    (model / "1").mkdir(parents=True)
    sides = (
        f"{side} {{ name: 'A' data_type: TYPE_INT32 dims: 1 }}" for side in ("input", "output")
    )
    (model / "config.pbtxt").write_text(f"backend: 'mine' runtime: 'libours.so' {' '.join(sides)}")

    (line,) = lines(tmp_path / "repository")
    assert line.endswith("has libours.so, or a backend in Python of that name")

    (model / "libours.so").touch()
    assert lines(tmp_path / "repository") == []


def test_upstreams_text_runtime_is_known_by_its_tensors(tmp_path: Path) -> None:
    model = tmp_path / "repository" / "llm"
    (model / "1").mkdir(parents=True)
    (model / "1/model.py").touch()
    (model / "1/model.yaml").write_text("# which\nmodel: nvidia/Minitron-4B-Base # the base\n")
    tensors = ('input { name: "text_input"', 'input { name: "sampling_param_max_tokens"')
    (model / "config.pbtxt").write_text(
        'backend: "python" output { name: "text_output" data_type: TYPE_STRING dims: -1 }'
        + " ".join(f"{tensor} data_type: TYPE_STRING dims: 1 }}" for tensor in tensors)
    )

    assert lines(tmp_path / "repository") == [
        "note llm/config.pbtxt not checked: nvidia/Minitron-4B-Base is a hub id or a path of "
        "another machine"
    ]
