"""A config.pbtxt by itself: what keeps Triton from taking it, by Triton's own rules."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

from minitron_trt.triton_repo.check.model_on_disk import ModelFolder, is_there
from minitron_trt.triton_repo.check.report import Finding, Severity
from minitron_trt.triton_repo.config_messages import model_config_pb2
from minitron_trt.triton_repo.contract.model_names import (
    POSTPROCESSING,
    PREPROCESSING,
    TENSORRT_LLM,
    TENSORRT_LLM_BLS,
)
from minitron_trt.triton_repo.model_config import ENSEMBLE_PLATFORM, PYTHON_BACKEND, TRTLLM_BACKEND

# What lies in the backends folders of NVIDIA's images.
_BACKENDS: Final = (
    PYTHON_BACKEND,
    TRTLLM_BACKEND,
    "tensorrt",
    "onnxruntime",
    "pytorch",
    "openvino",
    "tensorflow",
    "dali",
    "fil",
    "vllm",
    "identity",
    "repeat",
    "square",
)
# By which Triton takes a model that names no backend for one's (AutoCompleteBackendFields).
_FILES: Final = {
    "model.py": PYTHON_BACKEND,
    "model.plan": "tensorrt",
    "model.onnx": "onnxruntime",
    "model.pt": "pytorch",
}
# What TensorRT-LLM's models look up without a default.
REQUIRED: Final = {
    PREPROCESSING: ("tokenizer_dir",),
    POSTPROCESSING: ("tokenizer_dir",),
    TENSORRT_LLM: ("gpt_model_path", "gpt_model_type"),
    TENSORRT_LLM_BLS: (),
}
# TensorRT-LLM's backend reads these without a default, though their values may be unset.
_READ_ALWAYS: Final = ("tokenizer_dir", "guided_decoding_backend", "xgrammar_tokenizer_info_path")
_GROUP: Final = model_config_pb2.ModelInstanceGroup
_TYPES: Final = frozenset(model_config_pb2.DataType.values()) - {model_config_pb2.TYPE_INVALID}


def check_config(model: ModelFolder) -> Iterator[Finding]:
    """Check what parses: names, versions, backend, tensors, batching and instances."""
    config = model.config
    if config.name not in ("", model.name):
        yield model.error(
            "name",
            found=f"names the model {config.name!r}",
            expected=f"{model.name!r}, the name of its folder",
        )
    yield from _check_versions(model)
    yield from _check_backend(model)
    if config.max_batch_size < 0:
        yield model.error(
            "max_batch_size",
            found=f"is {config.max_batch_size}",
            expected="0 or more",
        )
    for index, size in enumerate(config.dynamic_batching.preferred_batch_size):
        if not 0 < size <= max(config.max_batch_size, 0):
            yield model.error(
                f"dynamic_batching.preferred_batch_size[{index}]",
                found=f"is {size}",
                expected=f"1 to max_batch_size, which is {config.max_batch_size}",
            )
    for side in ("input", "output"):
        yield from _check_tensors(model, side, getattr(config, side))
    if config.platform == ENSEMBLE_PLATFORM:
        if config.instance_group:
            yield model.error(
                "instance_group[0]",
                found="an ensemble has no instances",
                remedy="remove it",
            )
    else:
        yield from _check_instances(model)


def _check_versions(model: ModelFolder) -> Iterator[Finding]:
    policy = model.config.version_policy
    if not model.versions:
        yield Finding(
            Severity.ERROR,
            file=f"{model.name}/",
            field="version folder",
            found="there is none",
            expected="a folder named by a number, like 1",
            remedy=f"make {model.name}/1",
        )
        return
    if not policy.HasField("specific"):
        return
    absent = [str(v) for v in policy.specific.versions if v not in model.versions]
    if absent:
        yield model.error(
            "version_policy.specific.versions[0]",
            found=f"asks for version {', '.join(absent)}, which has no folder",
            expected=f"one of {', '.join(map(str, model.versions))}",
        )


def _check_backend(model: ModelFolder) -> Iterator[Finding]:
    config = model.config
    if config.platform == ENSEMBLE_PLATFORM or config.HasField("ensemble_scheduling"):
        if config.platform != ENSEMBLE_PLATFORM or config.backend:
            yield model.error(
                "platform",
                found=f"{config.platform!r} with backend {config.backend!r}",
                expected="platform 'ensemble' and no backend, since it has ensemble_scheduling",
            )
        elif not config.ensemble_scheduling.step:
            yield model.error(
                "ensemble_scheduling",
                found="has no steps",
                expected="at least one",
            )
        return
    backend = config.backend or _guessed_backend(model)
    if "${" in backend:
        # The text's rules have said that a placeholder is left.
        return
    if not backend and not config.platform:
        yield model.error(
            "backend",
            found="is missing",
            expected=f"{PYTHON_BACKEND}, {TRTLLM_BACKEND} or another backend",
        )
    elif backend and backend not in _BACKENDS:
        yield from _unknown_backend(model, backend)
    elif backend == PYTHON_BACKEND and not config.runtime:
        yield from _check_model_file(model)
    elif backend == TRTLLM_BACKEND:
        yield from _check_keys(model, (*REQUIRED[TENSORRT_LLM], *_READ_ALWAYS))


def _guessed_backend(model: ModelFolder) -> str:
    """Return what Triton takes a model for that names no backend, by its files."""
    files = (model.config.default_model_filename, *(_FILES if not model.config.platform else ()))
    return next(
        (_FILES[f] for f in files if f in _FILES and is_there(model.version_folder / f)), ""
    )


def _unknown_backend(model: ModelFolder, backend: str) -> Iterator[Finding]:
    # A model may bring its backend, in its folder or its version's, where Triton looks first.
    library = model.config.runtime or f"libtriton_{backend}.so"
    if any(is_there(folder / library) for folder in (model.folder, model.version_folder)):
        return
    # A slip like tensorrt_llm for tensorrtllm; below 0.8 it is rather a backend of one's own.
    close = difflib.get_close_matches(backend.replace("_", ""), _BACKENDS, 1, 0.8)
    if close:
        yield model.error(
            "backend",
            found=f"{backend!r} is no backend of Triton",
            expected=f"{close[0]!r}",
        )
    else:
        yield model.warning(
            "backend",
            found=f"{backend!r} is not a backend of Triton's images",
            remedy=f"make sure that the server has {library}, or a backend in Python of that name",
        )


def _check_model_file(model: ModelFolder) -> Iterator[Finding]:
    name = model.config.default_model_filename or "model.py"
    for version in model.versions:
        path = model.folder / str(version) / name
        if not (is_there(path) and path.is_file()):
            yield Finding(
                Severity.ERROR,
                file=f"{model.name}/{version}/{name}",
                field="",
                found="is missing",
                expected="the code of a model of the python backend",
                remedy=f"put {name} there",
            )


def _check_keys(model: ModelFolder, keys: Sequence[str]) -> Iterator[Finding]:
    for key in keys:
        if key not in model.parameters:
            yield model.error(
                f'parameters["{key}"]',
                found="is missing",
                expected=f"the key, which the {TRTLLM_BACKEND} backend reads",
                remedy="add it" + ("; its value may be empty" if key in _READ_ALWAYS else ""),
            )


def _check_tensors(model: ModelFolder, side: str, tensors: Sequence[Any]) -> Iterator[Finding]:
    counts = Counter(tensor.name for tensor in tensors)
    seen: set[str] = set()
    for index, tensor in enumerate(tensors):
        path = f"{side}[{index}]"
        # No error: Triton loads a model with an input twice.
        if tensor.name in seen and counts[tensor.name] > 1:
            yield model.warning(
                f"{path}.name",
                found=f"{tensor.name!r} is there twice",
                remedy="remove one",
                tensors=[(model.name, tensor.name)],
            )
        seen.add(tensor.name)
        yield from _check_tensor(model, path, tensor)


def _check_tensor(model: ModelFolder, path: str, tensor: Any) -> Iterator[Finding]:
    about = [(model.name, tensor.name)]
    if not tensor.name:
        yield model.error(
            f"{path}.name",
            found="is missing",
            expected="the name of a tensor",
        )
    if tensor.data_type not in _TYPES:
        type_ = f"type {tensor.data_type}" if tensor.data_type else "no type"
        yield model.error(
            f"{path}.data_type",
            found=f"{tensor.name!r} has {type_}",
            expected="like TYPE_INT32",
            tensors=about,
        )
    if not tensor.dims or any(dim < 1 and dim != -1 for dim in tensor.dims):
        yield model.error(
            f"{path}.dims",
            found=f"{tensor.name!r} has dims {list(tensor.dims)}",
            expected="one or more, each at least 1 or -1",
            tensors=about,
        )
    elif tensor.HasField("reshape"):
        yield from _check_reshape(model, f"{path}.reshape", tensor)


def _check_reshape(model: ModelFolder, path: str, tensor: Any) -> Iterator[Finding]:
    shape, dims = tensor.reshape.shape, tensor.dims
    if not shape and model.config.max_batch_size == 0:
        yield model.error(
            path,
            found=f"makes {tensor.name!r} a scalar, which Triton lacks without a batch axis",
            expected="max_batch_size of 1 or more, or no reshape",
            tensors=[(model.name, tensor.name)],
        )
    elif _pieces(shape) != _pieces(dims):
        yield model.error(
            path,
            found=f"{list(shape)} holds other numbers of elements than dims {list(dims)}",
            expected="equal products between the axes of -1",
            tensors=[(model.name, tensor.name)],
        )


def _pieces(shape: Sequence[int]) -> list[int]:
    """Return the elements between the axes of variable size."""
    pieces: list[list[int]] = [[]]
    for dim in shape:
        if dim == -1:
            pieces.append([])
        else:
            pieces[-1].append(dim)
    return [math.prod(piece) for piece in pieces]


def _check_instances(model: ModelFolder) -> Iterator[Finding]:
    for index, group in enumerate(model.config.instance_group):
        path = f"instance_group[{index}]"
        if group.kind not in _GROUP.Kind.values():
            yield model.error(
                f"{path}.kind",
                found=f"is {group.kind}",
                expected=f"one of {', '.join(_GROUP.Kind.keys())}",
            )
            continue
        kind = _GROUP.Kind.Name(group.kind)
        if group.gpus and group.kind in (_GROUP.KIND_CPU, _GROUP.KIND_MODEL):
            yield model.error(
                f"{path}.gpus",
                found=f"{kind} with GPUs {list(group.gpus)}",
                expected="no GPUs",
                remedy="remove gpus, or use KIND_GPU",
            )
        if group.count < 0:
            yield model.error(
                f"{path}.count",
                found=f"is {group.count}",
                expected="1 or more",
            )
        if model.config.backend == TRTLLM_BACKEND and (
            group.kind != _GROUP.KIND_CPU or group.count > 1
        ):
            yield model.warning(
                path,
                found=f"{max(group.count, 1)} of {kind}",
                expected="one of KIND_CPU: TensorRT-LLM places its ranks on the GPUs itself",
                remedy="name GPUs in the parameter gpu_device_ids",
            )
