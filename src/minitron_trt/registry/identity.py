"""What an artifact is called in a registry: its model, precision, GPU and TensorRT-LLM."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Final

from minitron_trt.artifacts import ENGINE, MANIFEST_NAME, REPOSITORY, Manifest, kind_of
from minitron_trt.build.engine import Engine
from minitron_trt.build.engine_model import find_model
from minitron_trt.errors import BadInputError

_PREFIX: Final = "minitron-trt."
# What a tag may have, by OCI's distribution specification.
_NOT_IN_A_TAG: Final = re.compile(r"[^a-z0-9_.-]+")
_TAG_AT_MOST: Final = 128


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells an artifact from its siblings; None where it is for any GPU or version."""

    kind: str
    model: str
    precision: str
    ranks: int
    sm: int | None = None
    trtllm: str | None = None

    @property
    def tag(self) -> str:
        """Return the tag it gets where none is named, such as minitron-8b-fp8-sm90-engine."""
        parts = [self.model, self.precision]
        parts += [f"x{self.ranks}"] if self.ranks > 1 else []
        parts += [f"sm{self.sm}"] if self.sm else []
        parts += [f"trtllm{self.trtllm}"] if self.trtllm else []
        tag = _NOT_IN_A_TAG.sub("-", "-".join([*parts, self.kind]).lower())
        return tag.lstrip("-.")[:_TAG_AT_MOST]

    @property
    def annotations(self) -> Mapping[str, str]:
        """Return what the image says of it, in the manner of OCI's annotations."""
        facts = {
            "kind": self.kind,
            "model": self.model,
            "precision": self.precision,
            "ranks": str(self.ranks),
            "sm": str(self.sm or ""),
            "tensorrt-llm": self.trtllm or "",
        }
        return {
            "org.opencontainers.image.title": f"{self.model} {self.precision} {self.kind}",
            **{_PREFIX + name: value for name, value in facts.items() if value},
        }


def identity_of(folder: Path) -> Identity:
    """Return what an artifact is, by its manifest; of a repository, by the artifact inside.

    BadInputError when the folder is no artifact of this tool, or not whole.
    """
    if not (folder / MANIFEST_NAME).is_file():
        raise BadInputError(
            f"{folder} has no {MANIFEST_NAME}; expected a checkpoint, an engine, a repository or a "
            "Hugging Face folder that this tool wrote"
        )
    kind = kind_of(folder)
    Manifest.read(folder, kind)
    inner = _inside(folder) if kind == REPOSITORY else folder
    if kind_of(inner) == ENGINE:
        engine = Engine.open(inner)
        model, sm, trtllm = engine.model, engine.sm, engine.compiler_version
    else:
        model, sm, trtllm = find_model(str(inner)), None, None
    return Identity(
        kind=kind,
        model=_model_name(Manifest.read_unchecked(inner, kind_of(inner)).source) or model.name,
        precision=model.precision,
        ranks=model.parallelism.world_size,
        sm=sm,
        trtllm=trtllm,
    )


def _model_name(source: Mapping[str, Any]) -> str:
    """Return the name of the hub's repository, or of the folder, that an artifact came from."""
    origin = source.get("source", source)
    place = origin.get("repo") or origin.get("path") if isinstance(origin, Mapping) else None
    return PurePath(str(place)).name if place else ""


def _inside(repository: Path) -> Path:
    """Return the artifact that a repository serves."""
    manifests = sorted(repository.glob(f"*/1/*/{MANIFEST_NAME}"))
    if not manifests:
        raise BadInputError(f"{repository} has no artifact of this tool inside; nothing names it")
    return manifests[0].parent
