"""`minitron-trt eval tasks`."""

from __future__ import annotations

import logging
import os
from typing import Any, Final

import click
import cloup

from minitron_trt.console import PATH, Console, console_options
from minitron_trt.errors import MissingExtraError, UsageError
from minitron_trt.evaluate.evaluation_options import (
    SERVER,
    device_option,
    dtype_option,
    server_settings,
    tokenizer_option,
)
from minitron_trt.option_types import Count, FiniteRange

log = logging.getLogger(__name__)

# The names in presets.py, whose import takes longer than a help text should.
_PRESETS: Final = ("minitron", "minitron-no-code")
_PUBLISHED: Final = (
    "llama-3.1-minitron-4b-width",
    "minitron-4b",
    "minitron-8b",
    "mistral-nemo-minitron-8b",
)

_TASKS: Final = (
    cloup.option(
        "--preset",
        type=click.Choice(_PRESETS),
        help="The Minitron papers' benchmarks, with their shots",
    ),
    cloup.option("--tasks", help="lm-eval's tasks and groups, separated by commas"),
    cloup.option(
        "--num-fewshot", "shots", type=Count(0), help="Examples before each question of --tasks"
    ),
    cloup.option(
        "--include-path", "include", type=PATH, multiple=True, help="Folder with tasks of your own"
    ),
    cloup.option(
        "--limit",
        type=FiniteRange(min=0, min_open=True),
        help="Ask so many questions of each task, below 1 such a share; for trying out",
    ),
    cloup.option(
        "--confirm-run-unsafe-code",
        "runs_code",
        is_flag=True,
        help="Consent to run code that models make (with HF_ALLOW_CODE_EVAL=1)",
    ),
)
_ASKING: Final = (
    cloup.option(
        "--batch-size", type=Count(), default=8, show_default=True, help="Sequences at once"
    ),
    cloup.option(
        "--max-length",
        type=Count(),
        help="Tokens of a prompt and its answer  [default: the model's, at most 8192]",
    ),
    dtype_option,
    device_option,
    cloup.option(
        "--apply-chat-template", "chat_template", is_flag=True, help="Ask as in a conversation"
    ),
    cloup.option("--system-instruction", help="What comes before all questions"),
    cloup.option("--gen-kwargs", "generation", help="How to generate: temperature=0.2,top_p=0.95"),
    cloup.option(
        "--seed", type=Count(0), default=1234, show_default=True, help="Of all that is drawn"
    ),
    cloup.option(
        "--text-model",
        default="ensemble",
        show_default=True,
        help="Model of text to ask on a server",
    ),
)
_KEEPING: Final = (
    cloup.option("--use-cache", "cache", type=PATH, help="Keep answers here, and go on from there"),
    cloup.option(
        "-o", "--output-path", "output", type=PATH, help="Write lm_eval's own files of results here"
    ),
    cloup.option(
        "--published",
        type=click.Choice(_PUBLISHED),
        help="Compare with this model's figures  [default: the one of the same sizes]",
    ),
)


@cloup.command()
@click.argument("models", nargs=-1, required=True)
@cloup.option_group("Tasks", *_TASKS)
@cloup.option_group("How models are asked", *_ASKING)
@cloup.option_group("A model on a server", tokenizer_option(), *SERVER)
@cloup.option_group("Results", *_KEEPING)
@console_options
def tasks(
    console: Console,
    models: tuple[str, ...],
    preset: str | None,
    **options: Any,
) -> None:
    """Score models by tasks of lm-evaluation-harness.

    MODELS are checkpoints, model folders, GGUF files, NeMo archives, hub ids or URLs of Triton
    (grpc://, http://). A server generates text by its ensemble; for multiple choice it is asked for
    context logits, which engines give that were built with --gather-logits context, and --tokenizer
    names its tokenizer. All others are computed here, by the reference model.

    Code that models make runs with consent only. lm_eval knows the same models by
    `python -m minitron_trt.evaluate.tasks --model minitron-trt --model_args pretrained=MODEL`.

    Example: minitron-trt eval tasks bf16 fp8 --preset minitron-no-code --use-cache answers
    """
    names = tuple(name.strip() for name in (options.pop("tasks") or "").split(",") if name.strip())
    if not preset and not names:
        raise UsageError("nothing is asked; pass --preset minitron, or --tasks with names")
    if preset and options["shots"] is not None:
        raise UsageError("--num-fewshot is for --tasks; a preset has the shots of its benchmarks")
    _require_harness()
    _quieten()
    # What they import takes seconds.
    from minitron_trt.evaluate.tasks.results_table import as_text
    from minitron_trt.evaluate.tasks.task_run import (
        CODE_EVAL_VARIABLE,
        TaskChoice,
        TaskSettings,
        run_tasks,
    )

    choice = TaskChoice(
        preset=preset,
        names=names,
        allows_code_eval=os.environ.get(CODE_EVAL_VARIABLE) == "1",
        **{name: options.pop(name) for name in ("shots", "include", "limit", "runs_code")},
    )
    settings = TaskSettings(server=server_settings(options), **options)
    record = run_tasks(models, choice, settings, console.progress)
    console.result(record.as_json(), as_text(record))


def _require_harness() -> None:
    """Raise MissingExtraError where lm-eval is not installed."""
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise MissingExtraError("lm-eval", "tasks", "eval tasks") from None


def _quieten() -> None:
    """Have lm-eval and what it loads say what matters only; progress is this command's."""
    if log.isEnabledFor(logging.DEBUG):
        return
    # The libraries read these as they are imported, which comes after this.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    for name in ("lm_eval", "datasets", "evaluate"):
        logging.getLogger(name).setLevel(logging.ERROR)
