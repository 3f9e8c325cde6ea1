"""The tokens in a GGUF file: their text, what each is for, and the ids of the special ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from minitron_trt.convert.gguf.file import GgufFile
from minitron_trt.errors import BadInputError

KEY: Final = "tokenizer.ggml"
CHAT_TEMPLATE: Final = "tokenizer.chat_template"


class TokenType(IntEnum):
    """What a token is, by GGUF's numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of a GGUF file with their types, and the ids of the special ones."""

    file: GgufFile
    tokens: list[str]
    types: list[int]

    @classmethod
    def read(cls, file: GgufFile) -> Vocabulary:
        """Read the tokens; BadInputError when they do not fit together."""
        tokens = file.array(f"{KEY}.tokens")
        types = file.array(f"{KEY}.token_type") if f"{KEY}.token_type" in file.facts else None
        types = [int(TokenType.NORMAL)] * len(tokens) if types is None else types
        if len(types) != len(tokens) or not all(isinstance(token, str) for token in tokens):
            raise BadInputError(
                f"{file.path} has {len(tokens)} tokens but {len(types)} types of tokens"
            )
        return cls(file, tokens, types)

    def special(self, name: str) -> int | None:
        """Return the id of a special token, like `bos`; None when the file names none."""
        key = f"{KEY}.{name}_token_id"
        if key not in self.file.facts:
            return None
        token = self.file.integer(key)
        if not 0 <= token < len(self.tokens):
            raise BadInputError(f"{self.file.path}: {key} is {token} of {len(self.tokens)} tokens")
        return token

    def of(self, *types: TokenType) -> Iterator[tuple[str, int]]:
        """Yield (token, id) of the tokens of some types."""
        for index, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True)):
            if kind in types:
                yield token, index

    def known(self) -> dict[str, int]:
        """Return the ids of all tokens but the unused ones, which only fill the embedding up."""
        return dict(self.of(*(kind for kind in TokenType if kind is not TokenType.UNUSED)))
