"""Doubles of what surrounds a server: a Triton installation, mpirun, docker, GPUs.

The tritonserver in them is the real one of the nvidia-pytriton wheel, under the name and in the
folders where NVIDIA's image has it; `mpirun` and `docker` are small scripts that do to it what the
real ones do, as far as starting and stopping goes.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from minitron_trt.triton_repo.serving.installation import find_embedded

# As Open MPI: a process group and a tag per rank, SIGTERM passed on with a second's patience,
# one rank's failure ends all.
_MPIRUN = """
import os, signal, subprocess, sys, threading, time
words = sys.argv[1:]
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "mpirun.argv"), "w") as file:
    file.write("\\n".join(words))
segments, tag = [[]], "--tag-output" in words
for word in words[words.index("-n"):]:
    segments.append([]) if word == ":" else segments[-1].append(word)
ranks = []
for rank, segment in enumerate(segments):
    environment = {**os.environ, "OMPI_COMM_WORLD_RANK": str(rank)}
    ranks.append(subprocess.Popen(segment[2:], env=environment, process_group=0, text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
def copy(rank, process):
    for line in process.stdout:
        print(f"[1,{rank}]<stdout>:{line}" if tag else line, end="", flush=True)
for item in enumerate(ranks):
    threading.Thread(target=copy, args=item, daemon=True).start()
def end(*_):
    for process in ranks:
        process.terminate()
    time.sleep(1)
    for process in ranks:
        process.kill()
    os._exit(143)
signal.signal(signal.SIGTERM, end)
while any(process.poll() is None for process in ranks):
    if any(process.poll() for process in ranks):
        end()
    time.sleep(0.05)
"""
# Runs the container's command on this machine, with the mounts' paths put in place.
_DOCKER = """
import json, os, re, signal, subprocess, sys
home = os.path.dirname(os.path.abspath(__file__))
told = open(os.path.join(home, "docker.told")).read()
args = sys.argv[1:]
with open(os.path.join(home, "docker.jsonl"), "a") as file:
    file.write(json.dumps(args) + "\\n")
if args[0] == "info":
    sys.exit(told == "no daemon")
if args[:2] == ["image", "inspect"]:
    sys.exit(told == "no image")
if args[0] == "rm":
    sys.exit(0)
if told == "no gpus":
    print('docker: could not select device driver "" with capabilities: [[gpu]]')
    sys.exit(125)
pattern = r"--mount=type=bind,source=(.*),target=([^,]*)(,readonly)?"
mounts = [re.fullmatch(pattern, a) for a in args]
places = sorted(((m[2], m[1]) for m in mounts if m), reverse=True)
image = next(i for i, a in enumerate(args) if a.startswith("nvcr.io/"))
command = args[image + 1:]
for n, word in enumerate(command):
    for inside, outside in places:
        word = re.sub(f"(^|=){re.escape(inside)}(?=/|$)", lambda m: m[1] + outside, word)
    command[n] = word
container = subprocess.Popen(command)
signal.signal(signal.SIGTERM, lambda *_: container.terminate())
sys.exit(container.wait())
"""
_LLMAPI_LAUNCH = "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])"
_SMI = 'print("NVIDIA H100 80GB HBM3, 9.0\\nNVIDIA H100 80GB HBM3, 9.0")'


class Doubles:
    """The programs' folder, to be put first on the PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "docker.told").write_text("works")

    def install(self, *names: str) -> None:
        """Put programs on the PATH."""
        programs = {
            "mpirun": _MPIRUN,
            "docker": _DOCKER,
            "trtllm-llmapi-launch": _LLMAPI_LAUNCH,
            "nvidia-smi": _SMI,
        }
        for name in names:
            self._write(self.folder / name, programs[name])

    def install_triton(self, *backends: str) -> Path:
        """Put a Triton installation in place: the embedded one's parts in the usual folders."""
        found = find_embedded()
        root = self.folder.parent / "tritonserver"
        for link, target in found.backend_links(root / "backends").items():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target)
        for backend in backends:
            (root / "backends" / backend).mkdir()
        (root / "bin").mkdir()
        libraries = found.environment["LD_LIBRARY_PATH"]
        # The real one looks for its backends in /opt/tritonserver.
        option = f"--backend-directory={root / 'backends'}"
        self._write(
            root / "bin/tritonserver",
            f"import os, sys; os.environ['LD_LIBRARY_PATH'] = {libraries!r}\n"
            f"os.execv({str(found.binary)!r}, [sys.argv[0], {option!r}, *sys.argv[1:]])",
        )
        (self.folder / "tritonserver").symlink_to(root / "bin/tritonserver")
        return root

    def tell_docker(self, state: str) -> None:
        """Have docker work, or lack a daemon, an image or GPUs."""
        (self.folder / "docker.told").write_text(state)

    @property
    def path(self) -> str:
        """Return a PATH of the doubles, this Python and the system's programs."""
        places = (self.folder, Path(sys.executable).parent, "/usr/bin", "/bin")
        return os.pathsep.join(str(place) for place in places)

    @property
    def mpirun_argv(self) -> list[str]:
        """Return what mpirun was called with."""
        return (self.folder / "mpirun.argv").read_text().split("\n")

    @property
    def docker_calls(self) -> list[list[str]]:
        """Return what docker was called with."""
        path = self.folder / "docker.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def _write(self, path: Path, program: str) -> None:
        path.write_text(f"#!{sys.executable} -E\n{program}\n")
        path.chmod(0o755)
