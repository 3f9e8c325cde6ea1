"""The text of a config.pbtxt: what a template left in it, and where it does not parse."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Final

from minitron_trt.triton_repo.check.config_rules import REQUIRED
from minitron_trt.triton_repo.check.field_positions import Placeholder
from minitron_trt.triton_repo.check.model_on_disk import ModelFolder
from minitron_trt.triton_repo.check.report import Finding, Severity
from minitron_trt.triton_repo.config_messages import model_config_pb2
from minitron_trt.triton_repo.model_config import PYTHON_BACKEND, TRTLLM_BACKEND

_NO_FIELD: Final = "has no field named"


def check_text(model: ModelFolder) -> Iterator[Finding]:
    """Say what a template left, which fields are unknown, and where the text does not parse."""
    for placeholder in model.outline.placeholders:
        yield _placeholder(model, placeholder)
    # After a fault of the syntax, what follows may only seem unknown.
    unknown = model.outline.unknown if _NO_FIELD in model.fault else ()
    for path in unknown:
        yield model.error(
            path,
            found="no such field in a model's configuration",
            remedy=_similar(path),
        )
    for path in model.outline.repeated:
        yield model.warning(
            path,
            found="given twice; the last one counts",
            remedy="remove one",
        )
    if model.fault and not unknown:
        yield _fault(model)


def _placeholder(model: ModelFolder, placeholder: Placeholder) -> Finding:
    path, name = placeholder.path, placeholder.name
    key = path.removeprefix('parameters["').removesuffix('"].string_value')
    parameter = placeholder.quoted and path.startswith("parameters[")
    optional = parameter and placeholder.whole and key not in REQUIRED.get(model.role, ())
    return Finding(
        Severity.WARNING if optional else Severity.ERROR,
        file=model.file,
        field=f'parameters["{key}"]' if parameter else path,
        found=f"placeholder ${{{name}}} is left" + (", so it is not set" if optional else ""),
        remedy=(
            "fill it, or remove the parameter" if optional else f"fill in {_wanted(placeholder)}"
        ),
        line=placeholder.line,
        column=placeholder.column,
    )


def _wanted(placeholder: Placeholder) -> str:
    """Return what belongs into a field, from what the template calls it."""
    field = placeholder.path.rpartition(".")[2].partition("[")[0]
    # Templates have a name for each data type and each count (${logits_datatype},
    # ${bls_instance_count}): what they want, their field says.
    by_field = {
        "data_type": "the engine's type, like TYPE_FP32 or TYPE_FP16",
        "decoupled": "true or false",
        "count": "a number of instances",
        "backend": f"{TRTLLM_BACKEND} or {PYTHON_BACKEND}",
    }
    by_name = {
        "tokenizer_dir": "the folder of the tokenizer",
        "engine_dir": "the folder of the engine",
        "batching_strategy": "inflight_fused_batching",
    }
    wanted = by_name.get(placeholder.name) or by_field.get(field)
    return wanted or ("a value" if placeholder.quoted else "a number")


def _similar(path: str) -> str:
    name = path.rpartition(".")[2]
    message = model_config_pb2.DESCRIPTOR.message_types_by_name.values()
    known = {field.name for descriptor in message for field in descriptor.fields}
    close = difflib.get_close_matches(name, known, 1)
    return f"did you mean {close[0]}" if close else "remove it"


def _fault(model: ModelFolder) -> Finding:
    """Return protobuf's own words, with its position taken out of them."""
    line, _, rest = model.fault.partition(":")
    column, _, words = rest.partition(":")
    # Protobuf repeats the line before what is wrong with it.
    words = words.rpartition("': ")[2]
    if not (line.strip().isdecimal() and column.strip().isdecimal()):
        return Finding(
            Severity.ERROR,
            file=model.file,
            field="",
            found=f"does not parse ({model.fault})",
        )
    return Finding(
        Severity.ERROR,
        file=model.file,
        field="",
        found=f"does not parse: {words.strip().rstrip('.')}",
        remedy="correct the text there",
        line=int(line),
        column=int(column),
    )
