"""Changes of the logits before a token is chosen, for all rows of a step at once.

A row names a few tokens, or has one bit for each token. They are gathered in host memory and moved to
the device together: a transfer for each row would take longer than the sampling itself.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .grammar import mask_tokens


class TokenCounts:
    """The tokens of a sequence, each once and with its number, in tensors that grow."""

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self._places = {token: place for place, token in enumerate(dict.fromkeys(tokens))}
        self._tokens = torch.tensor(list(self._places), dtype=torch.int64)
        self._counts = torch.ones(len(self._places))

    def add(self, token: int) -> None:
        size = len(self._places)
        place = self._places.setdefault(token, size)
        if place < size:
            self._counts[place] += 1
            return
        if size == len(self._tokens):
            self._tokens = torch.cat([self._tokens, self._tokens.new_zeros(size + 64)])
            self._counts = torch.cat([self._counts, self._counts.new_zeros(size + 64)])
        self._tokens[place] = token
        self._counts[place] = 1

    @property
    def tokens(self) -> Tensor:
        """[N] int64"""
        return self._tokens[: len(self._places)]

    @property
    def counts(self) -> Tensor:
        """[N] float32"""
        return self._counts[: len(self._places)]


class Entries:
    """Some tokens of some rows, and a number for each."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, Tensor, Tensor | float]] = []

    def add(self, row: int, tokens: Tensor, numbers: Tensor | float = 0.0) -> None:
        """tokens: [N] int64; numbers: [N] float32, or the one for all"""
        if len(tokens):
            self._rows.append((row, tokens, numbers))

    def places(self, scores: Tensor) -> Tensor | None:
        """Their places in the flat [B, V] scores; None if there are none."""
        if not self._rows:
            return None
        vocabulary = scores.size(-1)
        places = [tokens + row * vocabulary for row, tokens, _ in self._rows]
        return torch.cat(places).to(scores.device)

    def numbers(self, scores: Tensor) -> Tensor:
        numbers = [
            each if isinstance(each, Tensor) else torch.full(tokens.shape, each)
            for _, tokens, each in self._rows
        ]
        return torch.cat(numbers).to(scores.device)


class Adjustments:
    """The adjustments of one step. They take effect in the order of `apply`."""

    def __init__(self) -> None:
        self.repeated = Entries()
        """Divided by the number where positive, else multiplied: https://arxiv.org/abs/1909.05858"""
        self.reduced = Entries()
        """The number is subtracted."""
        self.biased = Entries()
        """The number is added."""
        self.banned = Entries()
        self._watched: list[tuple[int, Callable[[Tensor], None]]] = []
        self._masks: list[tuple[int, bytes, Tensor]] = []
        self._forced: list[tuple[int, int]] = []

    def watch(self, row: int, see: Callable[[Tensor], None]) -> None:
        """Shows the [V] logits of a row before anything has changed them."""
        self._watched.append((row, see))

    def mask(self, row: int, bits: bytes, otherwise: Tensor) -> None:
        """Leaves the tokens whose bit is set; where none of them is possible, those of `otherwise`.

        bits: see `mask_tokens`; otherwise: [N] int64
        """
        self._masks.append((row, bits, otherwise))

    def force(self, row: int, token: int) -> None:
        """Leaves this token alone."""
        self._forced.append((row, token))

    def apply(self, scores: Tensor) -> None:
        """Changes the [B, V] float32 scores."""
        for row, see in self._watched:
            see(scores[row])
        flat = scores.view(-1)
        if (places := self.repeated.places(scores)) is not None:
            logits, penalties = flat[places], self.repeated.numbers(scores)
            flat[places] = torch.where(logits > 0, logits / penalties, logits * penalties)
        if (places := self.reduced.places(scores)) is not None:
            flat[places] -= self.reduced.numbers(scores)
        if (places := self.biased.places(scores)) is not None:
            flat[places] += self.biased.numbers(scores)
        if (places := self.banned.places(scores)) is not None:
            flat.index_fill_(0, places, -torch.inf)
        if self._masks:
            self._apply_masks(scores)
        if self._forced:
            rows, tokens = torch.tensor(self._forced).T.to(scores.device)
            scores.index_fill_(0, rows, -torch.inf)
            flat.index_fill_(0, tokens + rows * scores.size(-1), 0.0)

    def _apply_masks(self, scores: Tensor) -> None:
        rows = [scores[row] for row, _, _ in self._masks]
        mask_tokens(rows, [bits for _, bits, _ in self._masks])
        for logits, (_, _, otherwise) in zip(rows, self._masks, strict=True):
            tokens = otherwise.to(scores.device)
            impossible = logits.amax() == -torch.inf  # complete, though min_tokens wants more
            logits[tokens] = torch.where(impossible, 0.0, logits[tokens])
