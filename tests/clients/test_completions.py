"""Answers put together from chunks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from tests.clients.canned import AsyncCanned, Canned

from minitron_trt.clients.aio import AsyncClient
from minitron_trt.clients.client import Client
from minitron_trt.clients.completions import Completion
from minitron_trt.clients.messages import Chunk, GenerateRequest
from minitron_trt.errors import UsageError

CHUNKS = (
    Chunk("a", sequence=1, outputs={"output_log_probs": [-1.0], "cum_log_probs": [-1.0]}),
    Chunk("x", outputs={"output_log_probs": [-3.0], "cum_log_probs": [-3.0]}),
    Chunk(
        "b",
        sequence=1,
        finish_reason="stop",
        outputs={"output_log_probs": [-0.5], "cum_log_probs": [-1.5]},
    ),
    Chunk("", finish_reason="length"),
    Chunk("", final=True),
)
COMPLETIONS = [
    ("x", "length", {"output_log_probs": [-3.0], "cum_log_probs": [-3.0]}),
    ("ab", "stop", {"output_log_probs": [-1.0, -0.5], "cum_log_probs": [-1.5]}),
]
TWO = GenerateRequest("hi", num_return_sequences=2)


def facts(completions: Sequence[Completion]) -> list[tuple[str, str | None, object]]:
    """Return what there is to compare of completions, which as strings compare their text."""
    return [(each.text, each.finish_reason, each.outputs) for each in completions]


def test_the_sequences_of_an_answer_are_told_apart() -> None:
    async def ask() -> Sequence[Completion]:
        return await AsyncClient(AsyncCanned(CHUNKS)).completions(TWO)

    assert facts(Client(Canned(CHUNKS)).completions(TWO)) == COMPLETIONS
    assert facts(asyncio.run(ask())) == COMPLETIONS


@pytest.mark.parametrize(
    "request_",
    [GenerateRequest("hi", num_return_sequences=3), GenerateRequest("hi", beam_width=3)],
    ids=["sequences", "beams"],
)
def test_a_text_holds_one_sequence(request_: GenerateRequest) -> None:
    for ask in (Client(Canned(CHUNKS)).stream, AsyncClient(AsyncCanned(CHUNKS)).stream):
        with pytest.raises(UsageError, match="asks for 3 sequences and a text holds one; use"):
            ask(request_)
