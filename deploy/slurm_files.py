"""`--target slurm`: an sbatch script that serves until it is cancelled or its time is over."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Final

from minitron_trt.build.trtllm.cluster.slurm import (
    ALONE,
    APPTAINER,
    APPTAINER_CHECK,
    AS_ROOT,
    BARE,
    LAUNCH,
    PYXIS,
    PYXIS_CHECK,
    SlurmSettings,
    apptainer_image,
    gpu_check,
    pyxis_image,
)
from minitron_trt.deploy.deployment import Deployment
from minitron_trt.deploy.gateway_pod import gateway_argv
from minitron_trt.errors import UnsupportedError, UsageError
from minitron_trt.gateway.command import PORT
from minitron_trt.triton_repo.serving.command_line import MPIRUN_WRAPPER
from minitron_trt.triton_repo.serving.docker_launch import INSIDE, STOP_MARGIN_S
from minitron_trt.triton_repo.serving.server_options import ANYWHERE, LOCALHOST
from minitron_trt.yaml_text import Figure

SCRIPT_NAME: Final = "serve.sbatch"
_TIME: Final = "1-00:00:00"
_NEXT_RANK: Final = ":"
# A step does not inherit the processors of a task from its job.
_CPUS: Final = '--cpus-per-task="$SLURM_CPUS_PER_TASK"'


def slurm_files(deployment: Deployment, settings: SlurmSettings) -> dict[str, str]:
    """Return the script, and the program that it needs for several ranks of one node."""
    if deployment.nodes > 1 and settings.container == BARE:
        raise UnsupportedError(
            f"--container none has one node, {deployment.facts.repository} needs "
            f"{deployment.nodes}; use --container pyxis or apptainer"
        )
    files = {SCRIPT_NAME: _script(deployment, settings)}
    if deployment.facts.ranks > 1 and deployment.nodes == 1:
        files[MPIRUN_WRAPPER.name] = MPIRUN_WRAPPER.read_text(encoding="utf-8")
    return files


def _script(deployment: Deployment, settings: SlurmSettings) -> str:
    need = deployment.facts.gpu
    check = gpu_check(need.sm, need.gpu) if need else []
    lines = [
        "#!/bin/bash",
        *_options(deployment, settings),
        f"# Serves {deployment.facts.repository} until scancel, or until its time is over.",
        f"# The gateway answers on port {PORT} of the first node, if KEYS names a file of keys:",
        f"#   sbatch --export=ALL,KEYS=keys.txt {SCRIPT_NAME}",
        "set -euo pipefail",
        'refuse() { echo "error: $1" >&2; exit 1; }',
        f"repository={shlex.quote(deployment.facts.repository)}",
        '[ -f "$repository/minitron.json" ] || refuse "$repository holds no repository"',
        *check,
        # bash heeds a signal while it waits, not while it runs a program.
        "trap 'kill $(jobs -p) 2> /dev/null || true; wait; exit 0' TERM",
        *_RUNS[settings.container](deployment),
        # The first that ends, ends the job: neither server nor gateway is of use alone.
        "wait -n",
        "kill $(jobs -p) 2> /dev/null || true",
        "wait",
        'refuse "the server or its gateway ended by itself"',
    ]
    return "\n".join(lines) + "\n"


def _options(deployment: Deployment, settings: SlurmSettings) -> list[str]:
    drain = deployment.settings.drain_s
    several = deployment.nodes > 1
    tasks = Figure(deployment.node_ranks, "ranks of a node") if several else Figure(1, "")
    grace = Figure(drain + STOP_MARGIN_S, f"--drain {drain} + {STOP_MARGIN_S} to end")
    cpus = deployment.cpus()
    per_task = -(-int(cpus.value) // int(tasks.value))
    memory = deployment.memory()
    options = {
        "job-name": Figure(deployment.name, "--name"),
        "output": Figure(f"{deployment.name}-%j.log", ""),
        "time": Figure(settings.time or _TIME, "--time" if settings.time else "a day; --time"),
        "nodes": Figure(deployment.nodes, deployment.gpus().why),
        "ntasks-per-node": tasks,
        "cpus-per-task": Figure(per_task, cpus.why),
        "mem": Figure(str(memory.value).replace("Mi", "M"), memory.why),
        "signal": Figure(f"B:TERM@{grace.value}", grace.why),
    }
    if deployment.facts.gpu is not None:
        options["gpus-per-node"] = deployment.gpus()
    for name in ("partition", "account"):
        if value := getattr(settings, name):
            options[name] = Figure(shlex.quote(value), "")
    lines = []
    for name, figure in options.items():
        # Slurm reads no further than the first command, and takes no comment behind an option.
        lines += [f"# {figure.why}"] if figure.why else []
        lines.append(f"#SBATCH --{name}={figure.value}")
    return [*lines, *(f"#SBATCH {option}" for option in settings.sbatch)]


def _bare(deployment: Deployment) -> list[str]:
    """Return the lines that serve with what the node has: minitron-trt finds it."""
    serve = [
        *("minitron-trt", "serve", '"$repository"'),
        *("--drain", str(deployment.settings.drain_s)),
        *("--timeout", str(2 * deployment.startup_s())),
    ]
    words = f"--host {ANYWHERE} --port ${{PORT:-{PORT}}} --api-keys $KEYS"
    return [
        'command -v minitron-trt > /dev/null || refuse "this node has no minitron-trt on its PATH"',
        f'gateway=(); [ -z "${{KEYS:-}}" ] || gateway=(--gateway-options "{words}")',
        # What is given to the script is the server's.
        f'{" ".join(serve)} "${{gateway[@]}}" "$@" &',
    ]


def _pyxis(deployment: Deployment) -> list[str]:
    step = [
        f"--container-image={pyxis_image(deployment.facts.image)}",
        f'--container-mounts="{_mounts(deployment)}"',
        "--container-workdir=/tmp",
    ]
    return [*PYXIS_CHECK, *_gateway(deployment), *_server(deployment, step)]


def _apptainer(deployment: Deployment) -> list[str]:
    variables = ",".join(f"{name}={value}" for name, value in deployment.facts.environment.items())
    # By variables of Slurm and PMIx a rank knows which one it is.
    clean = "" if deployment.nodes > 1 else " --cleanenv"
    step = [
        f"apptainer exec --nv{clean} --no-home",
        f"--env={shlex.quote(variables)}",
        f'--bind="{_mounts(deployment)}"',
        "--pwd=/tmp",
        apptainer_image(deployment.facts.image),
    ]
    return [*APPTAINER_CHECK, *_gateway(deployment), *_server(deployment, step)]


def _mounts(deployment: Deployment) -> str:
    if {":", ","} & set(deployment.facts.repository):
        raise UsageError(
            f"{deployment.facts.repository}: a colon or comma in a path cannot be mounted in a "
            "job's container; rename, or use --container none"
        )
    mounts = [f"$repository:{deployment.facts.mount}:ro"]
    if deployment.facts.ranks > 1 and deployment.nodes == 1:
        wrapper = MPIRUN_WRAPPER.name
        mounts.append(f"$SLURM_SUBMIT_DIR/{wrapper}:{INSIDE / wrapper}:ro")
    return ",".join(mounts)


def _gateway(deployment: Deployment) -> list[str]:
    """Return the lines that run the gateway on the first node, outside of the image."""
    words = gateway_argv(deployment, LOCALHOST, keys='"$KEYS"')
    return ['if [ -n "${KEYS:-}" ]; then', f"    {' '.join(words)} &", "fi"]


def _server(deployment: Deployment, step: Sequence[str]) -> list[str]:
    """Return the step: mpirun below one task of one node, or a task of Slurm for each rank."""
    argv = deployment.facts.argv
    if deployment.nodes == 1:
        # argv has an mpirun of its own, and needs of ALONE that it hides Slurm's variables.
        run = [ALONE.replace("mpirun -n 1 ", ""), AS_ROOT] if deployment.facts.ranks > 1 else []
        launch = [LAUNCH] if run else []
        words = [*launch, *map(shlex.quote, argv)]
        return [*run, *_lines([f"srun {_CPUS}", *step, *words])]
    first, other = _ranks(argv)
    return [
        f"first={shlex.quote(shlex.join(first))}",
        f"other={shlex.quote(shlex.join(other))}",
        "export first other",
        AS_ROOT,
        # The names of shared memory differ, as ranks of a node share it.
        *_lines(
            [
                f"srun --mpi=pmix {_CPUS}",
                *step,
                'bash -c \'if [ "$SLURM_PROCID" = 0 ]; then eval "exec $first"; else '
                'eval "exec ${other//RANK/$SLURM_PROCID}"; fi\'',
            ]
        ),
    ]


def _ranks(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the command of rank 0, and that of any other, whose number RANK stands for."""
    parts: list[list[str]] = [[]]
    for word in argv:
        if word == _NEXT_RANK:
            parts.append([])
        else:
            parts[-1].append(word)
    programs = [part[part.index("-n") + 2 :] for part in parts]
    other = [word.replace("prefix1_", "prefixRANK_") for word in programs[1]]
    return programs[0], other


def _lines(words: Sequence[str]) -> list[str]:
    last = len(words) - 1
    return [
        "    " * bool(place) + word + (" \\" if place < last else " &")
        for place, word in enumerate(words)
    ]


_RUNS: Final = {BARE: _bare, APPTAINER: _apptainer, PYXIS: _pyxis}
