"""Models scored by one text, chunk by chunk, each beside the baseline; what is done is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from minitron_trt.artifacts import sha256
from minitron_trt.console import Advance, ShowProgress
from minitron_trt.errors import BadInputError, UsageError
from minitron_trt.evaluate.baseline_file import BaselineFile
from minitron_trt.evaluate.divergence import Divergence, TokenScores, compare
from minitron_trt.evaluate.evaluated_model import EvaluatedModel, opened_model
from minitron_trt.evaluate.perplexity import (
    Estimate,
    TextChunk,
    chunks_of,
    log_likelihoods,
    perplexity,
)
from minitron_trt.evaluate.text_tokens import TextTokens
from minitron_trt.host.machine import usable_cores
from minitron_trt.outputs import make_folder
from minitron_trt.quantization.number_formats import Array

if TYPE_CHECKING:
    from minitron_trt.evaluate.served_model import ServerSettings

BASELINE_NAME: Final = "baseline.logits"
_OWNER_NAME: Final = "baseline.key"
_COLUMNS: Final = 3  # of a token's scores
# Float64 numbers that a core's cache holds; those of a chunk would be a quarter of a gigabyte.
_VALUES_AT_ONCE: Final = 2**17


@dataclass(frozen=True, slots=True)
class Scored:
    """A model's figures; those beside the baseline are None of the baseline itself."""

    name: str
    size_bytes: int | None  # None of a server, which does not say
    tokens: int
    perplexity: Estimate
    divergence: Divergence | None

    @property
    def kl(self) -> Estimate | None:
        """Return the mean divergence from the baseline."""
        return None if self.divergence is None else self.divergence.mean

    @property
    def same_top(self) -> Estimate | None:
        """Return the share of tokens of which it and the baseline think the same likeliest."""
        return None if self.divergence is None else self.divergence.same_top


@dataclass(frozen=True, slots=True)
class _Baseline:
    """The file of the baseline's probabilities, and the key of the model that they are of."""

    file: BaselineFile
    key: str


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How models are scored.

    `state` is a folder in which the baseline and the scores so far are kept; an evaluation with the
    same text, models and settings goes on there.
    """

    text: str
    context: int
    chunks: int | None
    dtype: str
    state: Path
    device: str = "cpu"
    stride: int | None = None
    server: ServerSettings | None = None  # how models on servers are asked

    def run(self, sources: Sequence[str], progress: ShowProgress) -> list[Scored]:
        """Score the models, of which the first is the baseline.

        BadInputError where a text is too short or two tokenizers give it other tokens.
        """
        make_folder(self.state)
        results: list[Scored] = []
        chunks: tuple[TextChunk, ...] | None = None
        baseline: _Baseline | None = None
        baseline_nll: Array | None = None
        for source in sources:
            opening = opened_model(
                source,
                context=self.context,
                dtype=self.dtype,
                device=self.device,
                server=self.server,
                progress=progress,
            )
            with opening as model:
                chunks = self._chunks(model, chunks)
                baseline = baseline or self._baseline(model, chunks)
                self._check(baseline.file, model, chunks)
                label, total = f"score {model.name}", len(chunks)
                with progress(label, total, "chunks") as advance:
                    scores = self._scores(model, chunks, baseline, advance, first=not results)
            results.append(_scored(model, scores, baseline_nll))
            baseline_nll = scores.nll if baseline_nll is None else baseline_nll
        return results

    def _chunks(
        self, model: EvaluatedModel, before: tuple[TextChunk, ...] | None
    ) -> tuple[TextChunk, ...]:
        """Return the text in a model's tokens; a server is taken to have those of the model before.

        UsageError for a server that comes first and whose tokenizer was not named.
        """
        if model.tokenizer_json is None and before is not None:
            return before
        if model.tokenizer_json is None:
            raise UsageError(
                f"{model.name} is a server, which does not say which tokens a text is to it; pass "
                "--tokenizer with its model's folder, or name the checkpoint that it serves first"
            )
        text = TextTokens.of(self.text, model.tokenizer_json)
        return chunks_of(
            text.ids, self.context, begin=text.begin, stride=self.stride, at_most=self.chunks
        )

    def _baseline(self, model: EvaluatedModel, chunks: tuple[TextChunk, ...]) -> _Baseline:
        """Return the baseline that is kept here, or the beginning of one if that is of another."""
        path, owner, key = self.state / BASELINE_NAME, self.state / _OWNER_NAME, self._key(model)
        if path.exists() and owner.exists() and owner.read_text() == key:
            kept = BaselineFile.open(path, scored=len(chunks[0].targets))
            if kept.fits(chunks) and kept.vocab == model.vocab:
                return _Baseline(kept, key)
        # The key is removed before the file changes and written after it, so that what an
        # interruption leaves belongs to no model.
        owner.unlink(missing_ok=True)
        tokens = np.array(
            [[*chunk.inputs[: chunk.first_row + 1], *chunk.targets] for chunk in chunks]
        )
        baseline = BaselineFile(path, model.vocab, tokens.astype(np.int32), len(chunks[0].targets))
        baseline.create()
        owner.write_text(key)
        return _Baseline(baseline, key)

    def _check(
        self, baseline: BaselineFile, model: EvaluatedModel, chunks: tuple[TextChunk, ...]
    ) -> None:
        if not baseline.fits(chunks):
            raise BadInputError(
                f"{model.name} has another tokenizer than the baseline: it makes other tokens of "
                "the text, so that their figures do not compare"
            )
        if baseline.vocab != model.vocab:
            raise BadInputError(
                f"{model.name} has a vocabulary of {model.vocab} tokens and the baseline one of "
                f"{baseline.vocab}, so that their figures do not compare"
            )

    def _scores(
        self,
        model: EvaluatedModel,
        chunks: tuple[TextChunk, ...],
        baseline: _Baseline,
        advance: Advance,
        *,
        first: bool,
    ) -> TokenScores:
        key = self._key(model, beside=baseline.key)
        path = self.state / scores_name(model.name, key)
        rows = len(chunks[0].targets) * _COLUMNS * 8
        done = min(path.stat().st_size // rows, len(chunks)) if path.exists() else 0
        # Of the first model, a chunk is done when its rows are in the baseline's file, too.
        if first:
            done = min(done, baseline.file.complete)
        opened = path.open("r+b" if path.exists() else "wb")
        with opened as file, ThreadPoolExecutor(usable_cores()) as threads:
            file.seek(done * rows)
            advance(done)
            for index in range(done, len(chunks)):
                table = self._chunk_scores(model, chunks[index], index, baseline, threads, first)
                file.write(table.tobytes())
                file.flush()
                advance(1)
        table = np.fromfile(path, np.float64, len(chunks) * rows // 8).reshape(-1, _COLUMNS)
        return TokenScores(table[:, 0], table[:, 1], table[:, 2] > 0)

    def _chunk_scores(
        self,
        model: EvaluatedModel,
        chunk: TextChunk,
        index: int,
        baseline: _Baseline,
        threads: ThreadPoolExecutor,
        first: bool,
    ) -> Array:
        """Return what is kept of a chunk's scores; the first model's rows become the baseline's."""
        logits, file = model.logits(chunk), baseline.file
        kept = None if first else file.read(index)
        count = max(1, _VALUES_AT_ONCE // file.vocab)

        def part(at: int) -> tuple[NDArray[np.uint16], Array]:
            rows = slice(at, at + count)
            own = _log_likelihoods(model, logits[rows])
            steps = file.in_steps(own) if kept is None else kept[rows]
            return steps, _packed(compare(own, file.in_numbers(steps), chunk.targets[rows]))

        steps, tables = zip(*threads.map(part, range(0, len(logits), count)), strict=True)
        if first:
            file.append(index, np.concatenate(steps))
        return np.concatenate(tables)

    def _key(self, model: EvaluatedModel, *, beside: str = "") -> str:
        """Return what tells a model's figures, beside a baseline, from those of any other."""
        facts = [
            model.identity,
            # A server without one is given the tokens of the model before it.
            model.tokenizer_json and sha256(model.tokenizer_json),
            self.text,
            self.context,
            self.stride,
            self.dtype,
            self.device,
            beside,
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def scores_name(model: str, key: str) -> str:
    """Return the name of the file of a model's scores; a server's may end with a path."""
    return f"{model.replace('/', '_')}-{key[:16]}.scores"


def _log_likelihoods(model: EvaluatedModel, logits: NDArray[np.float32]) -> Array:
    try:
        return log_likelihoods(logits)
    except BadInputError as error:
        raise BadInputError(f"{model.name}: {error}") from error


def _packed(scores: TokenScores) -> Array:
    columns = (scores.nll, scores.divergence, scores.same_top)
    return np.stack([np.asarray(column, np.float64) for column in columns], axis=1)


def _scored(model: EvaluatedModel, scores: TokenScores, baseline_nll: Array | None) -> Scored:
    return Scored(
        name=model.name,
        size_bytes=model.size_bytes,
        tokens=len(scores.nll),
        perplexity=perplexity(scores.nll),
        divergence=None if baseline_nll is None else Divergence.of(scores, baseline_nll),
    )
