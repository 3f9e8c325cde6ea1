"""The reference model computes what transformers computes, from the checkpoint's own tensors.

In float32 the two differ by rounding of sums only. In bf16 and fp16 every layer rounds about
fifteen times on its way, u = eps / 2 relative each. Independent errors add up as a root and aligned
ones as a sum, so the mean difference of two computations that round at different places stays below
sqrt(2 * roundings) * u * rms, and no difference exceeds roundings * u * largest.
"""

from __future__ import annotations

import math
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.convert.conversion import ConvertOptions
from minitron_trt.errors import BadInputError, UnsupportedError
from minitron_trt.executor import Event, Executor, FinishReason, Request, StepBatch
from minitron_trt.executor.reference import ReferenceModel
from minitron_trt.spec import ModelSpec, Rope

pytestmark = pytest.mark.slow

CheckpointOf = Callable[[str, ConvertOptions], Checkpoint]
HfModel = Callable[[str, str, torch.dtype], Any]

ARCHITECTURES = ("llama", "mistral", "nemotron")
CUTS = (ConvertOptions(), ConvertOptions(tp=4, pp=2))
PROMPT = np.random.default_rng(1).integers(3, 131, 200).tolist()
PROMPTS = {str(n): tuple(PROMPT[5 * n : 5 * n + n]) for n in (1, 2, 7, 30)}
ROUNDINGS_PER_LAYER, ROUNDINGS_OF_HEAD = 15, 3


def chunk(ids: list[int], start: int = 0, slot: int = 0) -> StepBatch:
    """Return a batch of one chunk."""
    positions = np.arange(start, start + len(ids))
    parts = (ids, positions, [slot], [len(ids)])
    return StepBatch(*(np.array(part, dtype=np.int32) for part in parts))


def all_logits(checkpoint: Checkpoint, ids: list[int], dtype: torch.dtype | None = None) -> Any:
    """Return the reference model's logits of every position."""
    model = ReferenceModel(checkpoint, slots=1, max_seq_len=len(ids), dtype=dtype)
    return model.forward(chunk(ids), all_logits=True)


@torch.inference_mode()
def hf_logits(model: Any, ids: list[int]) -> torch.Tensor:
    """Return transformers' logits of every position."""
    logits: torch.Tensor = model(torch.tensor([ids])).logits[0].float()
    return logits


def hf_greedy(model: Any, prompt: tuple[int, ...], count: int) -> list[int]:
    """Continue a prompt by the best token each time, without a KV cache."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(hf_logits(model, ids)[-1].argmax()))
    return ids[len(prompt) :]


def run(model: ReferenceModel, prompts: dict[str, tuple[int, ...]], **options: Any) -> Any:
    """Return what an executor generates for each prompt, all submitted at once."""
    executor = Executor(model, **options)
    events: dict[str, list[Event]] = {name: [] for name in prompts}
    for name, prompt in prompts.items():
        executor.submit(Request(name, prompt, 40), events[name].append)
    while executor.step():
        pass
    return {name: [token for e in news for token in e.tokens] for name, news in events.items()}


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("cut", CUTS, ids=["tp1", "tp4-pp2"])
def test_in_float32_logits_equal_those_of_transformers(
    name: str, cut: ConvertOptions, checkpoint_of: CheckpointOf, hf_model: HfModel
) -> None:
    expected = hf_logits(hf_model(name, "bfloat16", torch.float32), PROMPT)
    found = all_logits(checkpoint_of(name, cut), PROMPT, torch.float32)

    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("cut", CUTS, ids=["tp1", "tp4-pp2"])
def test_in_float32_a_batch_of_unequal_prompts_generates_what_transformers_does_one_at_a_time(
    name: str, cut: ConvertOptions, checkpoint_of: CheckpointOf, hf_model: HfModel
) -> None:
    model = ReferenceModel(checkpoint_of(name, cut), slots=3, max_seq_len=80, dtype=torch.float32)
    hf = hf_model(name, "bfloat16", torch.float32)

    assert run(model, PROMPTS) == {n: hf_greedy(hf, prompt, 40) for n, prompt in PROMPTS.items()}


@pytest.mark.parametrize("name", [*ARCHITECTURES, "long"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_in_half_precision_logits_differ_by_rounding_only(
    name: str, precision: str, checkpoint_of: CheckpointOf, hf_model: HfModel
) -> None:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    stored = str(dtype).removeprefix("torch.")
    checkpoint = checkpoint_of(name, ConvertOptions(precision, tp=4))
    truth = hf_logits(hf_model(name, stored, torch.float32), PROMPT)
    theirs = hf_logits(hf_model(name, stored, dtype), PROMPT)
    ours = all_logits(checkpoint, PROMPT)
    roundings = ROUNDINGS_PER_LAYER * checkpoint.spec.layers + ROUNDINGS_OF_HEAD
    unit = torch.finfo(dtype).eps / 2
    difference = (ours - theirs).abs()

    assert difference.mean() <= math.sqrt(2 * roundings) * unit * truth.square().mean().sqrt()
    assert difference.max() <= roundings * unit * truth.abs().max()
    # And the reference is no farther from the truth than transformers is.
    assert (ours - truth).abs().mean() <= 1.1 * (theirs - truth).abs().mean()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_in_bf16_each_token_generated_is_the_best_of_transformers_or_within_rounding_of_it(
    name: str, checkpoint_of: CheckpointOf, hf_model: HfModel
) -> None:
    checkpoint = checkpoint_of(name, CUTS[1])
    generated = run(ReferenceModel(checkpoint, slots=4, max_seq_len=80), PROMPTS)
    hf = hf_model(name, "bfloat16", torch.bfloat16)
    roundings = ROUNDINGS_PER_LAYER * checkpoint.spec.layers + ROUNDINGS_OF_HEAD
    for number, prompt in PROMPTS.items():
        tokens = generated[number]
        logits = hf_logits(hf, [*prompt, *tokens])[len(prompt) - 1 : -1]
        behind = logits.max(dim=-1).values - logits[range(40), tokens]

        assert len(tokens) == 40
        assert behind.max() <= roundings * torch.finfo(torch.bfloat16).eps / 2 * logits.abs().max()
        assert (behind == 0).float().mean() >= 0.75


def test_stretched_rope_holds_beyond_the_first_context_of_8192_tokens(
    checkpoint_of: CheckpointOf, hf_model: HfModel
) -> None:
    ids = np.random.default_rng(2).integers(3, 131, 8400).tolist()
    checkpoint = checkpoint_of("long", ConvertOptions(tp=4))
    expected = hf_logits(hf_model("long", "bfloat16", torch.float32), ids)
    found = all_logits(checkpoint, ids, torch.float32)
    rope = replace(checkpoint.spec.rope, scaling=None)
    plain = all_logits(with_spec(checkpoint, rope=rope), ids, torch.float32)

    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (plain - expected)[8192:].abs().max() >= 1e-2 * expected.abs().max()


def with_spec(checkpoint: Checkpoint, **changes: Any) -> Checkpoint:
    return replace(checkpoint, spec=replace(checkpoint.spec, **changes))


def full_turn(spec: ModelSpec) -> dict[str, Any]:
    return {"rope": Rope(spec.rope.theta, 1.0, spec.rope.scaling)}


def other_base(spec: ModelSpec) -> dict[str, Any]:
    return {"rope": replace(spec.rope, theta=spec.rope.theta * 2)}


def no_stretch(spec: ModelSpec) -> dict[str, Any]:
    return {"rope": replace(spec.rope, scaling=None)}


def other_epsilon(spec: ModelSpec) -> dict[str, Any]:
    return {"norm_epsilon": 0.1}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("nemotron", full_turn),
        ("mistral", other_base),
        ("llama", no_stretch),
        ("llama", other_epsilon),
        ("nemotron", other_epsilon),
    ],
)
def test_a_wrong_fact_is_seen_far_above_rounding(
    name: str, change: Callable[[ModelSpec], dict[str, Any]], checkpoint_of: CheckpointOf
) -> None:
    checkpoint = checkpoint_of(name, ConvertOptions())
    right = all_logits(checkpoint, PROMPT, torch.float32)
    changed = with_spec(checkpoint, **change(checkpoint.spec))

    assert (all_logits(changed, PROMPT, torch.float32) - right).abs().max() > 0.1


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("sizes", [(1,) * 40, (7, 33), (39, 1), (1, 20, 19)], ids=str)
def test_a_prompt_in_chunks_gives_the_logits_of_a_whole_one(
    name: str, sizes: tuple[int, ...], checkpoint_of: CheckpointOf
) -> None:
    checkpoint = checkpoint_of(name, ConvertOptions())
    model = ReferenceModel(checkpoint, slots=3, max_seq_len=40, dtype=torch.float32)
    parts, start = [], 0
    for size in sizes:
        batch = chunk(PROMPT[start : start + size], start, slot=2)
        parts.append(model.forward(batch, all_logits=True))
        start += size
    whole = model.forward(chunk(PROMPT[:40], slot=1), all_logits=True)

    assert torch.allclose(torch.cat(parts), whole, atol=1e-4)


@pytest.mark.parametrize("slots", [1, 2, 4])
@pytest.mark.parametrize("max_tokens_per_step", [4, 9, 512])
def test_slots_and_chunks_do_not_change_what_is_generated(
    slots: int, max_tokens_per_step: int, checkpoint_of: CheckpointOf, hf_model: HfModel
) -> None:
    checkpoint = checkpoint_of("nemotron", ConvertOptions())
    model = ReferenceModel(checkpoint, slots=slots, max_seq_len=80, dtype=torch.float32)
    hf = hf_model("nemotron", "bfloat16", torch.float32)
    found = run(model, PROMPTS, max_tokens_per_step=max_tokens_per_step)

    assert found == {number: hf_greedy(hf, prompt, 40) for number, prompt in PROMPTS.items()}


def test_a_step_gives_one_row_of_numpy_logits_for_each_sequence_in_any_slot_order(
    checkpoint_of: CheckpointOf,
) -> None:
    checkpoint = checkpoint_of("llama", ConvertOptions())
    model = ReferenceModel(checkpoint, slots=4, max_seq_len=40, dtype=torch.float32)
    prompts = [PROMPT[start : start + size] for start, size in ((0, 1), (1, 1), (2, 5), (7, 1))]
    ids = np.array([token for prompt in prompts for token in prompt], dtype=np.int32)
    positions = np.array([0, 0, 0, 1, 2, 3, 4, 0], dtype=np.int32)
    slots, lengths = np.array([0, 2, 3, 1], np.int32), np.array([1, 1, 5, 1], np.int32)
    # A second token each makes the single ones read the cache, whose slots are out of order.
    model.step(StepBatch(ids, positions, slots, lengths))
    following = np.array([8, 9, 10, 11], dtype=np.int32)
    together = model.step(StepBatch(following, lengths, slots, np.ones(4, np.int32)))
    alone = [
        model.step(chunk([*prompt, token], slot=0))[0]
        for prompt, token in zip(prompts, following.tolist(), strict=True)
    ]

    assert together.shape == (4, 131)
    assert together.dtype == np.float32
    assert np.allclose(together, np.stack(alone), atol=1e-4)


def test_a_sequence_that_is_not_a_number_spoils_nothing_for_the_next_in_its_slot(
    checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    whole = checkpoint_of("llama", ConvertOptions())
    shutil.copytree(whole.folder, tmp_path / "copy")
    path = tmp_path / "copy" / "rank0.safetensors"
    tensors = load_file(path)
    tensors["transformer.vocab_embedding.weight"][5] = torch.inf
    save_file(tensors, path)
    model = ReferenceModel(replace(whole, folder=tmp_path / "copy"), slots=2, max_seq_len=200)
    healthy = {"long": (7,) * 100, "next": (9, 10)}
    expected = run(model, healthy)
    executor = Executor(model)
    events: dict[str, list[Event]] = {name: [] for name in ("long", "poisoned", "next")}
    for name, prompt in {"poisoned": (5,) * 50, **healthy}.items():
        executor.submit(Request(name, prompt, 40), events[name].append)
    while executor.step():
        pass

    assert [event.finish_reason for event in events["poisoned"]] == [FinishReason.ERROR]
    assert {name: [t for e in events[name] for t in e.tokens] for name in healthy} == expected


@pytest.mark.parametrize(("slots", "max_seq_len"), [(0, 8), (1, 0)])
def test_an_empty_cache_is_refused(
    slots: int, max_seq_len: int, checkpoint_of: CheckpointOf
) -> None:
    with pytest.raises(BadInputError, match="is 0; expected at least 1"):
        ReferenceModel(
            checkpoint_of("llama", ConvertOptions()), slots=slots, max_seq_len=max_seq_len
        )


def test_the_cache_takes_no_memory_before_it_is_used(checkpoint_of: CheckpointOf) -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before = resident_bytes()
    # 2 bytes x 3 layers x keys and values x 2 heads x 8: 192 bytes a token, 1.6 GB in all.
    model = ReferenceModel(checkpoint_of("llama", ConvertOptions()), slots=1000, max_seq_len=2**13)
    model.step(chunk(PROMPT[:3]))

    assert resident_bytes() - before < 2e8


def test_a_cache_larger_than_the_machine_is_refused(checkpoint_of: CheckpointOf) -> None:
    with pytest.raises(UnsupportedError) as caught:
        ReferenceModel(checkpoint_of("llama", ConvertOptions()), slots=10**10, max_seq_len=100)

    assert str(caught.value) == (
        "a KV cache of 10000000000 slots × 100 tokens takes 192000.00 GB, more than cpu has left; "
        "lower the slots or max_seq_len"
    )
