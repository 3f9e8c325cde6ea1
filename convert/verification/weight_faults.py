"""Why a part of a checkpoint computes something else: its weights beside the source's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from minitron_trt.families import TensorRule
from minitron_trt.spec import ModelSpec


def weight_faults(
    rules: Iterable[TensorRule],
    layer: int,
    found: Callable[[str], Tensor],
    expected: Mapping[str, Tensor],
    *,
    spec: ModelSpec,
    bound: float,
) -> Iterator[str]:
    """Yield what is wrong with a layer's weights: each that is further than `bound` from its own.

    `found` returns a weight by its name in the checkpoint; `expected` are the source's tensors. The
    bound is a share of the weight's norm.
    """
    wholes = {rule.target: _whole(rule, layer, expected) for rule in rules}
    for rule in rules:
        ours = found(rule.target.format(layer)).float()
        yield from _faults(rule, ours, wholes, spec, bound)


def _whole(rule: TensorRule, layer: int, tensors: Mapping[str, Tensor]) -> Tensor:
    parts = [tensors[origin.name.format(layer)] for origin in rule.sources]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _faults(
    rule: TensorRule,
    found: Tensor,
    wholes: Mapping[str, Tensor],
    spec: ModelSpec,
    bound: float,
) -> Iterator[str]:
    stored = wholes[rule.target]
    expected = stored + 1 if rule.plus_one else stored
    if _near(found, expected, bound):
        return
    name = rule.target.removeprefix("transformer.layers.{}.")
    twin = {"mlp.fc.weight": "mlp.gate.weight", "mlp.gate.weight": "mlp.fc.weight"}.get(name)
    other = wholes.get(f"transformer.layers.{{}}.{twin}")
    if rule.plus_one and _near(found + 1, expected, bound):
        yield f"{name} lacks the 1 that LayerNorm1P adds"
    elif other is not None and _near(found, other, bound):
        yield f"{name} is the source's other branch: gate and up are swapped"
    elif name == "attention.qkv.weight" and _is_permuted(found, expected, spec, bound):
        yield f"{name} has the rows of q and k in GGUF's order: they are permuted"
    elif (power := _power_of_two(found, expected, bound)) is not None:
        yield f"{name} is off by 2 to the power of {power}: a wrong scale"
    else:
        yield f"{name} differs from the source's by {_relative(found, expected):.3g} of its norm"


def _relative(found: Tensor, expected: Tensor) -> float:
    size = expected.norm()
    # A bias of zeros has no norm to be a share of.
    return float((found - expected).norm() / (size if size > 0 else 1))


def _near(found: Tensor, expected: Tensor, bound: float) -> bool:
    return found.shape == expected.shape and _relative(found, expected) <= bound


def _power_of_two(found: Tensor, expected: Tensor, bound: float) -> int | None:
    if found.shape != expected.shape:
        return None
    ratio = ((found * expected).sum() / expected.square().sum()).item()
    if not 0 < ratio < math.inf:
        return None
    power = round(math.log2(ratio))
    return power if power and _near(found, expected * 2.0**power, bound) else None


def _is_permuted(found: Tensor, expected: Tensor, spec: ModelSpec, bound: float) -> bool:
    """Return whether the rows of each head of q and k are as llama.cpp has them, or once too far.

    It alternates the two halves of a head; undoing that where nobody did it is wrong as well.
    """
    rows = (spec.heads + spec.kv_heads) * spec.head_size
    turned, rest = expected[:rows], expected[rows:]
    halves, pairs = (2, spec.head_size // 2), (spec.head_size // 2, 2)
    for split in (halves, pairs):
        heads = turned.reshape(-1, *split, turned.shape[1]).transpose(1, 2)
        if _near(found, torch.cat([heads.reshape(turned.shape), rest]), bound):
            return True
    return False


def matrix_distance(found: Tensor, expected: Iterable[tuple[slice, Tensor]]) -> float:
    """Return how far a matrix is from one that comes in blocks of rows, as a share of its norm."""
    difference = size = 0.0
    for rows, block in expected:
        difference += (found[rows].float() - block).square().sum().item()
        size += block.square().sum().item()
    return math.sqrt(difference / size) if size else math.sqrt(difference)
