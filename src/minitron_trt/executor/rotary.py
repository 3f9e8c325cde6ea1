"""Rotary position embedding: the angles of TensorRT-LLM's tables, as numpy computes them."""

from __future__ import annotations

import math

import numpy as np

from minitron_trt.executor.step import Floats
from minitron_trt.spec import Llama3Scaling, ModelSpec


def rope_table(spec: ModelSpec, positions: int) -> Floats:
    """Return cosines and sines, float32 [2, positions, rotary_size / 2]."""
    angles = np.outer(np.arange(positions, dtype=np.float32), inverse_frequencies(spec))
    return np.stack([np.cos(angles), np.sin(angles)])


def inverse_frequencies(spec: ModelSpec) -> Floats:
    """Return the angle per position of each pair of values that turns."""
    exponents = np.arange(0, spec.rotary_size, 2, dtype=np.float32) / np.float32(spec.rotary_size)
    frequencies: Floats = np.float32(1) / np.float32(spec.rope.theta) ** exponents
    scaling = spec.rope.scaling
    return frequencies if scaling is None else _stretched(frequencies, scaling)


def _stretched(frequencies: Floats, scaling: Llama3Scaling) -> Floats:
    """Slow down the long waves by `factor`, leave the short ones, and blend in between."""
    low, high = np.float32(scaling.low_freq_factor), np.float32(scaling.high_freq_factor)
    # How many whole turns fit into the context the model was first trained on.
    turns = np.float32(scaling.original_max_positions / (2 * math.pi)) * frequencies
    kept = np.clip((turns - low) / (high - low), np.float32(0), np.float32(1))
    slowed = frequencies / np.float32(scaling.factor)
    blended: Floats = (1 - kept) * slowed + kept * frequencies
    return blended
