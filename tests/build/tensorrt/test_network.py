"""The TensorRT network computes what the reference model computes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

pytest.importorskip("tensorrt_rtx", reason="the network needs: pip install 'minitron-trt[rtx]'")

from tests.build.tensorrt.interpreter import Interpreter, UnknownLayerError
from tests.build.tensorrt.interpreter_model import InterpretedModel, new_network

from minitron_trt.build.tensorrt.api import RTX
from minitron_trt.build.tensorrt.mapped_weights import joined, map_weights
from minitron_trt.build.tensorrt.network_definition import NetworkLimits, define_network
from minitron_trt.checkpoint import Checkpoint
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.errors import BadInputError, UnsupportedError, UsageError
from minitron_trt.executor.reference import ReferenceModel
from minitron_trt.executor.step import StepBatch, StepModel
from minitron_trt.samples import NAMES, sample_folder
from minitron_trt.spec import ModelSpec

pytestmark = pytest.mark.slow

LIMITS = NetworkLimits(max_batch_size=3, max_seq_len=48, max_input_len=24)
# Shares of the largest logit: what rounding of float32 may come to, and what a wrong fact must.
SAME, DIFFERENT = 3e-6, 1e-3
TINY = ("llama", "mistral", "nemotron")

MakeCheckpoint = Callable[..., Checkpoint]


@pytest.fixture(scope="session")
def checkpoint_of(
    make_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> MakeCheckpoint:
    """Return the checkpoint of a sample or a tiny random model, converted once."""

    @functools.cache
    def make(name: str, **options: Any) -> Checkpoint:
        source = sample_folder(name) if name in NAMES else make_model(name)
        output = tmp_path_factory.mktemp("checkpoints") / "checkpoint"
        convert(str(source), output, ConvertOptions(**options))
        return Checkpoint.open(output)

    return make


def steps(vocab: int) -> Iterator[StepBatch]:
    """Yield unequal prompts, a second chunk beside single tokens, then ten tokens of each."""
    random = np.random.default_rng(11)
    slots = np.array([2, 0, 1], np.int32)
    held = np.zeros(3, np.int32)
    for lengths in ((5, 17, 9), (6, 1, 3), *[(1, 1, 1)] * 10):
        places = [start + np.arange(length) for start, length in zip(held, lengths, strict=True)]
        yield StepBatch(
            input_ids=random.integers(0, vocab, sum(lengths), dtype=np.int32),
            positions=np.concatenate(places).astype(np.int32),
            slots=slots,
            lengths=np.array(lengths, np.int32),
        )
        held = held + np.array(lengths, np.int32)


def logits_of(model: StepModel) -> NDArray[np.float32]:
    """Return the logits of every step, [steps, sequences, vocab]."""
    return np.stack([model.step(batch) for batch in steps(model.vocab)])


def reference(checkpoint: Checkpoint, dtype: torch.dtype | None) -> NDArray[np.float32]:
    """Return the reference model's logits, in float32 or as stored."""
    return logits_of(ReferenceModel(checkpoint, slots=3, max_seq_len=48, dtype=dtype))


def interpreted(checkpoint: Checkpoint, *, exact: bool) -> NDArray[np.float32]:
    """Return the network's logits, in float32 or as typed."""
    return logits_of(InterpretedModel(checkpoint, LIMITS, exact=exact))


@pytest.mark.parametrize("name", [*NAMES, *TINY])
def test_in_float32_the_network_is_the_reference_model(
    name: str, checkpoint_of: MakeCheckpoint
) -> None:
    checkpoint = checkpoint_of(name)
    expected = reference(checkpoint, torch.float32)

    actual = interpreted(checkpoint, exact=True)

    assert np.abs(actual - expected).max() < SAME * np.abs(expected).max()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", [*NAMES, *TINY])
def test_as_typed_the_network_rounds_no_worse_than_the_reference_model(
    name: str, precision: str, checkpoint_of: MakeCheckpoint
) -> None:
    checkpoint = checkpoint_of(name, precision=precision)
    exact = reference(checkpoint, torch.float32)
    usual = np.square(reference(checkpoint, None) - exact).mean() ** 0.5

    error = np.square(interpreted(checkpoint, exact=False) - exact).mean() ** 0.5

    assert 0 < error < 1.25 * usual


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("solar-llama", lambda spec: {"norm_epsilon": spec.norm_epsilon * 100}),
        ("solar-llama", lambda spec: {"rope": replace(spec.rope, theta=spec.rope.theta / 2)}),
        ("solar-llama", lambda spec: {"rope": replace(spec.rope, scaling=None)}),
        ("solar-nemotron", lambda spec: {"norm_epsilon": spec.norm_epsilon * 100}),
        ("solar-nemotron", lambda spec: {"rope": replace(spec.rope, fraction=1.0)}),
        # The same sizes of q, k and v, cut into other heads.
        ("solar-nemotron", lambda spec: {"heads": 6, "kv_heads": 1, "head_size": 64}),
    ],
    ids=["epsilon", "theta", "llama3", "epsilon_1p", "partial", "heads"],
)
def test_the_comparison_notices_a_wrong_fact(
    name: str, change: Callable[[ModelSpec], dict[str, Any]], checkpoint_of: MakeCheckpoint
) -> None:
    checkpoint = checkpoint_of(name)
    spec = replace(checkpoint.spec, **change(checkpoint.spec))
    expected = reference(checkpoint, torch.float32)

    actual = interpreted(replace(checkpoint, spec=spec), exact=True)

    assert np.abs(actual - expected).max() > DIFFERENT * np.abs(expected).max()


def test_pipeline_ranks_are_joined(checkpoint_of: MakeCheckpoint) -> None:
    whole, cut = (map_weights(checkpoint_of("nemotron", pp=pp)) for pp in (1, 2))

    assert whole.keys() == cut.keys()
    assert all(np.array_equal(whole[name], cut[name]) for name in whole)


def test_weights_are_the_file_and_not_a_copy(checkpoint_of: MakeCheckpoint) -> None:
    checkpoint = checkpoint_of("solar-llama")
    weights = map_weights(checkpoint)
    spans = sorted((w.ctypes.data, w.nbytes) for w in weights.values())

    first, (last, size) = spans[0][0], spans[-1]
    assert sum(nbytes for _, nbytes in spans) == last + size - first
    assert not any(weight.flags.owndata or weight.flags.writeable for weight in weights.values())


def test_matrices_side_by_side_are_joined_without_a_copy(checkpoint_of: MakeCheckpoint) -> None:
    weights = map_weights(checkpoint_of("solar-llama"))
    fc, gate = (weights[f"transformer.layers.1.mlp.{part}.weight"] for part in ("fc", "gate"))

    assert joined(fc, gate).ctypes.data == fc.ctypes.data
    assert np.array_equal(joined(fc, gate), np.concatenate([fc, gate]))
    assert np.array_equal(joined(gate, fc), np.concatenate([gate, fc]))


def test_a_checkpoint_for_several_gpus_is_refused(checkpoint_of: MakeCheckpoint) -> None:
    with pytest.raises(UnsupportedError, match="sharded for 2: convert with --tp 1"):
        map_weights(checkpoint_of("llama", tp=2))


@pytest.mark.parametrize(
    ("layers", "said"), [(2, "has transformer.layers.2"), (4, "lacks transformer.layers.3")]
)
def test_tensors_that_the_config_does_not_call_for_are_named(
    layers: int, said: str, checkpoint_of: MakeCheckpoint
) -> None:
    checkpoint = checkpoint_of("llama")
    spec = replace(checkpoint.spec, layers=layers)

    with pytest.raises(BadInputError, match=said):
        map_weights(replace(checkpoint, spec=spec))


def test_a_tensor_of_another_shape_is_named(checkpoint_of: MakeCheckpoint) -> None:
    checkpoint = checkpoint_of("llama")
    spec = replace(checkpoint.spec, vocab=130)

    with pytest.raises(
        BadInputError, match=r"vocab_embedding.weight is BF16 \[131, 40\], expected"
    ):
        map_weights(replace(checkpoint, spec=spec))


def test_limits_that_contradict_are_refused() -> None:
    with pytest.raises(UsageError, match="max_input_len 9 exceeds max_seq_len 8"):
        NetworkLimits(max_batch_size=1, max_seq_len=8, max_input_len=9)


def test_the_interpreter_stops_at_a_layer_it_was_not_taught(checkpoint_of: MakeCheckpoint) -> None:
    network, builder = new_network()
    graph = define_network(RTX.load(), network, checkpoint_of("mistral"), LIMITS)
    network.add_softmax(network.get_input(0))

    with pytest.raises(UnknownLayerError, match="SOFTMAX"):
        Interpreter(network)
    del graph, builder
