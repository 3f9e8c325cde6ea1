"""Where a tokenizer's folder keeps its chat template, as transformers looks for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FILE = "chat_template.jinja"


def template_source(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Return the text of a chat template, None without one.

    `config` is the folder's tokenizer_config.json. ValueError when several have names and none is
    the default, or when they have none.
    """
    path = folder / _FILE
    if path.is_file():
        return path.read_text(encoding="utf-8")
    source = config.get("chat_template")
    if isinstance(source, list):
        try:
            source = {entry["name"]: entry["template"] for entry in source}
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{folder} has a list of chat templates; expected a name and a template in each"
            ) from error
    if isinstance(source, dict):
        if "default" not in source:
            raise ValueError(f"{folder} has several chat templates and none is `default`")
        source = source["default"]
    return None if source is None else str(source)
