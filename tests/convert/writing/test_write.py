"""How bytes reach the rank files: in pieces, on systems that lack a call, when a file changes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.convert.plans import plan_of

from minitron_trt.console import no_progress
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.convert.conversion_plan import ConversionPlan
from minitron_trt.convert.writing.ranks import write_ranks
from minitron_trt.errors import BadInputError, OutputError

MakeModel = Callable[..., Path]
EMBEDDING, DOWN = "model.embed_tokens.weight", "model.layers.0.mlp.down_proj.weight"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refuse_with(code: int) -> Callable[..., NoReturn]:
    def refuse(*_: int) -> NoReturn:
        raise OSError(code, os.strerror(code))

    return refuse


def test_a_system_that_cannot_reserve_space_gets_the_same_files(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(str(tiny_llama), tmp_path / "usual", ConvertOptions(tp=2))
    monkeypatch.setattr(os, "posix_fallocate", refuse_with(errno.EOPNOTSUPP))
    convert(str(tiny_llama), tmp_path / "other", ConvertOptions(tp=2))

    assert files_of(tmp_path / "other") == files_of(tmp_path / "usual")


@pytest.mark.parametrize(
    ("function", "kind", "said"),
    [
        ("preadv", BadInputError, "model-00001-of-00002.safetensors cannot be read"),
        ("pwrite", OutputError, "cannot write OUTPUT"),
    ],
)
def test_a_broken_disk_is_the_inputs_or_the_outputs(
    function: str,
    kind: type[Exception],
    said: str,
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, function, refuse_with(errno.EIO))
    output = tmp_path / "checkpoint"
    with pytest.raises(kind) as caught:
        convert(str(tiny_llama), output, ConvertOptions())

    assert str(caught.value).replace(str(output), "OUTPUT").endswith(f"{said}: Input/output error")
    assert list(tmp_path.iterdir()) == []


def test_short_reads_and_writes_are_continued(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(str(tiny_llama), tmp_path / "usual", ConvertOptions(tp=2))
    read, write = os.preadv, os.pwrite
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: read(fd, [views[0][:70]], at))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[:70], at))
    convert(str(tiny_llama), tmp_path / "other", ConvertOptions(tp=2))

    assert files_of(tmp_path / "other") == files_of(tmp_path / "usual")


@pytest.mark.slow
@pytest.mark.parametrize("name", [DOWN, EMBEDDING], ids=["changed", "copied"])
def test_tensors_larger_than_a_block_arrive_whole(
    name: str, make_model: MakeModel, ranks_of: Callable[..., list[dict[str, Any]]]
) -> None:
    # 6,000 x 1,500 values of two bytes are more than two blocks.
    size = "intermediate_size" if name == DOWN else "vocab_size"
    sizes = {"hidden_size": 1500, "num_hidden_layers": 1, "num_attention_heads": 2, size: 6000}
    folder = make_model("nemotron", **sizes)
    ranks = ranks_of(folder, tp=2)
    found = {
        EMBEDDING: ranks[1]["transformer.vocab_embedding.weight"],
        DOWN: np.concatenate([r["transformer.layers.0.mlp.proj.weight"] for r in ranks], axis=1),
    }

    assert found[name].tobytes() == load_file(folder / "model.safetensors")[name].tobytes()


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_source_that_shrinks_while_it_is_read_is_an_error(
    tp: int, precision: str, make_model: MakeModel, tmp_path: Path
) -> None:
    source = make_model("llama")
    plan = plan_of(source, ConvertOptions(precision=precision, tp=tp))
    os.truncate(source / "model.safetensors", 20_000)
    with pytest.raises(BadInputError) as caught:
        write_ranks(plan, tmp_path, no_progress)

    assert str(caught.value) == ("a source file became shorter while it was read; convert again")


@pytest.mark.parametrize("tp", [1, 4])
def test_progress_ends_at_the_bytes_that_have_a_source(
    tp: int, tiny_llama: Path, tmp_path: Path
) -> None:
    plan = plan_of(tiny_llama, ConvertOptions(tp=tp))
    steps: list[int] = []
    write_ranks(plan, tmp_path, steps.append)

    assert sum(steps) == plan.output_bytes - padding_bytes(plan)


def padding_bytes(plan: ConversionPlan) -> int:
    """Return the bytes of the zero rows that make 131 tokens divide by tp."""
    tp, spec = plan.parallelism.tp, plan.spec
    return (-spec.vocab % tp) * spec.hidden * 2
