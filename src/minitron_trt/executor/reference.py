"""The reference model: a TensorRT-LLM checkpoint computed in torch, as its engine computes it.

It is written against the checkpoint's own tensors (fused qkv, norm factors, ranks) and shares no
code with the converter or transformers, so that agreement between the three means something.
"""

from __future__ import annotations

import logging
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from numpy.typing import NDArray
from torch import Tensor

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.errors import BadInputError
from minitron_trt.executor.attention import KVCache, Layout
from minitron_trt.executor.merged_weights import TORCH_DTYPES, read_weights
from minitron_trt.executor.products import product
from minitron_trt.executor.quantized_layers import kv_roundings, linear_layers
from minitron_trt.executor.rotary import rope_table
from minitron_trt.executor.step import Floats, StepBatch
from minitron_trt.families import Norm, family_of

log = logging.getLogger(__name__)
_HEAD_ROWS: Final = 8192  # widened at a time


class ReferenceModel:
    """A StepModel on a CPU or GPU; `dtype` computes in another precision than the checkpoint's."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        slots: int,
        max_seq_len: int,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        layers: range | None = None,
    ) -> None:
        """Read a checkpoint, or a part of it that is run by itself.

        With `layers`, those alone, for `run_layer`; an empty range is for `embed` and `head`, whose
        matrices then stay in the checkpoint's mapped file.
        """
        for name, value in (("slots", slots), ("max_seq_len", max_seq_len)):
            if value < 1:
                raise BadInputError(f"{name} is {value}; expected at least 1")
        spec = checkpoint.spec
        if max_seq_len > spec.max_positions:
            log.warning(
                "max_seq_len %d is beyond the %d positions the model was trained on",
                max_seq_len,
                spec.max_positions,
            )
        self.slots = slots
        self.max_seq_len = max_seq_len
        self.vocab = spec.vocab
        self._spec = spec
        self._family = family_of(spec.architecture)
        self._device = torch.device(device)
        dtype = dtype or TORCH_DTYPES[checkpoint.precision.storage]
        weights = read_weights(checkpoint, layers)
        like = torch.empty(0, dtype=dtype, device=device)
        held = range(spec.layers) if layers is None else layers
        self._linears = linear_layers(checkpoint, weights, like, held)
        self._kv_roundings = kv_roundings(checkpoint, weights, like, held)
        self._dtype = dtype
        # In float32 embedding and head of an 8B model would take 4 GB each.
        stay = layers is not None and not layers
        self._head_rows = _HEAD_ROWS if stay else spec.vocab
        self._weights = {n: tensor if stay else tensor.to(like) for n, tensor in weights.items()}
        self._rope = torch.from_numpy(rope_table(spec, max_seq_len)).to(self._device)
        self._cache = KVCache(spec, slots, max_seq_len, self._device, dtype)

    def step(self, batch: StepBatch) -> Floats:
        """Return the logits that follow each chunk's last token, or the tokens that are named."""
        logits: Floats = self.forward(batch).cpu().numpy()
        return logits

    @torch.inference_mode()
    def forward(self, batch: StepBatch, *, all_logits: bool = False) -> Tensor:
        """Return float32 logits of the tokens that the batch names, or of every one [T, vocab]."""
        layout = Layout.of(batch, self._device)
        self._cache.begin(batch)
        hidden = self.embed(batch.input_ids)
        for layer in range(self._spec.layers):
            hidden = self._layer(layer, hidden, layout)
        return self.head(hidden if all_logits else hidden[layout.logit_rows])

    def weight(self, name: str) -> Tensor:
        """Return a weight by its name in the checkpoint, as it is multiplied with."""
        linear = self._linears.get(name.removesuffix(".weight"))
        return linear.weight if linear else self._weights[name]

    @torch.inference_mode()
    def embed(self, ids: NDArray[np.int32]) -> Tensor:
        """Return what goes into the first layer, [T, hidden]."""
        known = self._weights["transformer.vocab_embedding.weight"]
        return F.embedding(torch.from_numpy(ids).to(self._device), known).to(self._dtype)

    @torch.inference_mode()
    def run_layer(self, layer: int, hidden: Tensor, batch: StepBatch) -> Tensor:
        """Return what comes out of one layer, of a batch's tokens [T, hidden]."""
        self._cache.begin(batch)
        return self._layer(layer, hidden, Layout.of(batch, self._device))

    @torch.inference_mode()
    def head(self, hidden: Tensor) -> Tensor:
        """Return the float32 logits [T, vocab] of what comes out of the last layer."""
        hidden = self._norm("transformer.ln_f", hidden)
        blocks = torch.split(self._weights["lm_head.weight"], self._head_rows)
        logits = [product(hidden, rows.to(hidden.dtype)) for rows in blocks]
        return torch.cat(logits, dim=-1).float() if len(blocks) > 1 else logits[0].float()

    def _layer(self, layer: int, hidden: Tensor, layout: Layout) -> Tensor:
        cosine, sine = self._rope[:, layout.positions, None]
        name = f"transformer.layers.{layer}"
        query, key, value = self._qkv(name, self._norm(f"{name}.input_layernorm", hidden))
        query, key = _turned(query, cosine, sine), _turned(key, cosine, sine)
        if self._kv_roundings:
            key, value = map(self._kv_roundings[layer], (key, value))
        attended = self._cache.attend(layer, query, key, value, layout)
        hidden = hidden + self._linears[f"{name}.attention.dense"](attended.flatten(1))
        return hidden + self._mlp(name, self._norm(f"{name}.post_layernorm", hidden))

    def _norm(self, name: str, values: Tensor) -> Tensor:
        weight, epsilon = self._weights[f"{name}.weight"], self._spec.norm_epsilon
        exact = values.float()
        if self._family.norm is Norm.LAYER_1P:
            # The checkpoint's weight is the factor itself: the 1 was added at conversion.
            bias = self._weights[f"{name}.bias"]
            return F.layer_norm(exact, weight.shape, weight.float(), bias.float(), epsilon).to(
                values.dtype
            )
        scale = torch.rsqrt(exact.square().mean(-1, keepdim=True) + epsilon)
        # TensorRT-LLM rounds before it multiplies by the weight.
        return (exact * scale).to(values.dtype) * weight

    def _qkv(self, name: str, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        spec = self._spec
        heads = self._linears[f"{name}.attention.qkv"](values).view(len(values), -1, spec.head_size)
        query, key, value = torch.split(heads, [spec.heads, spec.kv_heads, spec.kv_heads], dim=1)
        return query, key, value

    def _mlp(self, name: str, values: Tensor) -> Tensor:
        inner = self._linears[f"{name}.mlp.fc"](values)
        if self._family.gated:
            inner = F.silu(inner) * self._linears[f"{name}.mlp.gate"](values)
        else:
            inner = F.relu(inner).square()
        return self._linears[f"{name}.mlp.proj"](inner)


def _turned(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn the first values of each head by its position: pairs are half the turned width apart."""
    half = cosine.shape[-1]
    exact = heads.float()
    first, second, rest = exact.tensor_split((half, 2 * half), dim=-1)
    turned = [first * cosine - second * sine, second * cosine + first * sine, rest]
    return torch.cat(turned, dim=-1).to(heads.dtype)
