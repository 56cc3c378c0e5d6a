"""Thoughts: how models write them before an answer, and how they are told from it.

Which format a model has is recognised from its chat template, which has to leave the thoughts of
earlier answers out or to write them again.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from ..engine.thought import ThoughtParams
from .text import overlap

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Opening = Literal["possible", "begun", "over"]
"""State of the thought when the answer begins: the answer may begin one, it continues one that the
prompt has begun, or the prompt has ended it"""


@dataclass(frozen=True)
class ThinkingFormat:
    """The marks around a thought."""

    begin: str
    end: str
    channels: bool = False
    """The answer is a series of messages, each with a channel in its head, as in OpenAI's harmony"""

    @property
    def begin_mark(self) -> str:
        """The beginning of `begin` that is a token of its own with most models"""
        return "".join(self.begin.partition(">")[:2])

    @property
    def marks(self) -> tuple[str, ...]:
        return HARMONY_MARKS if self.channels else (self.begin, self.end)


FORMATS = (
    # GPT-OSS
    ThinkingFormat("<|channel|>analysis<|message|>", "<|end|>", channels=True),
    # Qwen, DeepSeek, GLM, Nemotron, EXAONE, SmolLM, LFM, OLMo, MiniMax, Hunyuan
    ThinkingFormat("<think>", "</think>"),
    # Gemma 4
    ThinkingFormat("<|channel>thought\n", "<channel|>"),
    # Command A
    ThinkingFormat("<|START_THINKING|>", "<|END_THINKING|>"),
    # Magistral, Mistral Small
    ThinkingFormat("[THINK]", "[/THINK]"),
    # Seed-OSS
    ThinkingFormat("<seed:think>", "</seed:think>"),
    # Apertus
    ThinkingFormat("<|inner_prefix|>", "<|inner_suffix|>"),
    # Kimi-VL
    ThinkingFormat("◁think▷", "◁/think▷"),
)
"""Formats of thoughts. The first one whose mark of the end is in a chat template counts."""

MESSAGE = "<|message|>"
HARMONY_MARKS = ("<|start|>", "<|channel|>", MESSAGE, "<|constrain|>", "<|end|>")


def find_thinking(templates: str) -> ThinkingFormat | None:
    """The format of a model with these chat templates; None for one that does not think."""
    for each in FORMATS:
        wanted = ("<|channel|>", "analysis", MESSAGE) if each.channels else (each.end,)
        if all(mark in templates for mark in wanted):
            return each
    return None


def opening_of(thinking: ThinkingFormat, prompt: str) -> Opening:
    """prompt: its end at least"""
    end = prompt.rstrip()
    if thinking.channels:
        return "possible"
    if end.endswith(thinking.begin.rstrip()):
        return "begun"
    return "over" if end.endswith(thinking.end) else "possible"


def opening_inside(thinking: ThinkingFormat, text: str) -> Opening:
    """Of an answer that continues this text of the assistant's"""
    _, begun, thought = text.partition(thinking.begin)
    return "begun" if begun and thinking.end not in thought else "over"


def thought_params(
    thinking: ThinkingFormat,
    opening: Opening,
    tokenizer: "PreTrainedTokenizerFast",
    *,
    max_tokens: int,
    must_call: bool,
) -> ThoughtParams:
    """The format in the tokens of a model."""

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    if thinking.channels:
        rest = "" if must_call else "<|start|>assistant<|channel|>final<|message|>"
        return ThoughtParams(
            begins=lambda _: True,
            ends=partial(leaves_analysis, tokenizer),
            begun=True,
            free=False,
            closing=encode(thinking.end + rest),
            closes=partial(is_inside_message, tokenizer),
            max_tokens=max_tokens,
        )
    first, end = encode(thinking.begin)[0], encode(thinking.end)
    # Where it is spelled in ordinary tokens, the grammar may begin with the same one.
    own = tokenizer.added_tokens_decoder.get(first)
    return ThoughtParams(
        begins=partial(begins_with_token, tokenizer, first)
        if own
        else partial(begins_with, tokenizer, thinking.begin),
        ends=partial(ends_with, tokenizer, thinking.end, end),
        begin_token=first if own else None,
        begun=opening == "begun",
        closing=end if len(end) == 1 else encode(f"\n{thinking.end}"),
        max_tokens=max_tokens,
    )


def begins_with_token(
    tokenizer: "PreTrainedTokenizerFast", mark: int, tokens: Sequence[int]
) -> bool | None:
    if tokens[-1] == mark:
        return True
    # Once other text has begun, the mark is none any more.
    return False if str(tokenizer.decode(list(tokens))).strip() else None


def begins_with(
    tokenizer: "PreTrainedTokenizerFast", mark: str, tokens: Sequence[int]
) -> bool | None:
    text = str(tokenizer.decode(list(tokens))).lstrip()
    if text.startswith(mark.rstrip()):
        return True
    return None if mark.startswith(text) or text.endswith("\ufffd") else False


def ends_with(
    tokenizer: "PreTrainedTokenizerFast", mark: str, spelled: Sequence[int], tokens: Sequence[int]
) -> bool:
    if len(spelled) == 1:
        return tokens[-1] == spelled[0]
    return mark in str(tokenizer.decode(list(tokens[-len(mark) :])))


def leaves_analysis(tokenizer: "PreTrainedTokenizerFast", tokens: Sequence[int]) -> bool:
    """True in the head of a message that is not a thought."""
    text = str(tokenizer.decode(list(tokens[-16:])))
    return bool(re.search(r"(<\|channel\|>(final|commentary)|to=)[^<]*$", text))


def is_inside_message(tokenizer: "PreTrainedTokenizerFast", tokens: Sequence[int]) -> bool:
    """True in the text of a message, where its end may come, and not in its head."""
    marks = {str(tokenizer.decode([token])): place for place, token in enumerate(tokens)}
    heads = [marks.get(mark, -1) for mark in ("<|end|>", "<|start|>", "<|channel|>")]
    return max(heads) < marks.get(MESSAGE, -1)


class Piece(NamedTuple):
    """A piece of an answer."""

    kind: Literal["thought", "text", "mark"]
    text: str
    """The part of it that is shown"""
    length: int
    """Characters that it takes of the answer"""


class ThoughtSplitter(Protocol):
    """Tells thoughts from the answer, piece by piece, as the model writes them."""

    def push(self, text: str) -> list[Piece]:
        """The pieces that `text` completes, in order and without gaps."""

    def flush(self) -> list[Piece]:
        """The text that was held back, at the end of the answer."""


class NoThoughts:
    """The splitter of a model that does not think."""

    def push(self, text: str) -> list[Piece]:
        return [Piece("text", text, len(text))]

    def flush(self) -> list[Piece]:
        return []


class TagSplitter:
    """Reads `<think>…</think>` and its like, which are at the beginning of an answer alone.

    White space at both ends of a thought belongs to the marks.
    """

    def __init__(self, thinking: ThinkingFormat, opening: Opening) -> None:
        self._thinking = thinking
        self._begun = opening == "begun"
        self._place: Literal["before", "begin", "in", "end", "after"] = "before"
        self._held = ""

    def push(self, text: str) -> list[Piece]:
        self._held += text
        pieces: list[Piece] = []
        while True:
            place = self._place
            match place:
                case "before":
                    self._find_begin(pieces)
                case "begin" | "end":
                    blank = len(self._held) - len(self._held.lstrip())
                    self._take(pieces, "thought", blank, "")
                    if self._held:
                        self._place = "in" if place == "begin" else "after"
                case "in":
                    self._find_end(pieces)
                case "after":
                    self._take(pieces, "text", len(self._held))
            if self._place == place:
                return pieces

    def flush(self) -> list[Piece]:
        pieces: list[Piece] = []
        thinks = self._place == "in" or (self._place == "before" and self._begun)
        shown = self._held.rstrip() if thinks else self._held
        self._take(pieces, "thought" if thinks else "text", len(self._held), shown)
        return pieces

    def _find_begin(self, pieces: list[Piece]) -> None:
        """Of a thought that the prompt has begun, models may write the beginning again."""
        begin, mark = self._thinking.begin, self._thinking.begin_mark
        text = self._held.lstrip()
        if begin.startswith(text) and text != begin:
            return
        if text.startswith(mark):
            begun = begin if text.startswith(begin) else mark
            self._take(pieces, "thought", len(self._held) - len(text) + len(begun), "")
            self._place = "begin"
        else:
            self._place = "begin" if self._begun else "after"

    def _find_end(self, pieces: list[Piece]) -> None:
        thought, found, _ = self._held.partition(self._thinking.end)
        if found:
            self._take(pieces, "thought", len(thought) + len(found), thought.rstrip())
            self._place = "end"
            return
        sure = self._held[: len(self._held) - overlap(self._held, self._thinking.end)].rstrip()
        self._take(pieces, "thought", len(sure))

    def _take(
        self,
        pieces: list[Piece],
        kind: Literal["thought", "text"],
        length: int,
        shown: str | None = None,
    ) -> None:
        """Moves characters from what is held to the pieces."""
        if length:
            text = self._held[:length] if shown is None else shown
            pieces.append(Piece(kind, text, length))
            self._held = self._held[length:]


class ChannelSplitter:
    """Reads harmony: messages such as `<|channel|>analysis<|message|>…<|end|>`.

    The first one has no `<|start|>assistant`, with which the prompt ends.
    """

    ENDS = ("<|end|>", "<|start|>", "<|channel|>")
    HEADS = ("<|start|>", "<|channel|>", "to=", "assistant")

    def __init__(self, frame: tuple[str, str] | None = None) -> None:
        """frame: what stands before and behind the name of a tool whose call is text; without it a
        call is not shown.
        """
        self._frame = frame
        self._kind: Literal["thought", "text"] | None = None
        """Of the message whose text comes; None in its head"""
        self._held = ""

    def push(self, text: str) -> list[Piece]:
        self._held += text
        pieces: list[Piece] = []
        while self._read_text(pieces) if self._kind else self._read_head(pieces):
            pass
        return pieces

    def flush(self) -> list[Piece]:
        if self._kind is None or not self._held:  # a head that is cut off says nothing
            return []
        held, self._held = self._held, ""
        return [Piece(self._kind, held, len(held))]

    def _read_head(self, pieces: list[Piece]) -> bool:
        """True if there may be more to read."""
        head, found, rest = self._held.partition(MESSAGE)
        if found:
            self._kind = kind_of_message(head)
            called = re.search(r"to=functions\.([\w-]+)", head)
            if called and self._frame:
                self._kind = "text"
                before, after = self._frame
                self._drop(pieces, len(head + found), f"{before}{called[1]}{after}")
            else:
                self._drop(pieces, len(head + found))
            return bool(rest)
        begin = self._held.lstrip()
        if any(begin.startswith(each) or each.startswith(begin) for each in self.HEADS):
            return False
        self._kind = "text"  # of a model that does not keep to the format
        return True

    def _read_text(self, pieces: list[Piece]) -> bool:
        kind = self._kind or "text"
        ends = [place for mark in self.ENDS if (place := self._held.find(mark)) >= 0]
        end = min(ends, default=-1)
        keep = max(overlap(self._held, mark) for mark in self.ENDS)
        length = end if ends else len(self._held) - keep
        if length:
            pieces.append(Piece(kind, self._held[:length], length))
            self._held = self._held[length:]
        if not ends:
            return False
        if self._held.startswith("<|end|>"):
            self._drop(pieces, len("<|end|>"))
        self._kind = None
        return bool(self._held)

    def _drop(self, pieces: list[Piece], length: int, text: str = "") -> None:
        """Takes a mark from what is held, and puts a text in its place."""
        kind = self._kind if text else "mark"
        pieces.append(Piece("thought" if self._kind == "thought" else kind or "mark", text, length))
        self._held = self._held[length:]


def kind_of_message(head: str) -> Literal["thought", "text"]:
    """A message for the user has a channel other than analysis and names no tool."""
    channels = re.findall(r"<\|channel\|>\s*(\w+)", head)
    hidden = "to=" in head or (channels and channels[-1] == "analysis")
    return "thought" if hidden else "text"


def splitter(
    thinking: ThinkingFormat | None, opening: Opening, frame: tuple[str, str] | None = None
) -> ThoughtSplitter:
    """frame: as of ChannelSplitter"""
    if thinking is None or opening == "over":
        return NoThoughts()
    return ChannelSplitter(frame) if thinking.channels else TagSplitter(thinking, opening)
