"""Ask a gateway with langchain-openai, in its own environment; print what came as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from langchain_openai import ChatOpenAI, OpenAI

WORDS = "our solar system is large"


async def ask_async(chat: Any) -> dict[str, Any]:
    """Return what the asynchronous calls answer."""
    answer = await chat.ainvoke(WORDS)
    pieces = [piece async for piece in chat.astream(WORDS)]
    batch = await chat.abatch(["one", "two"])
    return {
        "ainvoke": answer.content,
        "astream": [piece.content for piece in pieces],
        "abatch": [each.content for each in batch],
    }


def main(url: str) -> None:
    """Ask in every way, and print the answers."""
    options: dict[str, Any] = {"base_url": f"{url}/v1", "api_key": "none", "max_retries": 0}
    chat = ChatOpenAI(model="ensemble", stream_usage=True, temperature=0, **options)
    answer = chat.invoke([("system", "Be brief."), ("human", WORDS)])
    pieces = list(chat.stream(WORDS))
    text = OpenAI(model="ensemble", max_tokens=3, **options)
    try:
        ChatOpenAI(model="unknown", **options).invoke(WORDS)
    except Exception as error:
        refused = type(error).__name__
    counts = [piece.usage_metadata for piece in pieces if piece.usage_metadata]
    told = {
        "invoke": answer.content,
        "usage": answer.usage_metadata["total_tokens"],
        "reason": answer.response_metadata["finish_reason"],
        "stream": [piece.content for piece in pieces],
        "stream usage": [count["output_tokens"] for count in counts],
        "completion": text.invoke(WORDS),
        "completion stream": list(text.stream(WORDS)),
        "refused": refused,
        **asyncio.run(ask_async(chat)),
    }
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1])
