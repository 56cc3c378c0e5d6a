"""From the tokens of one sequence to the pieces that the client gets."""

import re
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..engine.sampling_params import TokenLogprob
from .text import Detokenizer, StopMatcher
from .thinking import NoThoughts, Piece, ThoughtSplitter
from .tool_calls import ToolCallDelta, ToolCallParser, add_pieces

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
    thought: str = ""
    thought_tokens: int = 0
    """Those of the tokens so far that belong to a thought, marks included"""
    tool_calls: Sequence[ToolCallDelta] = ()
    logprobs: Sequence[LogprobEntry] = ()
    finish_reason: FinishReason | None = None


class TokenDecoder:
    """The texts and bytes of a model's tokens."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        self.tokenizer = tokenizer
        self._special = {
            token: str(added)
            for token, added in tokenizer.added_tokens_decoder.items()
            if added.special
        }
        self._hidden: dict[tuple[str, ...], frozenset[int]] = {}

    def hidden(self, marks: tuple[str, ...]) -> frozenset[int]:
        """The special tokens that have no text: all but those that occur in a mark."""
        if marks not in self._hidden:  # thousands of tokens, and a handful of marks
            shown = set(self.special_in(marks))
            hidden = (token for token, text in self._special.items() if text not in shown)
            self._hidden[marks] = frozenset(hidden)
        return self._hidden[marks]

    def special_in(self, marks: Collection[str]) -> list[str]:
        """The special tokens that occur in a mark."""
        return [text for text in self._special.values() if any(text in mark for mark in marks)]

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
    """Reads one sequence: thoughts, text without stop strings, tool calls, logprobs of the text."""

    def __init__(
        self,
        index: int,
        decoder: TokenDecoder,
        *,
        stop: Sequence[str] = (),
        min_tokens: int = 0,
        stop_token_ids: Collection[int] = (),
        marks: tuple[str, ...] = (),
        thoughts: ThoughtSplitter | None = None,
        parser: ToolCallParser | None = None,
    ) -> None:
        """marks: what `thoughts` and `parser` look for; its special tokens have text."""
        self.index = index
        self.count = 0
        """Tokens read so far"""
        self._decoder = decoder
        self._hidden = decoder.hidden(marks).union(stop_token_ids)
        self._detokenizer = Detokenizer(decoder.tokenizer.backend_tokenizer, self._hidden)
        self._matcher = StopMatcher(stop)
        self._min_tokens = min_tokens
        self._thoughts = thoughts or NoThoughts()
        self._parser = parser
        self._decoded = 0
        """Characters decoded so far"""
        self._split = 0
        """Characters of them that are known to be thought or text"""
        self._unsplit: deque[tuple[int, LogprobEntry | None]] = deque()
        """Start of each token from there on"""
        self._thought_tokens = 0
        self._said = 0
        """Characters of text and calls so far"""
        self._shown = 0
        """Characters of text that are past the stop strings"""
        self._logprobs: list[tuple[int, LogprobEntry]] = []
        """Start of each token in the text; entries wait here until that text is shown."""

    def reason(self, reason: FinishReason) -> FinishReason:
        """The reason for an end, given what the tokens say: a call that is cut off is no call."""
        parser = self._parser
        if parser is None or reason == "length" or not (parser.calls or parser.must_call):
            return reason
        return "tool_calls" if parser.complete else "length"

    def push(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprob]) -> tuple[Chunk, bool]:
        """The piece that the tokens add to the answer, and whether a stop string has ended it.

        logprobs: of the same tokens; empty if the request does not ask for them.
        """
        shown = thought = ""
        calls: list[ToolCallDelta] = []
        for position, token in enumerate(tokens):
            self.count += 1
            shows = bool(logprobs) and token not in self._hidden
            entry = self._describe(logprobs[position]) if shows else None
            self._unsplit.append((self._decoded, entry))
            text = self._detokenizer.push(token)
            self._decoded += len(text)
            text, more = self._take(self._thoughts.push(text))
            thought += more
            text = self._read_calls(text, calls)
            if self.count <= self._min_tokens:
                shown += text
                continue
            text, stopped = self._matcher.push(text)
            shown += text
            if stopped:
                return self._chunk(shown, thought, calls, stopped=True), True
        return self._chunk(shown, thought, calls), False

    def finish(self, reason: FinishReason, *, stopped: bool = False) -> Chunk:
        """The last piece, with the text that was held back.

        stopped: by a stop string, after which nothing is shown.
        """
        calls: list[ToolCallDelta] = []
        if stopped:
            return self._chunk("", "", calls, reason, stopped=True)
        text, thought = self._take(self._thoughts.flush())
        text = self._read_calls(text, calls)
        if self._parser:
            text += self._parser.flush(cut_off=reason == "length")
        text, ended = self._matcher.push(text)
        text += "" if ended else self._matcher.flush()
        return self._chunk(text, thought, calls, reason)

    def _read_calls(self, text: str, calls: list[ToolCallDelta]) -> str:
        """The plain text of a text. Its pieces of calls come to `calls`."""
        if self._parser is None:
            return text
        text, more = self._parser.push(text)
        add_pieces(calls, more)
        return text

    def _take(self, pieces: Sequence[Piece]) -> tuple[str, str]:
        """The text and the thought of the pieces; and says of each token to which it belongs."""
        for piece in pieces:
            begin, self._split = self._split, self._split + piece.length
            while self._unsplit and self._unsplit[0][0] < self._split:
                start, entry = self._unsplit.popleft()
                self._thought_tokens += piece.kind == "thought"
                if piece.kind == "text" and entry:
                    self._logprobs.append((self._said + start - begin, entry))
            self._said += len(piece.text) if piece.kind == "text" else 0
        return (
            "".join(piece.text for piece in pieces if piece.kind == "text"),
            "".join(piece.text for piece in pieces if piece.kind == "thought"),
        )

    def _chunk(
        self,
        text: str,
        thought: str,
        calls: Sequence[ToolCallDelta],
        reason: FinishReason | None = None,
        *,
        stopped: bool = False,
    ) -> Chunk:
        # Calls come after all text, so that its characters have the same places with them.
        self._shown = self._shown + len(text) if stopped else self._said - self._matcher.held
        ready = sum(begin < self._shown for begin, _ in self._logprobs)
        entries = [entry for _, entry in self._logprobs[:ready]]
        del self._logprobs[:ready]
        return Chunk(
            self.index,
            self.count,
            text=text,
            thought=thought,
            thought_tokens=self._thought_tokens,
            tool_calls=calls,
            logprobs=entries,
            finish_reason=reason,
        )

    def _describe(self, entry: TokenLogprob) -> LogprobEntry:
        describe = self._decoder.describe
        return LogprobEntry(
            describe(entry.token, entry.logprob),
            [describe(token, logprob) for token, logprob in entry.top],
        )
