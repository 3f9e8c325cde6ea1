"""A TensorRT network, written in the few operations that a decoder is made of.

Networks are strongly typed: every tensor has the dtype that it is given here, and TensorRT may not
choose another. What the library only borrows (weights) is kept alive by the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from minitron_trt.build.tensorrt.api import Layer, Network, Tensor, Trt, made
from minitron_trt.build.tensorrt.mapped_weights import Array
from minitron_trt.dtypes import DTYPES, FP8

# Of all dtypes, TensorRT has a name of its own for FP8 alone.
_OWN_NAMES: Final[Mapping[str, str]] = MappingProxyType({DTYPES[FP8].name: "fp8"})


class Graph:
    """Operations that append to a network; `dtype` is what the model's weights are stored in."""

    def __init__(self, trt: Trt, network: Network, dtype: str) -> None:
        self.trt = trt
        self.network = network
        self.dtype = getattr(self.trt, dtype)
        self._held: list[Array] = []

    def input(self, name: str, dtype: Any, shape: Sequence[tuple[str, int]]) -> Tensor:
        """Add an input whose axes are (name, size); size -1 is set when the engine runs."""
        tensor = self.network.add_input(name, dtype, [size for _, size in shape])
        for axis, (label, size) in enumerate(shape):
            if size < 0:
                # Equal names promise equal sizes.
                tensor.set_dimension_name(axis, label)
        return tensor

    def output(self, tensor: Tensor, name: str) -> None:
        """Make a tensor an output."""
        tensor.name = name
        self.network.mark_output(tensor)

    def constant(self, values: Array, shape: Sequence[int] | None = None) -> Tensor:
        """Add an array, as it lies in memory, with a shape of as many values."""
        values = np.asarray(values, order="C")
        self._held.append(values)
        dtype = getattr(self.trt, _OWN_NAMES.get(values.dtype.name, values.dtype.name))
        weights = self.trt.Weights(dtype, values.ctypes.data, values.size)
        shape = values.shape if shape is None else tuple(shape)
        return made(self.network.add_constant(shape, weights)).get_output(0)

    def scalar(self, value: float, rank: int) -> Tensor:
        """Add one float32 that broadcasts over tensors of a rank."""
        return self.constant(np.full((1,) * rank, value, np.float32))

    def cast(self, values: Tensor, dtype: Any) -> Tensor:
        """Convert to a dtype."""
        return made(self.network.add_cast(values, dtype)).get_output(0)

    def float32(self, values: Tensor) -> Tensor:
        """Convert to float32."""
        return self.cast(values, self.trt.float32)

    def rounded(self, values: Tensor) -> Tensor:
        """Round to the model's dtype."""
        return self.cast(values, self.dtype)

    def quantized(self, values: Tensor, scale: Array) -> Tensor:
        """Divide by a scale and round to FP8, which saturates at 448."""
        fp8 = self.trt.fp8
        return made(self.network.add_quantize(values, self._scale(scale), fp8)).get_output(0)

    def dequantized(self, codes: Tensor, scale: Array) -> Tensor:
        """Multiply FP8 by its scale, or [1, out, in] by one scale per row, in the model's dtype."""
        layer = made(self.network.add_dequantize(codes, self._scale(scale), self.dtype))
        if scale.size > 1:
            layer.axis = 1
        return layer.get_output(0)

    def _scale(self, scale: Array) -> Tensor:
        return self.constant(scale, scale.shape if scale.size > 1 else ())

    def binary(self, operation: str, left: Tensor, right: Tensor) -> Tensor:
        """Combine two tensors of one dtype and rank; axes of size 1 broadcast."""
        kind = getattr(self.trt.ElementWiseOperation, operation)
        return made(self.network.add_elementwise(left, right, kind)).get_output(0)

    def activation(self, kind: str, values: Tensor) -> Tensor:
        """Apply RELU, SIGMOID and the like."""
        chosen = getattr(self.trt.ActivationType, kind)
        return made(self.network.add_activation(values, chosen)).get_output(0)

    def unary(self, operation: str, values: Tensor) -> Tensor:
        """Apply SQRT, RECIP and the like."""
        kind = getattr(self.trt.UnaryOperation, operation)
        return made(self.network.add_unary(values, kind)).get_output(0)

    def mean_of_last(self, values: Tensor) -> Tensor:
        """Average over the last axis, which stays with size 1."""
        axes = 1 << (len(values.shape) - 1)
        kind = self.trt.ReduceOperation.AVG
        return made(self.network.add_reduce(values, kind, axes, True)).get_output(0)

    def product(self, values: Tensor, weight: Tensor, name: str) -> Tensor:
        """Multiply [batch, length, in] by the transpose of [1, out, in]."""
        operation = self.trt.MatrixOperation
        layer = made(
            self.network.add_matrix_multiply(values, operation.NONE, weight, operation.TRANSPOSE)
        )
        layer.name = name
        return layer.get_output(0)

    def attention(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Layer:
        """Attend to the keys that the mask allows; the scores are not scaled."""
        softmax = self.trt.AttentionNormalizationOp.SOFTMAX
        heads = (query, key, value, softmax)
        if hasattr(self.trt, "CausalMaskKind"):
            layer = self.network.add_attention_v2(*heads, self.trt.CausalMaskKind.NONE)
        else:
            # TensorRT 10 has one kind of causal mask, and a switch for it.
            layer = self.network.add_attention(*heads, False)
        made(layer).mask = mask
        # Where no fused kernel fits, several kernels compute the same.
        layer.decomposable = True
        return layer

    def gather(
        self, table: Tensor, indices: Tensor, axis: int, *, per_batch: bool = False
    ) -> Tensor:
        """Pick entries of an axis; `per_batch` pairs the first axes of table and indices."""
        layer = made(self.network.add_gather(table, indices, axis))
        layer.num_elementwise_dims = int(per_batch)
        return layer.get_output(0)

    def reshape(
        self,
        values: Tensor,
        shape: Sequence[int],
        *,
        before: Sequence[int] | None = None,
        after: Sequence[int] | None = None,
    ) -> Tensor:
        """Reshape between two transpositions; 0 keeps the axis at that place, -1 is the rest."""
        layer = made(self.network.add_shuffle(values))
        if before is not None:
            layer.first_transpose = tuple(before)
        layer.reshape_dims = tuple(shape)
        if after is not None:
            layer.second_transpose = tuple(after)
        return layer.get_output(0)

    def shape_with_last(self, values: Tensor, last: int) -> Tensor:
        """Return the shape of [batch, length] with one more axis, to slice by."""
        shape = made(self.network.add_shape(values)).get_output(0)
        return made(
            self.network.add_concatenation([shape, self.constant(np.array([last], np.int64))])
        ).get_output(0)

    def slice_last(self, values: Tensor, start: int, shape: Tensor) -> Tensor:
        """Slice `shape` out of [batch, length, width], from a place in its last axis on."""
        layer = made(self.network.add_slice(values, (0, 0, start), (0, 0, 0), (1, 1, 1)))
        layer.set_input(2, shape)
        return layer.get_output(0)
