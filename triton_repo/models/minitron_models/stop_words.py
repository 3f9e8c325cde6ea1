"""Stop words in a text that comes in pieces: seen wherever the pieces are cut, and left out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

MOST_CHARACTERS = 16384
"""How long the stop words of a request may be together: 4.5 MB at most, 275 bytes for each node."""


class StopWords:
    """Words of which the first to be complete ends a text; of two at once the longer counts.

    An Aho-Corasick automaton: one look per character, however many words there are. A node is the
    start of a word; `depth` is its length, `matched` that of the longest word that it ends with.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self.children: list[dict[str, int]] = [{}]
        self.fallback = [0]
        self.depth = [0]
        self.matched = [0]
        total = 0
        for word in words:
            total += len(word)
            if total > MOST_CHARACTERS:
                raise ValueError(
                    f"stop_words are longer than {MOST_CHARACTERS} characters together"
                )
            self._add(word)
        self._link()

    def _add(self, word: str) -> None:
        node = 0
        for character in word:
            if character not in self.children[node]:
                self.children[node][character] = len(self.children)
                self.children.append({})
                self.fallback.append(0)
                self.depth.append(self.depth[node] + 1)
                self.matched.append(0)
            node = self.children[node][character]
        self.matched[node] = len(word)

    def _link(self) -> None:
        """Give each node the longest other node that its text ends with."""
        # Short ones first: a node's fallback is shorter than the node, and must be known by then.
        nodes = deque(self.children[0].values())
        while nodes:
            node = nodes.popleft()
            for character, child in self.children[node].items():
                self.fallback[child] = self.step(self.fallback[node], character)
                self.matched[child] = self.matched[child] or self.matched[self.fallback[child]]
                nodes.append(child)

    def step(self, node: int, character: str) -> int:
        """Return the node after one more character."""
        children = self.children
        while node and character not in children[node]:
            node = self.fallback[node]
        return children[node].get(character, 0)


class StopMatcher:
    """The state of one text; what may be the start of a stop word is held back."""

    def __init__(self, words: StopWords) -> None:
        self._words = words
        self._node = 0
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Return what is certain after the next piece; `stopped` says that nothing more comes."""
        node, matched = self._node, self._words.matched
        step = self._words.step
        for at, character in enumerate(text, 1):
            node = step(node, character)
            if matched[node]:
                self.stopped = True
                text = self._held + text[:at]
                return text[: len(text) - matched[node]]
        text = self._held + text
        # The node is the longest end of the text that could become a stop word.
        certain = len(text) - self._words.depth[node]
        self._node, self._held = node, text[certain:]
        return text[:certain]

    def finish(self) -> str:
        """Return what was held back, now that the text has ended."""
        held, self._held, self._node = self._held, "", 0
        return held
