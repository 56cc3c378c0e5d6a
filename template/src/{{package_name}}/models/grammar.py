"""Structured output: which tokens a request may choose next.

A grammar is compiled once and shared; a matcher is one request's place in it. llguidance computes
the masks: it refuses a schema keyword that it cannot enforce, where others let it pass.
"""

import json
import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

LAYOUT_OF_JSON = {
    # One optional space where models are used to one, and no other whitespace: a weak model that
    # likes blanks would write them until its tokens run out.
    "item_separator": ", ?",
    "key_separator": ": ?",
    "whitespace_flexible": False,
}

MAX_SCHEMA_LENGTH = 65_536
"""Characters of a schema, written as compact JSON"""

CACHE_SIZE = 64
"""Compiled grammars that are kept"""

LIMITS = LLParserLimits(verbose_errors=False)


@dataclass(frozen=True)
class Tool:
    """A function that the model may call."""

    name: str
    parameters: Mapping[str, Any]
    """JSON schema of the arguments, which are an object"""


@dataclass(frozen=True)
class ToolLayout:
    """How the model's chat template writes calls.

    One call is `prefix + name + middle + arguments + suffix`; between two calls `between` takes the
    place of the first one's suffix and the second one's prefix.
    """

    prefix: str
    middle: str
    between: str
    suffix: str
    trigger: str
    """The beginning of `prefix` at which free text turns into a call"""


class Matcher:
    """One request's place in its grammar. It belongs to the inference thread."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def finished(self) -> bool:
        """Nothing but the end of the answer can follow."""
        return self._matcher.is_stopped()

    def accept(self, token: int) -> None:
        """Takes note of the next token of the answer. One outside the grammar finishes it."""
        if not self.finished and not self._matcher.consume_token(token):
            logger.error("a grammar had to be given up: %s", self._matcher.get_error())

    def mask(self, scores: Tensor) -> None:
        """Sets the scores of the tokens that cannot come next to -inf, in place.

        scores: [V] on any device. At least one token is always left: where nothing else can
        follow, the end of the answer.
        """
        # One byte a token: 0 where it is forbidden. All EOS tokens and no other when finished.
        allowed = torch.frombuffer(
            bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8
        )[: scores.size(0)]
        scores.masked_fill_(allowed.to(scores.device) == 0, -torch.inf)


class Grammar:
    """What an answer has to look like. Immutable: many requests share it."""

    def __init__(self, start: LLMatcher) -> None:
        self._start = start

    def matcher(self) -> Matcher:
        return Matcher(self._start.deep_copy())


class GrammarCompiler:
    """Makes grammars for one tokenizer. Safe to call from several threads at once."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        vocabulary: int,
        eos_token_ids: Sequence[int],
    ) -> None:
        """Reads the tokenizer, which takes seconds for a vocabulary of 262k.

        vocabulary: the width of the logits, which can be larger than that of the tokenizer.
        """
        self._tokenizer = LLTokenizer(
            tokenizer.backend_tokenizer.to_str(),
            n_vocab=max(vocabulary, len(tokenizer)),
            eos_token=list(eos_token_ids),
        )
        self._special_tokens = {
            str(added): token
            for token, added in tokenizer.added_tokens_decoder.items()
            if token not in eos_token_ids and self._tokenizer.is_special_token(token)
        }
        self._cache: OrderedDict[str, Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def json_object(self) -> Grammar:
        """Any JSON object."""
        return self.json_schema({"type": "object"})

    def json_schema(self, schema: Mapping[str, Any]) -> Grammar:
        """JSON that is valid against a schema, with the properties in the schema's order.

        Blocks for milliseconds, for hundreds of them with a large schema. Raises ValueError, in
        one sentence, for a schema that is contradictory, too large, or uses what cannot be
        enforced.
        """
        return self._compile("start: " + json_rule(schema))

    def tool_calls(
        self, layout: ToolLayout, tools: Sequence[Tool], *, free_text: bool, parallel: bool
    ) -> Grammar:
        """Calls of the tools, one or (parallel) more.

        free_text: any text, and once the trigger has been written, nothing but calls to the end.
        Raises ValueError as `json_schema` does.
        """
        rules = [f"tool_{i}: {self._tool(layout, tool)}" for i, tool in enumerate(tools)]
        rules.append("tool: " + " | ".join(f"tool_{i}" for i in range(len(tools))))
        more = f"({self._literal(layout.between)} tool)*" if parallel else ""
        rules.append(f"calls: tool {more} {self._literal(layout.suffix)}")
        if not free_text:
            rules.append(f"start: {self._literal(layout.prefix)} calls")
        else:
            rest = self._literal(layout.prefix.removeprefix(layout.trigger))
            rules.append(f"start: free (TEXT? | trigger {rest} calls)")
            rules.append(self._free_text(layout.trigger))
        return self._compile("\n".join(rules))

    def _tool(self, layout: ToolLayout, tool: Tool) -> str:
        kind = tool.parameters.get("type", "object")
        if kind != "object":
            raise ValueError(f"The parameters of the tool {tool.name!r} are not an object.")
        arguments = json_rule({**tool.parameters, "type": "object"})
        return f"{self._literal(tool.name + layout.middle)} {arguments}"

    def _free_text(self, trigger: str) -> str:
        """Rules for text before a call: special tokens are as free in it as without a grammar."""
        trigger_token = self._special_tokens.get(trigger)
        specials = ",".join(
            str(token) for token in self._special_tokens.values() if token != trigger_token
        )
        rules = [
            "TEXT: /(?s:.+)/",
            f"free: (TEXT? <[{specials}]>)*" if specials else 'free: ""',
            f"spelled_trigger[lazy]: /(?s:.*)/ {json.dumps(trigger)}",
            "trigger: spelled_trigger"
            + (f" | TEXT? <[{trigger_token}]>" if trigger_token is not None else ""),
        ]
        return "\n".join(rules)

    def _literal(self, text: str) -> str:
        """A sequence of terminals. Where the tokenizer has a token of its own, it is that token."""
        if not text:
            return ""
        parts = [text]
        if self._special_tokens:
            longest_first = sorted(self._special_tokens, key=len, reverse=True)
            parts = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
        return " ".join(
            f"<[{self._special_tokens[part]}]>" if part in self._special_tokens else quoted(part)
            for part in parts
            if part
        )

    def _compile(self, lark: str) -> Grammar:
        with self._lock:
            if grammar := self._cache.get(lark):
                self._cache.move_to_end(lark)
                return grammar
        start = LLMatcher(self._tokenizer, "%llguidance {}\n" + lark, log_level=0, limits=LIMITS)
        if start.is_error():
            raise ValueError(reason(start.get_error()))
        grammar = Grammar(start)
        with self._lock:
            self._cache[lark] = grammar
            if len(self._cache) > CACHE_SIZE:
                self._cache.popitem(last=False)
        return grammar


def json_rule(schema: Mapping[str, Any]) -> str:
    text = json.dumps({**schema, "x-guidance": LAYOUT_OF_JSON})
    if len(text) > MAX_SCHEMA_LENGTH:
        raise ValueError(f"The schema is longer than {MAX_SCHEMA_LENGTH} characters.")
    return "%json " + text


def quoted(text: str) -> str:
    return json.dumps(text)


def reason(error: str) -> str:
    return error.splitlines()[0]
