"""The model that generates tokens: its parameters, and the engine or folder that it loads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from minitron_trt.artifacts import CONFIG_NAME
from minitron_trt.build.engine import TRTLLM as TRTLLM_COMPILER
from minitron_trt.build.engine import Engine
from minitron_trt.checkpoint import Checkpoint
from minitron_trt.errors import BadInputError, MinitronError, UsageError
from minitron_trt.records import Size, read_record, read_text
from minitron_trt.triton_repo.check.model_on_disk import (
    TEXT_RUNTIME,
    ModelFolder,
    RepositoryFolder,
    is_there,
    type_name,
)
from minitron_trt.triton_repo.check.report import Finding, Severity
from minitron_trt.triton_repo.contract.model_names import ENSEMBLE, TENSORRT_LLM, TENSORRT_LLM_BLS
from minitron_trt.triton_repo.contract.tensors import LOGITS_OUTPUTS, LOGITS_TYPES
from minitron_trt.triton_repo.model_config import TRTLLM_BACKEND
from minitron_trt.triton_repo.parameters import BOOL, COUNT, PARAMETERS, Parameter
from minitron_trt.triton_repo.runtimes.llm_arguments import (
    MODEL_YAML,
    LlmArguments,
    LlmPlacement,
    parse_llm_arguments,
)
from minitron_trt.triton_repo.runtimes.runtime_names import LLMAPI, REFERENCE

_PATH_KEY: Final = "gpt_model_path"
_PATH: Final = f'parameters["{_PATH_KEY}"]'
# Ours read the first two, TensorRT-LLM's Python models all.
_TRUTHS: Final = ("true", "false", "1", "0", "t", "f", "yes", "no", "y", "n")


@dataclass(frozen=True, slots=True)
class Served:
    """What a runtime loads, as far as it lies on this machine."""

    vocab: int | None = None
    engine: Engine | None = None


@dataclass(frozen=True, slots=True)
class _ModelConfig:
    vocab_size: Size


def check_parameters(model: ModelFolder, *, is_ours: bool) -> Iterator[Finding]:
    """Check that each value is of its parameter's kind; empty ones count as not set."""
    for parameter in PARAMETERS.get(model.role, ()):
        value = model.parameters.get(parameter.name)
        if value and not _accepts(parameter, value, is_ours=is_ours):
            yield model.error(
                f'parameters["{parameter.name}"]',
                found=f"is {value!r}",
                expected=parameter.kind.expected,
                remedy="correct it: an unreadable value is ignored or keeps the model from loading",
            )


def _accepts(parameter: Parameter, value: str, *, is_ours: bool) -> bool:
    if parameter.kind is BOOL:
        return value.lower() in (_TRUTHS[:2] if is_ours else _TRUTHS)
    return parameter.kind.accepts(value)


def open_served(model: ModelFolder, repository: RepositoryFolder) -> tuple[Served, list[Finding]]:
    """Open what a runtime loads and check the model against it."""
    runtime = (repository.facts or {}).get("runtime")
    if runtime == LLMAPI or model.role == TEXT_RUNTIME:
        return _open_folder(model, is_ours=repository.is_ours)
    path = model.parameters.get(_PATH_KEY)
    if not path:
        return Served(), _unset(model)
    place = repository.locate(model, path)
    if place is None:
        return Served(), [model.unlocated(_PATH, path)]
    try:
        if runtime == REFERENCE:
            return Served(Checkpoint.open(place).spec.vocab), []
        engine = Engine.open(place)
    except MinitronError as error:
        return Served(), [model.error(_PATH, found=str(error))]
    findings = [*_check_limits(model, engine), *_check_logits(engine, repository)]
    return Served(engine.model.spec.vocab, engine), findings


def _unset(model: ModelFolder) -> list[Finding]:
    """Report a path that is there but empty: other rules report placeholders and absent keys."""
    if model.parameters.get(_PATH_KEY) == "":
        return [model.error(_PATH, found="is empty", expected="the folder of the engine")]
    return []


def _open_folder(model: ModelFolder, *, is_ours: bool) -> tuple[Served, list[Finding]]:
    """Open the Hugging Face folder that model.yaml names, relative to itself."""
    file = f"{model.name}/{model.version_folder.name}/{MODEL_YAML}"
    try:
        text = read_text(model.version_folder / MODEL_YAML)
    except BadInputError as error:
        return Served(), [_fault(file, "", f"cannot be read ({error})")]
    try:
        name = parse_llm_arguments(text, LlmArguments if is_ours else LlmPlacement).model
    except ValueError as error:
        return Served(), [_fault(file, "", f"is not the arguments of the LLM class ({error})")]
    folder = model.version_folder / name
    if not (is_there(folder) and folder.is_dir()):
        if name.count("/") == 1 or Path(name).is_absolute():
            note = f"not checked: {name} is a hub id or a path of another machine"
            return Served(), [model.note("", found=note)]
        return Served(), [_fault(file, "model", f"there is no folder {name!r} beside it")]
    try:
        vocab = read_record(folder / CONFIG_NAME, _ModelConfig).vocab_size
    except (ValueError, BadInputError) as error:
        return Served(), [_fault(file, "model", f"{name}/{CONFIG_NAME} is no model's ({error})")]
    if not (any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))):
        return Served(vocab), [_fault(file, "model", f"{name} has no weights")]
    return Served(vocab), []


def _fault(file: str, field: str, found: str) -> Finding:
    return Finding(
        Severity.ERROR,
        file=file,
        field=field,
        found=found,
        remedy="make the repository again",
    )


def _check_limits(model: ModelFolder, engine: Engine) -> Iterator[Finding]:
    limits, config = engine.limits, model.config
    if config.backend == TRTLLM_BACKEND and engine.compiler != TRTLLM_COMPILER:
        yield model.error(
            _PATH,
            found=f"an engine of {engine.compiler}, which {TRTLLM_BACKEND} cannot load",
            expected="one that TensorRT-LLM built",
            remedy="build with --compiler trtllm",
        )
    if config.max_batch_size > limits.max_batch_size:
        yield model.warning(
            "max_batch_size",
            found=f"is {config.max_batch_size}",
            expected=f"at most the engine's {limits.max_batch_size}",
            remedy=(
                "more requests than that wait; lower it or build again with a larger "
                "--max-batch-size"
            ),
        )
    beams = model.parameters.get("max_beam_width") or ""
    if COUNT.accepts(beams) and int(beams) > limits.max_beam_width:
        yield model.error(
            'parameters["max_beam_width"]',
            found=f"is {beams}",
            expected=f"at most the engine's {limits.max_beam_width}",
            remedy="lower it or build again with a larger --max-beam-width",
        )
    for key in ("enable_chunked_context", "enable_kv_cache_reuse"):
        value = (model.parameters.get(key) or "").lower()
        if value in ("true", "1") and not engine.paged_context:
            yield model.error(
                f'parameters["{key}"]',
                found="is true, but the engine lacks use_paged_context_fmha",
                expected="false",
                remedy="or build again with use_paged_context_fmha",
            )
    yield from _check_devices(model, engine.model.parallelism.world_size)


def _check_devices(model: ModelFolder, ranks: int) -> Iterator[Finding]:
    devices = model.parameters.get("gpu_device_ids")
    if not devices:
        return
    uneven = [group for group in devices.split(";") if len(group.split(",")) != ranks]
    if uneven:
        yield model.error(
            'parameters["gpu_device_ids"]',
            found=f"names the GPUs {uneven[0]}",
            expected=f"{ranks}, one for each rank of the engine",
        )


def _check_logits(engine: Engine, repository: RepositoryFolder) -> Iterator[Finding]:
    if engine.logits_dtype not in LOGITS_TYPES:
        return
    wanted = f"TYPE_{LOGITS_TYPES[engine.logits_dtype]}"
    for model in repository.of_role(TENSORRT_LLM, ENSEMBLE, TENSORRT_LLM_BLS):
        wrong = [
            (index, tensor)
            for index, tensor in enumerate(model.config.output)
            if tensor.name in LOGITS_OUTPUTS and type_name(tensor.data_type) != wanted
        ]
        # One finding for both outputs of logits: they have one cause.
        for index, tensor in wrong[:1]:
            yield model.error(
                f"output[{index}].data_type",
                found=f"{', '.join(t.name for _, t in wrong)}: {type_name(tensor.data_type)}",
                expected=f"{wanted}, the engine's logits_dtype",
                tensors=[(model.name, tensor.name) for _, tensor in wrong],
            )


def find_engine(repository: RepositoryFolder) -> Engine:
    """Return the engine that a repository serves.

    UsageError when it has none on this machine; BadInputError when the engine is damaged.
    """
    for model in repository.of_role(TENSORRT_LLM):
        path = model.parameters.get(_PATH_KEY)
        place = repository.locate(model, path) if path else None
        if (repository.facts or {}).get("runtime") != REFERENCE and place is not None:
            return Engine.open(place)
    raise UsageError(
        f"{repository.folder} has no engine on this machine to check against a GPU or an image; "
        "leave out --gpu, --gpus and --image, or give the engine's folder"
    )
