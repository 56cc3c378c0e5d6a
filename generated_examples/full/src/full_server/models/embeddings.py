"""Embeddings: texts or tokens in, one vector each out."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from ..settings import Settings
from .base import Model
from .batcher import Batcher
from .device import Device
from .errors import InvalidInput, Overloaded
from .source import local_folder

if TYPE_CHECKING:
    from torch import Tensor

    from .encoder import Encoder


@dataclass(frozen=True)
class Embeddings:
    """The vectors of one request."""

    vectors: "Tensor"
    """[N, D] float32, on the CPU"""
    tokens: int
    """Tokens read, special tokens included"""

    def as_lists(self) -> list[list[float]]:
        vectors: list[list[float]] = self.vectors.tolist()
        return vectors

    def as_bytes(self) -> list[bytes]:
        """Little-endian float32, whatever the machine's own order."""
        return [row.tobytes() for row in self.vectors.numpy().astype("<f4")]


class EmbeddingsModel(Model):
    """An encoder behind a batcher."""

    type: ClassVar[str] = "embeddings"

    def __init__(self, encoder: "Encoder", batcher: Batcher, max_requests: int) -> None:
        self._encoder = encoder
        self._batcher = batcher
        self._max_requests = max_requests
        self._requests = 0

    @classmethod
    def load(cls, source: str, device: Device, settings: Settings) -> Self:
        """Reads the weights and starts the thread. Blocks."""
        from .encoder import Encoder  # imports torch and transformers

        encoder = Encoder.load(local_folder(source), device)
        batcher = Batcher(
            encoder.encode,
            max_tokens=settings.embeddings_batch_tokens,
            max_texts=settings.embeddings_batch_texts,
        )
        return cls(encoder, batcher, max_requests=1 + settings.max_queue)

    @property
    def alive(self) -> bool:
        return self._batcher.alive

    def unload(self) -> None:
        self._batcher.stop()

    async def embed(
        self, inputs: Sequence[str] | Sequence[Sequence[int]], dimensions: int | None = None
    ) -> Embeddings:
        """The vectors of texts, or of texts that the client has tokenised itself.

        dimensions: keeps the first so many and scales each vector to length 1 again, which is
        what models of the Matryoshka kind are trained for.

        Raises InvalidInput for an input too long or with unknown tokens, Overloaded, Unavailable.
        """
        if dimensions is not None and dimensions > self._encoder.dimensions:
            size = self._encoder.dimensions
            raise InvalidInput(f"The model's vectors have {size} dimensions.", "dimensions")
        if self._requests >= self._max_requests:
            raise Overloaded("Too many requests wait for the model.")
        self._requests += 1
        try:
            tokenized = await asyncio.to_thread(self._tokenize, inputs)
            rows = await self._batcher.submit(tokenized)
            vectors = await asyncio.to_thread(stack, rows, dimensions)
        finally:
            self._requests -= 1
        return Embeddings(vectors, tokens=sum(len(tokens) for tokens in tokenized))

    def _tokenize(self, inputs: Sequence[str] | Sequence[Sequence[int]]) -> list[list[int]]:
        texts = [text for text in inputs if isinstance(text, str)]
        given = [list(tokens) for tokens in inputs if not isinstance(tokens, str)]
        tokenized = self._encoder.tokenize(texts) if texts else given
        limit, vocabulary = self._encoder.max_length, self._encoder.vocabulary
        for index, tokens in enumerate(tokenized):
            if len(tokens) > limit:
                raise InvalidInput(
                    f"Input {index} has {len(tokens)} tokens; the model reads at most {limit}.",
                    "input",
                    "context_length_exceeded",
                )
            if given and not all(0 <= token < vocabulary for token in tokens):
                raise InvalidInput(
                    f"Input {index} has a token that is not in the vocabulary of {vocabulary}.",
                    "input",
                )
        return tokenized


def stack(rows: "list[Tensor]", dimensions: int | None) -> "Tensor":
    """N vectors of [D] → [N, D], or [N, dimensions] of length 1."""
    import torch

    vectors = torch.stack(rows)
    if dimensions is None:
        return vectors
    return torch.nn.functional.normalize(vectors[:, :dimensions], dim=-1)
