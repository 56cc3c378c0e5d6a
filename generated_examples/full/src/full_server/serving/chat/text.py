"""From tokens back to text, piece by piece, and where the text has to stop."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Detokenizer:
    """Decodes a stream of tokens. A character of several tokens appears when it is complete."""

    def __init__(self, tokenizer: "Tokenizer", hidden: Collection[int]) -> None:
        """`hidden` tokens, such as the one that ends a turn, have no text."""
        from tokenizers.decoders import DecodeStream

        self._tokenizer = tokenizer
        self._hidden = hidden
        self._stream = DecodeStream(skip_special_tokens=False)

    def push(self, token: int) -> str:
        if token in self._hidden:
            return ""
        return self._stream.step(self._tokenizer, token) or ""


def overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that may be the beginning of `mark`, but is not all of it."""
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if text.endswith(mark[:length]):
            return length
    return 0


class StopMatcher:
    """Finds stop strings in a stream of text, across the borders of its pieces.

    Text that may be the beginning of a stop string is held back, so none ever leaks.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""

    @property
    def held(self) -> int:
        """Number of characters that are held back"""
        return len(self._held)

    def push(self, text: str) -> tuple[str, bool]:
        """The text that is safe to show, and whether a stop string has ended the answer."""
        text = self._held + text
        found = [index for stop in self._stops if (index := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        keep = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """The text that was held back, at the end of the answer."""
        held, self._held = self._held, ""
        return held
