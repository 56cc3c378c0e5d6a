"""A schema is refused or kept: whatever a random model writes parses and validates.

Known to be looser than JSON Schema: numbers are compared as doubles, and `format` is a shape (a
date may be the 30th of February). A definition that is nothing but a reference to itself has no
answer: where it is reached, the grammar is given up.
"""

import importlib
import json
import random
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from infer_scaffold.project import template
from tests.conftest import builders

Schema = dict[str, Any]

PATTERNS = [
    "^[a-c]{2,4}$",
    "b+",
    "^x|y$",
    r"\d{3}",
    r"^\S*$",
    "^[^a]*$",
    "^(ab|c)?-[0-9]{1,2}$",
    "é",
]
FORMATS = ["ipv4", "ipv6", "uuid", "email"]
NAMES = ["a", "b", "name", 'q"uote', "ünï", "", "x-y", "$ref"]
VALUES = [
    None,
    True,
    False,
    0,
    1,
    -7,
    2.5,
    "",
    "a",
    'say "hi"\n',
    "ünï 👋",
    [],
    [1, "a"],
    {},
    {"a": 1},
]
ENFORCED_BY_NOBODY: list[Schema] = [
    {"uniqueItems": True},
    {"not": {"type": "string"}},
    {"if": {"type": "string"}, "then": {"minLength": 3}},
    {"contains": {"const": 1}},
    {"propertyNames": {"maxLength": 1}},
    {"dependentRequired": {"a": ["b"]}},
    {"dependentSchemas": {"a": {"required": ["b"]}}},
    {"unevaluatedProperties": False},
    {"unevaluatedItems": False},
    {"minProperties": 2},
    {"$dynamicRef": "#a"},
]
LENGTHS = st.integers(0, 4)
NUMBERS = st.integers(-60, 60) | st.sampled_from([-2.5, 0.5, 10.25, 1000000])


@st.composite
def some_of(draw: st.DrawFn, keywords: dict[str, st.SearchStrategy[Any]]) -> Schema:
    return {key: draw(values) for key, values in keywords.items() if draw(st.integers(0, 3)) == 0}


def typed(kind: str, **keywords: st.SearchStrategy[Any]) -> st.SearchStrategy[Schema]:
    """Schemas of a type, with or without saying so."""
    return st.builds(
        lambda named, rest: {**({"type": kind} if named else {}), **rest},
        st.sampled_from([True, True, True, False]),
        some_of(keywords),
    )


def numbers(kind: str) -> st.SearchStrategy[Schema]:
    return typed(
        kind,
        minimum=NUMBERS,
        maximum=NUMBERS,
        exclusiveMinimum=NUMBERS,
        exclusiveMaximum=NUMBERS,
        multipleOf=st.sampled_from([1, 2, 3, 7, 10, 0.5, 0.25]),
    )


LEAVES = st.one_of(
    numbers("integer"),
    numbers("number"),
    typed("string", minLength=LENGTHS, maxLength=LENGTHS, pattern=st.sampled_from(PATTERNS)),
    st.builds(lambda form: {"type": "string", "format": form}, st.sampled_from(FORMATS)),
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {}, True, False]),
    st.builds(lambda types: {"type": types}, st.lists(
        st.sampled_from(["string", "integer", "null", "array"]), min_size=1, unique=True)),
    st.builds(lambda values: {"enum": values}, st.lists(st.sampled_from(VALUES), min_size=1)),
    st.builds(lambda value: {"const": value}, st.sampled_from(VALUES)),
    st.builds(lambda name: {"$ref": f"#/$defs/{name}"}, st.sampled_from(["x", "y"])),
    st.sampled_from(ENFORCED_BY_NOBODY),
)  # fmt: skip


def extend(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Schema]:
    options = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(
        typed(
            "object",
            properties=st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
            required=st.lists(st.sampled_from(NAMES), max_size=3, unique=True),
            additionalProperties=inner,
            patternProperties=st.dictionaries(st.sampled_from(PATTERNS), inner, max_size=1),
            minProperties=st.integers(0, 1),
            maxProperties=LENGTHS,
        ),
        typed(
            "array",
            items=inner,
            prefixItems=options,
            minItems=LENGTHS,
            maxItems=LENGTHS,
        ),
        st.builds(lambda several, also: {"anyOf": several, **also}, options, LEAVES_AS_OBJECTS),
        st.builds(lambda several, also: {**also, "allOf": several}, options, LEAVES_AS_OBJECTS),
        st.builds(lambda several: {"oneOf": several}, options),
    )


LEAVES_AS_OBJECTS = LEAVES.filter(lambda leaf: isinstance(leaf, dict))
SCHEMAS = st.builds(
    lambda schema, x, y: {**schema, "$defs": {"x": x, "y": y}},
    st.recursive(LEAVES, extend, max_leaves=8).filter(lambda schema: isinstance(schema, dict)),
    extend(LEAVES),
    LEAVES,
)


@pytest.fixture(scope="module")
def grammar() -> Iterator[ModuleType]:
    """The module where it lies; `serving` needs no settings for it."""
    folder = template.root() / "template" / "src" / "{{package_name}}"
    sys.path.insert(0, str(folder))
    yield importlib.import_module("serving.chat.grammar_compiler")
    sys.path.remove(str(folder))


class RandomModel:
    """Writes any token that it may, the ones that end something more often."""

    def __init__(self, grammar: ModuleType, width: int = 320) -> None:
        import torch

        self.torch = torch
        self.tokenizer = builders("tiny_chat").build_tokenizer()
        self.end = self.tokenizer.eos_token_id
        self.width = width
        self.compiler = grammar.GrammarCompiler(self.tokenizer, width, [self.end])
        self.mask_tokens = importlib.import_module("serving.engine.grammar").mask_tokens
        self.closing = set(self.tokenizer.convert_tokens_to_ids(['"', "}", "]"])) | {self.end}

    def allowed(self, matcher: Any) -> list[int]:
        scores = self.torch.zeros(self.width)
        self.mask_tokens([scores], [matcher.bits()])
        return self.torch.isfinite(scores).nonzero().flatten().tolist()

    def answer(self, grammar: Any, draw: random.Random, limit: int = 200) -> str | None:
        """None if it did not end in time, or only because its grammar was given up."""
        matcher = grammar.matcher()
        tokens: list[int] = []
        while len(tokens) < limit:
            allowed = self.allowed(matcher)
            assert allowed
            closing = [token for token in allowed if token in self.closing]
            token = draw.choice(closing if closing and draw.random() < 0.5 else allowed)
            matcher.accept(token)
            if token == self.end:
                return None if matcher.failed else self.tokenizer.decode(tokens)
            tokens.append(token)
        return None

    def accepts(self, grammar: Any, text: str) -> bool:
        matcher = grammar.matcher()
        for token in self.tokenizer.encode(text, add_special_tokens=False):
            if token not in self.allowed(matcher):
                return False
            matcher.accept(token)
        return self.end in self.allowed(matcher)


def validator(schema: Schema) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker(FORMATS))


def test_a_random_model_keeps_random_schemas(grammar: ModuleType) -> None:
    model = RandomModel(grammar)
    refused: list[str] = []
    kept: list[Schema] = []
    ended: list[str] = []
    endless = 0

    @settings(
        max_examples=500,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(SCHEMAS)
    def check(schema: Schema) -> None:
        nonlocal endless
        try:
            compiled = model.compiler.json_schema(schema)
        except ValueError as error:
            refused.append(str(error))
            return
        kept.append(schema)
        judge = validator(schema)
        draw = random.Random(json.dumps(schema))
        for _ in range(4):
            text = model.answer(compiled, draw)
            if text is None:
                endless += 1
                continue
            judge.validate(json.loads(text))
            ended.append(text)
        # What others wrote is often nearly right.
        for text in draw.sample(ended, min(len(ended), 20)):
            if model.accepts(compiled, text):
                judge.validate(json.loads(text))

    check()
    print(f"{len(refused)} refused, {len(kept)} kept, {len(ended)} ended, {endless} did not")
    assert len(kept) > 100
    assert len(ended) > 20 * endless
    assert all("\n" not in reason and reason.endswith(".") for reason in refused)
