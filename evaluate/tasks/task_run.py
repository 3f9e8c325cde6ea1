"""A run of lm-evaluation-harness over models, and its results as a record."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from minitron_trt.console import ShowProgress
from minitron_trt.errors import BadInputError, UsageError
from minitron_trt.evaluate.evaluated_model import check_device, is_server, name_of
from minitron_trt.evaluate.served_model import ServerSettings
from minitron_trt.evaluate.tasks.harness_model import MinitronLM
from minitron_trt.evaluate.tasks.harness_results import HarnessResults, task_scores
from minitron_trt.evaluate.tasks.presets import TASK_PRESETS, PresetTask, published_name
from minitron_trt.evaluate.tasks.task_record import TaskModel, TaskRecord
from minitron_trt.option_types import suggestion
from minitron_trt.outputs import make_folder
from minitron_trt.records import check_record

if TYPE_CHECKING:
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

log = logging.getLogger(__name__)
DEFINITIONS: Final = Path(__file__).parent / "definitions"
CODE_EVAL_VARIABLE: Final = "HF_ALLOW_CODE_EVAL"


@dataclass(frozen=True, slots=True)
class TaskChoice:
    """Which tasks: a preset, or names with shots of one's own or the tasks' (None)."""

    preset: str | None = None
    names: tuple[str, ...] = ()
    shots: int | None = None
    include: tuple[Path, ...] = ()
    limit: float | None = None
    runs_code: bool = False  # consent to run code that a model made
    allows_code_eval: bool = False  # the same to Hugging Face's metric, by CODE_EVAL_VARIABLE

    @property
    def benchmarks(self) -> Mapping[str, PresetTask]:
        """Return the preset's benchmarks by their tasks' names."""
        return {each.task: each for each in TASK_PRESETS[self.preset]} if self.preset else {}

    @property
    def task_names(self) -> tuple[str, ...]:
        """Return the names that lm-eval is asked for."""
        return (*self.benchmarks, *self.names)


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """How models are asked; answers are kept in `cache`, `output` gets lm_eval's own files."""

    batch_size: int
    max_length: int | None
    dtype: str
    device: str
    server: ServerSettings
    text_model: str
    seed: int
    chat_template: bool = False
    system_instruction: str | None = None
    generation: str | None = None
    published: str | None = None
    cache: Path | None = None
    output: Path | None = None


def run_tasks(
    sources: Sequence[str], choice: TaskChoice, settings: TaskSettings, progress: ShowProgress
) -> TaskRecord:
    """Return the scores of models on tasks, which are loaded before any model is.

    UsageError for a task that there is not, BadInputError for one whose data cannot be had.
    """
    if not all(map(is_server, sources)):
        check_device(settings.device)
    loaded = _loaded_tasks(choice)
    models = []
    for source in sources:
        lm = MinitronLM(
            source,
            batch_size=settings.batch_size,
            max_length=settings.max_length,
            dtype=settings.dtype,
            device=settings.device,
            server=settings.server,
            text_model=settings.text_model,
            seed=settings.seed,
            progress=progress,
        )
        try:
            results = _results(lm, loaded, choice, settings)
        finally:
            lm.close()
        published = settings.published
        if published is None and lm.spec is not None:
            published = published_name(lm.spec)
        found = check_record(results, HarnessResults)
        scores = task_scores(found, choice.benchmarks, published=published)
        models.append(TaskModel(name_of(source), source, tuple(scores)))
    return TaskRecord(version("lm_eval"), choice.preset, choice.limit, tuple(models))


def _loaded_tasks(choice: TaskChoice) -> list[Any]:
    """Return lm-eval's tasks and groups, with their data and shots."""
    manager = _task_manager(choice)
    for name in choice.task_names:
        if name not in manager.task_index and not Path(name).is_file():
            raise UsageError(
                f"lm-eval knows no task {name!r}; lm_eval ls tasks prints its list"
                f"{suggestion(name, manager.all_tasks)}"
            )
    loaded = []
    for name in choice.task_names:
        benchmark = choice.benchmarks.get(name)
        shots = choice.shots if benchmark is None else benchmark.shots
        _check_consent(name, manager, choice)
        for item in _load(name, manager):
            for task in _leaves(item):
                if getattr(task, "UNSAFE_CODE", False):
                    _consented(name, choice)
                if shots is not None:
                    task.set_config("num_fewshot", shots)
            loaded.append(item)
    return loaded


def _task_manager(choice: TaskChoice) -> TaskManager:
    """Return lm-eval's tasks, without its own 14,000 files where no task of it is asked for."""
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import Kind

    include = [str(path) for path in (DEFINITIONS, *choice.include)]
    manager = TaskManager(include_path=include, include_defaults=False)
    entries = [manager.task_index.get(name) for name in choice.task_names]
    if all(entry is not None and entry.kind is Kind.TASK for entry in entries):
        return manager
    return TaskManager(include_path=include)


def _check_consent(name: str, manager: TaskManager, choice: TaskChoice) -> None:
    """Refuse what is marked as running code before its definition runs any."""
    from lm_eval.tasks._yaml_loader import load_yaml
    from yaml import YAMLError

    from minitron_trt.yaml_bounds import check_bounds

    entry = manager.task_index.get(name)
    path = Path(name) if entry is None else entry.yaml_path
    if path is None:
        return
    try:
        check_bounds(path.read_text(encoding="utf-8"))
        # Else lm-eval would import the file of every function that the definition names.
        definition = load_yaml(path, resolve_func=False)
    except (OSError, ValueError, YAMLError) as error:
        detail = " ".join(str(error).split())
        raise BadInputError(f"{path} is no definition of a task ({detail[:300]})") from error
    if definition.get("unsafe_code"):
        _consented(name, choice)


def _consented(name: str, choice: TaskChoice) -> None:
    if not choice.runs_code:
        raise UsageError(
            f"the task {name} runs code that the model makes; consent with "
            "--confirm-run-unsafe-code, in a container that may be lost, or leave it out"
        )
    if not choice.allows_code_eval:
        raise UsageError(
            f"the task {name} runs code by Hugging Face's metric code_eval, which wants "
            f"{CODE_EVAL_VARIABLE}=1 in the environment as well"
        )


def _load(name: str, manager: TaskManager) -> list[Any]:
    try:
        loaded = manager.load([name])
    except Exception as error:  # the data sets' library raises all there is
        detail = " ".join(str(error).split()) or type(error).__name__
        raise BadInputError(
            f"the data of the task {name} cannot be had ({type(error).__name__}: {detail[:300]}); "
            "connect to the Hugging Face hub, or fill the cache that HF_HOME names"
        ) from error
    groups = loaded.get("groups", {})
    inside = {child for group in groups.values() for child in group.child_names}
    items: list[Any] = [group for group in groups.values() if group.name not in inside]
    grouped = {task.task_name for group in items for task in _leaves(group)}
    return [*items, *(task for key, task in loaded["tasks"].items() if key not in grouped)]


def _leaves(item: Any) -> Iterable[Any]:
    return item.get_all_tasks() if hasattr(item, "get_all_tasks") else [item]


def _results(
    lm: MinitronLM, loaded: list[Any], choice: TaskChoice, settings: TaskSettings
) -> Mapping[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker

    if settings.chat_template and lm.tokenizer is not None and not lm.tokenizer.chat_template:
        raise BadInputError(
            f"{lm.pretrained} has no chat template; leave --apply-chat-template out, as for base "
            "models"
        )
    tracker = (
        EvaluationTracker(output_path=str(settings.output)) if settings.output is not None else None
    )
    results: Mapping[str, Any] = simple_evaluate(
        model=lm,
        model_args=f"pretrained={lm.pretrained}",
        tasks=loaded,
        use_cache=_cache(lm, settings),
        limit=choice.limit,
        apply_chat_template=settings.chat_template,
        fewshot_as_multiturn=settings.chat_template,
        system_instruction=settings.system_instruction,
        gen_kwargs=settings.generation,
        evaluation_tracker=tracker,
        log_samples=tracker is not None,
        # lm-eval's own default; those of the other three are 1234, as --seed is.
        random_seed=0,
        numpy_random_seed=settings.seed,
        torch_random_seed=settings.seed,
        fewshot_random_seed=settings.seed,
        confirm_run_unsafe_code=choice.runs_code,
    )
    if tracker is not None:
        _write(tracker, dict(results))
    return results


def _write(tracker: EvaluationTracker, results: dict[str, Any]) -> None:
    # As lm_eval's own command does it: the file of results is without the samples.
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for name in results["configs"]:
        tracker.save_results_samples(task_name=name, samples=samples[name])


def _cache(lm: MinitronLM, settings: TaskSettings) -> str | None:
    """Return the path of a model's answers, which lm-eval tells apart by their questions alone."""
    if settings.cache is None:
        return None
    make_folder(settings.cache)
    facts = f"{lm.identity} {settings.chat_template} {settings.seed}"
    key = hashlib.sha256(facts.encode()).hexdigest()[:16]
    name = Path(lm.pretrained).name or "model"
    return str(settings.cache / f"{name}-{key}")
