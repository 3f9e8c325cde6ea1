"""`eval perplexity` of a real tritonserver, over both of its protocols."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from tests.triton_repo.conftest import Served

from minitron_trt.samples import HELD_OUT_TEXT, sample_folder

pytestmark = [
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.parametrize("served", ["solar-llama"], indirect=True, scope="session"),
]

Command = Callable[..., Result]
OPTIONS = ("--text", HELD_OUT_TEXT, "--context", "64", "--chunks", "2")


def test_a_served_model_has_the_figures_of_its_checkpoint(
    served: Served, command: Command, tmp_path: Path
) -> None:
    urls = (served.endpoints.grpc_url, served.endpoints.http_url)
    arguments = ("eval", "perplexity", served.model, *urls, *OPTIONS, "--dtype", "bfloat16")
    result = command(*arguments, "--json", "--markdown", tmp_path / "table.md")
    overlapping = command(*arguments, "--json", "--stride", "20")

    assert result.exit_code == 0, result.stderr
    checkpoint, *others = json.loads(result.stdout)["models"]
    for other, url in zip(others, urls, strict=True):
        assert other["model"] == url.partition("://")[2]
        assert other["size_bytes"] is None
        assert other["perplexity"]["value"] == pytest.approx(
            checkpoint["perplexity"]["value"], rel=1e-3
        )
        assert abs(other["kl"]["value"]) < 1e-3
    assert f"| {urls[0].partition('://')[2]} |  |" in (tmp_path / "table.md").read_text()
    assert overlapping.exit_code == 0, overlapping.stderr
    values = [each["perplexity"]["value"] for each in json.loads(overlapping.stdout)["models"]]
    assert values == pytest.approx([values[0]] * 3, rel=1e-3)
    assert values[0] != pytest.approx(checkpoint["perplexity"]["value"], rel=1e-3)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ((), 2, "is a server, which does not say which tokens a text is to it; pass --tokenizer"),
        (("--plot", "plot.svg"), 2, "--plot is over sizes, which servers do not say"),
        (("--tokenizer", "/nowhere"), 3, "has no tokenizer.json"),
        (("--tokenizer", sample_folder("austen-nemotron")), 3, "pass --tokenizer with the folder"),
        (("--server-model", "ensemble"), 7, "has no input_ids, so that its logits cannot be had"),
        (("--server-model", "absent"), 7, "unknown model: 'absent'"),
        (("--tokenizer", sample_folder("solar-llama"), "--context", "1M"), 3, "needs at least"),
    ],
    ids=["no tokenizer", "no size", "no file", "other tokenizer", "text", "unknown", "short text"],
)
def test_what_cannot_be_asked_of_a_server_is_said_in_one_line(
    served: Served, options: tuple[object, ...], code: int, message: str, command: Command
) -> None:
    result = command("eval", "perplexity", served.endpoints.grpc_url, *OPTIONS, *options)

    assert (result.exit_code, result.stderr.count("\n")) == (code, 1), result.stderr
    assert message in result.stderr
