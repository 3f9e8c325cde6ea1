"""Triton under load, asked by the project's own client."""

from __future__ import annotations

import contextlib
from typing import Any, Final

from minitron_trt.clients.aio import AsyncClient
from minitron_trt.clients.endpoint import Timeouts
from minitron_trt.clients.messages import GenerateRequest, as_request
from minitron_trt.loadtest.request_record import RequestRecord
from minitron_trt.loadtest.target import TargetOptions
from minitron_trt.loadtest.workload import Question

_DEFAULT_MODEL: Final = "ensemble"


class TritonTarget:
    """A model of text on a Triton server, over gRPC or HTTP."""

    def __init__(self, options: TargetOptions, client: AsyncClient | None = None) -> None:
        self.model = options.model or _DEFAULT_MODEL
        self._options = options
        self._fields = {
            "count_tokens": True,
            "stream": options.stream,
            "model": self.model,
            **options.extra_inputs,
        }
        self._client = client or AsyncClient.connect(
            options.url,
            timeouts=Timeouts(total_s=options.timeout_s),
            # What is sent again would be measured as one request.
            max_retries=0,
            access=options.access,
        )

    async def check(self) -> None:
        """Find the server and its model."""
        # Options that no request can hold are refused here, before the load begins.
        as_request("", self._fields)
        await self._client.interface(self.model)

    async def ask(self, question: Question, record: RequestRecord) -> None:
        """Ask once, and note what comes when."""
        request = self._request(question)
        record.begin()
        async with contextlib.aclosing(self._client.chunks(request)) as chunks:
            async for chunk in chunks:
                outputs: Any = chunk.outputs
                counts = outputs.get("num_output_tokens")
                record.piece(chunk, None if counts is None else sum(counts))
                if record.input_tokens is None and "num_input_tokens" in outputs:
                    record.input_tokens = int(outputs["num_input_tokens"][-1])

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()

    def _request(self, question: Question) -> GenerateRequest:
        own: dict[str, Any] = {"max_tokens": question.output_tokens}
        if self._options.force_min_tokens:
            own["min_tokens"] = question.output_tokens
        # What --extra-inputs names wins, max_tokens included.
        return as_request(question.prompt, {**own, **self._fields})
