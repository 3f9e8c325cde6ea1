"""`minitron-trt build`."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import click

from minitron_trt.artifacts import CONFIG_NAME, check_output, output_errors
from minitron_trt.build.compiler_choice import COMPILERS, RUNNERS, choose_compiler, job_file
from minitron_trt.build.containers import container_for
from minitron_trt.build.engine_model import model_of
from minitron_trt.build.recipe.engine_recipe import choose_recipe
from minitron_trt.build.recipe.flags import DEFAULT_VERSION
from minitron_trt.build.recipe.options import request_options
from minitron_trt.build.recipe.request import BuildRequest
from minitron_trt.build.trtllm.jobs import ClusterJob, kubernetes_job, slurm_script, yaml_text
from minitron_trt.build.trtllm.run import BuildJob, docker_argv, finish, image_facts
from minitron_trt.checkpoint import Checkpoint
from minitron_trt.console import Console, console_options, size_text
from minitron_trt.errors import BadInputError, MinitronError
from minitron_trt.gpus import find_target
from minitron_trt.host.machine import trtllm_version

_FOLDER = click.Path(path_type=Path)


@click.command()
@click.argument("checkpoint", type=_FOLDER)
@click.option("-o", "--output", type=_FOLDER, help="Folder to write the engine to")
@click.option(
    "--arch", "--gpu", "arch", required=True, help="Architecture or GPU, like hopper or L40S"
)
@click.option(
    "--compiler", type=click.Choice(COMPILERS), default="auto", show_default=True, help="Compiler"
)
@click.option(
    "--runner",
    type=click.Choice(RUNNERS),
    default="local",
    show_default=True,
    help="Where TensorRT-LLM runs; slurm and kubernetes write a job file",
)
@click.option("--trtllm-version", help=f"TensorRT-LLM to build for  [default: {DEFAULT_VERSION}]")
@request_options
@click.option("--timeout", "timeout_s", type=click.FloatRange(1), help="Seconds to wait at most")
@click.option("--cache", type=_FOLDER, help="Folder of finished engines to look in and add to")
@click.option("--timing-cache", type=_FOLDER, help="Folder of TensorRT's timing caches")
@click.option(
    "--claim", default="models", show_default=True, help="Kubernetes volume claim with the folders"
)
@click.option("--dry-run", is_flag=True, help="Print what would run and write nothing")
@click.option("--explain", is_flag=True, help="Print each setting with its reason")
@click.option("--finish", "finished", is_flag=True, help="Make an artifact of what a job wrote")
@click.option("--overwrite", is_flag=True, help="Replace an engine that is already there")
@console_options
def build(
    console: Console,
    checkpoint: Path,
    output: Path | None,
    arch: str,
    asked: dict[str, Any],
    **options: Any,
) -> None:
    """Build an engine from a checkpoint.

    Rules of TensorRT-LLM that reject or change a setting are applied before anything runs. Without
    a GPU, TensorRT itself compiles for ampere, ada and blackwell-rtx; for hopper and blackwell use
    a runner that has one.

    Example: minitron-trt build checkpoint -o engine --arch hopper --runner docker
    """
    version = options["trtllm_version"] or _local_version(options) or DEFAULT_VERSION
    request = BuildRequest(version=version, **asked)
    opened = Checkpoint.open(checkpoint)
    job = BuildJob(
        recipe=choose_recipe(model_of(opened), find_target(arch), request),
        checkpoint=opened,
        output=output or Path("engine"),
        overwrite=options["overwrite"],
        timeout_s=options["timeout_s"],
        timing_folder=options["timing_cache"] or _cache_home() / "timing",
    )
    if options["dry_run"]:
        _print_plan(console, job, options)
    elif output is None:
        raise click.UsageError("Missing option '-o' / '--output'.")
    elif options["finished"]:
        _finish(console, job)
    elif options["runner"] in ("slurm", "kubernetes"):
        _write_job(console, job, options)
    else:
        from minitron_trt.build.engine_build import build_engine

        check_output(output, overwrite=job.overwrite)
        if options["explain"]:
            click.echo(job.recipe.explain(), err=True)
        done = build_engine(job, request, options, console.progress)
        console.result(done.to_json(), done.text)


def _local_version(options: dict[str, Any]) -> str | None:
    return trtllm_version() if options["runner"] == "local" else None


def _cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minitron-trt"


def _print_plan(console: Console, job: BuildJob, options: dict[str, Any]) -> None:
    """Print the recipe, the command and which compiler would run it here."""
    recipe = job.recipe
    try:
        compiler, problem = choose_compiler(job, options["compiler"], options["runner"]), ""
    except MinitronError as error:
        compiler, problem = "none", str(error)
    argv = recipe.argv(job.checkpoint.folder, job.output)
    if options["runner"] == "docker":
        argv = docker_argv(job, job.output)
    record = {
        **recipe.to_json(),
        "compiler": compiler,
        "runner": options["runner"],
        "problem": problem,
        "argv": argv,
        "host_bytes": job.host_bytes,
    }
    memory = recipe.forecast
    lines = [
        f"{recipe.model.name}, {recipe.model.precision}, for {recipe.target.label}, "
        f"TensorRT-LLM {recipe.version}, {recipe.profile}",
        shlex.join(argv) if not options["explain"] else recipe.explain(),
        f"GPU: weights {size_text(memory.weights_bytes)}, activations "
        f"{size_text(memory.activation_bytes)}, KV cache {size_text(memory.kv_pool_bytes)} "
        f"({memory.kv_tokens:,} tokens) of {size_text(memory.gpu_bytes)}",
        f"host: about {size_text(job.host_bytes)} of memory",
        f"compiler: {compiler}, runner: {options['runner']}",
        *([f"here it would end with: {problem}"] if problem else ()),
        *([] if options["explain"] else [f"note: {note}" for note in recipe.notes]),
    ]
    console.result(record, "\n".join(lines))


def _write_job(console: Console, job: BuildJob, options: dict[str, Any]) -> None:
    choose_compiler(job, options["compiler"], options["runner"])
    runner = options["runner"]
    cluster = ClusterJob(
        job.recipe,
        container_for(job.recipe.version),
        job.checkpoint.folder.resolve(),
        job.output,
        job.host_bytes,
        *([int(job.timeout_s)] if job.timeout_s else ()),
    )
    if runner == "slurm":
        text, submit = slurm_script(cluster), "sbatch"
    else:
        text, submit = yaml_text(kubernetes_job(cluster, options["claim"])), "kubectl apply -f"
    path = job_file(job.output, runner)
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    finish_it = (
        f"minitron-trt build {job.checkpoint.folder} -o {job.output} "
        f"--arch {job.recipe.target.name} --finish"
    )
    console.result(
        {"job": str(path), "submit": f"{submit} {path}", "finish": finish_it},
        f"{path}: submit with `{submit} {path}`; when it is done: {finish_it}",
    )


def _finish(console: Console, job: BuildJob) -> None:
    if not (job.output / CONFIG_NAME).is_file():
        raise BadInputError(f"{job.output} holds no engine yet; let the job finish first")
    finish(job, job.output, facts=image_facts(container_for(job.recipe.version)))
    console.result(
        {"engine": str(job.output), **job.recipe.to_json()},
        f"{job.output}: an engine for {job.recipe.target.label}",
    )
