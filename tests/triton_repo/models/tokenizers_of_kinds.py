"""Small tokenizers of each sort that text models have, made on the spot."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from minitron_trt.samples import sample_folder

WORDS = ("▁", "▁a", "a", "▁the", "he", "▁café", "é", "日", "本", "▁", "x", "\n", "▁▁")


def wrapped(tokenizer: Tokenizer) -> Any:
    """Return a tokenizer as transformers gives it to a model."""
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=tokenizer, bos_token="<s>", clean_up_tokenization_spaces=False)


def with_special(tokenizer: Tokenizer) -> Tokenizer:
    """Add tokens as models have them: special ones, and one that is text."""
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    tokenizer.add_tokens([AddedToken("<tool> é 工", special=False, normalized=False)])
    return tokenizer


def byte_level(*, spaced: bool) -> Any:
    """Return a tokenizer of all bytes and a few merges, as GPT-2 (spaced) and tekken have them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: index for index, character in enumerate(alphabet)}
    vocab["<s>"] = len(vocab)
    for merged in ("Ġa", "th", "æĹ", "æĹ¥"):
        vocab[merged] = len(vocab)
    merges = [("Ġ", "a"), ("t", "h"), ("æ", "Ĺ"), ("æĹ", "¥")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    tokenizer.decoder = decoders.ByteLevel()
    return wrapped(with_special(tokenizer))


def sentencepiece(*decoder: Any) -> Any:
    """Return a tokenizer of words with a space mark and of bytes, with the decoder's steps."""
    tokens = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), *dict.fromkeys(WORDS)]
    vocab = {token: index for index, token in enumerate(tokens)}
    model = models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoder[0] if len(decoder) == 1 else decoders.Sequence(list(decoder))
    return wrapped(with_special(tokenizer))


LLAMA_2 = (
    decoders.Replace("▁", " "),
    decoders.ByteFallback(),
    decoders.Fuse(),
    decoders.Strip(" ", 1, 0),
)

TOKENIZERS: dict[str, Any] = {
    "sample": AutoTokenizer.from_pretrained(
        sample_folder("solar-llama"), local_files_only=True, clean_up_tokenization_spaces=False
    ),
    "gpt-2": byte_level(spaced=True),
    "tekken": byte_level(spaced=False),
    "llama-2": sentencepiece(*LLAMA_2),
    "gemma": sentencepiece(*LLAMA_2[:3]),
    "metaspace": sentencepiece(decoders.Metaspace()),
}
"""By the model family that has such a tokenizer."""
