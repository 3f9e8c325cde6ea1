"""podman with images of a few programs, into whose containers the machine's own files are mounted.

Real are users, read-only roots, capabilities, limits, networks, names and the end of it all.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.podman_images import emptied

PROJECT: Final = Path(__file__).parents[2]
# podman with images, networks and limits of its own, and this machine's files in each container.
PODMAN: Final = """#!/bin/bash
podman=({real} --root={folder}/store --runroot={folder}/run --network-config-dir={folder}/networks
    --storage-driver=vfs --runtime=runc --cgroup-manager=cgroupfs)
[[ $1 == run || $1 == create ]] || exec "${{podman[@]}}" "$@"
words=("$1" --ulimit=nofile=1024:1024 --ulimit=nproc=1024:1024 {mounts})
shift
while (($#)); do
    if [[ $1 == --ulimit && $2 == memlock* && -n "{no_lock}" ]]; then shift 2; continue; fi
    words+=("$1")
    shift
done
exec "${{podman[@]}}" "${{words[@]}}"
"""


@contextmanager
def machine_podman(folder: Path, root: Path, names: Sequence[str]) -> Iterator[Path]:
    """Yield a program `podman` that has one image, of the folder `root`, by these names."""
    real = shutil.which("podman")
    assert real is not None, "Debian: podman runc catatonit"
    # Python lies in its prefix, the project where it was checked out; both go where they are.
    places = {"/usr", sys.base_prefix, sys.prefix, str(PROJECT)}
    outermost = [p for p in places if not any(p.startswith(f"{q}/") for q in places)]
    mounts = " ".join(f"--volume={place}:{place}:ro" for place in sorted(outermost))
    program = folder / "podman"
    # Where the system gives no locked memory, podman cannot either.
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1] == resource.RLIM_INFINITY
    program.write_text(
        PODMAN.format(real=real, folder=folder, mounts=mounts, no_lock="" if locked else "yes")
    )
    program.chmod(0o755)
    archive = shutil.make_archive(str(folder / "image"), "tar", root)
    with emptied(program, below=folder):
        for name in names:
            path = "ENV PATH=/programs:/usr/bin:/bin"
            command = [str(program), "import", "--change", path, archive, name]
            subprocess.run(command, check=True, capture_output=True)
        yield program


def lay_out(root: Path, programs: Mapping[str, str]) -> None:
    """Make the plain root file system of an image: folders, and programs by their texts."""
    for name in ("dev", "etc", "proc", "sys", "tmp", "usr", "programs"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (root / name).symlink_to(f"usr/{name}")
    # As in every image: whoever runs may write there.
    (root / "tmp").chmod(0o1777)
    python = {"python3": f'#!/bin/sh\nexec {sys.executable} "$@"\n'}
    for name, text in {**python, **programs}.items():
        (root / "programs" / name).write_text(text)
        (root / "programs" / name).chmod(0o755)
