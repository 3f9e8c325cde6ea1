"""GGUF files with anything in their headers: converted, or refused in one line, and soon."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from minitron_trt.convert.gguf.header import TensorRecord, read_gguf_header

pytestmark = pytest.mark.slow

MakeModel = Callable[..., Path]
WriteGguf = Callable[..., Path]
Command = Callable[..., Result]
# The same headers in every run: 2 × 150.
BOUNDED = settings(
    max_examples=150,
    # Nothing here takes a second; only what waits, or counts to 2^60, takes this long.
    deadline=timedelta(seconds=60),
    database=None,
)
TOKENIZER_KEYS = (
    *("model", "pre", "tokens", "token_type", "scores", "merges", "add_bos_token"),
    *("bos_token_id", "eos_token_id", "eot_token_id", "unknown_token_id", "padding_token_id"),
)
OTHER_KEYS = (
    *("general.type", "general.alignment", "split.count", "split.no", "tokenizer.chat_template"),
    *("llama.rope.scaling.type", "llama.rope.scaling.factor", "llama.rope.dimension_count"),
    *("llama.expert_count", "llama.attention.sliding_window", "llama.attention.causal", ""),
)


def encoded(value: Any) -> bytes:
    """Return a value as GGUF has it: its type, then itself."""
    if isinstance(value, list):
        kind = encoded(value[0])[:4] if value else struct.pack("<I", 5)
        return (
            struct.pack("<I", 9)
            + kind
            + struct.pack("<Q", len(value))
            + b"".join(encoded(item)[4:] for item in value)
        )
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<IQ", 10, value) if value >= 0 else struct.pack("<Iq", 11, value)
    if isinstance(value, float):
        return struct.pack("<Id", 12, value)
    blob: bytes = value.encode()
    return struct.pack("<IQ", 8, len(blob)) + blob


def file_of(facts: dict[str, Any], records: list[TensorRecord], data: bytes) -> bytes:
    """Return a GGUF file with a header of these facts and records."""
    head = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(records), len(facts)))
    for key, value in facts.items():
        head += encoded(key)[4:] + encoded(value)
    for record in records:
        head += encoded(record.name)[4:] + struct.pack("<I", len(record.shape))
        head += b"".join(struct.pack("<Q", size) for size in reversed(record.shape))
        head += struct.pack("<IQ", record.code, record.offset)
    return bytes(head) + bytes(-len(head) % 32) + data


@pytest.fixture(scope="module")
def good(
    make_model: MakeModel, write_gguf: WriteGguf, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], list[TensorRecord], bytes]:
    """Return the facts, records and data of a small model with a tokenizer."""
    tokens = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "a", "b", "ab"],
        "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1],
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -1.0, -2.0, -3.0],
    }
    path = tmp_path_factory.mktemp("good") / "m.gguf"
    write_gguf(make_model("llama", num_hidden_layers=1), path, "BF16", facts=tokens)
    facts, records, end = read_gguf_header(path)
    return facts, records, path.read_bytes()[end + -end % 32 :]


@pytest.fixture
def judged(command: Command, tmp_path: Path) -> Callable[[bytes], int]:
    """Return a conversion that holds its outcome to the rules; its value is the exit code."""

    def run(blob: bytes) -> int:
        folder = tmp_path / "outputs"
        folder.mkdir(exist_ok=True)
        path = tmp_path / "m.gguf"
        path.write_bytes(blob)
        result = command("convert", path, "-o", folder / "out")
        lines = result.stderr.splitlines()

        assert result.exit_code in (0, 3, 4), result.stderr
        if result.exit_code:
            assert lines.pop().startswith("error: ")
            assert list(folder.iterdir()) == []
        assert all(line.startswith("warning: ") for line in lines), result.stderr
        shutil.rmtree(folder)
        return result.exit_code

    return run


NUMBERS = (
    st.integers(-3, 300)
    | st.sampled_from([2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1, -(2**63)])
    | st.floats()
    | st.floats(0, 10)
)
TEXTS = st.text(max_size=8) | st.sampled_from(["llama", "nemotron", "gpt2", "none", "linear", "ab"])
SCALARS = NUMBERS | TEXTS | st.booleans()
ELEMENTS: tuple[st.SearchStrategy[Any], ...] = (
    *(st.integers(-(2**40), 2**40), st.floats(), TEXTS, st.booleans()),
)
VALUES = SCALARS | st.one_of(*(st.lists(element, max_size=8) for element in ELEMENTS))


def test_the_headers_begin_with_one_that_is_converted(
    good: tuple[dict[str, Any], list[TensorRecord], bytes], judged: Callable[[bytes], int]
) -> None:
    facts, records, data = good

    assert judged(file_of(facts, records, data)) == 0


@seed(20)
@BOUNDED
@given(data=st.data())
def test_any_facts_are_converted_or_refused(
    data: st.DataObject,
    good: tuple[dict[str, Any], list[TensorRecord], bytes],
    judged: Callable[[bytes], int],
) -> None:
    facts, records, weights = good
    keys = [*facts, *(f"tokenizer.ggml.{key}" for key in TOKENIZER_KEYS), *OTHER_KEYS]
    edits = data.draw(st.dictionaries(st.sampled_from(keys), st.none() | VALUES, min_size=1))
    edited = {key: value for key, value in {**facts, **edits}.items() if value is not None}

    judged(file_of(edited, records, weights))


SIZES = st.integers(0, 200) | st.sampled_from([2**31, 2**62, 2**64 - 1])
NAMES = st.text(max_size=8) | st.sampled_from(
    ["rope_freqs.weight", "output.weight", "blk.0.attn_q.weight", "blk.1.attn_q.weight", "a" * 300]
)


@seed(21)
@BOUNDED
@given(data=st.data())
def test_any_records_of_tensors_are_converted_or_refused(
    data: st.DataObject,
    good: tuple[dict[str, Any], list[TensorRecord], bytes],
    judged: Callable[[bytes], int],
) -> None:
    facts, records, weights = good
    edited = list(records)
    for at in data.draw(st.lists(st.integers(0, len(records) - 1), min_size=1, max_size=2)):
        changes: dict[str, Any] = data.draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "name": NAMES,
                    "shape": st.lists(SIZES, max_size=5).map(tuple),
                    "code": st.integers(0, 45) | st.just(2**32 - 1),
                    "offset": SIZES | st.integers(0, 400).map(lambda n: 32 * n),
                },
            )
        )
        edited[at] = replace(edited[at], **changes)
    cut = data.draw(st.none() | st.integers(0, len(weights)))

    judged(file_of(facts, edited, weights[:cut]))
