"""podman with images of its own, of which nothing stays behind."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def emptied(podman: Path, *, below: Path) -> Iterator[None]:
    """Have a program `podman` drop its containers, networks, mounts and images at the end.

    All of them lie below a folder. The end is also that of this process, should it be killed: what
    drops them waits until its input is closed.
    """
    command = ["sh", "-c", 'cat > /dev/null; exec "$0" system reset --force', str(podman)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as reset:
        yield
        said = reset.communicate()[1]
    assert reset.returncode == 0, said
    assert str(below) not in Path("/proc/mounts").read_text(encoding="utf-8")
