"""A worker of NVIDIA Dynamo that answers with the prompt's own tokens; a double of an engine.

    python dynamo_worker.py MODEL_FOLDER

It needs `ai-dynamo` and runs in a Python of its own, beside Dynamo's frontend.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

from dynamo.llm import ModelInput, ModelType, WorkerType, register_model
from dynamo.runtime import DistributedRuntime, dynamo_worker


async def generate(request: dict[str, Any], context: Any) -> AsyncIterator[dict[str, Any]]:
    """Yield the prompt's tokens back, one at a time."""
    *tokens, last = request["token_ids"]
    for token in tokens:
        yield {"token_ids": [token]}
        await asyncio.sleep(0.01)
    yield {"token_ids": [last], "finish_reason": "stop"}


@dynamo_worker()  # type: ignore[untyped-decorator]
async def work(runtime: DistributedRuntime) -> None:
    """Announce the model, and serve it."""
    endpoint = runtime.endpoint("dynamo.backend.generate")
    await register_model(
        ModelInput.Tokens,
        ModelType.Completions,
        endpoint,
        sys.argv[1],
        model_name="sample",
        worker_type=WorkerType.Aggregated,
        ignore_weights=True,
    )
    await endpoint.serve_endpoint(generate)


if __name__ == "__main__":
    asyncio.run(work())
