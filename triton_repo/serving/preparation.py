"""From whatever names a model to a repository of it: converted, built and written, each once.

What the stages make lies in a folder named after the model's bytes and the options that decide the
rest. There each appears whole or not at all, so a run goes on where another one ended.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from minitron_trt.artifacts import (
    CHECKPOINT,
    ENGINE,
    HUGGING_FACE,
    MANIFEST_NAME,
    REPOSITORY,
    Manifest,
    kind_of,
    sha256,
)
from minitron_trt.build.containers import TRTLLM_VERSION, container_for
from minitron_trt.build.engine_build import build_engine
from minitron_trt.build.engine_model import model_of
from minitron_trt.build.job import BuildJob
from minitron_trt.build.recipe.engine_recipe import choose_recipe
from minitron_trt.build.recipe.request import BuildRequest
from minitron_trt.checkpoint import Checkpoint
from minitron_trt.console import PROGRAM, ShowProgress, no_display, size_text
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.convert.gguf.part_names import PartName
from minitron_trt.convert.source.locate import locate
from minitron_trt.convert.source.tokenizer_folder import TOKENIZER_JSON
from minitron_trt.errors import BadInputError, MinitronError, UnsupportedError, UsageError
from minitron_trt.gpus import find_target
from minitron_trt.host.docker import check_docker
from minitron_trt.host.machine import local_gpus, trtllm_version
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.runtimes.runtime_names import LLMAPI, REFERENCE, TRTLLM
from minitron_trt.triton_repo.serving.installation import check_packages
from minitron_trt.triton_repo.serving.model_options import ModelOptions
from minitron_trt.triton_repo.serving.runners import DOCKER, EMBEDDED, choose
from minitron_trt.triton_repo.serving.served_repository import runs_anywhere
from minitron_trt.triton_repo.serving_recipe import ServingRecipe
from minitron_trt.version import __version__

log = logging.getLogger(__name__)

_REFERENCE: Final = "the reference runtime serves it, rightly but slowly"


@dataclass(frozen=True, slots=True)
class Stage:
    """A folder on the way to the repository: its kind, the command that makes it, and its maker.

    `make` is called with the folder, or the source, that the stage before has left, then with the
    stage's own, and with what shows how far it is.
    """

    name: str
    kind: str
    words: tuple[str, ...]
    make: Callable[[Path, Path, ShowProgress], object]

    @property
    def command(self) -> str:
        """Return what one would type for it."""
        return shlex.join((PROGRAM, *self.words, "-o", self.kind))


@dataclass(frozen=True, slots=True)
class Preparation:
    """How a model becomes a repository on this machine, and why in this way."""

    source: str
    runtime: str
    reason: str
    stages: tuple[Stage, ...]
    options: ModelOptions

    def to_json(self) -> dict[str, Any]:
        """Return the record that --json prints."""
        return {
            "source": self.source,
            "runtime": self.runtime,
            "reason": self.reason,
            "commands": list(self.commands),
        }

    @property
    def commands(self) -> tuple[str, ...]:
        """Return what one would type for the same, in a folder of one's own."""
        return (*(stage.command for stage in self.stages), f"{PROGRAM} serve {REPOSITORY}")

    @property
    def text(self) -> str:
        """Return the preparation as text."""
        return "\n".join((self.reason, *(f"  {command}" for command in self.commands)))

    def carry_out(self, cache: Path, progress: ShowProgress = no_display) -> Path:
        """Return the repository, below `cache`, made as far as it was not there."""
        made = locate(self.source, revision=self.options.revision, token=self.options.token)
        folder = cache / _key(made, self.options, progress)
        log.info("what is made is kept in %s", folder)
        count = len(self.stages) + 1
        for number, stage in enumerate(self.stages, 1):
            step, output = f"{number} of {count}: {shlex.join(stage.words)}", folder / stage.name
            if _is_whole(output, stage.kind):
                log.info("%s: made before", step)
            else:
                log.info("%s ...", step)
                start = time.monotonic()
                stage.make(made, output, progress)
                seconds = time.monotonic() - start
                log.info("%s: %s in %.1f s", step, size_text(_size(output)), seconds)
            made = output
        log.info("%d of %d: serve %s", count, count, REPOSITORY)
        return made


def prepare(source: str, options: ModelOptions, runner: str | None = None) -> Preparation:
    """Return what is to be done until a model can be served here; nothing is done.

    UnsupportedError when this machine lacks what the runtime takes.
    """
    kind = _artifact_kind(source)
    for name in ("precision", "tp"):
        if kind is not None and getattr(options, name) is not None:
            raise UsageError(f"--{name} is for a model; {source} is of kind {kind!r}: leave it out")
    runtime, reason = _choose_runtime(options.runtime, kind)
    if runner == DOCKER and runs_anywhere(runtime):
        raise UnsupportedError(
            f"{reason}, and no image has the {runtime} runtime: leave out --runner docker"
        )
    if options.tp is not None and runtime != REFERENCE:
        _check_gpus(options.tp)
    runner = runner or choose(runtime)
    if runner == EMBEDDED:
        check_packages(runtime)
    # A checkpoint, or an engine, is past the conversion.
    stages = [] if kind is not None else [_conversion(source, options, runtime)]
    if runtime == TRTLLM and kind != ENGINE:
        stages.append(_engine(_source_of(stages, source), runner))
    stages.append(_repository(stages, source, runtime, options.tp))
    return Preparation(source, runtime, reason, tuple(stages), options)


def _artifact_kind(source: str) -> str | None:
    """Return CHECKPOINT or ENGINE for such an artifact, None for a model."""
    folder = Path(source)
    if not (folder / MANIFEST_NAME).is_file():
        return None
    kind = kind_of(folder)
    return kind if kind in (CHECKPOINT, ENGINE) else None


def _choose_runtime(requested: str | None, kind: str | None) -> tuple[str, str]:
    """Return the runtime, and why it is that one."""
    if requested is not None:
        return requested, f"the runtime {requested} serves it, as --runtime says"
    if kind == ENGINE:
        return TRTLLM, "it is an engine, which NVIDIA's backend serves"
    gpus = local_gpus()
    if not gpus:
        return REFERENCE, f"no NVIDIA GPU here: {_REFERENCE}"
    try:
        choose(TRTLLM)
    except MinitronError as error:
        return REFERENCE, f"{error}; until then {_REFERENCE}"
    return TRTLLM, f"here is {gpus[0].name}: an engine is built for it (or --runtime reference)"


def _check_gpus(tp: int) -> None:
    here = len(local_gpus())
    if tp > max(here, 1):
        raise UnsupportedError(
            f"--tp {tp} takes so many GPUs, and {here} are here; a cluster's job does it: "
            "docs/how-to/slurm.md"
        )


def _source_of(stages: list[Stage], source: str) -> str:
    return stages[-1].kind if stages else source


def _conversion(source: str, options: ModelOptions, runtime: str) -> Stage:
    form = "hf" if runtime == LLMAPI else "trtllm"
    kind = HUGGING_FACE if runtime == LLMAPI else CHECKPOINT
    # A folder for the PyTorch runtime is whole; that runtime shards it when it loads it.
    tp = 1 if runtime == LLMAPI else options.tp or 1
    # overwrite, here and below: what is there is damaged, or the stage would not be made.
    requested = ConvertOptions(precision=options.precision, tp=tp, form=form, overwrite=True)
    words = ["convert", source]
    words += ["--precision", options.precision] if options.precision else []
    words += ["--tp", str(tp)] if tp > 1 else []
    words += ["--format", form] if runtime == LLMAPI else []
    words += ["--revision", options.revision] if options.revision else []
    return Stage(
        name=kind,
        kind=kind,
        words=tuple(words),
        make=lambda model, output, progress: convert(str(model), output, requested, progress),
    )


def _engine(source: str, runner: str) -> Stage:
    gpus = local_gpus()
    if not gpus:
        raise UsageError("an engine is built for a GPU, and none is here; use --runtime reference")
    sm = gpus[0].sm
    version = TRTLLM_VERSION if runner == DOCKER else trtllm_version() or TRTLLM_VERSION
    if runner == DOCKER:
        check_docker(container_for(version).image, "pass --runtime reference")

    def make(folder: Path, output: Path, progress: ShowProgress) -> None:
        """Build it from a checkpoint, by TensorRT-LLM's own rules of settings."""
        checkpoint = Checkpoint.open(folder)
        request = BuildRequest(version=version)
        job = BuildJob(
            recipe=choose_recipe(model_of(checkpoint), find_target(f"sm{sm}"), request),
            request=request,
            checkpoint=checkpoint,
            output=output,
            overwrite=True,
        )
        build_engine(job, compiler=TRTLLM, runner=runner, progress=progress)

    return Stage(
        name=f"{ENGINE}-sm{sm}-{version}",
        kind=ENGINE,
        words=("build", source, "--arch", f"sm{sm}", "--runner", runner),
        make=make,
    )


def _repository(stages: list[Stage], source: str, runtime: str, tp: int | None) -> Stage:
    sharded = tp if runtime == LLMAPI else None
    words = ["triton-repo", _source_of(stages, source)]
    words += ["--tp", str(sharded)] if sharded else []
    return Stage(
        name=f"{REPOSITORY}-{stages[-1].name if stages else runtime}",
        kind=REPOSITORY,
        words=tuple(words),
        make=lambda artifact, output, _: emit_repository(
            artifact, output, ServingRecipe(tp=sharded), runtime=runtime, overwrite=True
        ),
    )


def _is_whole(folder: Path, kind: str) -> bool:
    """Say whether a stage's folder is there with all its files; what is damaged is made again."""
    if not folder.exists():
        return False
    try:
        Manifest.read(folder, kind)
    except BadInputError as error:
        log.warning("%s", error)
        return False
    return True


def _key(source: Path, options: ModelOptions, progress: ShowProgress) -> str:
    """Return the name of a model's folder: a digest of its bytes and what they are made into."""
    files = list(_files_of(source))
    place = source if source.is_dir() else source.parent
    digests = {}
    with progress("read", sum(file.stat().st_size for file in files)) as advance:
        for file in files:
            digests[str(file.relative_to(place))] = _digest(file)
            advance(file.stat().st_size)
    decided = {"precision": options.precision, "tp": options.tp or 1}
    # Another version may make other files of the same bytes.
    record = {"files": digests, **decided, "version": __version__}
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


def _files_of(source: Path) -> Iterator[Path]:
    """Yield what a conversion may read: a folder's files, or a file with what belongs to it."""
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            # Such as .cache, which the hub's client writes into a folder that it has filled.
            hidden = any(part.startswith(".") for part in path.relative_to(source).parts)
            if path.is_file() and not hidden:
                yield path
        return
    part = PartName.parse(source.name)
    names = (source.name, *(part.others() if part else ()), TOKENIZER_JSON)
    yield from (path for path in map(source.with_name, names) if path.is_file())


def _digest(file: Path) -> str:
    """Return the digest of a file, after which the hub's cache names what it has downloaded."""
    blob = file.resolve()
    in_cache = blob.parent.name == "blobs" and blob.parent.parent.name.startswith("models--")
    return blob.name if in_cache else sha256(file)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
