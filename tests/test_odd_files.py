"""Files and names that nobody expects: one line that says which, and never a hang."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from minitron_trt.build.cache import EngineCache
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.errors import BadInputError, OutputError, one_line
from minitron_trt.outputs import make_folder, output_errors, staged
from minitron_trt.samples import sample_folder
from minitron_trt.triton_repo.serving.server_log import ServerLog

Command = Callable[..., Result]
LONG = "x" * 300
PROGRAM = (sys.executable, "-m", "minitron_trt")


@pytest.fixture(scope="module")
def whole(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint to copy."""
    output = tmp_path_factory.mktemp("odd") / "checkpoint"
    convert(str(tiny_llama), output, ConvertOptions())
    return output


@pytest.fixture
def checkpoint(whole: Path, tmp_path: Path) -> Path:
    """Return a checkpoint to damage."""
    return shutil.copytree(whole, tmp_path / "checkpoint")


def only_line(result: Result) -> str:
    """Return the one line that a refused command printed."""
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr.removesuffix("\n")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\nb", r"a\nb"),
        ("\x1b[31mred\a", r"\x1b[31mred\x07"),
        ("\udcff", r"\udcff"),
        ("heads × size … größer", "heads × size … größer"),
        ("x" * 10_000_000, f"{'x' * 3000} … 9996000 characters … {'x' * 1000}"),
    ],
    ids=["newline", "control characters", "no UTF-8", "words", "10 MB"],
)
def test_a_message_is_one_line_that_a_terminal_shows(text: str, line: str) -> None:
    assert one_line(text) == line


@pytest.mark.parametrize("name", ["minitron.json", "config.json", "rank0.safetensors"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(
    name: str, checkpoint: Path, command: Command
) -> None:
    (checkpoint / name).unlink()
    os.mkfifo(checkpoint / name)
    result = command("plan", checkpoint, "--gpu", "H100")

    assert result.exit_code == 3
    assert f"{checkpoint}/{name} is " in only_line(result)


def test_a_pipe_among_the_files_of_a_model_is_named(
    tiny_llama: Path, command: Command, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    for name in ("tokenizer.json", "config.json", "generation_config.json", "notes.txt"):
        (model / name).unlink(missing_ok=True)
        os.mkfifo(model / name)
        result = command("convert", model, "-o", tmp_path / "output")

        assert result.exit_code == 3
        assert only_line(result).endswith(" is a pipe or a device; expected files only")
        (model / name).unlink()
        if (tiny_llama / name).exists():
            shutil.copy(tiny_llama / name, model / name)


def test_a_pipe_of_calibration_text_is_not_waited_for(
    tiny_llama: Path, command: Command, tmp_path: Path
) -> None:
    pytest.importorskip("modelopt", reason="calibration needs minitron-trt[quantize]")
    os.mkfifo(tmp_path / "text")
    arguments = ("--precision", "fp8", "--calib-data", tmp_path / "text")
    result = command("convert", tiny_llama, "-o", tmp_path / "output", *arguments)

    assert (result.exit_code, only_line(result)) == (
        3,
        f"error: {tmp_path}/text is a pipe or a device; expected a file of text",
    )


@pytest.mark.slow
def test_a_pipe_in_a_repository_is_a_finding(command: Command, tmp_path: Path) -> None:
    checkpoint, repository = tmp_path / "checkpoint", tmp_path / "repository"
    convert(str(sample_folder("solar-llama")), checkpoint, ConvertOptions())
    assert command("triton-repo", checkpoint, "-o", repository).exit_code == 0
    (repository / "ensemble" / "config.pbtxt").unlink()
    os.mkfifo(repository / "ensemble" / "config.pbtxt")
    result = command("check", repository)

    assert result.exit_code == 3
    assert "config.pbtxt is not a regular file" in result.stdout


@pytest.mark.slow
def test_what_a_user_may_not_read_is_named(
    checkpoint: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    """Root may read everything, unless it gives that right away as it does here."""
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    secret = tmp_path / "secret.pem"
    secret.write_text("")
    places = {
        model / "model-00001-of-00002.safetensors": ("convert", model, "-o", tmp_path / "o"),
        checkpoint / "rank0.safetensors": ("triton-repo", checkpoint, "-o", tmp_path / "o"),
        secret: ("generate", "hi", "--url", "grpcs://127.0.0.1:1", "--ca", secret),
    }
    for place, arguments in places.items():
        place.chmod(0)
        result = subprocess.run(
            (*unprivileged(), *PROGRAM, *map(str, arguments)), capture_output=True, text=True
        )

        assert (result.returncode, result.stderr) == (
            3,
            f"error: {place} cannot be read: Permission denied\n",
        )
        assert not (tmp_path / "o").exists()


def unprivileged() -> tuple[str, ...]:
    """Return what runs a program without root's right to read and write everything."""
    if os.geteuid():
        return ()
    if not shutil.which("setpriv"):
        pytest.skip("root may read everything, and there is no setpriv to give that away")
    rights = "-dac_override,-dac_read_search"
    return ("setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}")


def test_a_cache_that_cannot_be_one_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = EngineCache(tmp_path / LONG)

    assert not cache.fetch("key", tmp_path / "output")
    assert "the cache cannot be used" in caplog.text


def test_a_pipe_as_a_log_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")

    with pytest.raises(OutputError, match="it is a pipe, which waits for a reader"):
        ServerLog(tmp_path / "log", 1).open()


@pytest.mark.slow
def test_a_pipe_as_output_is_not_waited_for(command: Command, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "plot.svg")
    result = command("plan", "minitron-4b", "--gpu", "H100", "--plot", tmp_path / "plot.svg")

    assert result.exit_code == 1
    assert only_line(result) == (
        f"error: cannot write {tmp_path}/plot.svg: it is not a regular file"
    )


@pytest.mark.parametrize(
    "arguments",
    [("plan", LONG, "--gpu", "H100"), ("check", LONG), ("triton-repo", LONG, "-o", "o")],
    ids=lambda arguments: arguments[0],
)
def test_names_that_are_too_long_are_refused(arguments: tuple[str, ...], command: Command) -> None:
    result = command(*arguments)

    assert result.exit_code in (2, 3)
    assert LONG in only_line(result)


@pytest.mark.parametrize(
    ("name", "shown"), [("a\nb", r"a\nb"), ("\x1b[31m", r"\x1b[31m"), ("\udcff", r"\udcff")]
)
def test_odd_names_are_shown_escaped(name: str, shown: str, command: Command) -> None:
    for arguments in (
        ("check", name),
        ("convert", name, "-o", "o"),
        (name,),
        ("plan", "--" + name),
    ):
        result = command(*arguments)

        assert result.exit_code in (2, 3)
        assert shown in result.stderr
        assert name not in result.stderr


def test_a_checkpoint_of_a_source_whose_name_is_no_utf_8_opens(
    tiny_llama: Path, command: Command, tmp_path: Path
) -> None:
    source, output = tmp_path / "\udcff", tmp_path / "\udcfe"
    shutil.copytree(tiny_llama, source)

    assert command("convert", source, "-o", output).exit_code == 0
    assert command("build", output, "--arch", "hopper", "--dry-run").exit_code == 0
    assert json.loads((output / "minitron.json").read_text())["source"]["path"].endswith("\\udcff")


def test_what_cannot_be_read_is_an_inputs_name_not_the_outputs(tmp_path: Path) -> None:
    refusal = OSError(errno.EACCES, "Permission denied", str(tmp_path / "model" / "a"))
    with pytest.raises(BadInputError) as caught, staged(tmp_path / "output"):
        raise refusal

    assert str(caught.value) == f"{tmp_path}/model/a cannot be read: Permission denied"


@pytest.mark.parametrize("place", ["output", ".output.partial/deep", ".", "output/deep"])
def test_a_refusal_at_the_output_is_the_outputs(place: str, tmp_path: Path) -> None:
    output = tmp_path / "output"
    with pytest.raises(OutputError, match=f"cannot write {output}: "), output_errors(output):
        raise OSError(errno.EACCES, "Permission denied", str(tmp_path / place))


def test_an_output_in_proc_is_one_line(tiny_llama: Path, command: Command) -> None:
    result = command("convert", tiny_llama, "-o", "/proc/x")

    assert (result.exit_code, only_line(result)) == (
        1,
        "error: cannot write /proc/x: No such file or directory",
    )


def test_a_link_that_leads_in_a_circle_is_no_repository(command: Command, tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    result = command("serve", loop, "--grpc-tls-cert", loop, "--grpc-tls-key", loop)

    assert (result.exit_code, only_line(result)) == (
        3,
        f"error: {loop} is not a folder; expected a repository written by this tool",
    )


def test_a_folder_in_proc_is_one_line() -> None:
    with pytest.raises(OutputError, match=r"^cannot write /proc/x: No such file or directory$"):
        make_folder(Path("/proc/x"))


@pytest.mark.slow
def test_a_file_that_may_not_grow_is_one_line(tiny_llama: Path, tmp_path: Path) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    arguments = (*PROGRAM, "convert", str(tiny_llama), "-o", str(tmp_path / "output"))
    result = subprocess.run(arguments, preexec_fn=limit, capture_output=True, text=True)

    assert (result.returncode, result.stderr) == (
        1,
        f"error: cannot write {tmp_path}/output: File too large\n",
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("--help",), ("plan", "minitron-4b", "--gpu", "H100")])
def test_a_full_disk_behind_stdout_is_one_line(arguments: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            (*PROGRAM, *arguments), stdout=full, stderr=subprocess.PIPE, text=True
        )

    assert (result.returncode, result.stderr) == (
        1,
        "error: the output cannot be written: No space left on device\n",
    )


def test_sigterm_cleans_up_as_ctrl_c_does(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "import minitron_trt.samples.command as command\n"
        "from minitron_trt.cli import main\n"
        # In many short sleeps: a signal that comes just before one is heeded after it.
        "command.copy_tree = lambda *a: [print('at work', flush=True),"
        " [time.sleep(0.05) for _ in range(1200)]]\n"
        f"main(['sample', 'solar-llama', '-o', {str(tmp_path / 'model')!r}])\n"
    )
    argv = (sys.executable, "-c", program)
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        process.terminate()
        start = time.monotonic()
        _, stderr = process.communicate(timeout=60)

    assert (process.returncode, stderr) == (143, "interrupted\n")
    assert time.monotonic() - start < 30
    assert list(tmp_path.iterdir()) == []
