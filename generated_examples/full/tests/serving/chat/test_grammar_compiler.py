"""Masks from random logits: whatever the model prefers, the answer has the shape asked for."""

import json
import re
import sys
import time
from collections.abc import Callable
from itertools import product
from string import ascii_lowercase
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from full_server.serving.chat import grammar_compiler as grammars
from full_server.serving.chat import grammar_trial
from full_server.serving.chat.grammar_compiler import (
    GrammarCompiler,
    Tool,
    ToolLayout,
)
from full_server.serving.chat.options import OutputFormat
from full_server.serving.chat.schema_relaxing import DROPPED, FORMATS
from full_server.serving.engine.grammar import Grammar, GrammarMatcher, mask_tokens

from ...tiny_chat import build_tokenizer

TOKENIZER = build_tokenizer()
EOS = TOKENIZER.eos_token_id
VOCABULARY = 320  # wider than the tokenizer, as many models are
COMPILER = GrammarCompiler(TOKENIZER, VOCABULARY, [EOS])
CLOSING = TOKENIZER.convert_tokens_to_ids(['"', "}", "]", ",", ":", "<|end|>"])
"""Favoured, so that random answers come to an end"""

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 10},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        "home": {"anyOf": [{"$ref": "#/$defs/place"}, {"type": "null"}]},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
    "$defs": {"place": {"type": "object", "properties": {"city": {"const": "Ulm"}}}},
}

TOOLS = [
    Tool("weather", {"type": "object", "properties": {"city": {"enum": ["Bonn", "Ulm"]}},
                     "required": ["city"], "additionalProperties": False}),
    Tool("weather_now", {"properties": {}, "additionalProperties": False}),
]  # fmt: skip
SPELLED = ToolLayout(
    prefix='<call>\n{"name": "',
    middle='", "arguments": ',
    between='}\n</call>\n<call>\n{"name": "',
    suffix="}\n</call>",
    trigger="<call>",
)
SPECIAL = ToolLayout(
    prefix='<|system|>[{"name": "',
    middle='", "arguments": ',
    between='}, {"name": "',
    suffix="}]",
    trigger="<|system|>",
)


def allowed(matcher: GrammarMatcher) -> set[int]:
    scores = torch.zeros(VOCABULARY)
    mask_tokens([scores], [matcher.bits()])
    return set(torch.isfinite(scores).nonzero().flatten().tolist())


def random_answer(grammar: Grammar, seed: int, limit: int = 300) -> str | None:
    """None if it did not end in time."""
    generator = torch.Generator().manual_seed(seed)
    matcher = grammar.matcher()
    tokens: list[int] = []
    while not tokens or tokens[-1] != EOS:
        if len(tokens) == limit:
            return None
        scores = torch.randn(VOCABULARY, generator=generator)
        scores[CLOSING] += 4.0
        mask_tokens([scores], [matcher.bits()])
        tokens.append(int(torch.multinomial(scores.softmax(-1), 1, generator=generator)))
        matcher.accept(tokens[-1])
    assert matcher.finished and not matcher.failed
    return str(TOKENIZER.decode(tokens[:-1]))


def answers(grammar: Grammar, count: int = 20) -> list[str]:
    ended = [answer for answer in (random_answer(grammar, seed) for seed in range(count)) if answer]
    assert len(ended) > count / 2
    return ended


def follows(grammar: Grammar, text: str) -> bool:
    """True if the answer may be this text and end there."""
    matcher = grammar.matcher()
    for token in TOKENIZER.encode(text, add_special_tokens=False):
        if token not in allowed(matcher):
            return False
        matcher.accept(token)
    return EOS in allowed(matcher)


def test_any_json_object() -> None:
    for answer in answers(COMPILER.json_object()):
        assert isinstance(json.loads(answer), dict)


def test_a_schema_is_kept() -> None:
    for answer in answers(COMPILER.json_schema(PERSON)):
        person = json.loads(answer)
        assert person.keys() - {"tags", "home"} == {"name", "age"}
        assert person.keys() <= PERSON["properties"].keys()
        assert isinstance(person["name"], str) and len(person["name"]) <= 10
        assert 0 <= person["age"] <= 150
        assert len(person.get("tags", [])) <= 3 and set(person.get("tags", [])) <= {"a", "b"}
        assert (person.get("home") or {}).get("city", "Ulm") == "Ulm"


def test_whitespace_is_bounded() -> None:
    grammar = COMPILER.json_schema(PERSON)
    assert follows(grammar, '{"name":"x","age":1}')
    assert follows(grammar, '{"name": "x", "age": 1}')
    assert not follows(grammar, '{"name":  "x", "age": 1}')
    assert not follows(grammar, '{\n"name": "x", "age": 1}')


def test_the_end_is_allowed_where_the_grammar_may_end_and_nothing_else_after_it() -> None:
    matcher = COMPILER.json_schema({"type": "integer", "maximum": 50, "minimum": 0}).matcher()
    digits = set(TOKENIZER.convert_tokens_to_ids(list("0123456789")))
    assert EOS not in allowed(matcher)
    matcher.accept(TOKENIZER.convert_tokens_to_ids("4"))
    assert allowed(matcher) == digits | {EOS}
    matcher.accept(TOKENIZER.convert_tokens_to_ids("2"))
    assert allowed(matcher) == {EOS}
    matcher.accept(EOS)
    assert matcher.finished and allowed(matcher) == {EOS}


def test_every_end_token_ends() -> None:
    user = TOKENIZER.convert_tokens_to_ids("<|user|>")
    compiler = GrammarCompiler(TOKENIZER, VOCABULARY, [EOS, user])
    matcher = compiler.json_schema({"const": 1}).matcher()
    matcher.accept(TOKENIZER.convert_tokens_to_ids("1"))
    assert allowed(matcher) == {EOS, user}


def test_a_token_outside_the_grammar_ends_it(caplog: pytest.LogCaptureFixture) -> None:
    matcher = COMPILER.json_object().matcher()
    matcher.accept(TOKENIZER.convert_tokens_to_ids("x"))
    assert matcher.failed and matcher.finished and allowed(matcher) == {EOS}
    matcher.accept(TOKENIZER.convert_tokens_to_ids("y"))
    assert allowed(matcher) == {EOS}
    assert len(caplog.records) == 1


def test_a_place_without_a_way_on_ends_the_answer() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/a"}},
        "$defs": {"a": {"$ref": "#/$defs/a"}},
    }
    matcher = COMPILER.json_schema(schema).matcher()
    for token in TOKENIZER.encode('{"a": ', add_special_tokens=False):
        matcher.accept(token)
    assert allowed(matcher) == {EOS}
    assert matcher.failed


def test_requests_share_a_grammar_and_not_their_place_in_it() -> None:
    grammar = COMPILER.json_object()
    first, second = grammar.matcher(), grammar.matcher()
    start = allowed(second)
    first.accept(TOKENIZER.convert_tokens_to_ids("{"))
    assert allowed(first) != start
    assert allowed(second) == start
    assert COMPILER.json_object() is grammar


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammars, "CACHE_SIZE", 3)
    compiler = GrammarCompiler(TOKENIZER, VOCABULARY, [EOS])
    first = compiler.json_schema({"const": 0})
    for number in (1, 2, 0, 3):
        compiler.json_schema({"const": number})
    assert compiler.json_schema({"const": 0}) is first
    assert len(compiler._cache) == 3


@pytest.mark.parametrize("layout", [SPELLED, SPECIAL], ids=["spelled", "special"])
@pytest.mark.parametrize("parallel", [False, True], ids=["one", "many"])
def test_a_required_tool_call(layout: ToolLayout, parallel: bool) -> None:
    grammar = COMPILER.tool_calls(layout, TOOLS, free_text=False, parallel=parallel)
    calls = {
        f"weather{layout.middle}": [{"city": "Bonn"}, {"city": "Ulm"}],
        f"weather_now{layout.middle}": [{}],
    }
    for answer in answers(grammar):
        assert answer.startswith(layout.prefix) and answer.endswith(layout.suffix)
        inside = answer.removeprefix(layout.prefix).removesuffix(layout.suffix)
        pieces = inside.split(layout.between)
        assert parallel or len(pieces) == 1
        for piece in pieces:
            begin = next(begin for begin in calls if piece.startswith(begin))
            assert json.loads(piece.removeprefix(begin)) in calls[begin]

    call = f'weather{layout.middle}{{"city": "Ulm"}}'
    assert follows(grammar, layout.prefix + call + layout.suffix)
    assert parallel is follows(
        grammar, layout.prefix + call + layout.between + call + layout.suffix
    )
    assert not follows(grammar, "Hello " + layout.prefix + call + layout.suffix)
    assert not follows(grammar, layout.prefix + call + layout.suffix + " Bye")


@pytest.mark.parametrize("layout", [SPELLED, SPECIAL], ids=["spelled", "special"])
def test_free_text_until_the_trigger(layout: ToolLayout) -> None:
    grammar = COMPILER.tool_calls(layout, TOOLS, free_text=True, parallel=True)
    call = f"weather_now{layout.middle}{{}}"
    assert follows(grammar, "")
    assert follows(grammar, "No tool needed: {} <call <|user|> end")
    assert follows(grammar, layout.prefix + call + layout.suffix)
    assert follows(grammar, "So <|user|> " + layout.prefix + call + layout.suffix)
    assert follows(grammar, "So " + layout.prefix + call + layout.between + call + layout.suffix)
    assert not follows(grammar, "So " + layout.trigger)
    assert not follows(grammar, "So " + layout.trigger + " no call")
    assert not follows(grammar, "So " + layout.prefix + "unknown")
    assert not follows(grammar, layout.prefix + call + layout.suffix + " Bye")


def test_a_special_token_in_a_layout_is_the_token_itself() -> None:
    matcher = COMPILER.tool_calls(SPECIAL, TOOLS, free_text=False, parallel=False).matcher()
    assert allowed(matcher) == {TOKENIZER.convert_tokens_to_ids("<|system|>")}


def test_a_trigger_that_is_spelled_out_counts_as_well() -> None:
    matcher = COMPILER.tool_calls(SPECIAL, TOOLS, free_text=True, parallel=False).matcher()
    for character in SPECIAL.trigger:
        matcher.accept(TOKENIZER.convert_tokens_to_ids(character))
    assert allowed(matcher) == {TOKENIZER.convert_tokens_to_ids("[")}


REFUSED: dict[str, tuple[Any, str]] = {
    "unsupported": ({"not": {}, "if": {}}, '"if", "not"'),
    "contradictory": ({"type": "string", "minLength": 3, "maxLength": 1}, "minLength"),
    "endless": ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "no end"),
    "overlapping": ({"oneOf": [{"type": "string"}, {"minLength": 2}]}, "anyOf"),
    "pattern": ({"type": "string", "pattern": "(?=a)"}, "look-ahead"),
    "outside": ({"$ref": "https://example.com/schema.json"}, "example.com"),
    "unknown type": ({"type": "text"}, "text"),
    "options": ({"x-guidance": {"lenient": True}, "not": {}}, '"not"'),
    "long": ({"enum": ["x" * 200_000]}, "longer"),
    "multiple": ({"type": "integer", "multipleOf": 999_983}, "multipleOf"),
    "repeated keys": ({"type": "object", "minProperties": 2}, "minProperties"),
    "product": (
        {"allOf": [{"anyOf": [{"required": [f"{i}{j}"]} for i in range(9)]} for j in range(9)]},
        "complex",
    ),
}


@pytest.mark.parametrize(("schema", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_schema_that_cannot_be_kept_is_refused(schema: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as error:
        COMPILER.json_schema(schema)
    sentence = str(error.value)
    assert "\n" not in sentence and sentence.endswith(".") and len(sentence) < 300


def test_the_arguments_of_a_tool_are_refused_likewise() -> None:
    tool = Tool("f", {"properties": {"a": {"uniqueItems": True}}})
    with pytest.raises(ValueError, match='The schema uses "uniqueItems"'):
        COMPILER.tool_calls(SPELLED, [*TOOLS, tool], free_text=True, parallel=True)


UNENFORCED: dict[str, tuple[Any, Any, list[str], list[str]]] = {
    "names": (
        {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"enum": [1]}},
        ["propertyNames"], ['{}', '{"a": 1}'], ['{"a": 2}', '[]'],
    ),
    "unique": (
        {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True, "contains": {"const": 1}},
        ["contains", "uniqueItems"], ["[1, 1]", "[]"], ["[3]"],
    ),
    "not": ({"type": "string", "not": {"const": "a"}, "maxLength": 1}, ["not"], ['"a"'], ['"aa"', "1"]),
    "if": (
        {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False,
         "if": {}, "then": {}, "else": {}, "dependentRequired": {"a": ["b"]}, "$dynamicAnchor": "x"},
        ["$dynamicAnchor", "dependentRequired", "else", "if", "then"], ['{"a": 1}'], ["{}", '{"a": 2}'],
    ),
    "a property of that name": (
        {"type": "object", "properties": {"not": {"enum": [1], "not": {}}}, "required": ["not"]},
        ["not"], ['{"not": 1}'], ["{}", '{"not": 2}'],
    ),
    "format": (
        {"type": "object", "properties": {"a": {"type": "string", "format": "uint32", "maxLength": 1},
         "b": {"type": "string", "format": "date"}}, "required": ["a", "b"]},
        ["format"], ['{"a": "x", "b": "2026-01-02"}'], ['{"a": "xx", "b": "2026-01-02"}', '{"a": "x", "b": "y"}'],
    ),
    "look-ahead": (
        {"type": "array", "items": {"type": "string", "pattern": "^(?!b)", "maxLength": 1}, "maxItems": 1},
        ["pattern"], ['["b"]'], ['["bb"]', '["b", "b"]'],
    ),
    "border": ({"type": "string", "pattern": r"\bfoo\b"}, ["pattern"], ['"bar"'], ["1"]),
    "group": ({"type": "string", "pattern": r"(a|b)\1"}, ["pattern"], ['"ab"'], ["1"]),
    "pattern of names": (
        {"type": "object", "patternProperties": {"^(?=x)": {}, "^y$": {"const": 1}}, "additionalProperties": False},
        ["patternProperties"], ['{"x": 2}', '{"y": 1}'], ['{"y": 2}'],
    ),
    "overlap": ({"oneOf": [{"type": "string"}, {"const": "a"}]}, [], ['"a"'], ["1"]),
    "outside": (
        {"type": "object", "properties": {"a": {"$ref": "https://example.com/s"}, "b": {"const": 1}}},
        ["$ref"], ['{"a": [1], "b": 1}'], ['{"a": 1, "b": 2}'],
    ),
    "repeated keys": (
        {"type": "object", "minProperties": 2, "additionalProperties": {"const": 1}},
        ["minProperties"], ['{"a": 1}'], ['{"a": 2}'],
    ),
    "multiple": ({"type": "integer", "multipleOf": 999_983, "minimum": 5}, ["multipleOf"], ["7"], ["4"]),
    "in a definition": (
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": [{"const": 1}], "uniqueItems": True}}},
        ["uniqueItems"], ["[1]"], ["[2]"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("schema", "dropped", "good", "bad"), UNENFORCED.values(), ids=UNENFORCED)
def test_what_cannot_be_enforced_is_dropped_where_it_stands_and_nothing_else(
    schema: Any,
    dropped: list[str],
    good: list[str],
    bad: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    with pytest.raises(ValueError, match=r"enforce|overlap|outside|too large"):
        COMPILER.json_schema(schema)
    grammar = COMPILER.json_schema(schema, strict=False)
    assert str(dropped) in caplog.text or not dropped
    assert [text for text in good if not follows(grammar, text)] == []
    assert [text for text in bad if follows(grammar, text)] == []


@pytest.mark.parametrize("keyword", sorted(DROPPED))
def test_only_what_is_refused_is_dropped(keyword: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f'"{keyword}"')):
        COMPILER.json_schema({keyword: {}})


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_formats_that_are_kept_are_enforced(name: str) -> None:
    assert COMPILER.json_schema({"type": "string", "format": name})


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "text"},
        {"type": "string", "minLength": 3, "maxLength": 1},
        {"type": "string", "pattern": "("},
        {"enum": "x"},
        {"$ref": "#/$defs/nope"},
        {"properties": {"a": None}},
        {"enum": ["x" * 200_000]},
    ],
)
def test_a_schema_that_is_none_is_refused_in_any_case(schema: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        COMPILER.json_schema(schema, strict=False)


FORMS: dict[str, tuple[OutputFormat, list[str], list[str]]] = {
    "regex": (OutputFormat("regex", r"^a/b\d{2}$", "x"), ["a/b12"], ["a/b1", "a/b123", "xa/b12"]),
    "a dollar": (OutputFormat("regex", r"a\$", "x"), ["a$"], ["a"]),
    "choice": (OutputFormat("choice", ["yes", 'n"o', "já 🎉"], "x"), ["yes", 'n"o', "já 🎉"], ["ye", ""]),
    "lark": (
        OutputFormat("grammar", 'start: greeting " " NAME\ngreeting: "hi" | "ho"\nNAME: /[a-z]+/', "x"),
        ["hi bob", "ho x"], ["hi ", "he bob"],
    ),
    "gbnf": (
        OutputFormat("grammar", 'root ::= "yes" | "no" rest\nrest ::= [a-c]+', "x"), ["yes", "noab"], ["no"],
    ),
    "json": (OutputFormat("json", {"type": "integer"}, "x"), ["12"], ['"a"']),
    "object": (OutputFormat("json", {}, "x"), ["{}"], ["[]"]),
}  # fmt: skip


@pytest.mark.parametrize(("form", "good", "bad"), FORMS.values(), ids=FORMS)
def test_forms(form: OutputFormat, good: list[str], bad: list[str]) -> None:
    alone = COMPILER.form(form)
    both = COMPILER.tool_calls(SPELLED, TOOLS, free_text=True, parallel=False, form=form)
    for grammar in (alone, both):
        assert [text for text in good if not follows(grammar, text)] == []
        assert [text for text in bad if follows(grammar, text)] == []
    call = SPELLED.prefix + "weather_now" + SPELLED.middle + "{}" + SPELLED.suffix
    assert follows(both, call) and not follows(alone, call)
    assert not follows(both, good[0] + call)


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (OutputFormat("regex", "(?=a)b", "x"), "enforced"),
        (OutputFormat("regex", "(", "x"), "enforced"),
        (OutputFormat("grammar", "start: nowhere", "x"), "."),
        (OutputFormat("grammar", "root ::= " + "(" * 5000, "x"), "cannot be read"),
        (OutputFormat("grammar", "start: " + "(" * 5000, "x"), "."),
        (OutputFormat("grammar", 'start: %json {"type": "string"}', "x"), "directive"),
        (OutputFormat("grammar", "\n".join(f"r{i}: r{i + 1}" for i in range(5000)), "x"), "rules"),
    ],
)  # fmt: skip
def test_forms_that_cannot_be_kept_are_refused(form: OutputFormat, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        COMPILER.form(form)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def chain(length: int) -> dict[str, Any]:
    definitions: dict[str, Any] = {str(i): {"$ref": f"#/$defs/{i + 1}"} for i in range(length)}
    return {"$ref": "#/$defs/0", "$defs": definitions | {str(length): {"type": "null"}}}


@pytest.mark.parametrize("build", [nested, chain])
def test_a_deep_schema_does_not_end_the_process(build: Callable[[int], dict[str, Any]]) -> None:
    COMPILER.json_schema(build(50))
    with pytest.raises(ValueError, match=r"deeper|too many"):
        COMPILER.json_schema(build(2900))


def intersecting(count: int) -> list[dict[str, Any]]:
    return [{"type": "string", "pattern": f"^.*a{number}.*$"} for number in range(count)]


@pytest.mark.parametrize(
    "schema",
    [
        {"patternProperties": {f"^{a}.*{b}$": {} for a, b in product(ascii_lowercase, repeat=2)}},
        {"allOf": intersecting(24)},
        {"type": "array", "items": {"allOf": intersecting(60)}},
        {"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"allOf": intersecting(30)}}},
    ],
    ids=["patternProperties", "allOf", "in a list", "behind a reference"],
)
def test_what_compiles_for_minutes_is_refused(schema: dict[str, Any]) -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match="too complex"):
        COMPILER.json_schema(schema)
    assert time.monotonic() - started < 12
    # The second time it costs nothing.
    started = time.process_time()
    with pytest.raises(ValueError, match="too complex"):
        COMPILER.json_schema(schema)
    assert time.process_time() - started < 0.1


@pytest.mark.parametrize(
    "schema",
    [
        {"patternProperties": {f"^{letter}.*$": {} for letter in ascii_lowercase}},
        {"properties": {"at": {"type": "string", "format": "date-time"}}},
        {"allOf": [{"properties": {f"p{n}": {"type": "string"}}} for n in range(20)]},
    ],
)
def test_what_is_usual_survives_its_trial(schema: dict[str, Any]) -> None:
    COMPILER.json_schema(schema)


def test_a_trial_that_crashes_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    monkeypatch.setattr(grammar_trial, "PROGRAM", [sys.executable, "-c", crash])
    assert not grammar_trial.survives_trial("start: /a/")
    assert grammar_trial.survives_trial('start: %json {"type": "object"}')  # needs none


def test_the_parameters_of_a_tool_are_an_object() -> None:
    with pytest.raises(ValueError, match="'f'"):
        COMPILER.tool_calls(SPELLED, [Tool("f", {"type": "array"})], free_text=True, parallel=True)


def test_a_tokenizer_of_words_is_refused() -> None:
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0})))
    with pytest.raises(ValueError, match="decoder"):
        GrammarCompiler(words, VOCABULARY, [0]).json_object()
