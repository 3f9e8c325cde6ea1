"""A build as a job on a cluster's nodes: its name, its needs, and the script that runs there."""

from __future__ import annotations

import hashlib
import re
import shlex
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from minitron_trt.artifacts import CONFIG_NAME, MANIFEST_NAME
from minitron_trt.build.engine import rank_engine
from minitron_trt.build.job import BuildJob

# By judgement, not measured. --timeout sets another time, --sbatch anything else of Slurm's.
CPUS: Final = 8
TIME_LIMIT_S: Final = 4 * 3600
_GIB: Final = 1 << 30
# A label of Kubernetes has no more characters, and the names of a job's pods add some.
_LONGEST_NAME: Final = 52
_DIGEST: Final = 8
# Control characters, and bytes of a path that are no UTF-8.
_NO_TEXT: Final = ("Cc", "Cs")


@dataclass(frozen=True, slots=True)
class ClusterJob:
    """A build on a node with the target's GPUs."""

    build: BuildJob

    @property
    def checkpoint(self) -> Path:
        """Return the checkpoint's folder on this machine."""
        return self.build.checkpoint.folder.resolve()

    @property
    def output(self) -> Path:
        """Return the engine's folder on this machine, by a path that ends in its name."""
        output = self.build.output
        # `.` has no name, and `..` is none.
        return output.resolve() if output.name in ("", "..") else output

    @property
    def memory_gib(self) -> int:
        """Return the memory of the build, in whole GiB."""
        return -(-self.build.host_bytes // _GIB)

    @property
    def time_limit_s(self) -> int:
        """Return when the cluster ends the job, unless it is told in its own words."""
        return int(self.build.timeout_s or TIME_LIMIT_S)

    def named(self, render: Callable[[str], str]) -> tuple[str, str]:
        """Return the job's name and its file, which `render` makes of the name.

        The name ends in a digest of the file and of the checkpoint's manifest: another build is
        another job, and the same build is the same one, wherever it is written.
        """
        # A path may have bytes that are no UTF-8, which stay what they are, as in the file.
        digest = hashlib.sha256(render("").encode(errors="surrogateescape"))
        manifest = self.build.checkpoint.folder / MANIFEST_NAME
        if manifest.is_file():
            digest.update(manifest.read_bytes())
        recipe = self.build.recipe
        kind = f"{recipe.model.precision}-sm{recipe.target.sm}"
        room = _LONGEST_NAME - len(f"build--{kind}-") - _DIGEST
        model = re.sub(r"[^a-z0-9]+", "-", recipe.model.name.lower()).strip("-")[:room].strip("-")
        words = ("build", model, kind, digest.hexdigest()[:_DIGEST])
        name = "-".join(word for word in words if word)
        return name, render(name)


def fits_a_line(text: str) -> bool:
    """Say whether a text can stand in a line of a file: UTF-8 without control characters."""
    # Not str.isprintable, which has no space of Chinese and Japanese, nor what joins emoji.
    return not any(unicodedata.category(c) in _NO_TEXT for c in text)


def partial_of(output: PurePosixPath) -> PurePosixPath:
    """Return where an engine lies until it is whole, as `outputs.staged` has it."""
    return output.with_name(f".{output.name}.partial")


def building_script(
    output: PurePosixPath, run: Sequence[str], *, checkpoint: PurePosixPath, overwrite: bool
) -> list[str]:
    """Return the lines of bash that make an engine appear at `output` whole, or not at all.

    `run` ends with the command that builds in `$partial`, under a lock that dies with its process.
    What a killed job left there is swept by the next one.
    """
    return [
        "set -euo pipefail",
        f"checkpoint={shlex.quote(str(checkpoint))}",
        f"output={shlex.quote(str(output))}",
        f"partial={shlex.quote(str(partial_of(output)))}",
        'refuse() { echo "error: $1" >&2; exit 1; }',
        f'[ -f "$checkpoint/{CONFIG_NAME}" ] ||'
        ' refuse "$checkpoint holds no checkpoint; copy it there"',
        *(_REPLACEABLE if overwrite else _ABSENT),
        'mkdir -p -- "$partial"',
        'exec 9< "$partial"',
        # Only a conflict is one: a file system may have no locks.
        "flock --nonblock --conflict-exit-code 75 9 || [ $? != 75 ] ||"
        ' refuse "another job is writing $output; wait for it"',
        # What it holds and not the folder itself, which the lock is on.
        'find "$partial" -mindepth 1 -delete',
        "trap 'rm -rf -- \"$partial\"' EXIT",
        # bash heeds a signal while it waits, not while it runs a program.
        "trap 'kill $(jobs -p) 2> /dev/null; wait; exit 143' TERM",
        'cd -- "$partial"',
        *run[:-1],
        f"{run[-1]} &",
        "wait $!",
        f'[ -f "$partial/{rank_engine(0)}" ] ||'
        ' refuse "trtllm-build ended well and wrote no engine"',
        "cd /",
        *(_REPLACE if overwrite else ('mv -T -- "$partial" "$output"',)),
        'echo "$output is written"',
    ]


_ABSENT: Final = (
    'if [ -e "$output" ]; then',
    '    refuse "$output already exists; write the job again with --overwrite or another -o"',
    "fi",
)
_REPLACEABLE: Final = (
    'retired="$(dirname -- "$output")/.$(basename -- "$output").old"',
    f'if [ -e "$output" ] && [ ! -f "$output/{rank_engine(0)}" ]; then',
    '    refuse "$output is not an engine, so it is not replaced"',
    "fi",
)
_REPLACE: Final = (
    'rm -rf -- "$retired"',
    'if [ -e "$output" ]; then mv -T -- "$output" "$retired"; fi',
    'mv -T -- "$partial" "$output" || { mv -T -- "$retired" "$output"; exit 1; }',
    'rm -rf -- "$retired"',
)
