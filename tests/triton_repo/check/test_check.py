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
        *("ensemble", "tensorrt_llm", "preprocessing", "postprocessing", "tensorrt_llm_bls"),
    )
)
STEP = "ensemble_scheduling.step"


def of_parameter(model: str, key: str, value: str, words: str, severity: str = E) -> Fault:
    """Return the fault of a parameter's value."""
    return Fault(
        *(parameter(model, key, value), severity, f"{model}/{CONFIG}", f'parameters["{key}"]'),
        words,
    )


def of_text(
    file: str, old: str, new: str, field: str, words: str, severity: str = E, at: str = ""
) -> Fault:
    """Return the fault of a text in a file, found in that file or `at` another."""
    return Fault(change(file, old, new), severity, at or file, field, words)


def remove(path: str) -> Callable[[Path], None]:
    """Return a fault: a file or folder is gone."""
    return lambda folder: (
        shutil.rmtree(folder / path) if (folder / path).is_dir() else (folder / path).unlink()
    )


BATCH = "max_batch_size: 4"
FAULTS = {
    # One file by itself.
    "syntax": of_text(
        POST, "dims: [ -1, -1 ]", "dims: [ -1, x ]", "", "does not parse: Couldn't parse integer: x"
    ),
    "placeholder in a type": of_text(
        *(RUNTIME, "TYPE_FP16", "${some_type}", "input[3].data_type", "${some_type} is left"),
    ),
    "placeholder in a number": of_text(
        *(BLS, "count: 4", "count: ${n}", "instance_group[0].count", "${n} is left"),
    ),
    "placeholder in a required parameter": of_parameter(
        *("tensorrt_llm", "gpt_model_type", "${batching_strategy}", "inflight_fused_batching"),
    ),
    "placeholder inside a value": of_parameter(
        *("tensorrt_llm", "max_beam_width", "1${x}", "${x} is left"),
    ),
    "unknown field": of_text(
        *(POST, BATCH, "max_batchsize: 4", "max_batchsize", "did you mean max_batch_size"),
    ),
    "name": of_text(POST, '"postprocessing"', '"post"', "name", "expected 'postprocessing'"),
    "no version": Fault(remove("ensemble/1"), E, "ensemble/", "version folder", "make ensemble/1"),
    "no config": Fault(
        lambda folder: (folder / "notes").mkdir(), E, f"notes/{CONFIG}", "", "is missing"
    ),
    "no model file": Fault(
        *(remove("preprocessing/1/model.py"), E, "preprocessing/1/model.py", "", "is missing"),
    ),
    "unknown backend": of_text(
        *(RUNTIME, '"tensorrtllm"', '"tensorrt_llm"', "backend", "expected 'tensorrtllm'"),
    ),
    "foreign backend": of_text(RUNTIME, '"tensorrtllm"', '"acme"', "backend", "libtriton_acme", W),
    "preferred size": of_text(
        *(PRE, "[ 4 ]", "[ 5 ]", "dynamic_batching.preferred_batch_size[0]", "is 5"),
    ),
    "duplicate": of_text(
        *(PRE, '"IMAGE_URL"', '"DECODER_QUERY"', "input[2].name", "is there twice", W),
    ),
    "zero dim": of_text(POST, "dims: [ -1, -1 ]", "dims: [ 0, -1 ]", "input[0].dims", "[0, -1]"),
    "gpus of a cpu": of_text(
        *(POST, "KIND_CPU", "KIND_CPU gpus: [ 0 ]", "instance_group[0].gpus", "KIND_CPU"),
    ),
    "two runtimes": of_text(RUNTIME, "count: 1", "count: 2", "instance_group[0]", "2 of", W),
    # The ensemble's wires.
    "step without model": of_text(
        *(ENSEMBLE, 'model_name: "postprocessing"', 'model_name: "postprocess"'),
        *(f"{STEP}[2].model_name", "no model 'postprocess'"),
    ),
    "misspelt map": of_text(
        *(ENSEMBLE, 'key: "runtime_top_k"', 'key: "runtime_topk"'),
        *(f'{STEP}[1].input_map["runtime_topk"]', "did you mean 'runtime_top_k'"),
    ),
    "required input unmapped": Fault(
        *(unmapped("SEQUENCE_LENGTH"), E, ENSEMBLE, f"{STEP}[2].input_map", "'SEQUENCE_LENGTH'"),
    ),
    "type across": of_text(
        *(
            RUNTIME,
            'name: "seed"\n    data_type: TYPE_UINT64',
            'name: "seed"\n    data_type: TYPE_INT64',
        ),
        *(f'{STEP}[1].input_map["seed"]', "TYPE_INT64 as 'seed' of tensorrt_llm", E, ENSEMBLE),
    ),
    "shape across": of_text(
        *(PRE, 'name: "BAD_WORDS_IDS"\n    data_type: TYPE_INT32\n    dims: [ 2, -1 ]'),
        'name: "BAD_WORDS_IDS"\n    data_type: TYPE_INT32\n    dims: [ 3, -1 ]',
        *(f'{STEP}[1].input_map["bad_words_list"]', "[3, -1]", E, ENSEMBLE),
    ),
    "unused input": Fault(unmapped("streaming"), E, ENSEMBLE, "input[18]", "input 'stream'"),
    "unused tensor": Fault(
        *(unmapped("embedding_bias"), E, ENSEMBLE, f'{STEP}[0].output_map["EMBEDDING_BIAS"]'),
        "nothing reads",
    ),
    "unwritten output": Fault(
        *(unmapped("acceptance_rate"), E, ENSEMBLE, "output[14]", "'acceptance_rate'"),
    ),
    "misspelt tensor": of_text(
        *(ENSEMBLE, 'value: "_EMBEDDING_BIAS"', 'value: "_EMBEDDING_BIASES"'),
        *(f'{STEP}[1].input_map["embedding_bias"]', "'_EMBEDDING_BIASES', which nothing reads"),
    ),
    "decoupled rule": of_text(
        *(PRE, BATCH, f"{BATCH}\nmodel_transaction_policy {{ decoupled: true }}"),
        *(f"{STEP}[1].input_map", "from before the decoupled preprocessing", E, ENSEMBLE),
    ),
    "batch of a step": of_text(
        POST, BATCH, "max_batch_size: 2", "max_batch_size", "allows 2", at=ENSEMBLE
    ),
    # TensorRT-LLM's models, engine and tokenizer.
    "tensor missing": Fault(without("tensorrt_llm", "stop"), W, RUNTIME, "input", "lacks stop"),
    "tensor mistyped": of_text(
        *(
            BLS,
            'name: "top_p"\n    data_type: TYPE_FP32',
            'name: "top_p"\n    data_type: TYPE_FP64',
        ),
        *("input[23].data_type", "expected TYPE_FP32", W),
    ),
    "logits": of_text(
        *(BLS, 'name: "context_logits"\n    data_type: TYPE_FP32'),
        'name: "context_logits"\n    data_type: TYPE_FP16',
        *("output[3].data_type", "the engine's logits_dtype"),
    ),
    "streaming apart": of_text(
        *(BLS, "decoupled: true", "decoupled: false"),
        *("model_transaction_policy.decoupled", "is false here and true in", W),
    ),
    "key missing": Fault(
        dropped("tensorrt_llm", "xgrammar_tokenizer_info_path"),
        *(E, RUNTIME, 'parameters["xgrammar_tokenizer_info_path"]', "its value may be empty"),
    ),
    "beam width": of_parameter("tensorrt_llm", "max_beam_width", "2", "at most the engine's 1"),
    "unreadable value": of_parameter(
        *("tensorrt_llm", "kv_cache_free_gpu_mem_fraction", "90%", "at most 1"),
    ),
    "unknown batching": of_parameter("tensorrt_llm", "gpt_model_type", "fused", "is 'fused'"),
    "GPUs": of_parameter("tensorrt_llm", "gpu_device_ids", "0,1", "one for each rank"),
    "runtime's name": of_parameter(
        *("tensorrt_llm_bls", "tensorrt_llm_model_name", "llama", "no model 'llama'"),
    ),
    "no engine": of_parameter("tensorrt_llm", "gpt_model_path", "", "is empty"),
    "relative path": of_parameter(
        *("preprocessing", "tokenizer_dir", "tok", "give an absolute path", W),
    ),
    "name that no folder has": of_parameter(
        *("preprocessing", "tokenizer_dir", r"/tmp/\\000", "not checked", "note"),
    ),
    "no such tokenizer": Fault(
        lambda folder: parameter("preprocessing", "tokenizer_dir", f"{folder}/tok")(folder),
        *(E, PRE, 'parameters["tokenizer_dir"]', "there is no folder"),
    ),
    "no such engine": Fault(
        lambda folder: parameter("tensorrt_llm", "gpt_model_path", f"{folder}/engine")(folder),
        *(E, RUNTIME, 'parameters["gpt_model_path"]', "is not a folder; expected an engine"),
    ),
    "tokenizer elsewhere": of_parameter(
        *("postprocessing", "tokenizer_dir", "/models/tokenizer", "another machine", "note"),
    ),
    "tokenizer of the hub": of_parameter(
        *("postprocessing", "tokenizer_dir", "nvidia/Minitron-4B-Base", "of the hub", "note"),
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
        *(fault.severity, fault.file, fault.field),
    )
    assert fault.words in found[0].message
