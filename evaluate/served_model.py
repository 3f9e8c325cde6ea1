"""A model behind Triton, whose `tensorrt_llm` takes token ids and gives a prompt's logits."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from minitron_trt.clients.client import Client
from minitron_trt.clients.endpoint import Access, Endpoint, SizeLimits
from minitron_trt.clients.messages import INPUT_IDS
from minitron_trt.errors import BadInputError, RefusedError, ServerError
from minitron_trt.evaluate.text_tokens import TextTokens
from minitron_trt.triton_repo.contract.model_names import ENSEMBLE, TENSORRT_LLM

_LOGITS: Final = "context_logits"
_OPTION: Final = f"return_{_LOGITS}"
# What protocol buffers can carry: 4,000 tokens of a vocabulary of 128,256.
_LIMITS: Final = SizeLimits(message_bytes=2**31 - 1, answer_bytes=2**31 - 1)
# Ids that every vocabulary has.
_PROBE_IDS: Final = tuple(range(4, 20))
# Of which any two tokenizers make other numbers of tokens: scripts, digits, spaces, code, prose.
PROBE_TEXTS: Final = (
    "Überraschend: 太阳 1234567, naïve co-operation",
    "    def f(x):\n        return x**2 if x else None",
    "It was the best of times, it was the worst of times, it was the age of wisdom",
)
_HOW: Final = "engines give them that were built with: minitron-trt build --gather-logits context"


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How a server is asked: the model of token ids on it, its tokenizer, and the client's part."""

    model: str = TENSORRT_LLM
    tokenizer: Path | None = None  # tokenizer.json, or the folder that it lies in
    timeout_s: float = 600.0
    access: Access = field(default_factory=Access)

    @property
    def tokenizer_json(self) -> Path | None:
        """Return the tokenizer's file."""
        if self.tokenizer is None or self.tokenizer.is_file():
            return self.tokenizer
        return self.tokenizer / "tokenizer.json"


@dataclass(frozen=True, slots=True)
class ServedLogits:
    """The logits of prompts, each asked of a model on a server."""

    client: Client
    url: str
    model: str

    def __call__(self, ids: NDArray[np.int32], rows: range) -> NDArray[np.float32]:
        """Return the logits [rows, vocab] that follow these tokens of a prompt."""
        prompt = tuple(map(int, ids[: rows.stop]))
        # With the prompt before it an answer of no tokens is one still.
        options = {"max_tokens": 1, "stream": False, "exclude_input_in_output": False}
        wanted = {"model": self.model, INPUT_IDS: prompt, _OPTION: True, **options}
        with contextlib.closing(self.client.chunks("", **wanted)) as chunks:
            values = next((each.outputs[_LOGITS] for each in chunks if _LOGITS in each.outputs), ())
        flat = np.asarray(values, np.float32)
        if not flat.size or flat.size % len(prompt):
            raise RefusedError(
                f"{self.url}: {self.model!r} gave {flat.size} context logits of {len(prompt)} "
                f"tokens; {_HOW}"
            )
        logits = flat.reshape(len(prompt), -1)[rows.start :]
        # TensorRT-LLM leaves out the tokens whose keys and values it has from an earlier prompt.
        if (logits.max(axis=1) == logits.min(axis=1)).any():
            raise BadInputError(
                f"{self.url}: {self.model!r} gave no logits of some tokens, which it had in its KV "
                "cache; serve it with: triton-repo --set enable_kv_cache_reuse=false"
            )
        return logits


@contextlib.contextmanager
def connected(url: str, settings: ServerSettings) -> Iterator[ServedLogits]:
    """Connect to a server; whether its model gives logits, `probe` says."""
    client = Client.connect(
        url, timeout_s=settings.timeout_s, limits=_LIMITS, access=settings.access
    )
    with client:
        yield ServedLogits(client, str(Endpoint.parse(url)), settings.model)


@contextlib.contextmanager
def opened_server(url: str, settings: ServerSettings) -> Iterator[tuple[ServedLogits, Probe]]:
    """Connect to a server, and look whether its model gives logits, as `probe` does."""
    with connected(url, settings) as served:
        yield served, probe(served, settings.tokenizer_json)


@dataclass(frozen=True, slots=True)
class Probe:
    """What a server's model shows of itself: what tells it from others, and its vocabulary."""

    identity: str
    vocab: int


def probe(served: ServedLogits, tokenizer_json: Path | None) -> Probe:
    """Ask for the logits of a few tokens.

    RefusedError where there are none to be had, BadInputError where the server has another
    tokenizer than the one named.
    """
    _check_interface(served)
    try:
        logits = served(np.array(_PROBE_IDS, np.int32), range(len(_PROBE_IDS)))
    except RefusedError as error:
        reason = str(error)
        raise error if _HOW in reason else RefusedError(f"{reason}; {_HOW}") from error
    if tokenizer_json is not None:
        _check_tokenizer(served, tokenizer_json)
    digest = hashlib.sha256(logits.tobytes()).hexdigest()
    return Probe(f"{served.url} {served.model} {digest}", logits.shape[1])


def _check_interface(served: ServedLogits) -> None:
    interface = served.client.interface(served.model)
    lacking = [name for name in (INPUT_IDS, _OPTION) if name not in interface.inputs]
    if interface.outputs is not None and _LOGITS not in interface.outputs:
        lacking.append(_LOGITS)
    if lacking:
        raise RefusedError(
            f"{served.url}: the model {served.model!r} has no {' and no '.join(lacking)}, so that "
            "its logits cannot be had (NVIDIA's own model of the LLM API has none); evaluate the "
            "checkpoint that it serves, or name another model with --server-model"
        )


def _check_tokenizer(served: ServedLogits, tokenizer_json: Path) -> None:
    """Compare how many tokens texts have, where the server has a model of text that tells."""
    tokens = [TextTokens.of(text, tokenizer_json) for text in PROBE_TEXTS]
    try:
        answers = [
            served.client.generate(text, model=ENSEMBLE, max_tokens=1) for text in PROBE_TEXTS
        ]
    except ServerError:
        return
    own = [len(text.ids) for text in tokens]
    counts = [answer.prompt_tokens for answer in answers]
    # Whether its preprocessing begins a text with a token is a setting of the repository.
    without = [count - (tokens[0].begin is not None) for count in own]
    if None not in counts and counts not in (own, without):
        raise BadInputError(
            f"{served.url} makes {counts} tokens of texts of which {tokenizer_json} makes {own}; "
            "pass --tokenizer with the folder of the model that it serves"
        )
