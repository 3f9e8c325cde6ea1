"""Verify a checkpoint folder on a text: what the command and a conversion do alike."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.console import ShowProgress
from minitron_trt.convert.calibration.text import CalibrationText
from minitron_trt.convert.source.model_folder import ModelSource
from minitron_trt.errors import BadInputError, MissingExtraError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from minitron_trt.convert.verification.comparison import Verification

TOKENS: Final = 64
log = logging.getLogger(__name__)


def verified(
    folder: Path,
    source: ModelSource,
    progress: ShowProgress,
    *,
    text: str | None = None,
    tokens: int = TOKENS,
) -> Verification:
    """Compare a checkpoint folder with its source, whose weights are unpacked.

    `text` is what calibration takes: a file, JSONL, a hub data set, or None for the default.
    BadInputError and UnsupportedError say what is wrong with any of them.
    """
    try:
        from minitron_trt.convert.verification.comparison import verify
    except ImportError as error:
        raise MissingExtraError(error.name or "torch", "quantize", "verifying") from error
    checkpoint = Checkpoint.open(folder)
    ids = token_ids(source, text, tokens)
    with progress("verify", checkpoint.spec.layers, "layers") as advance:
        return verify(checkpoint, source, ids, advance)


def token_ids(source: ModelSource, text: str | None, tokens: int) -> NDArray[np.int32]:
    """Return the ids that both run: the first of a text, or any where no tokenizer knows one."""
    spec = source.spec
    count = min(tokens, spec.max_positions)
    try:
        (batch, *_) = CalibrationText(text, samples=1, length=count, batch=1).batches(source)
    except BadInputError as error:
        if text is not None:
            raise
        # What the layers compute shows on any ids.
        log.warning("verifying on random ids: %s", str(error).split(";")[0])
        return np.random.default_rng(0).integers(0, spec.vocab, count).astype(np.int32)
    if batch.shape[1] < 2:
        raise BadInputError(f"{text} gives one token; expected a text of some words")
    return np.asarray(batch[0], np.int32)
