"""`minitron-trt chat` with a served sample: on a terminal, as a person types, and from a pipe."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from click.testing import CliRunner
from tests.patience import PATIENCE_S, until
from tests.triton_repo.conftest import Served

from minitron_trt.cli import main

pytestmark = [
    pytest.mark.server,
    pytest.mark.parametrize("served", ["solar-llama"], indirect=True),
]
MARS = "Complete the paragraph: Mars is"


@pytest.fixture
def template(tmp_path: Path) -> str:
    """A template for a model that knows no turns: the last message alone is the prompt."""
    path = tmp_path / "last.jinja"
    path.write_text("{{ messages[-1].content }}")
    return str(path)


# Typing Ctrl-C reaches the program whose terminal it is.
ON_ITS_TERMINAL: Final = (
    "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    "from minitron_trt.cli import main; main()"
)


class Terminal:
    """A chat on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self._end, terminal = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-c", ON_ITS_TERMINAL, "chat", *arguments],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env={**os.environ, "TERM": "xterm"},
            start_new_session=True,
        )
        os.close(terminal)
        self.shown = ""

    def is_over(self) -> bool:
        """Take what is shown now; True when nothing more will be."""
        if not select.select([self._end], [], [], 0)[0]:
            return False
        try:
            self.shown += os.read(self._end, 65536).decode(errors="replace").replace("\r", "")
        except OSError:  # Linux's way to say that nobody has the other end
            return True
        return False

    def expect(self, text: str) -> None:
        """Wait until a text is shown after all that was expected before, and forget up to it."""
        until(lambda: text in self.shown or self.is_over())
        before, found, self.shown = self.shown.partition(text)
        assert found, before

    def type(self, text: str) -> None:
        """Type something."""
        os.write(self._end, text.encode())

    def end(self) -> int:
        """Wait for the end, and return the exit code."""
        until(self.is_over)
        os.close(self._end)
        return self._process.wait(PATIENCE_S)


def test_a_talk_on_a_terminal(served: Served, template: str, tmp_path: Path) -> None:
    terminal = Terminal("--url", served.endpoints.grpc_url, "--chat-template", template)
    terminal.expect("ensemble answers; /help lists the commands")
    terminal.expect(">>> ")
    terminal.type("Complete the nothing\x03")
    terminal.expect("(Ctrl-D or /quit ends the conversation)")
    terminal.expect(">>> ")
    terminal.type(f"{MARS}\r")
    terminal.expect(" a cold desert world about half as wide as Earth.")
    terminal.expect(" tokens/s, first after ")
    # An answer that goes on far beyond the time that it takes to stop it.
    terminal.type("/set min_tokens 1500\r")
    terminal.type("/set max_tokens 1600\r")
    terminal.expect("max_tokens 1600")
    terminal.type("/retry\r")
    terminal.expect(" a cold desert world")
    terminal.type("\x03")
    terminal.expect("stopped]")
    terminal.type(f"/save {tmp_path / 'talk.json'}\r")
    terminal.expect("2 messages in ")
    terminal.expect(">>> ")
    terminal.type("\x04")

    assert terminal.end() == 0
    question, answer = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))
    assert question == {"role": "user", "content": MARS}
    assert answer["content"].startswith(" a cold desert world")


def test_lines_of_a_pipe_are_a_talk(served: Served, template: str) -> None:
    options = ["--url", served.endpoints.http_url, "--chat-template", template, "--json", "-q"]
    result = CliRunner().invoke(
        main,
        ["chat", *options, "--system", "Go on.", "--max-tokens", "5"],
        input=f"{MARS}\n{MARS}\n",
    )
    record = json.loads(result.stdout)
    turn = [
        {"role": "user", "content": MARS},
        {"role": "assistant", "content": " a cold deser"},
    ]

    assert (result.exit_code, result.stderr) == (0, "")
    assert record["messages"] == [{"role": "system", "content": "Go on."}, *turn, *turn]
    assert [answer["completion_tokens"] for answer in record["answers"]] == [5, 5]
    assert [answer["finish_reason"] for answer in record["answers"]] == ["length", "length"]


def test_a_base_model_is_told_to_need_a_template(served: Served) -> None:
    result = CliRunner().invoke(main, ["chat", "--url", served.endpoints.grpc_url], input="Hi\n")

    assert (result.exit_code, result.stdout) == (7, "")
    assert result.stderr == (
        "error: the model 'ensemble' has no chat template, as base models have none; give one with "
        "--chat-template FILE, or a family's plain one: llama, nemotron or mistral\n"
    )


def test_sigterm_ends_a_talk(served: Served, template: str) -> None:
    url = served.endpoints.grpc_url
    argv = [sys.executable, "-m", "minitron_trt", "chat", "--url", url, "--chat-template", template]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(f"{MARS}\n")
        process.stdin.flush()
        assert " tokens/s" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)

        assert process.wait(PATIENCE_S) == 143
