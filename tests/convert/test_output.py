"""Where the checkpoint goes: folders that are taken, foreign, unwritable or too small."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result
from tests.convert.plans import plan_of

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.convert.conversion import ConvertOptions
from minitron_trt.errors import OutputError, UsageError
from minitron_trt.outputs import check_output, staged, write_output

Command = Callable[..., Result]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "outputs" / "checkpoint"


def test_missing_parents_are_made(command: Command, tiny_llama: Path, output: Path) -> None:
    result = command("convert", tiny_llama, "-o", output / "deep" / "er")

    assert (result.exit_code, result.stderr) == (0, "")
    assert Checkpoint.open(output / "deep" / "er").spec.layers == 3


def test_an_output_that_exists_is_not_replaced(
    command: Command, tiny_llama: Path, output: Path
) -> None:
    output.mkdir(parents=True)
    result = command("convert", tiny_llama, "-o", output)

    assert (result.exit_code, result.stderr) == (
        2,
        f"error: {output} already exists; choose another folder or pass --overwrite\n",
    )
    assert list(output.parent.rglob("*")) == [output]


@pytest.mark.parametrize("before", ["checkpoint", "empty folder"])
def test_overwrite_replaces_what_is_ours_or_empty(
    before: str, command: Command, tiny_llama: Path, tiny_nemotron: Path, output: Path
) -> None:
    if before == "checkpoint":
        command("convert", tiny_nemotron, "-o", output, "--tp", "4")
    else:
        output.mkdir(parents=True)
    result = command("convert", tiny_llama, "-o", output, "--overwrite")

    assert (result.exit_code, result.stderr) == (0, "")
    assert Checkpoint.open(output).spec.architecture == "LlamaForCausalLM"
    assert list(output.parent.iterdir()) == [output]
    assert not (output / "rank1.safetensors").exists()


@pytest.mark.parametrize("foreign", ["folder", "file"])
def test_overwrite_never_replaces_what_is_foreign(
    foreign: str, command: Command, tiny_llama: Path, output: Path
) -> None:
    precious = output / "thesis.txt" if foreign == "folder" else output
    precious.parent.mkdir(parents=True)
    precious.write_text("precious")
    result = command("convert", tiny_llama, "-o", output, "--overwrite")

    assert (result.exit_code, result.stderr) == (
        2,
        f"error: {output} is not something this tool wrote, so it is not replaced\n",
    )
    assert list(output.parent.iterdir()) == [output]
    assert precious.read_text() == "precious"


def test_the_source_itself_is_never_replaced(command: Command, tiny_llama: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny_llama.iterdir()}
    result = command("convert", tiny_llama, "-o", tiny_llama, "--overwrite")

    assert result.exit_code == 2
    assert {path: path.stat().st_mtime_ns for path in tiny_llama.iterdir()} == before


def test_a_failed_overwrite_keeps_what_was_there(
    command: Command, tiny_llama: Path, tmp_path: Path, output: Path
) -> None:
    command("convert", tiny_llama, "-o", output)
    result = command("convert", tmp_path / "absent", "-o", output, "--overwrite")

    assert result.exit_code == 3
    assert Checkpoint.open(output).spec.layers == 3
    assert list(output.parent.iterdir()) == [output]


def test_a_link_as_output_is_followed(command: Command, tiny_llama: Path, output: Path) -> None:
    disk = output.parent / "disk"
    disk.mkdir(parents=True)
    output.symlink_to(disk / "checkpoint")
    result = command("convert", tiny_llama, "-o", output)

    assert (result.exit_code, result.stderr) == (0, "")
    assert output.is_symlink()
    assert list(disk.iterdir()) == [disk / "checkpoint"]


def test_a_folder_is_there_by_whatever_path(tmp_path: Path) -> None:
    """Nor is an input replaced where the path goes through a folder that is not there."""
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "weights").write_text("")
    path = tmp_path / "input" / "new" / ".."

    with pytest.raises(UsageError, match="already exists"):
        check_output(path, overwrite=False)
    with pytest.raises(UsageError, match="is the input"):
        check_output(path, overwrite=True, inputs=(tmp_path / "input",))


def test_a_link_that_leads_in_a_circle_is_refused(
    command: Command, tiny_llama: Path, output: Path
) -> None:
    output.parent.mkdir(exist_ok=True)
    output.symlink_to(output.name)
    result = command("convert", tiny_llama, "-o", output, "--overwrite")

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"error: cannot write {output}: its links lead in a circle\n"


@pytest.mark.parametrize("name", ["loop", "loop/file"])
def test_a_file_behind_such_a_link_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")

    with pytest.raises(OutputError, match=f"^cannot write {tmp_path / name}: "):
        write_output(tmp_path / name, "text")


@pytest.mark.parametrize(
    ("blocker", "reason"),
    [("parent", "File exists"), ("partial", "File exists"), ("link", "Not a directory")],
)
def test_what_stands_in_the_way_is_not_touched(
    blocker: str, reason: str, command: Command, tiny_llama: Path, output: Path
) -> None:
    output.parent.parent.mkdir(exist_ok=True)
    if blocker == "parent":
        output.parent.write_text("a file")
    else:
        output.parent.mkdir()
        partial = output.parent / ".checkpoint.partial"
        if blocker == "partial":
            partial.write_text("a file")
        else:
            (output.parent / "notes").mkdir()
            (output.parent / "notes" / "thesis.txt").write_text("precious")
            partial.symlink_to("notes")
    before = sorted(output.parent.rglob("*"))
    result = command("convert", tiny_llama, "-o", output)

    assert (result.exit_code, result.stderr) == (1, f"error: cannot write {output}: {reason}\n")
    assert sorted(output.parent.rglob("*")) == before


@pytest.mark.slow
def test_more_folders_than_python_has_calls_are_made(tmp_path: Path) -> None:
    path = tmp_path / ("d/" * 1200 + "out")
    with staged(path) as scratch:
        (scratch / "file").write_text("text")
    assert (path / "file").read_text() == "text"

    write_output(path / ("e/" * 300 + "page"), "text")
    with pytest.raises(OutputError, match="File name too long"), staged(path / ("e/" * 2000 + "x")):
        pass
    # Nor does shutil, which pytest clears up with, come so deep.
    subprocess.run(["rm", "-r", tmp_path / "d"], check=True)


def test_a_name_that_is_too_long_is_refused(command: Command, tiny_llama: Path) -> None:
    result = command("convert", tiny_llama, "-o", "x" * 300)

    assert (result.exit_code, result.stderr) == (
        1,
        f"error: cannot write {'x' * 300}: File name too long\n",
    )


Mount = Callable[[str], Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Return a mounter of a small disk in memory; it needs root, so the test may be skipped."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def call(options: str) -> Path:
        argv = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            subprocess.run(argv, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"NOT TESTED, no disk can be mounted here: {error}")
        return folder

    yield call
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_disk_is_one_line(command: Command, tiny_llama: Path, mount: Mount) -> None:
    output = mount("ro") / "checkpoint"
    result = command("convert", tiny_llama, "-o", output)

    assert (result.exit_code, result.stderr) == (
        1,
        f"error: cannot write {output}: Read-only file system\n",
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_one_line(
    command: Command, tiny_llama: Path, output: Path
) -> None:
    output.parent.mkdir(mode=0o500)
    result = command("convert", tiny_llama, "-o", output)

    assert (result.exit_code, result.stderr) == (
        1,
        f"error: cannot write {output}: Permission denied\n",
    )


def test_a_disk_that_is_too_small_is_refused_before_the_work(
    command: Command, tiny_llama: Path, mount: Mount
) -> None:
    disk = mount("size=64k")
    result = command("convert", tiny_llama, "-o", disk / "checkpoint")

    assert result.exit_code == 1
    said = r"error: the checkpoint needs 1\d\d kB but its disk has [\d.]+ kB free; .*\n"
    assert re.fullmatch(said, result.stderr)
    assert list(disk.iterdir()) == []


def test_a_disk_that_fills_up_on_the_way_keeps_nothing(
    command: Command, tiny_llama: Path, mount: Mount
) -> None:
    plan = plan_of(tiny_llama, ConvertOptions(tp=4))
    page = os.sysconf("SC_PAGE_SIZE")
    # Room for the tensors but not for the four headers.
    disk = mount(f"size={-(-plan.output_bytes // page) * page}")
    result = command("convert", tiny_llama, "-o", disk / "checkpoint", "--tp", "4")

    assert (result.exit_code, result.stderr) == (
        1,
        f"error: no space left for {disk / 'checkpoint'} (0.00 GB free on its disk); "
        "nothing was kept\n",
    )
    assert list(disk.iterdir()) == []


def test_a_sample_on_a_full_disk_is_one_line(command: Command, mount: Mount) -> None:
    disk = mount("size=64k")
    result = command("sample", "solar-llama", "-o", disk / "model")

    assert (result.exit_code, result.stderr) == (
        1,
        f"error: no space left for {disk / 'model'} (0.00 GB free on its disk); nothing was kept\n",
    )
    assert list(disk.iterdir()) == []


def test_overwrite_does_not_replace_what_is_of_another_kind(
    command: Command, tiny_llama: Path, output: Path
) -> None:
    command("convert", tiny_llama, "-o", output)
    result = command("convert", tiny_llama, "-o", output, "--format", "hf", "--overwrite")

    assert (result.exit_code, result.stderr) == (
        2,
        f"error: {output} is a checkpoint, not a huggingface, so it is not replaced; choose "
        "another folder\n",
    )
    assert Checkpoint.open(output).spec.layers == 3
