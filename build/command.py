"""`minitron-trt build`."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import click
import cloup

from minitron_trt.artifacts import CONFIG_NAME, ENGINE
from minitron_trt.build.compiler_choice import AUTO, COMPILERS, choose_compiler
from minitron_trt.build.containers import TRTLLM_VERSION
from minitron_trt.build.engine import Engine
from minitron_trt.build.engine_model import model_of
from minitron_trt.build.job import BuildJob
from minitron_trt.build.recipe.engine_recipe import choose_recipe
from minitron_trt.build.recipe.options import request_options
from minitron_trt.build.recipe.request import BuildRequest
from minitron_trt.build.runner_names import CLUSTERS, DOCKER, LOCAL, RUNNERS, SLURM
from minitron_trt.build.trtllm.cluster.cluster_job import ClusterJob
from minitron_trt.build.trtllm.cluster.cluster_options import cluster_options
from minitron_trt.build.trtllm.cluster.job_file import ClusterSettings, job_file
from minitron_trt.build.trtllm.cluster.slurm import BARE
from minitron_trt.build.trtllm.docker_build import docker_argv
from minitron_trt.build.trtllm.finished_engine import finish, image_facts
from minitron_trt.checkpoint import Checkpoint
from minitron_trt.console import PATH, Console, console_options, retyped, size_text
from minitron_trt.errors import BadInputError, MinitronError, OutputError
from minitron_trt.gpus import complete_gpu, find_target
from minitron_trt.host.machine import cache_home
from minitron_trt.host.machine import trtllm_version as local_trtllm_version
from minitron_trt.option_types import FiniteRange
from minitron_trt.outputs import check_output
from minitron_trt.tables import folded, output_width

log = logging.getLogger(__name__)


@cloup.command()
@cloup.argument("checkpoint", type=PATH)
@cloup.option_group(
    "Engine",
    cloup.option("-o", "--output", type=PATH, help="Folder to write the engine to"),
    cloup.option(
        "--arch",
        "--gpu",
        "arch",
        required=True,
        shell_complete=complete_gpu,
        help="Architecture or GPU, like hopper or L40S; plan --list-gpus has them",
    ),
    cloup.option(
        "--compiler", type=click.Choice(COMPILERS), default=AUTO, show_default=True, help="Compiler"
    ),
    cloup.option(
        "--trtllm-version", help=f"TensorRT-LLM to build for  [default: {TRTLLM_VERSION}]"
    ),
    cloup.option("--dry-run", is_flag=True, help="Print what would run and write nothing"),
    cloup.option("--explain", is_flag=True, help="Print each setting with its reason"),
    cloup.option("--finish", "finished", is_flag=True, help="Make an artifact of what a job wrote"),
    cloup.option("--overwrite", is_flag=True, help="Replace an engine that is already there"),
)
@cloup.option_group(
    "Where it is built",
    cloup.option(
        "--runner",
        type=click.Choice(RUNNERS),
        default=LOCAL,
        show_default=True,
        help="Where TensorRT-LLM runs; slurm and kubernetes write a job file",
    ),
    cloup.option("--image", help="Image instead of NVIDIA's; for Slurm also a .sqsh or .sif file"),
    cloup.option(
        "--workers", type=int, default=1, show_default=True, help="Ranks built at once, a GPU each"
    ),
    cloup.option(
        "--timeout",
        "timeout_s",
        # It becomes a job's deadline, and Kubernetes has no later one for a Pod.
        type=FiniteRange(1, 2**31 - 1),
        help="Seconds to wait at most",
    ),
    cloup.option("--cache", type=PATH, help="Folder of finished engines to look in and add to"),
    cloup.option("--timing-cache", type=PATH, help="Folder of TensorRT's timing caches"),
)
@request_options
@cluster_options
@console_options
def build(
    console: Console,
    checkpoint: Path,
    output: Path | None,
    arch: str,
    compiler: str,
    runner: str,
    trtllm_version: str | None,
    request: BuildRequest,
    timeout_s: float | None,
    cache: Path | None,
    timing_cache: Path | None,
    image: str | None,
    cluster: ClusterSettings,
    *,
    dry_run: bool,
    explain: bool,
    finished: bool,
    overwrite: bool,
) -> None:
    """Build an engine from a checkpoint.

    TensorRT-LLM's rules that refuse or change a setting are applied before anything runs. Without a
    GPU, TensorRT itself compiles for ampere, ada and blackwell-rtx, for programs of your own, not
    for Triton's backend. For hopper and blackwell use a runner that has a GPU.

    Example: minitron-trt build checkpoint -o engine --arch hopper --runner docker
    """
    request = replace(request, version=trtllm_version or _version_for(runner))
    opened = Checkpoint.open(checkpoint)
    job = BuildJob(
        recipe=choose_recipe(model_of(opened), find_target(arch), request),
        request=request,
        checkpoint=opened,
        output=_output(output, dry_run=dry_run),
        overwrite=overwrite,
        timeout_s=timeout_s,
        timing_folder=timing_cache or _timing_folder(),
        image=image,
    )
    if finished:
        _finish(console, job, runner=runner, cluster=cluster)
    elif runner in CLUSTERS:
        choose_compiler(job, compiler, runner)
        _write_job(console, job, runner=runner, cluster=cluster, explain=explain, dry_run=dry_run)
    elif dry_run:
        _print_plan(console, job, compiler=compiler, runner=runner, explain=explain)
    else:
        _build(console, job, compiler=compiler, runner=runner, cache=cache, explain=explain)


def _output(folder: Path | None, *, dry_run: bool) -> Path:
    """Return where the engine goes, which a dry run need not be told."""
    if folder is None and not dry_run:
        raise click.UsageError("Missing option '-o' / '--output'.")
    return folder or Path("engine")


def _version_for(runner: str) -> str:
    """Return the TensorRT-LLM to build for where the user names none."""
    return (local_trtllm_version() if runner == LOCAL else None) or TRTLLM_VERSION


def _timing_folder() -> Path | None:
    """Return the user's folder of timing caches, which is worth no refusal; None without a home."""
    try:
        return cache_home() / "timing"
    except OutputError as error:
        log.debug("no timing cache: %s", error)
        return None


def _print_plan(
    console: Console, job: BuildJob, *, compiler: str, runner: str, explain: bool
) -> None:
    """Print the recipe, the command and which compiler would run it here."""
    recipe = job.recipe
    try:
        # A dry run also plans for a machine that has what is missing here.
        chosen, problem = choose_compiler(job, compiler, runner), ""
    except MinitronError as error:
        chosen, problem = "none", str(error)
    argv = recipe.argv(job.checkpoint.folder, job.output)
    if runner == DOCKER:
        argv = docker_argv(job, job.output)
    record = {
        **recipe.to_json(),
        "compiler": chosen,
        "runner": runner,
        "problem": problem,
        "argv": argv,
        "host_bytes": job.host_bytes,
    }
    memory = recipe.forecast
    lines = [
        f"{recipe.model.name}, {recipe.model.precision}, for {recipe.target.label}, "
        f"TensorRT-LLM {recipe.version}, {recipe.profile}",
        recipe.explain() if explain else shlex.join(argv),
        f"GPU: weights {size_text(memory.weights_bytes)}, activations "
        f"{size_text(memory.activation_bytes)}, KV cache {size_text(memory.kv_pool_bytes)} "
        f"({memory.kv_tokens:,} tokens) of {size_text(memory.gpu_bytes)}",
        f"host: about {size_text(job.host_bytes)} of memory",
        f"compiler: {chosen}, runner: {runner}",
        *([f"here it would end with: {problem}"] if problem else ()),
        *([] if explain else [f"note: {note}" for note in recipe.notes]),
    ]
    console.result(record, folded("\n".join(lines), output_width()))


def _build(
    console: Console,
    job: BuildJob,
    *,
    compiler: str,
    runner: str,
    cache: Path | None,
    explain: bool,
) -> None:
    # A dry run needs none of it.
    from minitron_trt.build.engine_build import build_engine

    check_output(job.output, overwrite=job.overwrite, kind=ENGINE, inputs=(job.checkpoint.folder,))
    if explain:
        click.echo(folded(job.recipe.explain(), output_width(sys.stderr)), err=True)
    built = build_engine(
        job, compiler=compiler, runner=runner, cache=cache, progress=console.progress
    )
    console.result(built.to_json(), folded(built.text, output_width()))


def _write_job(
    console: Console,
    job: BuildJob,
    *,
    runner: str,
    cluster: ClusterSettings,
    explain: bool,
    dry_run: bool,
) -> None:
    """Write a cluster's job file, and say what to type next, to the engine that is an artifact."""
    if explain:
        click.echo(folded(job.recipe.explain(), output_width(sys.stderr)), err=True)
    check_output(job.output, overwrite=job.overwrite, kind=ENGINE, inputs=(job.checkpoint.folder,))
    file = job_file(ClusterJob(job), runner, cluster)
    finish_it = retyped(
        click.get_current_context(),
        # --finish makes an artifact of what the job wrote, and must not be told to replace it.
        without=("overwrite", "dry_run", "explain", "as_json"),
        plus=("--finish",),
    )
    record = {
        "job": str(file.path),
        "name": file.name,
        "text": file.text,
        "submit": file.submit,
        "steps": file.steps,
        "finish": finish_it,
    }
    if dry_run:
        console.result(record, file.text.rstrip("\n"))
        return
    file.write()
    steps = {**file.steps, "make an artifact of it": (finish_it,)}
    lines = [f"{file.path}: job {file.name}", *_walk(steps)]
    console.result(record, "\n".join(lines))


def _walk(steps: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield steps as a shell takes them: what each is for as a comment, then its commands."""
    for purpose, commands in steps.items():
        yield f"# {purpose}"
        yield from commands


def _finish(console: Console, job: BuildJob, *, runner: str, cluster: ClusterSettings) -> None:
    if not (job.output / CONFIG_NAME).is_file():
        raise BadInputError(f"{job.output} holds no engine yet; let the job finish first")
    # Of a bare node no table says which TensorRT and CUDA it has.
    in_image = runner != LOCAL and not (runner == SLURM and cluster.slurm.container == BARE)
    finish(job, job.output, facts=image_facts(job) if in_image else None)
    step = Engine.open(job.output).next_step
    console.result(
        {"engine": str(job.output), **job.recipe.to_json(), "next": step},
        f"{job.output}: an engine for {job.recipe.target.label}\n{step}",
    )
