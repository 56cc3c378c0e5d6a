"""From the tokens of one sequence to the pieces that the client gets."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..engine.sampling_params import TokenLogprob
from .text import Detokenizer, StopMatcher
from .tool_calls import ToolCallDelta, ToolCallParser

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FinishReason = Literal["stop", "length", "tool_calls"]


class TokenText(NamedTuple):
    """A token as clients see it."""

    text: str
    bytes: list[int] | None
    """Its bytes, of which several tokens may make one character; None if unknown"""
    logprob: float


class LogprobEntry(NamedTuple):
    chosen: TokenText
    top: list[TokenText]


@dataclass(frozen=True)
class Chunk:
    """A piece of one answer. Only the last one has a finish reason."""

    index: int
    """Number of the answer, among those to one prompt"""
    completion_tokens: int
    """Tokens generated so far"""
    text: str = ""
    tool_calls: Sequence[ToolCallDelta] = ()
    logprobs: Sequence[LogprobEntry] = ()
    finish_reason: FinishReason | None = None


class TokenDecoder:
    """The texts and bytes of a model's tokens."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", visible: str) -> None:
        """Special tokens have no text, except those that occur in `visible`."""
        self.tokenizer = tokenizer
        self.hidden: Collection[int] = {
            token
            for token, added in tokenizer.added_tokens_decoder.items()
            if added.special and str(added) not in visible
        }

    def describe(self, token: int, logprob: float) -> TokenText:
        text = str(self.tokenizer.decode([token]))
        piece = str(self.tokenizer.convert_ids_to_tokens(token))
        return TokenText(text, piece_bytes(piece, text), logprob)


def piece_bytes(piece: str, text: str) -> list[int] | None:
    """The bytes of a token, from its text or, where it is a part of a character, its own spelling."""
    if "\ufffd" not in text:
        return list(text.encode())
    if byte := re.fullmatch(r"<0x([0-9A-F]{2})>", piece):  # SentencePiece
        return [int(byte.group(1), 16)]
    table = byte_level_alphabet()
    return [table[character] for character in piece] if set(piece) <= table.keys() else None


@cache
def byte_level_alphabet() -> dict[str, int]:
    """Character → byte, as byte-level BPE writes it. From GPT-2's `bytes_to_unicode`."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}


class OutputParser:
    """Reads one sequence: text without stop strings, tool calls, logprobs."""

    def __init__(
        self,
        index: int,
        vocabulary: TokenDecoder,
        *,
        stop: Sequence[str] = (),
        min_tokens: int = 0,
        stop_token_ids: Collection[int] = (),
        parser: ToolCallParser | None = None,
    ) -> None:
        self.index = index
        self.count = 0
        """Tokens read so far"""
        self._vocabulary = vocabulary
        hidden = {*vocabulary.hidden, *stop_token_ids}
        self._detokenizer = Detokenizer(vocabulary.tokenizer.backend_tokenizer, hidden)
        self._matcher = StopMatcher(stop)
        self._min_tokens = min_tokens
        self._parser = parser
        self._decoded = 0
        """Characters decoded so far"""
        self._shown = 0
        """Characters of them that are past the stop strings"""
        self._logprobs: list[tuple[int, LogprobEntry]] = []
        """Start of each token's text; entries wait here until that text is shown."""

    @property
    def calls_tools(self) -> bool:
        return self._parser is not None and self._parser.calls > 0

    def push(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprob]) -> tuple[Chunk, bool]:
        """The piece that the tokens add to the answer, and whether a stop string has ended it.

        logprobs: of the same tokens; empty if the request does not ask for them.
        """
        shown = ""
        for position, token in enumerate(tokens):
            self.count += 1
            if logprobs:
                self._logprobs.append((self._decoded, self._describe(logprobs[position])))
            text = self._detokenizer.push(token)
            self._decoded += len(text)
            if self.count <= self._min_tokens:
                shown += text
                continue
            text, stopped = self._matcher.push(text)
            shown += text
            if stopped:
                return self._chunk(shown), True
        return self._chunk(shown), False

    def finish(self, reason: FinishReason) -> Chunk:
        """The last piece, with the text that was held back."""
        return self._chunk(self._matcher.flush(), reason)

    def _chunk(self, text: str, reason: FinishReason | None = None) -> Chunk:
        self._shown += len(text)
        calls: list[ToolCallDelta] = []
        if self._parser:
            text, calls = self._parser.push(text)
            text += self._parser.flush() if reason else ""
        ready = sum(begin < self._shown for begin, _ in self._logprobs)
        entries = [entry for _, entry in self._logprobs[:ready]]
        del self._logprobs[:ready]
        return Chunk(self.index, self.count, text, calls, entries, reason)

    def _describe(self, entry: TokenLogprob) -> LogprobEntry:
        describe = self._vocabulary.describe
        return LogprobEntry(
            describe(entry.token, entry.logprob),
            [describe(token, logprob) for token, logprob in entry.top],
        )
