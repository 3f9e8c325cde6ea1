"""A repository seen from where it lies: its configs name paths below the folder it is mounted at.

TensorRT-LLM's backend takes absolute paths only, so a config written for `/models` is wrong
anywhere else. Instead of changing the artifact, the server gets a folder of links to it, with the
configs that name such paths written anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minitron_trt.triton_repo.model_config import CONFIG_PBTXT, to_text
from minitron_trt.triton_repo.serving.served_repository import PATHS, ServedRepository


@dataclass(frozen=True, slots=True)
class View:
    """A folder that the server reads: the repository, or links and texts that stand for it."""

    folder: Path
    links: Mapping[Path, Path] = field(default_factory=dict)
    texts: Mapping[Path, str] = field(default_factory=dict)


def view_of(served: ServedRepository, scratch: Path) -> View:
    """Return the repository itself when its paths are right, else a view of it in `scratch`."""
    changed = {
        name: text
        for name, config in served.configs.items()
        if (text := _moved(config, served.mount, served.folder)) is not None
    }
    if not changed:
        return View(served.folder)
    links: dict[Path, Path] = {}
    for name in served.models:
        source, place = served.folder / name, scratch / name
        if name not in changed:
            links[place] = source
            continue
        for child in source.iterdir():
            if child.name != CONFIG_PBTXT:
                links[place / child.name] = child
    texts = {scratch / name / CONFIG_PBTXT: text for name, text in changed.items()}
    return View(scratch, links, texts)


def _moved(config: Any, mount: Path, folder: Path) -> str | None:
    """Return a config whose paths below `mount` are below `folder`; None when it has none."""
    changed = type(config)()
    changed.CopyFrom(config)
    for key in PATHS:
        if key in config.parameters:
            path = Path(config.parameters[key].string_value)
            if path.is_absolute() and path.is_relative_to(mount) and mount != folder:
                moved = folder / path.relative_to(mount)
                changed.parameters[key].string_value = str(moved)
    return None if changed == config else to_text(changed)
