"""The models' tensors against TensorRT-LLM's, and tensorrt_llm_bls against what it calls."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final

from minitron_trt.triton_repo.check.model_on_disk import ModelFolder, RepositoryFolder, type_name
from minitron_trt.triton_repo.check.report import Finding, Severity
from minitron_trt.triton_repo.contract.model_names import (
    ENSEMBLE,
    POSTPROCESSING,
    PREPROCESSING,
    TENSORRT_LLM,
    TENSORRT_LLM_BLS,
)
from minitron_trt.triton_repo.contract.runtime_tensors import tensorrt_llm
from minitron_trt.triton_repo.contract.tensors import (
    LOGITS_OUTPUTS,
    LOGITS_TYPES,
    POSTPROCESSING_TENSORS,
    PREPROCESSING_TENSORS,
    PROMPT_TABLE_TYPES,
    ElementTypes,
    Signature,
    Tensor,
    bls_model,
    text_model,
)
from minitron_trt.triton_repo.runtimes.runtime_names import TRTLLM

# Any of these types may be right: the engine decides, which need not be on this machine.
_ENGINES_CHOICE: Final = {
    **dict.fromkeys((*LOGITS_OUTPUTS, "draft_logits"), tuple(LOGITS_TYPES.values())),
    "prompt_embedding_table": tuple(PROMPT_TABLE_TYPES.values()),
}
_LISTED: Final = 6


def check_contract(
    model: ModelFolder, repository: RepositoryFolder, explained: Collection[tuple[str, str]]
) -> Iterator[Finding]:
    """Name tensors that are missing or of another type, but for those `explained` already."""
    signature = _signature(model.role, repository)
    if signature is None:
        return
    # Another's repository may be older, or leave tensors out on purpose.
    severity = Severity.ERROR if repository.is_ours else Severity.WARNING
    config = model.config
    sides = (
        ("input", signature.inputs, config.input),
        ("output", signature.outputs, config.output),
    )
    for side, tensors, present in sides:
        wanted = [
            tensor
            for tensor in tensors
            if (repository.is_ours or not tensor.added)
            and (model.name, tensor.name) not in explained
        ]
        yield from _check_side(model, side, wanted, present, severity)


def _signature(role: str, repository: RepositoryFolder) -> Signature | None:
    types = ElementTypes()
    if role == TENSORRT_LLM:
        runtime = (repository.facts or {}).get("runtime")
        return tensorrt_llm(types, reports_streams=repository.is_ours and runtime != TRTLLM)
    known = {
        PREPROCESSING: PREPROCESSING_TENSORS,
        POSTPROCESSING: POSTPROCESSING_TENSORS,
        ENSEMBLE: text_model(types),
        TENSORRT_LLM_BLS: bls_model(types),
    }
    return known.get(role)


def _check_side(
    model: ModelFolder,
    side: str,
    wanted: Sequence[Tensor],
    present: Sequence[Any],
    severity: Severity,
) -> Iterator[Finding]:
    places = {tensor.name: (index, tensor) for index, tensor in enumerate(present)}
    missing = [tensor.name for tensor in wanted if tensor.name not in places]
    if missing:
        yield model.finding(
            severity,
            side,
            found=f"lacks {_listed(missing)}",
            expected="the tensors of TensorRT-LLM 1.2",
            remedy="add them, unless no client needs them",
        )
    for tensor in wanted:
        if tensor.name in places:
            index, other = places[tensor.name]
            yield from _check_tensor(model, f"{side}[{index}]", tensor, other, severity)


def _listed(missing: Sequence[str]) -> str:
    more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
    return ", ".join(missing[:_LISTED]) + more


def _check_tensor(
    model: ModelFolder, path: str, wanted: Tensor, present: Any, severity: Severity
) -> Iterator[Finding]:
    types = [f"TYPE_{name}" for name in _ENGINES_CHOICE.get(wanted.name, (wanted.type,))]
    actual = type_name(present.data_type)
    if actual not in types:
        yield model.finding(
            severity,
            f"{path}.data_type",
            found=f"{wanted.name!r} is {actual}",
            expected=f"{' or '.join(types)}, as in TensorRT-LLM",
        )
    if tuple(present.dims) != wanted.dims:
        yield model.finding(
            severity,
            f"{path}.dims",
            found=f"{wanted.name!r} has dims {list(present.dims)}",
            expected=f"{list(wanted.dims)}, as in TensorRT-LLM",
        )


def check_instances(model: ModelFolder) -> Iterator[Finding]:
    """Check that a model of ours that keeps state between requests has one instance."""
    for index, group in enumerate(model.config.instance_group):
        if model.role in (POSTPROCESSING, TENSORRT_LLM) and group.count > 1:
            yield model.error(
                f"instance_group[{index}].count",
                found=f"is {group.count}",
                expected="1, since its requests share state",
                remedy="set it to 1",
            )


def check_relay(model: ModelFolder, repository: RepositoryFolder) -> Iterator[Finding]:
    """Check what tensorrt_llm_bls calls: the names, and that both stream or neither does."""
    key = "tensorrt_llm_model_name"
    path = f'parameters["{key}"]'
    target = model.parameters.get(key) or TENSORRT_LLM
    runtime = repository.models.get(target)
    if runtime is None:
        yield model.error(
            path,
            found=f"the repository has no model {target!r}",
            remedy="name the model that generates tokens",
        )
    draft = model.parameters.get("tensorrt_llm_draft_model_name")
    if draft and draft not in repository.models:
        yield model.error(
            'parameters["tensorrt_llm_draft_model_name"]',
            found=f"the repository has no model {draft!r}",
            remedy="name the draft model, or nothing",
        )
    if not repository.is_ours:
        for name in (PREPROCESSING, POSTPROCESSING):
            if name not in repository.models:
                yield model.error(
                    "",
                    found=f"calls {name!r}, which the repository lacks",
                    remedy="add it",
                )
    if runtime is not None and runtime.config is not None:
        yield from _check_pair(model, runtime)


def _check_pair(model: ModelFolder, runtime: ModelFolder) -> Iterator[Finding]:
    streams = model.config.model_transaction_policy.decoupled
    if streams != runtime.config.model_transaction_policy.decoupled:
        yield model.warning(
            "model_transaction_policy.decoupled",
            found=(
                f"is {str(streams).lower()} here and {str(not streams).lower()} in {runtime.file}"
            ),
            expected="the same in both",
            remedy="streamed requests are refused until both are true",
        )
    types = {tensor.name: tensor.data_type for tensor in runtime.config.output}
    for index, tensor in enumerate(model.config.output):
        if types.get(tensor.name, tensor.data_type) != tensor.data_type:
            yield model.error(
                f"output[{index}].data_type",
                found=f"{tensor.name!r} is {type_name(tensor.data_type)}",
                expected=f"{type_name(types[tensor.name])}, as in {runtime.file}",
                tensors=[(model.name, tensor.name)],
            )
