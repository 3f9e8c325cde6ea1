"""`minitron-trt gateway` as its user meets it."""

from __future__ import annotations

import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpcore2
import pytest
from click.testing import Result
from tests.certificates import self_signed
from tests.gateway.conftest import UPSTREAM, EchoDouble, running_gateway
from tests.patience import PATIENCE_S

from minitron_trt.chat_templates import read_template
from minitron_trt.clients.endpoint import Access, Endpoint
from minitron_trt.clients.messages import GenerateRequest
from minitron_trt.errors import UsageError
from minitron_trt.gateway.gateway_server import Listener
from minitron_trt.gateway.openai_fields import ChatMessage, ChatRequest
from minitron_trt.gateway.openai_requests import ModelTarget, asked_chat
from minitron_trt.triton_repo.serving.server_options import Tls


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--host", "0.0.0.0"), "give --api-keys FILE"),
        (("--tls-cert", "cert.pem"), "both --tls-cert and --tls-key"),
        (("--model", "=ensemble"), "NAME=MODEL"),
        (("--chat-template", "none.jinja"), "cannot be used"),
        (("--url", "ftp://host"), "not the URL of a server"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_a_line(
    command: Callable[..., Result], options: tuple[str, ...], words: str
) -> None:
    result = command("gateway", *options)

    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate of this machine, and its key."""
    return self_signed(tmp_path)


def test_a_certificate_that_is_none_is_refused_before_the_address_is_told(
    command: Callable[..., Result], certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    cert, key = certificate
    text = tmp_path / "text.pem"
    text.write_text("no certificate")
    for files in ((text, key), (cert, text), (cert, cert)):
        result = command("gateway", "--port", 0, "--tls-cert", files[0], "--tls-key", files[1])

        assert (result.exit_code, result.stdout) == (2, "")
        assert "expected a certificate and its own key, in PEM form" in result.stderr
        assert result.stderr.count("\n") == 1


def test_an_encrypted_key_is_refused_and_nobody_asked(
    command: Callable[..., Result], certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    cert, key = certificate
    closed = tmp_path / "closed.pem"
    encrypted = ("-aes256", "-passout", "pass:word", "-in", str(key), "-out", str(closed))
    subprocess.run(["openssl", "pkey", *encrypted], check=True)
    result = command("gateway", "--port", 0, "--tls-cert", cert, "--tls-key", closed)

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"error: the key {closed} is encrypted; expected one without a passphrase, that its owner "
        "alone can read: openssl pkey -in KEY -out PLAIN_KEY\n"
    )
    # A client's key, and Triton's own.
    with pytest.raises(UsageError, match="is encrypted"):
        Access(certificate=cert, key=closed).check(Endpoint.parse("grpcs://localhost:1"))
    with pytest.raises(UsageError, match="is encrypted"):
        Tls(cert, closed).check()


def test_the_gateway_speaks_https(certificate: tuple[Path, Path]) -> None:
    listener = Listener(port=0, certificate=certificate[0], key=certificate[1], drain_s=5)
    with running_gateway(EchoDouble(), listener=listener) as gateway:
        tls = ssl.create_default_context(cafile=certificate[0])
        with httpcore2.ConnectionPool(ssl_context=tls) as pool:
            reply = pool.request("GET", f"{gateway.url}/health")

    assert gateway.url.startswith("https://127.0.0.1:")
    assert (reply.status, reply.content) == (200, b'{"status":"ok"}')


def test_a_port_that_is_taken_is_named(command: Callable[..., Result]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = command("gateway", "--port", taken.getsockname()[1])

    assert result.exit_code == 2
    assert "Address already in use" in result.stderr


def test_a_template_with_a_fault_is_refused(command: Callable[..., Result], tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text("{% for message in messages %}")
    result = command("gateway", "--chat-template", path)

    assert result.exit_code == 2
    assert "chat.jinja" in result.stderr


def test_a_template_makes_the_prompt_in_the_gateway(tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>")
    target = ModelTarget("ensemble", UPSTREAM, 99, read_template(str(path)))
    fields = ChatRequest(model="m", messages=[ChatMessage(role="user", content="Hello")])
    (request,) = asked_chat(fields, target).requests

    assert isinstance(request, GenerateRequest)
    assert request.text_input == "<user>Hello<assistant>"
    assert request.apply_chat_template is None
    assert request.max_tokens == 99


def test_a_familys_template_ends_the_answer_beside_the_clients_own_words() -> None:
    target = ModelTarget("ensemble", UPSTREAM, 99, read_template("nemotron"))
    messages = [ChatMessage(role="user", content="Hello")]
    (request,) = asked_chat(ChatRequest(model="m", messages=messages, stop=["."]), target).requests

    assert request.stop_words == (".", "<extra_id_1>")


@pytest.mark.slow
def test_sigterm_ends_it_well(tmp_path: Path) -> None:
    argv = (sys.executable, "-m", "minitron_trt", "gateway", "--port", "0", "--json")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split('"openai": "')[1].split("/v1")[0]
        assert httpcore2.request("GET", f"{url}/health").status in (200, 503)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize(
    ("limits", "raised"), [("(300, 4096)", 1456), ("(300, 1000)", 1000), ("(2000, 4096)", 2000)]
)
def test_every_sequence_may_have_two_connections(limits: str, raised: int) -> None:
    program = (
        "import resource; from minitron_trt.gateway.gateway_server import allow_open_files\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, {limits})\n"
        "allow_open_files(600); print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, check=True, text=True
    )

    assert int(done.stdout) == raised
