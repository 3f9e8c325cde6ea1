"""The decoder as a TensorRT network: what `--compiler tensorrt` compiles.

One step of a batch: tokens that may be a prompt's chunk or one each, over a linear KV cache with a
row per sequence. Sequences are padded at their end to the length of the longest.

    input_ids          int32 [batch, length]
    positions          int64 [batch, length]  consecutive, also over the padding
    key_value_lengths  int32 [batch]          tokens that a sequence has after this step
    cache_key_i, cache_value_i                [batch, kv_heads, max_seq_len, head_size] per layer
    logits             float32 [batch, vocab] that follow the last token of each sequence
    updated_key_i, updated_value_i            the caches, in the memory of the inputs

Only the last token's logits are computed: those of a whole prompt would be the largest tensor of
the engine, and nothing that generates text reads them. Padding writes keys beyond a sequence's
end, so `positions` must stay below max_seq_len there too; the next step overwrites them. Memory of
a cache must be zeros before it is first used: a masked NaN is still NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from minitron_trt.build.tensorrt.api import Network, Tensor, Trt, made
from minitron_trt.build.tensorrt.graph import Graph
from minitron_trt.build.tensorrt.mapped_weights import Array, Weights, joined, map_weights
from minitron_trt.checkpoint import Checkpoint
from minitron_trt.errors import UsageError
from minitron_trt.executor.rotary import rope_table
from minitron_trt.families import Norm, family_of

_WEIGHT_SCALE: Final = "weights_scaling_factor"
_INPUT_SCALE: Final = "activation_scaling_factor"


@dataclass(frozen=True, slots=True)
class NetworkLimits:
    """The largest step: sequences, tokens of a sequence, and tokens of a sequence in one step."""

    max_batch_size: int
    max_seq_len: int
    max_input_len: int

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "max_seq_len", "max_input_len"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.max_input_len > self.max_seq_len:
            raise UsageError(
                f"max_input_len {self.max_input_len} exceeds max_seq_len {self.max_seq_len}"
            )


@dataclass(frozen=True, slots=True)
class _Step:
    """What every layer reads about the step."""

    positions: Tensor  # [batch, length]
    starts: Tensor  # [batch], tokens that the cache holds already
    allowed: Tensor  # [batch, 1, length, max_seq_len]
    cosine: Tensor
    sine: Tensor
    query_shape: Tensor
    kv_shape: Tensor
    inner_shape: Tensor


def define_network(
    trt: Trt, network: Network, checkpoint: Checkpoint, limits: NetworkLimits
) -> Graph:
    """Add a checkpoint's model to an empty, strongly typed network.

    The weights are borrowed: keep the returned graph until the engine is built.
    """
    graph = Graph(trt, network, checkpoint.precision.dtype)
    _Decoder(graph, checkpoint, map_weights(checkpoint), limits).define()
    return graph


class _Decoder:
    def __init__(
        self, graph: Graph, checkpoint: Checkpoint, weights: Weights, limits: NetworkLimits
    ) -> None:
        self._graph = graph
        self._spec = checkpoint.spec
        self._family = family_of(checkpoint.spec.architecture)
        self._weights = weights
        self._limits = limits

    def define(self) -> None:
        """Add every layer, input and output."""
        graph, trt = self._graph, self._graph.trt
        tokens = (("batch", -1), ("length", -1))
        ids = graph.input("input_ids", trt.int32, tokens)
        positions = graph.input("positions", trt.int64, tokens)
        lengths = graph.input("key_value_lengths", trt.int32, (("batch", -1),))
        step = self._step(ids, positions)
        embedding = graph.constant(self._weights["transformer.vocab_embedding.weight"])
        hidden = graph.gather(embedding, ids, 0)
        for layer in range(self._spec.layers):
            name = f"transformer.layers.{layer}"
            normed = self._norm(f"{name}.input_layernorm", hidden)
            heads = self._attention(layer, self._linear(f"{name}.attention.qkv", normed), step)
            hidden = graph.binary("SUM", hidden, self._linear(f"{name}.attention.dense", heads))
            inner = self._mlp(name, self._norm(f"{name}.post_layernorm", hidden), step)
            hidden = graph.binary("SUM", hidden, inner)
        one = graph.constant(np.ones(1, np.int32))
        last = graph.binary("SUB", graph.binary("SUB", lengths, one), step.starts)
        hidden = graph.gather(hidden, graph.reshape(last, (0, 1)), 1, per_batch=True)
        logits = self._linear("lm_head", self._norm("transformer.ln_f", hidden))
        graph.output(graph.float32(graph.reshape(logits, (0, self._spec.vocab))), "logits")

    def _step(self, ids: Tensor, positions: Tensor) -> _Step:
        graph, spec, limit = self._graph, self._spec, self._limits.max_seq_len
        # Positions are consecutive, so the first says how many tokens the cache holds already.
        first = graph.gather(positions, graph.constant(np.zeros((), np.int64)), 1)
        places = graph.constant(np.arange(limit, dtype=np.int64).reshape(1, 1, 1, limit))
        beyond = graph.binary("SUM", positions, graph.constant(np.ones((1, 1), np.int64)))
        cosine, sine = rope_table(spec, limit)
        return _Step(
            positions=positions,
            starts=graph.cast(first, graph.trt.int32),
            allowed=graph.binary("LESS", places, graph.reshape(beyond, (0, 1, -1, 1))),
            cosine=graph.constant(cosine),
            sine=graph.constant(sine),
            query_shape=graph.shape_with_last(ids, spec.query_size),
            kv_shape=graph.shape_with_last(ids, spec.kv_size),
            inner_shape=graph.shape_with_last(ids, spec.intermediate),
        )

    def _linear(self, name: str, values: Tensor) -> Tensor:
        """Multiply by a weight, in FP8 where the checkpoint has scales."""
        weight = self._weights[f"{name}.weight"]
        return self._product(name, values, weight, self._weights.get(f"{name}.{_WEIGHT_SCALE}"))

    def _product(self, name: str, values: Tensor, weight: Array, scale: Array | None) -> Tensor:
        # Both sides of a product need the same rank.
        right = self._graph.constant(weight, (1, *weight.shape))
        if scale is not None:
            # The builder sees values rounded to FP8 and back, and multiplies the codes.
            input_scale = self._weights[f"{name}.{_INPUT_SCALE}"]
            codes = self._graph.quantized(values, input_scale)
            values = self._graph.dequantized(codes, input_scale)
            right = self._graph.dequantized(right, scale)
        return self._graph.product(values, right, name)

    def _norm(self, name: str, values: Tensor) -> Tensor:
        graph, width = self._graph, (1, 1, self._spec.hidden)
        weight = graph.constant(self._weights[f"{name}.weight"], width)
        exact = graph.float32(values)
        if self._family.norm is Norm.LAYER_1P:
            # The checkpoint's weight is the factor itself: the 1 was added at conversion.
            bias = graph.constant(self._weights[f"{name}.bias"], width)
            layer = made(
                graph.network.add_normalization_v2(
                    exact, graph.float32(weight), graph.float32(bias), 1 << 2
                )
            )
            layer.epsilon = self._spec.norm_epsilon
            layer.name = name
            return graph.rounded(layer.get_output(0))
        squares = graph.mean_of_last(graph.binary("PROD", exact, exact))
        epsilon = graph.scalar(self._spec.norm_epsilon, 3)
        root = graph.unary("SQRT", graph.binary("SUM", squares, epsilon))
        # TensorRT-LLM rounds before it multiplies by the weight.
        return graph.binary("PROD", graph.rounded(graph.binary("DIV", exact, root)), weight)

    def _attention(self, layer: int, qkv: Tensor, step: _Step) -> Tensor:
        """Attend to the cache up to each token's own position.

        The mask is explicit. The other way, CausalMaskKind.LOWER_RIGHT with key_value_lengths,
        leaves open in the documentation where the diagonal of a padded batch lies, and fused
        kernels of TensorRT 11.1 were seen to read beyond the lengths on SM86 and SM121.
        """
        graph, spec = self._graph, self._spec
        query = self._rotated(self._heads(qkv, 0, spec.heads, step.query_shape), step)
        # IAttention does not scale; doing it before the rounding costs no precision.
        scaled = graph.binary("PROD", query, graph.scalar(spec.head_size**-0.5, 4))
        at = spec.query_size
        key = self._rotated(self._heads(qkv, at, spec.kv_heads, step.kv_shape), step)
        value = self._heads(qkv, at + spec.kv_size, spec.kv_heads, step.kv_shape)
        attention = graph.attention(
            graph.rounded(scaled),
            self._cached(f"key_{layer}", graph.rounded(key), step),
            self._cached(f"value_{layer}", value, step),
            step.allowed,
        )
        attention.name = f"transformer.layers.{layer}.attention"
        return graph.reshape(attention.get_output(0), (0, 0, spec.query_size), before=(0, 2, 1, 3))

    def _heads(self, qkv: Tensor, start: int, heads: int, shape: Tensor) -> Tensor:
        part = self._graph.slice_last(qkv, start, shape)
        return self._graph.reshape(part, (0, 0, heads, self._spec.head_size), after=(0, 2, 1, 3))

    def _rotated(self, heads: Tensor, step: _Step) -> Tensor:
        """Rotate heads by their positions, in float32 as the tables are."""
        rotary = self._spec.rotary_size
        # 0 stands for the whole head.
        size = 0 if rotary == self._spec.head_size else rotary
        layer = made(
            self._graph.network.add_rotary_embedding(
                self._graph.float32(heads), step.cosine, step.sine, False, size
            )
        )
        layer.set_input(3, step.positions)
        return layer.get_output(0)

    def _cached(self, name: str, update: Tensor, step: _Step) -> Tensor:
        graph, spec = self._graph, self._spec
        axes = (
            ("batch", -1),
            ("kv_heads", spec.kv_heads),
            ("max_seq_len", self._limits.max_seq_len),
            ("head_size", spec.head_size),
        )
        cache = graph.input(f"cache_{name}", graph.dtype, axes)
        mode = graph.trt.KVCacheMode.LINEAR
        layer = made(graph.network.add_kv_cache_update(cache, update, step.starts, mode))
        updated = layer.get_output(0)
        graph.output(updated, f"updated_{name}")
        return updated

    def _mlp(self, name: str, values: Tensor, step: _Step) -> Tensor:
        graph = self._graph
        if self._family.gated:
            fc, gate = self._branches(name, values, step)
            exact = graph.float32(fc)
            silu = graph.binary("PROD", exact, graph.activation("SIGMOID", exact))
            inner = graph.binary("PROD", graph.rounded(silu), gate)
        else:
            positive = graph.activation("RELU", self._linear(f"{name}.mlp.fc", values))
            inner = graph.binary("PROD", positive, positive)
        return self._linear(f"{name}.mlp.proj", inner)

    def _branches(self, name: str, values: Tensor, step: _Step) -> tuple[Tensor, Tensor]:
        """Multiply by both branches at once, if their input is rounded alike.

        The builder would join the two products itself, but with copies of their weights in memory.
        """
        weights, graph, names = self._weights, self._graph, (f"{name}.mlp.fc", f"{name}.mlp.gate")
        fc, gate = names
        if weights.get(f"{fc}.{_INPUT_SCALE}") != weights.get(f"{gate}.{_INPUT_SCALE}"):
            return self._linear(fc, values), self._linear(gate, values)
        scale = None
        if f"{fc}.{_WEIGHT_SCALE}" in weights:
            scales = np.concatenate([weights[f"{part}.{_WEIGHT_SCALE}"] for part in names])
            # Each branch has a scale of its own, so the matrix of both has one for each row.
            scale = scales.repeat(self._spec.intermediate)
        both = self._product(
            fc, values, joined(*(weights[f"{part}.weight"] for part in names)), scale
        )
        at, shape = self._spec.intermediate, step.inner_shape
        return graph.slice_last(both, 0, shape), graph.slice_last(both, at, shape)
