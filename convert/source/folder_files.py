"""The JSON files of a model folder, each of which must be an object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minitron_trt.errors import BadInputError
from minitron_trt.folder_links import inside
from minitron_trt.records import read_text


def read_json(folder: Path, name: str) -> Mapping[str, Any]:
    """Return the object in a folder's JSON file."""
    if not (folder / name).is_file():
        raise BadInputError(f"{folder} has no {name}; expected a Hugging Face model folder")
    try:
        record = json.loads(read_text(inside(folder, name)))
    except ValueError as error:
        raise BadInputError(f"{folder / name} is not JSON ({error})") from error
    except RecursionError as error:
        raise BadInputError(f"{folder / name} is not JSON (nested too deep)") from error
    if not isinstance(record, dict):
        raise BadInputError(f"{folder / name} is not a JSON object")
    return record


def write_json(folder: Path, name: str, record: Mapping[str, Any]) -> None:
    """Write an object to a folder's JSON file, in UTF-8 without escapes."""
    (folder / name).write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
