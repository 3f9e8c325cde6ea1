"""`minitron-trt generate`, from the arguments to the exit code."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result
from tests.patience import PATIENCE_S, longer_and_longer

from minitron_trt.cli import main

if TYPE_CHECKING:
    from tests.clients.conftest import TritonDouble


def run(*args: str, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(main, ["generate", *args], input=stdin)


def test_the_answer_is_the_output(triton: TritonDouble) -> None:
    result = run("say héllo wörld 🙂", "--url", triton.url)

    assert (result.exit_code, result.stdout, result.stderr) == (0, "héllo wörld 🙂\n", "")


def test_every_option_reaches_the_server(triton_http: TritonDouble) -> None:
    options = {
        "--max-tokens": 3,
        "--temperature": 0.5,
        "--top-k": 4,
        "--top-p": 0.9,
        "--seed": 5,
        "--end-id": 6,
        "--min-tokens": 7,
        "--repetition-penalty": 1.5,
        "--presence-penalty": 0.25,
        "--frequency-penalty": 0.75,
        "--beam-width": 1,
        "--length-penalty": 2.0,
        "--num-return-sequences": 1,
    }
    words = ["--stop-word", "a", "--stop-word", "b", "--bad-word", "c", "--chat", "--log-probs"]
    flat = [str(part) for option in options.items() for part in option]

    result = run("say hi", *flat, *words, "--model", "tensorrt_llm_bls", "--url", triton_http.url)

    sent = triton_http.requests[0]
    assert result.exit_code == 0
    assert {name: value for name, value in sent.items() if name != "id"} == {
        "model": "tensorrt_llm_bls",
        "text_input": "say hi",
        "max_tokens": 3,
        "temperature": 0.5,
        "top_k": 4,
        "top_p": 0.9,
        "seed": 5,
        "stop_words": ["a", "b"],
        "bad_words": ["c"],
        "end_id": 6,
        "min_tokens": 7,
        "repetition_penalty": 1.5,
        "presence_penalty": 0.25,
        "frequency_penalty": 0.75,
        "beam_width": 1,
        "length_penalty": 2.0,
        "num_return_sequences": 1,
        "apply_chat_template": True,
        "return_log_probs": True,
        "stream": True,
    }


@pytest.mark.parametrize(
    ("options", "chunks"), [([], 2), (["--no-stream"], 1)], ids=["streamed", "at once"]
)
def test_json_is_one_object_with_the_times(
    triton_http: TritonDouble, options: list[str], chunks: int
) -> None:
    result = run("say one two", "--json", "--url", triton_http.url, *options)

    record = json.loads(result.stdout)
    assert 0 < record.pop("first_chunk_s") <= record.pop("total_s") < 5
    assert record == {
        "text": "one two",
        "finish_reason": None,
        "prompt_tokens": None,
        "completion_tokens": None,
        "model": "ensemble",
        "url": triton_http.url,
        "chunks": chunks,
    }


@pytest.mark.parametrize("args", [[], ["-"]], ids=["no prompt", "dash"])
def test_the_prompt_is_read_from_standard_input(triton: TritonDouble, args: list[str]) -> None:
    result = run(*args, "--url", triton.url, stdin="say a\nb\n\n")

    assert result.stdout == "a\nb\n\n"
    assert triton.requests[0]["text_input"] == "say a\nb\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--url", "ftp://host:1"], "'ftp://host:1' is not the URL of a server; expected"),
        (["--timeout", "0"], "total_s is 0.0; expected a number of seconds above 0"),
        (["--seed", "-1"], "seed is -1; expected a whole number from 0"),
        (["--header", "token"], "--header is 'token'; expected NAME=VALUE"),
        (["--header", "x=a\nb"], "the header x is 'a\\nb'; expected printable ASCII text"),
        (["--header", "x=ü"], "the header x is 'ü'; expected printable ASCII text"),
        (["--header", "a b=c"], "the header 'a b' cannot be sent; expected a name of letters"),
        (["--header", "Content-Length=5"], "the header 'Content-Length' cannot be sent; expected"),
        (["--header", "grpc-timeout=5"], "the header 'grpc-timeout' cannot be sent; expected"),
        (["--header", "x-bin=5"], "the header 'x-bin' cannot be sent; expected"),
        (["--retries", "-1"], "max_retries is -1; expected 0 or more"),
        (["--first-token-timeout", "0"], "first_token_s is 0.0; expected a number of seconds"),
        (["--input-ids", "1,x"], "--input-ids is '1,x'; expected token ids like 1,2,3"),
        (["--input-ids", "1,2"], "text_input and input_ids are both set; a prompt is one of them"),
        (["--ca", "absent.pem"], "absent.pem is not a file; expected one in PEM form"),
        (["--key", __file__], "a client certificate and its key go together; give both"),
        (["--ca", __file__], "grpc://127.0.0.1:8001 does not use TLS, so certificates have no"),
        (
            ["--ca", __file__, "--url", "https://localhost:1"],
            f"{__file__} is not a certificate in PEM form",
        ),
        (
            ["--ca", __file__, "--url", "grpcs://localhost:1"],
            f"{__file__} is not a certificate in PEM form",
        ),
        (
            ["--certificate", __file__, "--key", __file__, "--url", "grpcs://localhost:1"],
            f"{__file__} with the key {__file__} cannot be used; expected a certificate and its "
            "own key, in PEM form",
        ),
    ],
)
def test_a_senseless_option_is_a_usage_error(args: list[str], message: str) -> None:
    result = run("hello", *args)

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1


def test_bytes_that_are_no_text_are_a_usage_error() -> None:
    result = run(stdin=b"\xff\xfe")

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: standard input is not UTF-8 text (")


@pytest.mark.parametrize("scheme", ["grpc", "http"])
@pytest.mark.parametrize("where", ["closed_port", "silent_port", "web_port", "other_grpc_port"])
def test_without_a_server_the_exit_code_is_6(
    request: pytest.FixtureRequest, scheme: str, where: str
) -> None:
    url = f"{scheme}://127.0.0.1:{request.getfixturevalue(where)}"

    result = run("hello", "--url", url, "--timeout", "0.4")

    assert (result.exit_code, result.stdout) == (6, "")
    assert result.stderr.startswith(f"error: no Triton server answers at {url} (")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("prompt", "code", "stdout", "stderr"),
    [
        (
            "refuse top_k is -3; expected 0 or more",
            7,
            "",
            "error: the server refused the request: in ensemble 'ensemble', top_k is -3; "
            "expected 0 or more and a second line\n",
        ),
        ("fail half an", 7, "half an\n", "error: the server refused the request: broke midway\n"),
        (
            "stall half an",
            6,
            "half an\n",
            "error: the answer from {url} was not complete after {seconds} s; "
            "ask for fewer tokens or raise the timeout\n",
        ),
    ],
    ids=["at once", "midway", "too slow"],
)
def test_a_refusal_is_exit_code_7_and_a_timeout_6(
    triton: TritonDouble, prompt: str, code: int, stdout: str, stderr: str
) -> None:
    for seconds in longer_and_longer(0.4):
        result = run(prompt, "--url", triton.url, "--timeout", str(seconds))
        if result.stdout == stdout:
            break

    assert (result.exit_code, result.stdout) == (code, stdout)
    assert result.stderr == stderr.format(url=triton.url, seconds=seconds)


@pytest.mark.slow
def test_interrupting_cancels_the_request(triton: TritonDouble) -> None:
    command = [sys.executable, "-m", "minitron_trt", "generate", "forever on", "--url", triton.url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    # Text that has come through a pipe was flushed.
    first = process.stdout.read(2)
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=PATIENCE_S)

    assert (first, process.returncode, stderr) == ("on", 130, "interrupted\n")
    assert triton.cancelled.wait(PATIENCE_S)


def test_an_option_that_the_model_lacks_is_exit_code_7(triton: TritonDouble) -> None:
    del triton.model.inputs["top_k"]

    result = run("say hi", "--top-k", "3", "--url", triton.url)

    assert (result.exit_code, result.stdout) == (7, "")
    assert result.stderr.startswith("error: the model 'ensemble' has no input top_k; leave it out")
    assert result.stderr.count("\n") == 1


def test_token_ids_are_printed_as_they_come(triton: TritonDouble) -> None:
    triton.model.inputs = dict.fromkeys(("input_ids", "input_lengths", "max_tokens"), "INT32")
    triton.model.required = ("input_lengths",)
    triton.model.outputs = ("output_ids", "sequence_length")
    args = ("--model", "tensorrt_llm", "--url", triton.url)

    result = run("--input-ids", "5, 6 7", *args)
    text = run("say hi", *args)

    assert (result.exit_code, result.stdout) == (0, "5 6 7\n")
    assert (text.exit_code, text.stdout) == (7, "")
    assert "takes token ids and no text; give input_ids" in text.stderr


ESCAPES = "hi\x1b]0;pwned\x07\x1b[2J\x9b31m\tred\r\x08"


def on_terminal(*args: str) -> str:
    """Return what a terminal gets to see of the command's output and errors."""
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "minitron_trt", "generate", *args]
    process = subprocess.Popen(command, stdout=end, stderr=end, stdin=subprocess.DEVNULL)
    os.close(end)
    shown = b""
    with contextlib.suppress(OSError):  # Linux's way to say that nobody has the other end
        while data := os.read(terminal, 65536):
            shown += data
    process.wait(PATIENCE_S)
    os.close(terminal)
    return shown.decode().replace("\r\n", "\n")


@pytest.mark.slow
def test_a_terminal_is_shown_what_it_would_obey(triton_http: TritonDouble) -> None:
    visible = r"hi\x1b]0;pwned\x07\x1b[2J\x9b31m" + "\t" + r"red\r\x08"

    shown = on_terminal(f"say {ESCAPES}", "--url", triton_http.url)
    refused = on_terminal(f"refuse {ESCAPES}", "--url", triton_http.url)

    assert shown == f"{visible}\n"
    assert r"hi\x1b]0;pwned\x07\x1b[2J\x9b31m red \x08" in refused


def test_a_pipe_and_json_get_the_text_as_it_is(triton_http: TritonDouble) -> None:
    piped = run(f"say {ESCAPES}", "--url", triton_http.url)
    as_json = run(f"say {ESCAPES}", "--json", "--url", triton_http.url)

    assert piped.stdout == f"{ESCAPES}\n"
    assert json.loads(as_json.stdout)["text"] == ESCAPES
