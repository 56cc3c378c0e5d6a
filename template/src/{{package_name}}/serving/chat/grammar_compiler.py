"""Structured output: grammars from JSON schemas, tools, regular expressions and choices.

llguidance compiles them: it refuses a schema keyword that it cannot enforce, where others let it
pass.
"""

import json
import logging
import math
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llguidance import LLMatcher, LLTokenizer
from llguidance.gbnf_to_lark import gbnf_to_lark

from ..engine.grammar import Grammar
from .grammar_trial import compiled, survives_trial
from .options import OutputFormat
from .schema_relaxing import DOUBTFUL, MAX_MULTIPLE, Relaxer, digits
from .thinking import ThinkingFormat
from .tool_arguments import JSONArguments, unenforced
from .tool_calls import SchemaRefused, Tool
from .tool_formats import ToolLayout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

WHITESPACE = {
    # One optional space where models are used to one and no other whitespace: a weak model that
    # likes blanks would write them until its tokens run out.
    "item_separator": ", ?",
    "key_separator": ": ?",
    "whitespace_flexible": False,
}

MAX_LENGTH = 131_072
"""Characters of a grammar, which are mostly those of its schemas"""
MAX_DEPTH = 100
"""Depth of nested brackets in a schema"""
MAX_DEPTH_OF_REFERENCES = 1000
"""Sum of the depths at which a schema refers to its definitions. Native code follows them by
recursion, and a stack overflow would end the process."""
MAX_RULES = 500
"""Rules, counted by their colons, of a grammar that a client has written. Native code follows a
chain of them by recursion."""
CACHE_SIZE = 64
"""Compiled grammars that are kept"""


class GrammarCompiler:
    """Makes grammars for one tokenizer. Safe to call from several threads at once."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        vocabulary: int,
        eos_token_ids: Sequence[int],
    ) -> None:
        """vocabulary: the width of the logits, which can be larger than that of the tokenizer."""
        self._source = tokenizer
        self._vocabulary = vocabulary
        self._eos_token_ids = list(eos_token_ids)
        self._cache: OrderedDict[str, Grammar] = OrderedDict()
        self._too_costly: dict[str, None] = {}
        """The latest that failed their trial, the oldest first"""
        self._lock = threading.Lock()

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        # Made at the first grammar, as it takes seconds with a vocabulary of 262k.
        return LLTokenizer(
            self._source.backend_tokenizer.to_str(),
            n_vocab=max(self._vocabulary, len(self._source)),
            eos_token=self._eos_token_ids,
        )

    @cached_property
    def _special_tokens(self) -> dict[str, int]:
        return {
            str(added): token
            for token, added in self._source.added_tokens_decoder.items()
            if token not in self._eos_token_ids and self._tokenizer.is_special_token(token)
        }

    def json_object(self) -> Grammar:
        """Any JSON object."""
        return self.json_schema({"type": "object"})

    def json_schema(self, schema: Mapping[str, Any], *, strict: bool = True) -> Grammar:
        """JSON that is valid against a schema, with the properties in the schema's order.

        strict: else what cannot be enforced is dropped from the schema.

        Blocks for milliseconds, for hundreds of them with a large schema. Raises ValueError, in
        one sentence, for a schema that is contradictory, too large, or (strict) uses what cannot be
        enforced.
        """
        return self._compile("start: " + json_rule(schema, strict=strict))

    def form(self, form: OutputFormat, thinking: ThinkingFormat | None = None) -> Grammar:
        """thinking: the format of a thought that may come before.

        Raises ValueError as `json_schema` does.
        """
        return self._compile(f"start: {self._lead(thinking)}{form_rule(form)}")

    def tool_calls(
        self,
        layout: ToolLayout,
        tools: Sequence[Tool],
        *,
        free_text: bool,
        parallel: bool,
        form: OutputFormat | None = None,
        thinking: ThinkingFormat | None = None,
    ) -> Grammar:
        """Calls of the tools, one or (parallel) more.

        free_text: any text, and once the trigger has been written, nothing but calls to the end;
            or with a form either calls or a text of that form.
        thinking: the format of a thought that may come before.
        Raises SchemaRefused for the tool that is to blame, ValueError as `json_schema` does.
        """
        try:
            return self._tool_calls(layout, tools, free_text, parallel, form, thinking)
        except SchemaRefused:
            raise
        except ValueError as refusal:
            # To find which of many is too complex would cost as much again for each.
            for tool in tools if str(refusal) != TOO_COMPLEX else ():
                try:
                    self.json_schema(tool.parameters, strict=tool.strict)
                except ValueError as error:
                    raise SchemaRefused(tool, str(error)) from error
            raise

    def _tool_calls(
        self,
        layout: ToolLayout,
        tools: Sequence[Tool],
        free_text: bool,
        parallel: bool,
        form: OutputFormat | None,
        thinking: ThinkingFormat | None,
    ) -> Grammar:
        lead = self._lead(thinking)
        writer = RuleWriter(self._literal)
        rules = [f"tool_{i}: {self._tool(layout, tool, writer)}" for i, tool in enumerate(tools)]
        rules += writer.rules
        rules.append("tool: " + " | ".join(f"tool_{i}" for i in range(len(tools))))
        between = layout.between if parallel else None
        more = f"({self._literal(between)} tool)*" if between else ""
        rules.append(f"calls: tool {more} {self._literal(layout.suffix)}")
        if thinking and thinking.channels:
            rules.append(self._channels(layout, thinking, free_text, form))
        elif not free_text:
            rules.append(f"start: {lead}{self._literal(layout.prefix)} calls")
        elif form:
            rules.append(f"form: {form_rule(form)}")
            rules.append(f"start: {lead}(form | {self._literal(layout.prefix)} calls)")
        elif layout.leads_answer:
            # Text that begins in any other way, after white space that may stand before a call.
            rules.append(f"start: /\\s+/? ({self._literal(layout.prefix)} calls | plain)?")
            rules.append(f"plain: /{other_than(layout.trigger)}/ {self._any_text()}")
        else:
            rest = self._literal(layout.prefix.removeprefix(layout.trigger))
            rules.append(f"start: free (TEXT? | trigger {rest} calls)")
            rules.append(self._free_text(layout.trigger))
        return self._compile("\n".join(rules))

    def _lead(self, thinking: ThinkingFormat | None) -> str:
        """The part of the grammar before an answer of a given form.

        The engine takes a thought in tags out of the grammar, and leaves the lines after it. The
        marks of channels are the grammar's.
        """
        if thinking is None:
            return ""
        if not thinking.channels:
            return r'("\n" | "\n\n")? '
        begin = self._literal(thinking.begin)
        end = self._literal(f"{thinking.end}<|start|>assistant")
        final = self._literal("<|channel|>final<|message|>")
        return f"({begin} /(?s:.+)/? {end})? {final} "

    def _channels(
        self,
        layout: ToolLayout,
        thinking: ThinkingFormat,
        free_text: bool,
        form: OutputFormat | None,
    ) -> str:
        """The rule of an answer in channels: a thought, then a call or a message for the user."""
        begin = self._literal(thinking.begin)
        next_message = self._literal(f"{thinking.end}<|start|>assistant")
        thought = f"({begin} /(?s:.+)/? {next_message})?"
        call = f"{self._literal(layout.prefix)} calls"
        if not free_text:
            return f"start: {thought} {call}"
        final = self._literal("<|channel|>final<|message|>")
        if form:
            return f"form: {form_rule(form)}\nstart: {thought} ({call} | {final} form)"
        # A message before a call, as models announce them.
        note = f"({self._literal('<|channel|>commentary<|message|>')} /(?s:.+)/? {next_message})?"
        return f"start: {thought} ({note} {call} | {final} /(?s:.+)/?)"

    def _any_text(self) -> str:
        specials = ",".join(map(str, self._special_tokens.values()))
        return f"(/(?s:.+)/? <[{specials}]>)* /(?s:.+)/?" if specials else "/(?s:.+)/?"

    def _tool(self, layout: ToolLayout, tool: Tool, writer: "RuleWriter") -> str:
        kind = tool.parameters.get("type", "object")
        if kind != "object":
            raise SchemaRefused(tool, "The parameters are not an object.")
        style = layout.arguments
        writer.strict = tool.strict
        try:
            check_size(tool.parameters)
            if tool.strict and not isinstance(style, JSONArguments):
                unenforced(style, tool.parameters)
            arguments = style.grammar(tool.parameters, writer)
        except ValueError as error:
            raise SchemaRefused(tool, str(error)) from error
        except (TypeError, AttributeError) as error:  # keywords with values of other types
            raise SchemaRefused(tool, "The schema is not a JSON schema.") from error
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
            f"<[{self._special_tokens[part]}]>"
            if part in self._special_tokens
            else json.dumps(part)
            for part in parts
            if part
        )

    def _compile(self, rules: str) -> Grammar:
        if len(rules) > MAX_LENGTH:
            raise ValueError(f"The schema is longer than {MAX_LENGTH} characters.")
        with self._lock:
            if grammar := self._cache.get(rules):
                self._cache.move_to_end(rules)
                return grammar
        if rules in self._too_costly or not survives_trial(rules):
            self._too_costly[rules] = None
            if len(self._too_costly) > CACHE_SIZE:
                del self._too_costly[next(iter(self._too_costly))]
            raise ValueError(TOO_COMPLEX)
        start = compiled(self._tokenizer, rules)
        if start.is_error():
            raise ValueError(explain(start.get_error()))
        grammar = Grammar(start)
        with self._lock:
            self._cache[rules] = grammar
            if len(self._cache) > CACHE_SIZE:
                self._cache.popitem(last=False)
        return grammar


class RuleWriter:
    """Collects the rules of arguments."""

    def __init__(self, literal: Callable[[str], str]) -> None:
        self.rules: list[str] = []
        self.strict = True
        self.literal = literal

    def json(self, schema: Mapping[str, Any]) -> str:
        return json_rule(schema, strict=self.strict)

    def rule(self, definition: str, *, lazy: bool = False) -> str:
        name = f"part_{len(self.rules)}"
        self.rules.append(f"{name}{'[lazy]' if lazy else ''}: {definition}")
        return name

    def recursive(self, definition: Callable[[str], str]) -> str:
        name = f"part_{len(self.rules)}"
        self.rules.append(f"{name}: {definition(name)}")
        return name


def other_than(mark: str) -> str:
    """A regular expression of texts that begin neither with the mark nor with white space."""
    begins = [f"[^\\s{in_class(mark[0])}]"]
    begins += [
        f"{re.escape(mark[:place])}[^{in_class(mark[place])}]" for place in range(1, len(mark))
    ]
    cut_off = [re.escape(mark[:place]) for place in range(1, len(mark))]
    return f"(?s:({'|'.join(begins)}).*)|{'|'.join(cut_off)}"


def in_class(character: str) -> str:
    return re.sub(r"([\\\]^-])", r"\\\1", character)


def form_rule(form: OutputFormat) -> str:
    """Raises ValueError for what cannot be a rule."""
    match form.kind:
        case "json":
            return json_rule(form.value or {"type": "object"}, strict=form.strict)
        case "regex":
            return regex_rule(form.value)
        case "choice":
            return "(" + " | ".join(map(json.dumps, form.value)) + ")"
        case "grammar":
            return grammar_rule(form.value)


def regex_rule(pattern: str) -> str:
    # A rule is the whole of the answer anyway, and knows no anchors.
    pattern = pattern.removeprefix("^")
    if pattern.endswith("$") and not pattern.endswith("\\$"):
        pattern = pattern[:-1]
    (rule,) = json.loads(LLMatcher.grammar_from_regex(pattern))["grammars"]
    return str(rule["lark_grammar"]).removeprefix("start: ")


def grammar_rule(text: str) -> str:
    if "::=" in text:
        try:
            text = gbnf_to_lark(text)
        except Exception as error:  # its own, RecursionError, plain Exception
            raise ValueError(f"The grammar cannot be read: {str(error)[:200]}.") from error
        text = text.replace("%llguidance {}", "", 1)
    if text.count(":") > MAX_RULES:
        raise ValueError(f"The grammar has more than {MAX_RULES} rules.")
    if re.search(r"%(json|llguidance|lark|regex)", text):
        raise ValueError("The grammar uses a directive that is not supported.")
    return "%lark {\n" + text + "\n}"


def json_rule(schema: Mapping[str, Any], *, strict: bool = True) -> str:
    options: dict[str, Any] = dict(WHITESPACE)
    check_size(schema)
    if strict:
        check(schema)
    else:
        relaxer = Relaxer(takes_pattern)
        schema = relaxer.relax(schema)
        if relaxer.dropped:
            logger.info("dropped from a schema that is not strict: %s", sorted(relaxer.dropped))
        options["lenient"] = True
    return "%json " + json.dumps({**schema, "x-guidance": options})


def takes_pattern(pattern: str) -> bool:
    """True if llguidance can enforce a regular expression. Only doubtful ones are compiled."""
    if not DOUBTFUL.search(pattern):
        return True
    return not LLMatcher.validate_grammar(LLMatcher.grammar_from_regex(pattern))


def check_size(schema: Mapping[str, Any]) -> None:
    """Raises ValueError for a schema that could crash llguidance."""
    depths: dict[str, int] = {}
    for depth, node in walk(schema):
        if depth > MAX_DEPTH:
            raise ValueError(f"The schema is nested deeper than {MAX_DEPTH} levels.")
        if isinstance(target := node.get("$ref"), str):
            depths[target] = max(depth, depths.get(target, 0))
    if sum(depths.values()) > MAX_DEPTH_OF_REFERENCES:
        raise ValueError("The schema refers to too many definitions.")


def check(schema: Mapping[str, Any]) -> None:
    """Raises ValueError for keywords that llguidance would enforce only in part."""
    multiple = 1
    for _, node in walk(schema):
        if isinstance(factor := node.get("multipleOf"), int | float):
            multiple = math.lcm(multiple, digits(factor))
        if isinstance(least := node.get("minProperties"), int) and least > 1:
            # It would count a key that is repeated.
            required = node.get("required")
            if not isinstance(required, list) or len(required) < least:
                raise ValueError(
                    '"minProperties" above 1 is enforced only for required properties.'
                )
    if multiple > MAX_MULTIPLE:
        raise ValueError('The numbers of "multipleOf" in the schema are too large.')


def walk(schema: Mapping[str, Any]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """All objects in a schema with their depths, without recursion."""
    waiting: list[tuple[int, Any]] = [(1, schema)]
    while waiting:
        depth, node = waiting.pop()
        if isinstance(node, Mapping):
            yield depth, node
            waiting += [(depth + 1, child) for child in node.values()]
        elif isinstance(node, list):
            waiting += [(depth + 1, child) for child in node]


TOO_COMPLEX = "The schema is too complex."
EXPLANATIONS = {
    r"Unimplemented keys: \[(.+)\]": "The schema uses {}, which cannot be enforced.",
    r"coerce_one_of": 'The alternatives of "oneOf" in the schema overlap or may do so: use "anyOf".',
    r"Unsatisfiable schema: (.+)": "The schema contradicts itself: {}.",
    r"Unknown format: (.+)": 'The schema uses the "format" {}, which cannot be enforced.',
    r"lookarounds not supported": 'The schema has a "pattern" with look-around or the border of a word, '
    "which cannot be enforced.",
    r"NoExtension": "Nothing can match the schema: it has no end.",
    r"Resource '(.+)' is not present": "The schema refers to {!r}, which is outside of it.",
    r"fuel|too large|too many|too complex|Unable to determine": TOO_COMPLEX,
    # The lines before it show the place in the regular expression.
    r"(?m)^error: (.+)": 'The "pattern", a regular expression, cannot be enforced: {}.',
    # The beginning is a position in rules that this module has written.
    r"^(?:at \d+\(\d+\): )?(?:failed to compile JSON schema: )?(.+)": (
        "The schema cannot be enforced: {}."
    ),
}
"""Patterns of llguidance's errors and the messages for clients. The first that matches counts."""


def explain(error: str) -> str:
    for pattern, sentence in EXPLANATIONS.items():
        if match := re.search(pattern, error):
            return sentence.format(*(group[:200].rstrip(".") for group in match.groups()))
    return "The schema cannot be enforced."
