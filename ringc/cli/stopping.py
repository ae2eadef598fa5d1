"""Ends a stream of text at given words, without showing any part of them."""

from __future__ import annotations

from collections.abc import Sequence


class StopText:
    """Text that comes in pieces goes out up to the first of some words; what may be the beginning of one is held back."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = [w for w in words if w]
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """What may be shown now."""
        self._held += piece
        places = [at for w in self._words if (at := self._held.find(w)) >= 0]
        if places:
            self.found = True
            return self._release(min(places))
        return self._release(len(self._held) - self._beginning())

    def end(self, piece: str = "") -> str:
        """What is left when nothing more comes."""
        return self.push(piece) + ("" if self.found else self._release(len(self._held)))

    def _release(self, count: int) -> str:
        shown, self._held = self._held[:count], self._held[count:]
        return shown

    def _beginning(self) -> int:
        """Characters at the end that some word begins with."""
        longest = 0
        for word in self._words:
            for n in range(min(len(word) - 1, len(self._held)), longest, -1):
                if self._held.endswith(word[:n]):
                    longest = n
                    break
        return longest
