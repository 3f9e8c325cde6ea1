"""A checkpoint beside its source: each layer on the source's own values, then the logits.

A layer is judged by what it adds to its input, beside what the source's layer adds to the same
input, so that a departure is seen where it arises and not in all layers after it. Its weights are
compared as well: one text may hardly use what is wrong. The logits are each model's own, through
all of its layers; they are for reading, as what a precision may cost differs from model to model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.console import Advance
from minitron_trt.convert.source.model_folder import ModelSource
from minitron_trt.convert.verification.source_layers import SourceLayers
from minitron_trt.convert.verification.weight_faults import matrix_distance, weight_faults
from minitron_trt.errors import BadInputError
from minitron_trt.executor.reference import ReferenceModel
from minitron_trt.executor.rotary import rope_table
from minitron_trt.executor.step import StepBatch
from minitron_trt.families import Place, TensorRule, family_of
from minitron_trt.quantization.precisions import Inputs
from minitron_trt.spec import ModelSpec
from minitron_trt.verification_record import VerificationRecord

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_BF16_BOUND: Final = 0.01
BOUNDS: Final[Mapping[str, float]] = MappingProxyType(
    {
        # Nothing is rounded but weights whose source has more bits, and LayerNorm1P's sums.
        "bf16": _BF16_BOUND,
        "fp16": _BF16_BOUND,
        # The weights that are quantized when the engine is built are 8 bits with a scale a column.
        "w8a16": 0.03,
        # E4M3 has three bits of fraction: up to 1/16 of a number, of weights and inputs alike.
        "fp8": 0.15,
        "fp8-rowwise": 0.15,
        # Sixteen steps between the extremes of a group: a tenth of a weight's size is usual.
        "w4a16": 0.4,
        "w4a16-awq": 0.4,
        "w4a8-awq": 0.4,
        "nvfp4": 0.4,
    }
)
"""How far what a layer adds may be from what the source's adds, as a share of its norm.

Each is two to five times what the trained samples of both architectures show (docs/accuracy.md)."""
KV_CACHE_BOUND: Final = 0.15
"""The same of a layer whose keys and values are rounded to 8 bits."""


@dataclass(frozen=True, slots=True)
class LayerError:
    """How far a layer is from the source's, given the same input; all of what it adds to that."""

    layer: int
    relative: float  # norm of the difference, as a share of the norm of what the source's adds
    largest: float
    mean: float
    cosine: float


@dataclass(frozen=True, slots=True)
class LogitsError:
    """How far the logits are from the source's, each model on its own layers' values."""

    largest: float
    mean: float
    cosine: float
    kl: float  # Kullback-Leibler from the source's, mean over the tokens, in nats
    same_top: float


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found; `fault` names the first part that departs, and the likely cause."""

    precision: str
    kv_cache: str | None
    tokens: int
    bound: float
    layers: tuple[LayerError, ...]
    logits: LogitsError
    fault: str | None

    @property
    def record(self) -> VerificationRecord:
        """Return what a manifest keeps of it."""
        worst = max(self.layers, key=lambda error: error.relative)
        return VerificationRecord(
            tokens=self.tokens,
            bound=self.bound,
            largest_layer_error=round(worst.relative, 6),
            layer=worst.layer,
            kl=round(self.logits.kl, 6),
            same_top=round(self.logits.same_top, 4),
        )

    def require(self, checkpoint: Path) -> None:
        """Raise BadInputError, with the cause, when the checkpoint departs from its source."""
        if self.fault:
            raise BadInputError(f"{checkpoint}: {self.fault}")


def bound_of(checkpoint: Checkpoint) -> float:
    """Return how far a layer of a checkpoint may be from its source's."""
    bound = BOUNDS[checkpoint.precision.name]
    return max(bound, KV_CACHE_BOUND) if checkpoint.kv_cache else bound


def verify(
    checkpoint: Checkpoint, source: ModelSource, ids: NDArray[np.int32], advance: Advance
) -> Verification:
    """Compare a checkpoint with its source on some tokens; `advance` hears of layers.

    BadInputError when their sizes or rotary embeddings are not the same.
    """
    _check_specs(checkpoint, source.spec)
    with torch.inference_mode():
        return _Comparison(checkpoint, source, ids).run(advance)


def _check_specs(checkpoint: Checkpoint, spec: ModelSpec) -> None:
    ours = checkpoint.spec
    said = [
        f"{name} is {getattr(ours, name)}, in the source {getattr(spec, name)}"
        for name in type(ours).__slots__
        # A checkpoint has a head of its own in any case.
        if name != "tied" and getattr(ours, name) != getattr(spec, name)
    ]
    if spec.rope.scaling is not None and ours.rope.scaling is None:
        said.append("its rope scaling is lost")
    if ours.head_size != spec.head_size:
        said.append("a wrong head size")
    if said:
        raise BadInputError(
            f"{checkpoint.folder} is another model than its source: {'; '.join(said)}"
        )


class _Comparison:
    """Both models on the same tokens, a part of each in memory at a time."""

    def __init__(self, checkpoint: Checkpoint, source: ModelSource, ids: NDArray[np.int32]) -> None:
        self._checkpoint, self._source, self._ids = checkpoint, source, ids
        self._spec = source.spec
        self._bound = bound_of(checkpoint)
        self._theirs = SourceLayers(source, len(ids))
        count = len(ids)
        # The source's values in one slot, the checkpoint's own in the other.
        self._batch = StepBatch(
            input_ids=np.concatenate([ids, ids]),
            positions=np.tile(np.arange(count, dtype=np.int32), 2),
            slots=np.arange(2, dtype=np.int32),
            lengths=np.array([count, count], np.int32),
        )

    def run(self, advance: Advance) -> Verification:
        own, fault = self._embed()
        theirs = own
        faults = [fault, self._rotary_fault()]
        errors = []
        for layer in range(self._spec.layers):
            own, theirs, error, fault = self._layer(layer, own, theirs)
            errors.append(error)
            faults.append(fault)
            advance(1)
        logits, fault = self._logits(own, theirs)
        faults.append(fault)
        return Verification(
            precision=self._checkpoint.precision.name,
            kv_cache=self._checkpoint.kv_cache,
            tokens=len(self._ids),
            bound=self._bound,
            layers=tuple(errors),
            logits=logits,
            fault=next(filter(None, faults), None),
        )

    def _embed(self) -> tuple[Tensor, str | None]:
        """Return what goes into the first layer of both, and the embedding's fault."""
        ends = self._part(range(0))
        found = ends.weight("transformer.vocab_embedding.weight")
        distance = matrix_distance(found, self._theirs.embedding())
        near = distance <= _BF16_BOUND
        fault = f"the embedding differs from the source's by {distance:.3g} of its norm"
        return ends.embed(self._ids), None if near else fault

    def _rotary_fault(self) -> str | None:
        found = rope_table(self._checkpoint.spec, len(self._ids))
        # transformers has each angle twice, for both values of the pair that it turns.
        halves = [table[0, :, : table.shape[-1] // 2].numpy() for table in self._theirs.rotary]
        expected = np.stack(halves)
        if found.shape == expected.shape and np.allclose(found, expected, atol=1e-3):
            return None
        return (
            "the rotary embedding turns by other angles than the source's in transformers: its "
            "base, its scaling or the share of a head that turns differs"
        )

    def _layer(
        self, layer: int, own: Tensor, theirs: Tensor
    ) -> tuple[Tensor, Tensor, LayerError, str | None]:
        """Run a layer of both; return the values after it, how far it is, and its fault."""
        part = self._part(range(layer, layer + 1))
        both = part.run_layer(layer, torch.cat([theirs, own]), self._batch)
        given, own = torch.split(both, len(self._ids))
        tensors = self._theirs.tensors(layer)
        after = self._theirs.run(layer, tensors, theirs)
        error = _layer_error(layer, given - theirs, after - theirs)
        wrong = weight_faults(
            self._rules(Place.LAYER),
            layer,
            part.weight,
            tensors,
            spec=self._spec,
            bound=self._bound,
        )
        return own, after, error, self._fault(error, list(wrong))

    def _fault(self, error: LayerError, wrong: list[str]) -> str | None:
        # Written so that NaN is a fault.
        if not wrong and error.relative <= self._bound:
            return None
        precision = self._checkpoint.precision
        scaled = precision.inputs is not Inputs.UNQUANTIZED or self._checkpoint.kv_cache
        other = "a scale of inputs or KV cache is not" if scaled else "it is computed otherwise"
        cause = "; ".join(wrong) or f"its weights are right, so {other}"
        return (
            f"layer {error.layer} departs from the source by {error.relative:.3g} of what it adds, "
            f"with {precision.name} up to {self._bound:g}: {cause}"
        )

    def _logits(self, own: Tensor, theirs: Tensor) -> tuple[LogitsError, str | None]:
        ends = self._part(range(0))
        after = self._theirs.normalized(theirs)
        expected = torch.cat([after @ rows.T for _, rows in self._theirs.head()], dim=1)
        error = _logits_error(ends.head(own), expected)
        given = ends.head(theirs)
        relative = ((given - expected).norm() / expected.norm()).item()
        return error, self._head_fault(ends, relative)

    def _head_fault(self, ends: ReferenceModel, relative: float) -> str | None:
        rules = [rule for rule in self._rules(Place.LAST) if rule.target.startswith("transformer")]
        names = [origin.name for rule in rules for origin in rule.sources]
        tensors = {name: self._theirs.read(name) for name in names}
        wrong = list(
            weight_faults(rules, 0, ends.weight, tensors, spec=self._spec, bound=_BF16_BOUND)
        )
        head = ends.weight("lm_head.weight")
        distance = matrix_distance(head, self._theirs.head())
        if not distance <= _BF16_BOUND:
            wrong.append(f"lm_head differs from the source's by {distance:.3g} of its norm")
            if self._spec.tied:
                wrong.append("the source's head is tied to its embedding, and that was ignored")
            elif matrix_distance(head, self._theirs.embedding()) <= _BF16_BOUND:
                wrong.append("it is the embedding, to which the source does not tie its head")
        if not wrong and relative <= _BF16_BOUND:
            return None
        return f"the head departs from the source by {relative:.3g} of its logits: " + (
            "; ".join(wrong) or "its weights are right, so the last norm is computed otherwise"
        )

    def _rules(self, place: Place) -> list[TensorRule]:
        rules = family_of(self._spec.architecture).rules
        return [rule for rule in rules if rule.place is place]

    def _part(self, layers: range) -> ReferenceModel:
        return ReferenceModel(
            self._checkpoint,
            slots=2,
            max_seq_len=len(self._ids),
            dtype=torch.float32,
            layers=layers,
        )


def _layer_error(layer: int, added: Tensor, expected: Tensor) -> LayerError:
    difference = added - expected
    return LayerError(
        layer=layer,
        relative=(difference.norm() / expected.norm()).item(),
        largest=difference.abs().max().item(),
        mean=difference.abs().mean().item(),
        cosine=_cosine(added, expected),
    )


def _logits_error(found: Tensor, expected: Tensor) -> LogitsError:
    difference = (found - expected).abs()
    ours, theirs = torch.log_softmax(found, -1), torch.log_softmax(expected, -1)
    return LogitsError(
        largest=difference.max().item(),
        mean=difference.mean().item(),
        cosine=_cosine(found, expected),
        # Rounding takes what is equal below the 0 that it is at least.
        kl=(theirs.exp() * (theirs - ours)).sum(-1).clamp(min=0).mean().item(),
        same_top=(found.argmax(-1) == expected.argmax(-1)).float().mean().item(),
    )


def _cosine(found: Tensor, expected: Tensor) -> float:
    # Float32 sums of a whole vocabulary's products make more than 1 of what is equal; where one
    # of the two is float32, some versions of torch sum its squares so.
    one, other = found.flatten().double(), expected.flatten().double()
    return torch.cosine_similarity(one, other, dim=0).item()
