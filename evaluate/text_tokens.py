"""A text as a model's tokens, and what its vocabulary puts around one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from minitron_trt.errors import BadInputError, UnsupportedError


@dataclass(frozen=True, slots=True)
class TextTokens:
    """The tokens of a text, and the one that begins every text, if there is such a one."""

    ids: list[int]
    begin: int | None

    @classmethod
    def of(cls, text: str, tokenizer_json: Path) -> TextTokens:
        """Tokenize a text once; what looks like a special token in it is text.

        UnsupportedError where the vocabulary ends each text with a token, as llama.cpp refuses it.
        """
        # Loading one takes half a second, and only this needs the library.
        from tokenizers import Tokenizer

        if not tokenizer_json.is_file():
            raise BadInputError(
                f"{tokenizer_json.parent} has no tokenizer.json, by which the text becomes tokens; "
                "convert the model again with its tokenizer beside it"
            )
        try:
            tokenizer = Tokenizer.from_file(str(tokenizer_json))
        except Exception as error:
            raise BadInputError(f"{tokenizer_json} is no tokenizer ({error})") from error
        tokenizer.encode_special_tokens = True
        plain = tokenizer.encode("a", add_special_tokens=False).ids
        around = tokenizer.encode("a").ids
        before = len(around) - len(plain) if around[len(around) - len(plain) :] == plain else None
        if before not in (0, 1):
            raise UnsupportedError(
                f"{tokenizer_json} puts more around a text than one token before it; perplexity as "
                "llama.cpp defines it is for vocabularies that add no end"
            )
        return cls(tokenizer.encode(text).ids, around[0] if before else None)


def read_text(path: Path) -> str:
    """Return a file's text without its last newline, which llama.cpp drops as well."""
    if not path.is_file():
        raise BadInputError(f"{path} is not a file; expected a text")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInputError(
            f"{path} is not UTF-8 ({error.reason}); convert its encoding"
        ) from error
    if not text.strip():
        raise BadInputError(f"{path} is empty; expected a text of some thousand words")
    return text.removesuffix("\n")
