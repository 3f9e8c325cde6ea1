"""The benchmarks of the Minitron papers: their true settings, and what was published.

The model cards call their figures zero-shot, yet they are those of table 1 of "LLM Pruning and
Distillation in Practice: The Minitron Approach" (arXiv 2408.11796), which gives the shots. Its text
has XL-Sum without shots, where the table and NVIDIA's blog have 3; and for pass@1 a temperature of
0.2 with top-p 0.95, n = 20 for HumanEval.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from minitron_trt.build.engine_model import PRESETS
from minitron_trt.spec import ModelSpec

_PAPER: Final = "arXiv 2408.11796, table 1"
_FIRST_PAPER: Final = "arXiv 2407.14679"
_CARD: Final = "model card"
_ROUNDING: Final = 0.0005  # figures are percentages with one decimal


@dataclass(frozen=True, slots=True)
class PresetTask:
    """A benchmark: lm-eval's task, its shots, the published metric, the model card's label."""

    name: str
    task: str
    shots: int
    metric: str
    filter: str = "none"
    card_label: str = "zero-shot"
    runs_code: bool = False

    @property
    def figure(self) -> str:
        """Return what lm-eval calls the published metric."""
        return f"{self.metric},{self.filter}"


_TASKS: Final = (
    PresetTask("MMLU", "mmlu", 5, "acc", card_label="5-shot"),
    PresetTask("HellaSwag", "hellaswag", 10, "acc_norm"),
    PresetTask("Winogrande", "winogrande", 5, "acc"),
    PresetTask("ARC-C", "arc_challenge", 25, "acc_norm"),
    PresetTask("GSM8K", "gsm8k", 5, "exact_match", "strict-match"),
    PresetTask("XLSum", "minitron_xlsum", 3, "rougeL"),
    PresetTask(
        "MBPP", "minitron_mbpp", 0, "pass_at_1", "code", card_label="no shots", runs_code=True
    ),
    PresetTask("HumanEval", "minitron_humaneval", 0, "pass_at_1", "code", runs_code=True),
)
TASK_PRESETS: Final[Mapping[str, tuple[PresetTask, ...]]] = MappingProxyType(
    {
        "minitron": _TASKS,
        "minitron-no-code": tuple(task for task in _TASKS if not task.runs_code),
    }
)
"""Sets of benchmarks by name; that of the papers, and it without what runs generated code."""


@dataclass(frozen=True, slots=True)
class PublishedFigure:
    """A share of 1, and where it stands."""

    value: float
    source: str = _PAPER

    def distance(self, value: float) -> float:
        """Return how far a result is from it, with its sign, beyond what rounding explains."""
        gap = value - self.value
        return max(0.0, abs(gap) - _ROUNDING) * (1 if gap > 0 else -1)


def _percent(values: tuple[float | None, ...], source: str = _PAPER) -> dict[str, PublishedFigure]:
    """Return the figures by benchmark, in the order of the tasks."""
    return {
        task.name: PublishedFigure(round(value / 100, 6), source)
        for task, value in zip(_TASKS, values, strict=True)
        if value is not None
    }


PUBLISHED: Final[Mapping[str, Mapping[str, PublishedFigure]]] = MappingProxyType(
    {
        "llama-3.1-minitron-4b-width": _percent((60.5, 76.1, 73.5, 55.6, 41.2, 28.7, 32.4, None)),
        "minitron-4b": _percent((58.6, 75.0, 74.0, 50.9, 24.1, 29.5, 28.2, 23.3)),
        # The second paper leaves it out; its card was revised after the first one.
        "minitron-8b": _percent((63.8, 80.7, 79.0, 52.6, 51.3, 31.2, None, 31.6), _FIRST_PAPER)
        | _percent((64.5, 81.6, None, None, 54.2, None, None, 31.6), _CARD),
        "mistral-nemo-minitron-8b": _percent((69.5, 83.0, 80.4, 64.4, 58.5, 32.0, 43.8, 36.2)),
    }
)
"""Published figures of the base models, by the names that `plan` knows them by."""


def published_name(spec: ModelSpec) -> str | None:
    """Return the published model that a model has the sizes of, None when there is none such."""
    return next((name for name, known in PRESETS.items() if _sizes(known) == _sizes(spec)), None)


def _sizes(spec: ModelSpec) -> tuple[object, ...]:
    return (spec.architecture, spec.layers, spec.hidden, spec.heads, spec.intermediate)
