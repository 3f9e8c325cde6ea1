"""What load is put on: a service that answers questions, whatever it speaks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from minitron_trt.clients.endpoint import Access
from minitron_trt.errors import UsageError
from minitron_trt.loadtest.request_record import RequestRecord
from minitron_trt.loadtest.workload import Question

TRITON: Final = "triton"
COMPLETIONS: Final = "completions"
CHAT: Final = "chat"
ENDPOINT_TYPES: Final = (TRITON, COMPLETIONS, CHAT)
"""What a service speaks: Triton's generate, or one of OpenAI's two; aiperf's names for those."""


@dataclass(frozen=True, slots=True)
class TargetOptions:
    """How a service is asked.

    `extra_inputs` go into every request: fields of GenerateRequest, or of OpenAI's body. With
    `force_min_tokens` an answer does not end before it has all of its tokens.
    """

    url: str
    endpoint_type: str
    model: str | None = None
    stream: bool = True
    force_min_tokens: bool = False
    extra_inputs: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float = 600.0
    access: Access = field(default_factory=Access)
    api_key: str | None = None


class LoadTarget(Protocol):
    """A service under load; errors are ServerErrors."""

    @property
    def model(self) -> str:
        """Return the name of the model that is asked."""
        ...

    async def check(self) -> None:
        """Find the service and its model; a ServerError when one of them is not there."""
        ...

    async def ask(self, question: Question, record: RequestRecord) -> None:
        """Ask once, and note in the record what comes when."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


def endpoint_type_of(url: str, endpoint_type: str | None) -> str:
    """Return what a URL speaks: where nobody says, OpenAI's completions below a path /v1."""
    if endpoint_type is not None:
        return endpoint_type
    return COMPLETIONS if url.rstrip("/").endswith("/v1") else TRITON


def extra_inputs(words: Sequence[str]) -> dict[str, Any]:
    """Read NAME:VALUE words, whose values are JSON where they can be, as aiperf reads them."""
    values = {}
    for word in words:
        name, colon, value = word.partition(":")
        if not (name and colon):
            raise UsageError(f"--extra-inputs is {word!r}; expected NAME:VALUE")
        try:
            values[name] = json.loads(value)
        except ValueError:
            values[name] = value
    return values
