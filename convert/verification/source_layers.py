"""A source as transformers computes it in float32, with one layer of it in memory at a time.

transformers reads the source's own config.json, apart from how the converter reads it: the two are
witnesses of each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
import transformers
from torch import Tensor

from minitron_trt.convert.source.model_folder import ModelSource
from minitron_trt.convert.torch_model import mapped_tensor
from minitron_trt.dtypes import FP8
from minitron_trt.errors import UnsupportedError
from minitron_trt.families import EMBEDDING, HEAD
from minitron_trt.quantization.number_formats import widen
from minitron_trt.quantization.scales import read_scale
from minitron_trt.tensorfile import TensorEntry

BLOCK_ROWS: Final = 8192
"""How many rows of a vocabulary's matrix are widened to float32 at a time."""


class SourceLayers:
    """The layers and ends of a model folder's network, each read when it is run."""

    def __init__(self, source: ModelSource, positions: int) -> None:
        """Lay the network out; UnsupportedError when transformers refuses its config.json."""
        self._source = source
        config = _config(source)
        with torch.device("meta"):
            network = getattr(transformers, source.spec.architecture)(config)
        self._layers, self._norm = network.model.layers, network.model.norm
        # Frequencies have no value on the meta device, where the rest was made.
        rotary = type(network.model.rotary_emb)(config=config)
        self._positions = torch.arange(positions)[None]
        self.rotary: tuple[Tensor, Tensor] = rotary(torch.zeros(1), self._positions)
        hidden = torch.finfo(torch.float32).min
        self._mask = torch.full((1, 1, positions, positions), hidden).triu(1)

    def tensors(self, index: int) -> dict[str, Tensor]:
        """Return the float32 tensors of a layer by their names in the source."""
        prefix = f"model.layers.{index}."
        names = [f"{prefix}{name}" for name in self._layers[index].state_dict()]
        return {name: self.read(name) for name in names}

    def run(self, index: int, tensors: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
        """Return what a layer with these tensors makes of values [tokens, hidden]."""
        prefix = f"model.layers.{index}."
        layer = self._layers[index]
        weights = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        layer.load_state_dict(weights, assign=True)
        out = layer(
            hidden[None],
            attention_mask=self._mask,
            position_ids=self._positions,
            position_embeddings=self.rotary,
        )
        # So that one layer at a time is in memory: on the meta device it has no values.
        layer.to("meta")
        # transformers before 5 returns it with what else a layer may give.
        first: Tensor = out[0] if isinstance(out, tuple) else out
        return first.reshape(len(hidden), -1)

    def embedding(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the embedding's rows, a block at a time."""
        return self._blocks(EMBEDDING)

    def head(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the head's rows, a block at a time; a tied model's are the embedding's."""
        return self._blocks(HEAD)

    def normalized(self, hidden: Tensor) -> Tensor:
        """Return what the last norm makes of values [tokens, hidden]."""
        names = self._norm.state_dict()
        self._norm.load_state_dict({n: self.read(f"model.norm.{n}") for n in names}, assign=True)
        out: Tensor = self._norm(hidden)
        return out

    def read(self, name: str) -> Tensor:
        """Return a tensor of the source in float32, multiplied by its scale."""
        numbers = mapped_tensor(self._source.tensors[name]).float()
        if self._source.tensors[name].dtype != FP8:
            return numbers
        scale = self._source.scale_of(name)
        if isinstance(scale, TensorEntry):
            return numbers * torch.from_numpy(widen(read_scale(scale)))[:, None]
        return numbers * scale

    def _blocks(self, name: str) -> Iterator[tuple[slice, Tensor]]:
        stored = mapped_tensor(self._source.tensors[name])
        for start in range(0, len(stored), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            yield rows, stored[rows].float()


def _config(source: ModelSource) -> Any:
    kind = getattr(transformers, source.spec.architecture).config_class
    # A pruned model's config may lack the head size, which the weights have.
    record = {**source.config, "head_dim": source.spec.head_size}
    unset = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    try:
        config = kind.from_dict({**record, **unset})
    except Exception as error:  # the library raises whatever its checks do
        said = " ".join(str(error).split()) or type(error).__name__
        raise UnsupportedError(
            f"transformers {transformers.__version__} refuses the source's config.json ({said}); "
            "there is nothing to verify against"
        ) from error
    config._attn_implementation = "eager"
    return config
