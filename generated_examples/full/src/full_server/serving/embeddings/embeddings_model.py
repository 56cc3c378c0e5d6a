"""Embeddings: texts or tokens in, one vector each out."""

import asyncio
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from string import whitespace
from typing import TYPE_CHECKING, ClassVar, Self

from ...settings import Settings
from ..deadline import Deadline
from ..models.admission import Admission
from ..models.device import Device
from ..models.hub import LOADING, fetch_model
from ..models.model import Model
from ..models.model_errors import ContextExceeded, DeadlineExceeded, InvalidInput
from ..threads import run_in_pool
from .scheduler import EmbeddingScheduler

if TYPE_CHECKING:
    from torch import Tensor

    from .encoder import Encoder

THREADS = 2
"""Batches that are computed at the same time"""

SLICE = 64
"""Texts that are tokenised at a time"""


@dataclass(frozen=True)
class Embeddings:
    """The vectors of one request."""

    vectors: "Tensor"
    """[N, D] float32, on the CPU"""
    tokens: int
    """Tokens read, special tokens included"""

    def as_lists(self) -> Iterator[list[float]]:
        return (row.tolist() for row in self.vectors)

    def as_bytes(self) -> Iterator[bytes]:
        """Little-endian float32, whatever the machine's own order."""
        return (row.astype("<f4").tobytes() for row in self.vectors.numpy())


class EmbeddingsModel(Model):
    """An encoder behind a scheduler."""

    type: ClassVar[str] = "embeddings"

    def __init__(
        self,
        encoder: "Encoder",
        scheduler: EmbeddingScheduler,
        *,
        admission: Admission,
    ) -> None:
        self._encoder = encoder
        self._scheduler = scheduler
        self._admission = admission
        self._executor = ThreadPoolExecutor(2, thread_name_prefix="tokenize")

    @classmethod
    def load(cls, source: str, device: Device, settings: Settings) -> Self:
        """Reads the weights and starts the threads. Blocks."""
        folder = fetch_model(source, "INFER_EMBEDDINGS_MODEL")
        with LOADING:
            from .encoder import Encoder  # imports torch and transformers

            encoder = Encoder.load(folder, device)
            with encoder.share_cores(THREADS):
                pass_cost = encoder.measure_pass_cost()
        max_tokens, max_texts = settings.embeddings_batch_tokens, settings.embeddings_batch_texts
        return cls(
            encoder,
            EmbeddingScheduler(
                encoder.encode,
                max_tokens=max_tokens,
                max_texts=max_texts,
                max_padding=pass_cost,
                threads=THREADS,
                stall_seconds=settings.stall_seconds,
                prepare=partial(encoder.share_cores, THREADS),
            ),
            admission=Admission(
                max_texts + settings.max_queue, max_tokens + settings.max_queue_tokens
            ),
        )

    @property
    def alive(self) -> bool:
        return self._scheduler.alive

    def unload(self) -> None:
        self._scheduler.stop()
        self._executor.shutdown(cancel_futures=True)

    async def embed(
        self,
        inputs: Sequence[str] | Sequence[Sequence[int]],
        dimensions: int | None = None,
        deadline: Deadline | None = None,
    ) -> Embeddings:
        """The vectors of texts, or of texts that the client has tokenised itself.

        dimensions: keeps the first so many and scales each vector to length 1 again, which is
        what models of the Matryoshka kind are trained for.
        deadline: unlimited by default.

        Raises InvalidInput for an input too long or with unknown tokens, Overloaded, Unavailable,
        DeadlineExceeded.
        """
        if dimensions is not None and dimensions > self._encoder.dimensions:
            size = self._encoder.dimensions
            raise InvalidInput(f"The model's vectors have {size} dimensions.", "dimensions")
        deadline = deadline or Deadline(math.inf)
        # Before any work, so that a refusal costs nothing.
        self._check_sizes(inputs)
        try:
            with self._admission.enter(estimate_tokens(inputs)) as admitted:
                async with asyncio.timeout_at(deadline.time):
                    tokenized = await run_in_pool(self._executor, partial(self._tokenize, inputs))
                    admitted.tokens = sum(map(len, tokenized))
                    rows = await self._scheduler.submit(tokenized)
                    vectors = await asyncio.to_thread(stack, rows, dimensions)
        except TimeoutError as error:
            raise DeadlineExceeded(deadline.seconds) from error
        return Embeddings(vectors, tokens=admitted.tokens)

    def _check_sizes(self, inputs: Sequence[str] | Sequence[Sequence[int]]) -> None:
        """Raises ContextExceeded for inputs that are too long at a glance."""
        limit, most = self._encoder.max_length, self._encoder.max_characters
        for index, each in enumerate(inputs):
            if not isinstance(each, str):
                if len(each) > limit:
                    raise ContextExceeded(limit, f"input {index} has {len(each)} tokens", "input")
            elif len(each) > most and len(each) - sum(map(each.count, whitespace)) > most:
                however = f"input {index} has more than {most} characters"
                raise ContextExceeded(limit, however, "input")

    def _tokenize(self, inputs: Sequence[str] | Sequence[Sequence[int]]) -> list[list[int]]:
        limit, vocabulary = self._encoder.max_length, self._encoder.vocabulary
        tokenized: list[list[int]] = []
        # In slices: the tokenizer's results take a hundred times the memory of the text.
        for start in range(0, len(inputs), SLICE):
            some = inputs[start : start + SLICE]
            texts = [text for text in some if isinstance(text, str)]
            given = [list(tokens) for tokens in some if not isinstance(tokens, str)]
            for tokens in self._encoder.tokenize(texts) if texts else given:
                index = len(tokenized)
                if len(tokens) > limit:
                    raise ContextExceeded(limit, f"input {index} has {len(tokens)} tokens", "input")
                # A tokenizer may have more tokens than the model, too.
                if unknown := [token for token in tokens if not 0 <= token < vocabulary]:
                    raise InvalidInput(
                        f"Input {index} has the token {unknown[0]}, which is not in the vocabulary "
                        f"of {vocabulary}.",
                        "input",
                    )
                tokenized.append(tokens)
        return tokenized


def estimate_tokens(inputs: Sequence[str] | Sequence[Sequence[int]]) -> int:
    """An estimate without tokenising: four characters a token."""
    return sum(len(each) // 4 if isinstance(each, str) else len(each) for each in inputs)


def stack(rows: "list[Tensor]", dimensions: int | None) -> "Tensor":
    """N vectors of [D] → [N, D], or [N, dimensions] of length 1."""
    import torch

    vectors = torch.stack(rows)
    if dimensions is None:
        return vectors
    return torch.nn.functional.normalize(vectors[:, :dimensions], dim=-1)
