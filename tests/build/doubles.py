"""Doubles of the programs that a build starts: small scripts on the PATH, told what to do by files.

`trtllm-build` writes an engine folder as the real one does, `nvidia-smi` lists GPUs, `docker` runs
its command on this machine with the mounts put in place of the container's paths.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from tests.build.engines import BUILD

_BUILDER = """
import json, os, signal, sys, time
options = dict(a.removeprefix("--").partition("=")[::2] for a in sys.argv[1:])
home = os.path.dirname(os.path.abspath(__file__))
told = json.load(open(os.path.join(home, "told.json")))
open(os.path.join(home, "argv.json"), "w").write(json.dumps(sys.argv))
print("[TensorRT-LLM] TensorRT-LLM version: " + told["version"], flush=True)
print("[TRT-LLM] [I] Set gemm_plugin to auto.", flush=True)
print("[TRT-LLM] [I] Build TensorRT engine Unnamed Network 0", flush=True)
config = json.load(open(os.path.join(options["checkpoint_dir"], "config.json")))
out = options["output_dir"]
open(os.path.join(out, "partial"), "w").write("x")
if told["does"] == "hang":
    if os.fork() == 0:
        time.sleep(600)
    time.sleep(600)
if told["does"] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if told["does"] == "crash":
    os.kill(os.getpid(), signal.SIGSEGV)
if told["does"] == "fail":
    print("[TRT] [E] IBuilder::buildSerializedNetwork: Error Code 4: the network is invalid")
    print("Traceback (most recent call last):")
    sys.exit(1)
if told["does"] == "nothing":
    sys.exit(0)
os.unlink(os.path.join(out, "partial"))
build = {**told["build"], **{k: int(v) for k, v in options.items() if k.startswith("max_")}}
record = {"version": told["version"], "pretrained_config": config, "build_config": build}
open(os.path.join(out, "config.json"), "w").write(json.dumps(record))
for rank in range(config["mapping"]["world_size"]):
    open(os.path.join(out, f"rank{rank}.engine"), "wb").write(b"engine" * 1000)
if "output_timing_cache" in options:
    old = options.get("input_timing_cache")
    text = open(old).read() if old else ""
    open(options["output_timing_cache"], "w").write(text + "timed ")
print("[TRT-LLM] [I] Build phase peak memory: 512.25 MB, children: 14.21 MB")
print("[TRT-LLM] [I] Serializing engine to rank0.engine...")
"""
_SMI = """
import json, os
home = os.path.dirname(os.path.abspath(__file__))
print("\\n".join(json.load(open(os.path.join(home, "told.json")))["gpus"]))
"""
_DOCKER = """
import json, os, re, subprocess, sys
home = os.path.dirname(os.path.abspath(__file__))
told = json.load(open(os.path.join(home, "told.json")))["docker"]
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
places = {m[2]: m[1] for m in mounts if m}
start = args.index("trtllm-build")
command = []
for word in args[start:]:
    name, equals, value = word.partition("=")
    for inside, outside in places.items():
        if value == inside or value.startswith(inside + "/"):
            word = name + "=" + outside + value[len(inside):]
    command.append(word)
sys.exit(subprocess.run(command).returncode)
"""


class Doubles:
    """The programs' folder, first on the PATH and alone there, and what they are told to do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._told: dict[str, object] = {
            "does": "build",
            "version": "1.2.1",
            "build": BUILD,
            "gpus": ["NVIDIA H100 80GB HBM3, 9.0"],
            "docker": "works",
        }
        self.tell()

    def tell(self, **changes: object) -> None:
        """Change what they do."""
        self._told |= changes
        (self.folder / "told.json").write_text(json.dumps(self._told))

    def install(self, *names: str) -> None:
        """Put programs on the PATH."""
        programs = {"trtllm-build": _BUILDER, "nvidia-smi": _SMI, "docker": _DOCKER}
        for name in names:
            path = self.folder / name
            path.write_text(f"#!{sys.executable} -E\n{programs[name]}")
            path.chmod(0o755)

    @property
    def argv(self) -> list[str]:
        """Return what trtllm-build was called with last."""
        argv: list[str] = json.loads((self.folder / "argv.json").read_text())
        return argv

    @property
    def docker_calls(self) -> list[list[str]]:
        """Return what docker was called with."""
        path = self.folder / "docker.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]


def make_doubles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Doubles:
    """Return doubles on a PATH of their own, and a cache home that is not the user's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-home"))
    return Doubles(folder)


def install_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, name: str = "tensorrt-llm"
) -> None:
    """Make a package of a version look installed: its metadata, and nothing else."""
    info = tmp_path / "site" / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
