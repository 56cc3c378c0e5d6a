"""Embeddings: texts or tokens in, one vector each out."""

import asyncio
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from ...settings import Settings
from ..deadline import Deadline
from ..models.checkpoint import architecture, explained, is_embeddings_model
from ..models.device import Device
from ..models.hub import LOADING, fetch_model
from ..models.model_errors import ContextExceeded, InvalidInput, SourceError
from ..models.progress_bar import weights_progress
from .batched_model import THREADS, BatchedModel, slices

if TYPE_CHECKING:
    from torch import Tensor

    from .encoder import Encoder

SETTING = "INFER_EMBEDDINGS_MODEL"

WRITERS = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
"""Ends of the names of classes whose weights write text"""

Inputs = Sequence[str] | Sequence[Sequence[int]]


@dataclass(frozen=True)
class Embeddings:
    """The vectors of one request."""

    vectors: "Tensor"
    """[N, D] float32, on the CPU"""
    tokens: int
    """Tokens computed, special tokens and prompts included"""

    def as_lists(self) -> Iterator[list[float]]:
        return (row.tolist() for row in self.vectors)

    def as_bytes(self) -> Iterator[bytes]:
        """Little-endian float32, whatever the machine's own order."""
        return (row.astype("<f4").tobytes() for row in self.vectors.numpy())


class EmbeddingsModel(BatchedModel):
    """An encoder behind a scheduler."""

    type: ClassVar[str] = "embeddings"

    def __init__(self, encoder: "Encoder", settings: Settings, pass_cost: int) -> None:
        super().__init__(encoder, settings, pass_cost)
        self._encoder = encoder

    @classmethod
    def load(cls, source: str, device: Device, settings: Settings, revision: str = "") -> Self:
        """Reads the weights and starts the threads. Blocks.

        revision: commit, tag or branch on the hub; empty for the newest.
        """
        trust_remote_code = settings.trust_remote_code
        folder = fetch_model(
            source, SETTING, revision=revision, trust_remote_code=trust_remote_code
        )
        refuse_chat_model(folder)
        with LOADING, weights_progress():
            from .encoder import Encoder  # imports torch and transformers

            with explained(folder, SETTING):
                encoder = Encoder.load(folder, device, trust_remote_code=trust_remote_code)
            pass_cost = encoder.measure_pass_cost(THREADS)
        return cls(encoder, settings, pass_cost)

    async def embed(
        self,
        inputs: Inputs,
        dimensions: int | None = None,
        deadline: Deadline | None = None,
        *,
        prompt_name: str | None = None,
        input_type: str | None = None,
        truncate: bool = False,
    ) -> Embeddings:
        """The vectors of texts, or of texts that the client has tokenised itself.

        dimensions: keeps the first so many and scales each vector to length 1 again, which is
        what models of the Matryoshka kind are trained for.
        deadline: unlimited by default.
        prompt_name, input_type: choose the prompt, "query" or "document" the latter. Without them
        it is the model's default prompt. Tokens have no prompt: they are taken as they are.
        truncate: cuts what is too long.

        Raises InvalidInput for an input too long or with unknown tokens, Overloaded, Unavailable,
        DeadlineExceeded.
        """
        if dimensions is not None and dimensions > self._encoder.dimensions:
            size = self._encoder.dimensions
            raise InvalidInput(f"The model's vectors have {size} dimensions.", "dimensions")
        prompt = self._encoder.prompts.choose(prompt_name, input_type)
        chosen = "input_type" if prompt_name is None else "prompt_name"
        if (prompt_name or input_type) and not isinstance(inputs[0], str):
            raise InvalidInput("A prompt needs texts, and the input is tokens.", chosen)
        deadline = deadline or Deadline(math.inf)
        if not truncate:  # before any work, so that a refusal costs nothing
            self._check_sizes(inputs)
        # The method is looked up when it is called: tests replace it.
        tokenize = partial(self._tokenize, inputs, prompt, truncate)
        rows, tokens = await self._compute(estimate_tokens(inputs), tokenize, deadline)
        return Embeddings(await asyncio.to_thread(stack, rows, dimensions), tokens)

    def _check_sizes(self, inputs: Inputs) -> None:
        """Raises ContextExceeded for inputs that are too long at a glance."""
        limit = self._encoder.max_length
        for index, each in enumerate(inputs):
            if not isinstance(each, str):
                if len(each) > limit:
                    raise ContextExceeded(limit, f"input {index} has {len(each)} tokens", "input")
            elif too_long := self._encoder.too_long(each):
                raise ContextExceeded(limit, f"input {index} has {too_long}", "input")

    def _tokenize(self, inputs: Inputs, prompt: str, truncate: bool) -> list[Sequence[int]]:
        limit = self._encoder.max_length
        tokenized: list[Sequence[int]] = []
        for part in slices(len(inputs)):
            some = inputs[part]
            texts = [prompt + text for text in some if isinstance(text, str)]
            if truncate:
                texts = [self._encoder.head(text) for text in texts]
            given = [tokens for tokens in some if not isinstance(tokens, str)]
            for place, tokens in enumerate(self._encoder.tokenize(texts) if texts else given):
                index = part.start + place
                if len(tokens) > limit:
                    if not truncate:
                        however = f"input {index} has {len(tokens)} tokens"
                        raise ContextExceeded(limit, however, "input")
                    tokens = self._encoder.cut(texts[place]) if texts else tokens[:limit]
                self._check_vocabulary(tokens, f"Input {index}", "input")
                tokenized.append(tokens)
        return tokenized


def refuse_chat_model(folder: Path) -> None:
    """Raises SourceError for a model that writes text, whose vectors would be merely plausible."""
    if folder.suffix == ".gguf":
        raise SourceError(
            "it is a GGUF file, which is loaded for chat only",
            f"set {SETTING}=<an embeddings model with safetensors>",
        )
    name = architecture(folder)
    if name.endswith(WRITERS) and not is_embeddings_model(folder):
        raise SourceError(
            f"it is a model that writes text ({name}) and not an embeddings model (no modules.json)",
            f"set {SETTING}=<an embeddings model>",
        )


def estimate_tokens(inputs: Inputs) -> int:
    """An estimate without tokenising: four characters a token."""
    return sum(len(each) // 4 if isinstance(each, str) else len(each) for each in inputs)


def stack(rows: "list[Tensor]", dimensions: int | None) -> "Tensor":
    """N vectors of [D] → [N, D], or [N, dimensions] of length 1."""
    import torch

    vectors = torch.stack(rows)
    if dimensions is None:
        return vectors
    return torch.nn.functional.normalize(vectors[:, :dimensions], dim=-1)
