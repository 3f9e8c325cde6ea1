"""The models that clients may ask for, by the names that clients use."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from minitron_trt.chat_templates import PromptTemplate
from minitron_trt.clients.aio import AsyncClient
from minitron_trt.errors import RefusedError
from minitron_trt.gateway.openai_errors import ApiError, unknown_model
from minitron_trt.gateway.openai_requests import ModelTarget

USUAL_NAMES: Final = ("ensemble", "tensorrt_llm_bls", "tensorrt_llm")
"""TensorRT-LLM's names of models, of which those that take a text are offered."""


class ServedModels:
    """Triton's models of text under the names that clients know.

    Without `names`, a client's by Triton's, the usual ones are offered where the server has them.
    Triton closes its index of models to clients, so it is not asked.
    """

    def __init__(
        self,
        client: AsyncClient,
        *,
        names: Mapping[str, str] | None = None,
        chat_max_tokens: int,
        template: PromptTemplate | None = None,
    ) -> None:
        self._client = client
        self._names = dict(names or {name: name for name in USUAL_NAMES})
        self._chat_max_tokens = chat_max_tokens
        self._template = template
        # OpenAI's objects of models have a time, which Triton does not tell.
        self._created = int(time.time())

    async def target(self, name: str) -> ModelTarget:
        """Return what is behind a client's name; ApiError when nothing is."""
        triton_name = self._names.get(name)
        if triton_name is None:
            raise unknown_model(name)
        try:
            interface = await self._client.interface(triton_name)
        except RefusedError as error:
            # A full server turns the question away, too, and may well have the model.
            if error.is_passing:
                raise
            raise unknown_model(name) from error
        if not interface.takes_text:
            raise unknown_model(name)
        return ModelTarget(triton_name, interface, self._chat_max_tokens, self._template)

    async def records(self) -> list[dict[str, Any]]:
        """Return the models that are there, as OpenAI's objects."""
        return [self._record(name) for name in self._names if await self._is_there(name)]

    async def record(self, name: str) -> dict[str, Any]:
        """Return one model as OpenAI's object; ApiError when it is not there."""
        await self.target(name)
        return self._record(name)

    async def _is_there(self, name: str) -> bool:
        try:
            await self.target(name)
        except ApiError:
            return False
        return True

    def _record(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": "triton"}
