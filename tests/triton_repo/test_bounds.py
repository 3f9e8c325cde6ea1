"""No request holds up the others: text is bounded before it is tokenized."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.triton_repo.conftest import Served
from tests.triton_repo.test_soak import Resources
from tests.triton_repo.text_calls import RefusalError, ask

# One sample: what is looked at here does not depend on the model.
pytestmark = [
    pytest.mark.server,
    pytest.mark.parametrize("served", ["solar-llama"], indirect=True, scope="session"),
]

MEGABYTE = "a" * 2**20
PROMPT_CHARACTERS = 34816
WORD_CHARACTERS = 16384


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"text_input": MEGABYTE}, f"has 1048576 characters; expected at most {PROMPT_CHARACTERS}"),
        ({"bad_words": [MEGABYTE]}, f"longer than {WORD_CHARACTERS} characters together"),
        ({"stop_words": [MEGABYTE]}, f"longer than {WORD_CHARACTERS} characters together"),
        ({"bad_words": ["a"] * 2**14}, "bad_words holds 16384 words; expected at most 1024"),
    ],
    ids=["prompt", "bad word", "stop word", "many words"],
)
def test_a_megabyte_of_text_is_refused_before_it_takes_memory(
    served: Served, model: str, inputs: dict[str, Any], words: str
) -> None:
    before = Resources.of(served.pid).bytes

    with pytest.raises(RefusalError, match=words):
        ask(served.endpoints, "grpc", model, **{"text_input": "x", "max_tokens": 1, **inputs})

    # To tokenize a bad word of that length took gigabytes.
    assert Resources.of(served.pid).bytes - before < 100e6


def test_a_short_request_passes_the_longest(served: Served) -> None:
    """Characters of four bytes take longest; a process of preprocessing is left for the other."""
    rare, rarer = "\U0010ffff", "\U0010fffe"
    longest = {
        "text_input": rare * PROMPT_CHARACTERS,
        "bad_words": [rare * WORD_CHARACTERS],
        "stop_words": [rarer * WORD_CHARACTERS],
    }

    def ended(inputs: dict[str, Any]) -> tuple[float, str]:
        """Return when the request ended, and what was said against it."""
        try:
            ask(served.endpoints, "grpc", "ensemble", max_tokens=1, **inputs)
        except RefusalError as error:
            return time.monotonic(), str(error)
        return time.monotonic(), ""

    with ThreadPoolExecutor(2) as threads:
        long = threads.submit(ended, longest)
        short = threads.submit(ended, {"text_input": "Our solar system"})

    assert "input_ids has" in long.result()[1]
    assert short.result()[1] == ""
    assert short.result() < long.result()
