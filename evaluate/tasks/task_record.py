"""What `eval tasks --json` prints, as typed records: written by one command, read by others.

    {"kind": "eval tasks", "version": 1, "lm_eval": "0.4.13", "preset": "minitron", "limit": null,
     "models": [{"model": "bf16", "source": "checkpoints/bf16", "tasks": [
       {"task": "hellaswag", "metric": "acc_norm", "filter": "none", "value": 0.7612,
        "error": 0.0043, "higher_is_better": true, "shots": 10, "documents": 10042,
        "of_documents": 10042, "main": true,
        "published": {"model": "nvidia/Llama-3.1-Minitron-4B-Width-Base", "value": 0.761,
                      "source": "arXiv 2408.11796, table 1", "card_label": "zero-shot",
                      "standard_errors": 0.05, "differs": false}}]}]}

Of every task all metrics are there, one of them `main`: what is published, else the first. Shares
are of 1, `error` is the standard error as lm-eval has it, null where it has none. A group, such as
mmlu, is a task among its subtasks, which have its name as `group`.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from minitron_trt.errors import BadInputError

KIND: Final = "eval tasks"
VERSION: Final = 1


class PublishedScore(msgspec.Struct, frozen=True):
    """A figure that was published of a model, and how far a result is from it.

    `standard_errors` counts the result's own, None where it has none; a published figure is
    rounded, so that half a unit of its last digit is no difference.
    """

    model: str
    value: float
    source: str
    card_label: str
    standard_errors: float | None
    differs: bool | None


class TaskScore(msgspec.Struct, frozen=True, omit_defaults=True):
    """One metric of one task."""

    task: str
    metric: str
    filter: str
    value: float
    error: float | None
    higher_is_better: bool | None
    shots: int | None
    documents: int | None
    of_documents: int | None
    main: bool
    group: str | None = None
    published: PublishedScore | None = None

    @property
    def is_share(self) -> bool:
        """Say whether it is a share of 1, as an accuracy is and a perplexity is not."""
        return 0 <= self.value <= 1 and self.higher_is_better is not False


class TaskModel(msgspec.Struct, frozen=True):
    """The scores of one model."""

    model: str
    source: str
    tasks: tuple[TaskScore, ...]

    @property
    def main_scores(self) -> list[TaskScore]:
        """Return one score for each task that was asked for, without those inside a group."""
        return [score for score in self.tasks if score.main and score.group is None]


class TaskRecord(msgspec.Struct, frozen=True):
    """What one run of the command found."""

    lm_eval: str
    preset: str | None
    limit: float | None
    models: Annotated[tuple[TaskModel, ...], msgspec.Meta(min_length=1)]
    kind: str = KIND
    version: int = VERSION

    def __post_init__(self) -> None:
        """Refuse, when it is read, what another command or version wrote."""
        if (self.kind, self.version) != (KIND, VERSION):
            raise BadInputError(
                f"it has kind {self.kind!r}, version {self.version}; expected {KIND!r}, "
                f"version {VERSION}"
            )

    def as_json(self) -> dict[str, Any]:
        """Return the object that is printed."""
        return dict(msgspec.to_builtins(self))
