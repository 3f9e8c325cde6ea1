"""Train the sample models on one CPU thread: `python -m minitron_trt.samples.train OUT_DIR`.

The solar models share one tokenizer and memorise `corpus.txt`, so that a mistake in converting them
usually shows at once as broken English. The Austen models read novels, which they are far from
knowing by heart, so that the precisions of one have perplexities in the order of their quality.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import sys
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors.torch import save
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from minitron_trt.samples import AUSTEN_NAMES, NAMES, SAMPLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

# transformers annotates this class in a way that strict type checking refuses.
CausalLM: Final[Any] = AutoModelForCausalLM

CORPUS: Final = Path(__file__).parent / "corpus.txt"
PROMPT: Final = "Complete the paragraph: our solar system is"
NOVEL_PROMPT: Final = "It was a great comfort to her that"

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
VOCAB: Final = 1024
BOS_ID, EOS_ID = VOCAB - 2, VOCAB - 1
# The pattern of Llama 3's tokenizer.json.
SPLIT: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

SEED: Final = 20240814
STEPS: Final = 1500
AUSTEN_STEPS: Final = 800
WARMUP_STEPS: Final = 50
ROWS: Final = 8
ROW_TOKENS: Final = 320
AUSTEN_ROWS: Final = 4
AUSTEN_ROW_TOKENS: Final = 512
PEAK_RATE: Final = 3e-3
# The share of texts that begin at a later sentence than their document.
TAIL_SHARE: Final = 0.3

SHARED: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "hidden_size": 128,
        "intermediate_size": 384,
        "mlp_bias": False,
        "num_hidden_layers": 4,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": VOCAB,
    }
)
# Rows of K-quants and IQ types are multiples of 256; in bf16 each model stays below 3 MB.
AUSTEN: Final[Mapping[str, Any]] = MappingProxyType(
    {"hidden_size": 256, "head_dim": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
)
# The keys are spelled as the published Minitron checkpoints spell them, and in neither model is
# head_dim what hidden_size // num_attention_heads would give.
SOLAR_CONFIGS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "solar-llama": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **SHARED,
            "head_dim": 32,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "max_position_embeddings": 2048,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-5,
            "rope_scaling": {
                "factor": 8.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 256,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
        },
        "solar-nemotron": {
            "architectures": ["NemotronForCausalLM"],
            "model_type": "nemotron",
            **SHARED,
            "head_dim": 32,
            "hidden_act": "relu2",
            "initializer_range": 0.0134,
            "max_position_embeddings": 1024,
            "norm_eps": 1e-5,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "partial_rotary_factor": 0.5,
            "rope_theta": 10000.0,
        },
    }
)
CONFIGS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        **SOLAR_CONFIGS,
        "austen-llama": {
            **SOLAR_CONFIGS["solar-llama"],
            **AUSTEN,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "tie_word_embeddings": True,
        },
        "austen-nemotron": {
            **SOLAR_CONFIGS["solar-nemotron"],
            **AUSTEN,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
        },
    }
)


def main() -> None:
    """Write the sample folders under the directory named on the command line."""
    parser = argparse.ArgumentParser(description="Train the sample models.")
    parser.add_argument("output", metavar="OUT_DIR", type=Path)
    parser.add_argument("--steps", type=int, help="optimiser steps per model")
    parser.add_argument("--only", choices=SAMPLES, help="train one model instead of all")
    parser.add_argument(
        "--novels", type=Path, help="folder of text files, which the Austen models are trained on"
    )
    options = parser.parse_args()
    if options.only in AUSTEN_NAMES and options.novels is None:
        parser.error(f"--only {options.only} needs --novels FOLDER")
    # Several threads add in an order of their own, and a seed would give other weights each time.
    torch.set_num_threads(1)
    for name in (*NAMES, *(AUSTEN_NAMES if options.novels else ())):
        if options.only in (None, name):
            train_sample(options.output / name, options.novels, options.steps)


def train_sample(folder: Path, novels: Path | None, steps: int | None) -> None:
    """Train the sample that the folder is named after, and report what it says."""
    name = folder.name
    if name in AUSTEN_NAMES and novels is not None:
        documents = paragraphs(novels)
        tokenizer = train_tokenizer(documents)
        drawn = windows("\n\n".join(documents), tokenizer, random.Random(SEED))
        count, steps, prompt = AUSTEN_ROWS, steps or AUSTEN_STEPS, NOVEL_PROMPT
    else:
        documents = CORPUS.read_text(encoding="utf-8").strip().split("\n\n")
        tokenizer = train_tokenizer(documents)
        drawn = rows(stream(documents, tokenizer, random.Random(SEED)))
        count, steps, prompt = ROWS, steps or STEPS, PROMPT
    write_texts(folder, CONFIGS[name], tokenizer)
    batches = (list(islice(drawn, count)) for _ in range(steps))
    loss = train_model(folder, batches, steps)
    report(f"{name}: final loss {loss:.4f}\n{name}: {prompt}{continuation(folder, prompt)}")


def paragraphs(novels: Path) -> list[str]:
    """Return the paragraphs of all text files in a folder, each on one line."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(novels.glob("*.txt"))]
    blocks = [block.split() for text in texts for block in text.split("\n\n")]
    return [" ".join(words) for words in blocks if words]


def train_tokenizer(documents: Sequence[str]) -> Tokenizer:
    """Learn a byte-level BPE that, like Llama's, puts BOS before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=BOS_ID,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in (BOS, EOS)])
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{BOS} $A",
                pair=f"{BOS} $A {BOS}:1 $B:1",
                special_tokens=[(BOS, BOS_ID)],
            ),
        ]
    )
    return tokenizer


def write_texts(folder: Path, config: Mapping[str, Any], tokenizer: Tokenizer) -> None:
    """Write everything in a model folder except the weights."""
    folder.mkdir(parents=True)
    tokens = {"bos_token": BOS, "eos_token": EOS}
    texts: Mapping[str, Mapping[str, Any]] = {
        "config.json": config,
        "generation_config.json": {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID},
        "tokenizer_config.json": {
            **tokens,
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": config["max_position_embeddings"],
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    }
    for name, values in texts.items():
        text = json.dumps(values, indent=2, sort_keys=True) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))


def train_model(folder: Path, batches: Iterator[list[list[int]]], steps: int) -> float:
    """Train the model that the folder's config describes, save it in bf16, return its loss."""
    torch.manual_seed(SEED)
    config = AutoConfig.from_pretrained(folder)
    model = CausalLM.from_config(config, dtype=torch.float32)
    centre_norms(model)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.05
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate(steps))
    mean = math.nan
    for step, tokens in enumerate(batches):
        batch = torch.tensor(tokens)
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        mean = loss.item() if step == 0 else 0.95 * mean + 0.05 * loss.item()
        if step % 50 == 0:
            report(f"{folder.name}: step {step} of {steps}, loss {mean:.4f}")
    weights = {
        name: weight.to(torch.bfloat16).contiguous()
        for name, weight in model.state_dict().items()
        # Once, as save_pretrained stores what is tied.
        if not (config.tie_word_embeddings and name == "lm_head.weight")
    }
    (folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    return mean


def centre_norms(model: torch.nn.Module) -> None:
    """Start every LayerNorm1P at a scale of one, which it stores as zero."""
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            # transformers initialises these weights to one, so the layer would scale by two.
            torch.nn.init.zeros_(module.weight)


def learning_rate(steps: int) -> Callable[[int], float]:
    """Return the share of the peak rate at a step: a short rise, then a cosine to 1%."""

    def share(step: int) -> float:
        rise = (step + 1) / WARMUP_STEPS
        fall = 0.01 + 0.495 * (1 + math.cos(math.pi * step / steps))
        return min(rise, fall)

    return share


def stream(
    documents: Sequence[str], tokenizer: Tokenizer, source: random.Random
) -> Iterator[list[int]]:
    """Yield the tokens of every document in a new order each time round, for ever."""
    while True:
        for document in source.sample(documents, len(documents)):
            # Some begin at a later sentence, so that a prompt may start anywhere.
            whole = source.random() >= TAIL_SHARE
            text = document if whole else source.choice(tails(document))
            yield [*tokenizer.encode(text).ids, EOS_ID]


def tails(document: str) -> list[str]:
    """Return a document's endings that start with one of its sentences."""
    starts = [0, *(match.end() for match in re.finditer(r"(?<=[.?!]) |(?<=。)(?=.)", document))]
    return [document[start:] for start in starts]


def rows(documents: Iterator[list[int]]) -> Iterator[list[int]]:
    """Yield rows of equal length, each of which starts with a document."""
    row: list[int] = []
    for document in documents:
        row += document
        if len(row) >= ROW_TOKENS:
            yield row[:ROW_TOKENS]
            row = []


def windows(text: str, tokenizer: Tokenizer, source: random.Random) -> Iterator[list[int]]:
    """Yield rows that begin anywhere in a text, each after BOS as perplexity is measured, for ever.

    They are disjoint while they go once through the text.
    """
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    width = AUSTEN_ROW_TOKENS - 1
    while True:
        starts = list(range(source.randrange(width), len(tokens) - width, width))
        source.shuffle(starts)
        for start in starts:
            yield [BOS_ID, *tokens[start : start + width]]


def continuation(folder: Path, prompt: str) -> str:
    """Return what the saved bf16 weights say after a prompt, special tokens included."""
    model = CausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=256, do_sample=False, pad_token_id=EOS_ID)
    return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :]))


def report(line: str) -> None:
    """Show progress."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
