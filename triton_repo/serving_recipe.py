"""How a repository serves: the recipe that its files are written from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from minitron_trt.errors import UsageError

MOUNT: Final = "/models"
"""Where NVIDIA's examples mount a repository in their container."""

Settings = Mapping[str, Mapping[str, str]]
"""Values by model and parameter, for what has no field of its own."""


@dataclass(frozen=True, slots=True)
class ServingRecipe:
    """How to serve; None is what the runtime or the artifact says."""

    max_batch_size: int | None = None
    max_seq_len: int | None = None
    max_queue_size: int = 256
    max_queue_delay_us: int = 0
    stream_interval: int = 1
    decoupled: bool = True
    preprocessing_instances: int | None = None
    bls_instances: int | None = None
    add_special_tokens: bool = True
    skip_special_tokens: bool = True
    apply_chat_template: bool = False
    exclude_input_in_output: bool = True
    tp: int | None = None
    pp: int | None = None
    tokenizer: Path | None = None
    draft: Path | None = None
    mount: str = MOUNT
    settings: Settings = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (
            "max_batch_size",
            "max_seq_len",
            "max_queue_size",
            "stream_interval",
            "preprocessing_instances",
            "bls_instances",
            "tp",
            "pp",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; expected at least 1")
        if not self.mount.startswith("/"):
            raise UsageError(f"--mount {self.mount!r} is not an absolute path like {MOUNT}")

    def settings_of(self, model: str) -> Mapping[str, str]:
        """Return what `--set` says of one model."""
        return self.settings.get(model, {})

    def refuse(self, runtime: str, *names: str) -> None:
        """Raise UsageError when a field is set that means nothing to a runtime."""
        # What was given is told by its value: at its default an option says nothing.
        for item in fields(self):
            if item.name in names and getattr(self, item.name) != item.default:
                option = item.name.replace("_", "-")
                raise UsageError(f"--{option} means nothing to the runtime {runtime}; leave it out")

    def to_json(self) -> dict[str, Any]:
        """Return the record that a manifest keeps."""
        record = {item.name: getattr(self, item.name) for item in fields(self)}
        folders = {"tokenizer": self.tokenizer, "draft": self.draft}
        return record | {name: None if at is None else str(at) for name, at in folders.items()}
