"""Chat: messages in, text out. Tokens and text live here; the batch is the engine's, HTTP is not."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from ..settings import Settings
from .base import Model
from .device import Device
from .errors import InvalidInput
from .params import SamplingParams
from .source import local_folder
from .text import Detokenizer, StopMatcher
from .tokens import Engine, TokenStream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class SamplingDefaults:
    """What the model's authors recommend in generation_config.json."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


@dataclass(frozen=True)
class TextChunk:
    """A piece of the answer. Only the last one has a finish reason."""

    text: str
    completion_tokens: int
    """Tokens generated so far"""
    finish_reason: FinishReason | None = None


class ChatModel(Model):
    """A causal language model with a chat template."""

    type: ClassVar[str] = "chat"

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        engine: Engine,
        *,
        eos_token_ids: Sequence[int],
        defaults: SamplingDefaults,
        default_max_tokens: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._engine = engine
        self._eos_token_ids = frozenset(eos_token_ids)
        self._defaults = defaults
        self._default_max_tokens = default_max_tokens

    @classmethod
    def load(cls, source: str, device: Device, settings: Settings) -> Self:
        """Reads the weights and starts the engine. Blocks."""
        from .loading import load_chat_model  # imports torch and transformers

        parts = load_chat_model(local_folder(source), device, settings)
        return cls(
            parts.tokenizer,
            parts.engine,
            eos_token_ids=parts.eos_token_ids,
            defaults=SamplingDefaults(**parts.sampling_defaults),
            default_max_tokens=settings.default_max_tokens,
        )

    @property
    def alive(self) -> bool:
        return self._engine.alive

    def unload(self) -> None:
        self._engine.stop()

    async def encode(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The prompt's tokens, by the model's own chat template.

        Raises InvalidInput when the template refuses the messages.
        """
        return await asyncio.to_thread(self._encode, messages)

    def _encode(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        from jinja2 import TemplateError

        try:
            text = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
            )
            str(text).encode()  # a template may read fields that nobody has checked
        # Templates compute with what the client sent, so all of these mean the client's messages.
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise InvalidInput(
                f"The model's chat template refuses these messages: {error}", "messages"
            ) from error
        # The template writes the special tokens itself.
        return list(self._tokenizer.encode(str(text), add_special_tokens=False))

    def sampling(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> SamplingParams:
        """The parameters of one request; what it leaves open, the model's authors decide.

        Raises InvalidInput when prompt and answer do not fit the model or its KV cache.
        """
        limit = self._engine.max_length
        room = limit - len(prompt)
        if room < 1:
            raise InvalidInput(
                f"The messages have {len(prompt)} tokens, which leaves no room for an answer: "
                f"the model holds {limit} tokens.",
                "messages",
                "context_length_exceeded",
            )
        if max_tokens is not None and max_tokens > room:
            raise InvalidInput(
                f"The messages have {len(prompt)} tokens and {max_tokens} more are asked for, "
                f"but the model holds {limit} tokens.",
                "max_tokens",
                "context_length_exceeded",
            )
        return SamplingParams(
            max_tokens=max_tokens or min(room, self._default_max_tokens),
            temperature=self._defaults.temperature if temperature is None else temperature,
            top_p=self._defaults.top_p if top_p is None else top_p,
            top_k=self._defaults.top_k if top_k is None else top_k,
            min_p=0.0 if min_p is None else min_p,
            seed=random.getrandbits(63) if seed is None else seed,
            stop=tuple(stop),
        )

    @contextmanager
    def generate(
        self, prompt: list[int], params: SamplingParams
    ) -> Iterator[AsyncIterator[TextChunk]]:
        """The answer as it is generated. Leaving the block frees the request's place in the batch.

        Raises Overloaded or Unavailable at once; the iterator raises Unavailable if the engine
        fails later.
        """
        tokens = self._engine.submit(prompt, params)
        try:
            yield self._read(tokens, params.stop)
        finally:
            self._engine.cancel(tokens)

    async def _read(self, tokens: TokenStream, stop: Sequence[str]) -> AsyncIterator[TextChunk]:
        detokenizer = Detokenizer(self._tokenizer.backend_tokenizer)
        matcher = StopMatcher(stop)
        last_token: int | None = None
        async for new in tokens:
            last_token = new[-1]
            text, stopped = matcher.push(detokenizer.push(new))
            if stopped:
                yield TextChunk(text, tokens.count, "stop")
                return
            if text:
                yield TextChunk(text, tokens.count)
        reason: FinishReason = "stop" if last_token in self._eos_token_ids else "length"
        yield TextChunk(matcher.flush(), tokens.count, reason)

    async def complete(self, prompt: list[int], params: SamplingParams) -> TextChunk:
        """The whole answer at once."""
        with self.generate(prompt, params) as chunks:
            pieces = [chunk async for chunk in chunks]
        return replace(pieces[-1], text="".join(piece.text for piece in pieces))
