"""`check` on repositories as TensorRT-LLM's templates make them: each fault is one finding."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import Result
from tests.triton_repo.upstream import write_upstream

from minitron_trt.triton_repo.check.report import Finding
from minitron_trt.triton_repo.check.repository_check import check_repository

Command = Callable[..., Result]
CONFIG = "config.pbtxt"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository filled as upstream's documentation says."""
    return write_upstream(tmp_path_factory.mktemp("upstream") / "repository")


@pytest.fixture
def repository(pristine: Path, tmp_path: Path) -> Path:
    """A copy to break; its tokenizer and engine stay where they are."""
    return shutil.copytree(pristine, tmp_path / "repository")


def change(file: str, old: str, new: str) -> Callable[[Path], None]:
    """Return a fault: the first `old` in a file becomes `new`."""

    def apply(folder: Path) -> None:
        path = folder / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return apply


def parameter(model: str, key: str, value: str) -> Callable[[Path], None]:
    """Return a fault: a parameter gets a value."""

    def apply(folder: Path) -> None:
        path = folder / model / CONFIG
        pattern = rf'(key: "{key}"\s+value: \{{\s+string_value: )"[^"]*"'
        text, count = re.subn(pattern, rf'\1"{value}"', path.read_text())
        assert count == 1
        path.write_text(text)

    return apply


def without(model: str, name: str) -> Callable[[Path], None]:
    """Return a fault: a tensor is taken out of a config."""

    def apply(folder: Path) -> None:
        path = folder / model / CONFIG
        pattern = rf'  \{{\n    name: "{name}"\n(    .*\n)+  \}},?\n'
        text, count = re.subn(pattern, "", path.read_text(), count=1)
        assert count == 1
        path.write_text(text)

    return apply


def dropped(model: str, key: str) -> Callable[[Path], None]:
    """Return a fault: a parameter is taken out."""

    def apply(folder: Path) -> None:
        path = folder / model / CONFIG
        pattern = rf'parameters: \{{\n  key: "{key}"\n.*\n.*\n  \}}\n\}}\n'
        text, count = re.subn(pattern, "", path.read_text())
        assert count == 1
        path.write_text(text)

    return apply


def unmapped(key: str) -> Callable[[Path], None]:
    """Return a fault: an entry is taken out of the ensemble's maps."""

    def apply(folder: Path) -> None:
        path = folder / "ensemble" / CONFIG
        pattern = rf'      \w+put_map \{{\n        key: "{key}"\n.*\n      \}}\n'
        text, count = re.subn(pattern, "", path.read_text(), count=1)
        assert count == 1
        path.write_text(text)

    return apply


@dataclass(frozen=True)
class Fault:
    """A fault, and the one finding that it must give."""

    apply: Callable[[Path], None]
    severity: str
    file: str
    field: str
    words: str


E, W = "error", "warning"
ENSEMBLE, RUNTIME, PRE, POST, BLS = (
    f"{name}/{CONFIG}"
    for name in (
        "ensemble",
        "tensorrt_llm",
        "preprocessing",
        "postprocessing",
        "tensorrt_llm_bls",
    )
)
STEP = "ensemble_scheduling.step"


def of_parameter(model: str, key: str, value: str, words: str, severity: str = E) -> Fault:
    """Return the fault of a parameter's value."""
    return Fault(
        parameter(model, key, value),
        severity=severity,
        file=f"{model}/{CONFIG}",
        field=f'parameters["{key}"]',
        words=words,
    )


def of_text(
    file: str, old: str, new: str, field: str, words: str, severity: str = E, at: str = ""
) -> Fault:
    """Return the fault of a text in a file, found in that file or `at` another."""
    return Fault(
        change(file, old, new),
        severity=severity,
        file=at or file,
        field=field,
        words=words,
    )


def remove(path: str) -> Callable[[Path], None]:
    """Return a fault: a file or folder is gone."""
    return lambda folder: (
        shutil.rmtree(folder / path) if (folder / path).is_dir() else (folder / path).unlink()
    )


BATCH = "max_batch_size: 4"
FAULTS = {
    # One file by itself.
    "syntax": of_text(
        POST,
        old="dims: [ -1, -1 ]",
        new="dims: [ -1, x ]",
        field="",
        words="does not parse: Couldn't parse integer: x",
    ),
    "placeholder in a type": of_text(
        RUNTIME,
        old="TYPE_FP16",
        new="${some_type}",
        field="input[3].data_type",
        words="${some_type} is left",
    ),
    "placeholder in a number": of_text(
        BLS,
        old="count: 4",
        new="count: ${n}",
        field="instance_group[0].count",
        words="${n} is left",
    ),
    "placeholder in a required parameter": of_parameter(
        "tensorrt_llm",
        "gpt_model_type",
        "${batching_strategy}",
        words="inflight_fused_batching",
    ),
    "placeholder inside a value": of_parameter(
        "tensorrt_llm",
        "max_beam_width",
        "1${x}",
        words="${x} is left",
    ),
    "unknown field": of_text(
        POST,
        old=BATCH,
        new="max_batchsize: 4",
        field="max_batchsize",
        words="did you mean max_batch_size",
    ),
    "name": of_text(
        POST,
        old='"postprocessing"',
        new='"post"',
        field="name",
        words="expected 'postprocessing'",
    ),
    "no version": Fault(
        remove("ensemble/1"),
        severity=E,
        file="ensemble/",
        field="version folder",
        words="make ensemble/1",
    ),
    "no config": Fault(
        lambda folder: (folder / "notes").mkdir(),
        severity=E,
        file=f"notes/{CONFIG}",
        field="",
        words="is missing",
    ),
    "no model file": Fault(
        remove("preprocessing/1/model.py"),
        severity=E,
        file="preprocessing/1/model.py",
        field="",
        words="is missing",
    ),
    "unknown backend": of_text(
        RUNTIME,
        old='"tensorrtllm"',
        new='"tensorrt_llm"',
        field="backend",
        words="expected 'tensorrtllm'",
    ),
    "foreign backend": of_text(
        RUNTIME,
        old='"tensorrtllm"',
        new='"acme"',
        field="backend",
        words="libtriton_acme",
        severity=W,
    ),
    "preferred size": of_text(
        PRE,
        old="[ 4 ]",
        new="[ 5 ]",
        field="dynamic_batching.preferred_batch_size[0]",
        words="is 5",
    ),
    "duplicate": of_text(
        PRE,
        old='"IMAGE_URL"',
        new='"DECODER_QUERY"',
        field="input[2].name",
        words="is there twice",
        severity=W,
    ),
    "zero dim": of_text(
        POST,
        old="dims: [ -1, -1 ]",
        new="dims: [ 0, -1 ]",
        field="input[0].dims",
        words="[0, -1]",
    ),
    "gpus of a cpu": of_text(
        POST,
        old="KIND_CPU",
        new="KIND_CPU gpus: [ 0 ]",
        field="instance_group[0].gpus",
        words="KIND_CPU",
    ),
    "two runtimes": of_text(
        RUNTIME,
        old="count: 1",
        new="count: 2",
        field="instance_group[0]",
        words="2 of",
        severity=W,
    ),
    # The ensemble's wires.
    "step without model": of_text(
        ENSEMBLE,
        old='model_name: "postprocessing"',
        new='model_name: "postprocess"',
        field=f"{STEP}[2].model_name",
        words="no model 'postprocess'",
    ),
    "misspelt map": of_text(
        ENSEMBLE,
        old='key: "runtime_top_k"',
        new='key: "runtime_topk"',
        field=f'{STEP}[1].input_map["runtime_topk"]',
        words="did you mean 'runtime_top_k'",
    ),
    "required input unmapped": Fault(
        unmapped("SEQUENCE_LENGTH"),
        severity=E,
        file=ENSEMBLE,
        field=f"{STEP}[2].input_map",
        words="'SEQUENCE_LENGTH'",
    ),
    "type across": of_text(
        RUNTIME,
        old='name: "seed"\n    data_type: TYPE_UINT64',
        new='name: "seed"\n    data_type: TYPE_INT64',
        field=f'{STEP}[1].input_map["seed"]',
        words="TYPE_INT64 as 'seed' of tensorrt_llm",
        severity=E,
        at=ENSEMBLE,
    ),
    "shape across": of_text(
        PRE,
        old='name: "BAD_WORDS_IDS"\n    data_type: TYPE_INT32\n    dims: [ 2, -1 ]',
        new='name: "BAD_WORDS_IDS"\n    data_type: TYPE_INT32\n    dims: [ 3, -1 ]',
        field=f'{STEP}[1].input_map["bad_words_list"]',
        words="[3, -1]",
        severity=E,
        at=ENSEMBLE,
    ),
    "unused input": Fault(
        unmapped("streaming"),
        severity=E,
        file=ENSEMBLE,
        field="input[18]",
        words="input 'stream'",
    ),
    "unused tensor": Fault(
        unmapped("embedding_bias"),
        severity=E,
        file=ENSEMBLE,
        field=f'{STEP}[0].output_map["EMBEDDING_BIAS"]',
        words="nothing reads",
    ),
    "unwritten output": Fault(
        unmapped("acceptance_rate"),
        severity=E,
        file=ENSEMBLE,
        field="output[14]",
        words="'acceptance_rate'",
    ),
    "misspelt tensor": of_text(
        ENSEMBLE,
        old='value: "_EMBEDDING_BIAS"',
        new='value: "_EMBEDDING_BIASES"',
        field=f'{STEP}[1].input_map["embedding_bias"]',
        words="'_EMBEDDING_BIASES', which nothing reads",
    ),
    "decoupled rule": of_text(
        PRE,
        old=BATCH,
        new=f"{BATCH}\nmodel_transaction_policy {{ decoupled: true }}",
        field=f"{STEP}[1].input_map",
        words="from before the decoupled preprocessing",
        severity=E,
        at=ENSEMBLE,
    ),
    "batch of a step": of_text(
        POST,
        old=BATCH,
        new="max_batch_size: 2",
        field="max_batch_size",
        words="allows 2",
        at=ENSEMBLE,
    ),
    # TensorRT-LLM's models, engine and tokenizer.
    "tensor missing": Fault(
        without("tensorrt_llm", "stop"),
        severity=W,
        file=RUNTIME,
        field="input",
        words="lacks stop",
    ),
    "tensor mistyped": of_text(
        BLS,
        old='name: "top_p"\n    data_type: TYPE_FP32',
        new='name: "top_p"\n    data_type: TYPE_FP64',
        field="input[23].data_type",
        words="expected TYPE_FP32",
        severity=W,
    ),
    "backend that no file system has": of_text(
        BLS,
        old='backend: "python"',
        new=f'backend: "{"b" * 300}"',
        field="backend",
        words="is not a backend of Triton's images",
        severity=W,
    ),
    "type that no enum has": of_text(
        BLS,
        old='name: "top_p"\n    data_type: TYPE_FP32',
        new='name: "top_p"\n    data_type: 9999999999',
        field="",
        words="does not parse (Value out of range: 9999999999)",
    ),
    # Triton loads it, and no request can send such a tensor.
    "tensor of no type": of_text(
        BLS,
        old='name: "top_p"\n    data_type: TYPE_FP32',
        new='name: "top_p"\n    data_type: 99',
        field="input[23].data_type",
        words="'top_p' has type 99; expected like TYPE_INT32",
    ),
    "logits": of_text(
        BLS,
        old='name: "context_logits"\n    data_type: TYPE_FP32',
        new='name: "context_logits"\n    data_type: TYPE_FP16',
        field="output[3].data_type",
        words="the engine's logits_dtype",
    ),
    "streaming apart": of_text(
        BLS,
        old="decoupled: true",
        new="decoupled: false",
        field="model_transaction_policy.decoupled",
        words="is false here and true in",
        severity=W,
    ),
    "key missing": Fault(
        dropped("tensorrt_llm", "xgrammar_tokenizer_info_path"),
        severity=E,
        file=RUNTIME,
        field='parameters["xgrammar_tokenizer_info_path"]',
        words="its value may be empty",
    ),
    "beam width": of_parameter(
        "tensorrt_llm",
        "max_beam_width",
        "2",
        words="at most the engine's 1",
    ),
    "unreadable value": of_parameter(
        "tensorrt_llm",
        "kv_cache_free_gpu_mem_fraction",
        "90%",
        words="at most 1",
    ),
    "unknown batching": of_parameter("tensorrt_llm", "gpt_model_type", "fused", words="is 'fused'"),
    "GPUs": of_parameter("tensorrt_llm", "gpu_device_ids", "0,1", words="one for each rank"),
    "runtime's name": of_parameter(
        "tensorrt_llm_bls",
        "tensorrt_llm_model_name",
        "llama",
        words="no model 'llama'",
    ),
    "no engine": of_parameter("tensorrt_llm", "gpt_model_path", "", words="is empty"),
    "relative path": of_parameter(
        "preprocessing",
        "tokenizer_dir",
        "tok",
        words="give an absolute path",
        severity=W,
    ),
    "name that no folder has": of_parameter(
        "preprocessing",
        "tokenizer_dir",
        r"/tmp/\\000",
        words="not checked",
        severity="note",
    ),
    "no such tokenizer": Fault(
        lambda folder: parameter("preprocessing", "tokenizer_dir", f"{folder}/tok")(folder),
        severity=E,
        file=PRE,
        field='parameters["tokenizer_dir"]',
        words="there is no folder",
    ),
    "no such engine": Fault(
        lambda folder: parameter("tensorrt_llm", "gpt_model_path", f"{folder}/engine")(folder),
        severity=E,
        file=RUNTIME,
        field='parameters["gpt_model_path"]',
        words="is not a folder; expected an engine",
    ),
    "tokenizer that no file system has": of_parameter(
        "postprocessing",
        "tokenizer_dir",
        "t" * 300,
        words="counts from the server's working directory",
        severity=W,
    ),
    "tokenizer elsewhere": of_parameter(
        "postprocessing",
        "tokenizer_dir",
        "/models/tokenizer",
        words="another machine",
        severity="note",
    ),
    "tokenizer of the hub": of_parameter(
        "postprocessing",
        "tokenizer_dir",
        "nvidia/Minitron-4B-Base",
        words="of the hub",
        severity="note",
    ),
}


Key = tuple[str, str, str, str]


@pytest.fixture(scope="module")
def before(pristine: Path) -> set[Key]:
    """What is found without a fault."""
    return {key_of(finding) for finding in check_repository(pristine).findings}


def key_of(finding: Finding) -> Key:
    """Return what tells findings apart when lines have moved."""
    return finding.severity, finding.file, finding.field, finding.found


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_is_one_finding_that_names_file_and_field(
    before: set[Key], repository: Path, fault: Fault
) -> None:
    fault.apply(repository)

    found = [f for f in check_repository(repository).findings if key_of(f) not in before]
    found = [f for f in found if "note" in (fault.severity,) or f.severity != "note"]

    assert len(found) == 1, [f.place + " " + f.message for f in found]
    assert (found[0].severity, found[0].file, found[0].field) == (
        fault.severity,
        fault.file,
        fault.field,
    )
    assert fault.words in found[0].message
