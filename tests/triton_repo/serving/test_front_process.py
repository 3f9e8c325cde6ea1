"""What `serve` starts before Triton, and what it refuses before a model is converted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from minitron_trt.errors import UsageError
from minitron_trt.samples import sample_folder
from minitron_trt.triton_repo.serving.command import model_name
from minitron_trt.triton_repo.serving.front_process import DYNAMO, GATEWAY, front_argv
from minitron_trt.triton_repo.serving.server_options import Endpoints, ServerOptions


@pytest.mark.parametrize("name", [GATEWAY, DYNAMO])
def test_triton_is_behind_it_alone(name: str) -> None:
    with pytest.raises(UsageError, match="Triton stays on 127"):
        front_argv(name, "", ServerOptions(Endpoints(host="0.0.0.0")))
    with pytest.raises(UsageError, match="a shell cannot read"):
        front_argv(name, "'", ServerOptions())


def test_its_own_options_come_last() -> None:
    options = ServerOptions(drain_s=7)
    gateway = front_argv(GATEWAY, "--port 0", options)
    worker = front_argv(DYNAMO, "--model-name b", options, defaults=("--model-name", "a"))

    assert gateway[2:] == (
        *("minitron_trt", "gateway", "--json"),
        *("--drain", "7", "--url", "http://127.0.0.1:8000", "--port", "0"),
    )
    assert worker[-6:] == (
        *("--url", "grpc://127.0.0.1:8001"),
        *("--model-name", "a", "--model-name", "b"),
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--gateway-options", "'"], "a shell cannot read"),
        (["--frontend", "dynamo", "--frontend-options", "'"], "a shell cannot read"),
        (["--frontend", "dynamo", "--host", "0.0.0.0"], "Triton stays on 127.0.0.1"),
        (["--frontend-options", "--namespace a"], "is for --frontend dynamo"),
    ],
)
def test_bad_options_are_refused_before_a_model_is_looked_for(
    options: list[str], said: str, command: Callable[..., Result]
) -> None:
    result = command("serve", "somebody/no-such-model", *options)

    assert result.exit_code == 2
    assert said in result.stderr


def test_a_model_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "ensemble").mkdir()
    (tmp_path / "ensemble/config.pbtxt").touch()

    assert model_name("nvidia/Minitron-4B-Base") == "nvidia/Minitron-4B-Base"
    assert model_name(str(sample_folder("solar-llama"))) == "solar-llama"
    assert model_name(str(tmp_path)) is None
