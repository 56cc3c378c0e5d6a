"""The libraries behind one interface, each set as the template would set it.

JSON without free whitespace, objects as open as their schema leaves them.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple


class RefusedError(Exception):
    """The library does not take the schema, or gives up in the middle of an answer."""


class Matcher(NamedTuple):
    """One answer's place in its grammar."""

    mask: Callable[[], Any]
    """The bits of the tokens that may come next, in a buffer"""
    accept: Callable[[int], Any]


Compile = Callable[[dict[str, Any]], Callable[[], Matcher]]
"""Compiles a schema and gives matchers at its start. Raises RefusedError."""


def use_llguidance(tokenizer: Any, width: int) -> Compile:
    from llguidance import LLMatcher, LLTokenizer

    source = tokenizer.backend_tokenizer.to_str()
    tokens = LLTokenizer(source, n_vocab=width, eos_token=tokenizer.eos_token_id)

    def matcher_of(matcher: LLMatcher) -> Matcher:
        def mask() -> Any:
            bits = matcher.compute_bitmask()
            if matcher.is_error():
                raise RefusedError(matcher.get_error())
            return bits

        return Matcher(mask, matcher.consume_token)

    def compile_schema(schema: dict[str, Any]) -> Callable[[], Matcher]:
        layout = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
        rule = "start: %json " + json.dumps({**schema, "x-guidance": layout})
        start = LLMatcher(tokens, '%llguidance {"no_forcing": true}\n' + rule, log_level=0)
        return lambda: matcher_of(start.deep_copy())

    return compile_schema


def use_xgrammar(tokenizer: Any, width: int) -> Compile:
    import xgrammar

    tokens = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=width)

    def matcher_of(matcher: xgrammar.GrammarMatcher) -> Matcher:
        bits = xgrammar.allocate_token_bitmask(1, width)

        def mask() -> Any:
            matcher.fill_next_token_bitmask(bits)
            return bits.numpy()

        return Matcher(mask, matcher.accept_token)

    def compile_schema(schema: dict[str, Any]) -> Callable[[], Matcher]:
        compiler = xgrammar.GrammarCompiler(tokens, max_threads=2)
        text = json.dumps(schema)
        try:
            grammar = compiler.compile_json_schema(text, any_whitespace=False, strict_mode=False)
        except (RuntimeError, ValueError) as error:
            raise RefusedError(str(error)) from error
        return lambda: matcher_of(xgrammar.GrammarMatcher(grammar))

    return compile_schema


def use_outlines_core(tokenizer: Any, width: int) -> Compile:
    import numpy as np
    from outlines_core import Guide, Index, Vocabulary
    from outlines_core.json_schema import build_regex_from_schema

    tokens: dict[bytes, list[int]] = {}
    for written, token in tokenizer.get_vocab().items():
        if token not in tokenizer.added_tokens_decoder:
            is_byte = len(written) == 6 and written.startswith("<0x")
            meant = (
                bytes([int(written[3:5], 16)]) if is_byte else written.replace("▁", " ").encode()
            )
            tokens.setdefault(meant, []).append(token)
    vocabulary = Vocabulary(tokenizer.eos_token_id, tokens)

    def matcher_of(guide: Guide) -> Matcher:
        bits = np.zeros((width + 31) // 32, np.int32)

        def mask() -> Any:
            guide.write_mask_into(bits.ctypes.data, bits.size, bits.itemsize)
            return bits

        return Matcher(mask, lambda token: guide.advance(token, return_tokens=False))

    def compile_schema(schema: dict[str, Any]) -> Callable[[], Matcher]:
        try:
            index = Index(build_regex_from_schema(json.dumps(schema)), vocabulary)
        except Exception as error:
            raise RefusedError(str(error)) from error
        return lambda: matcher_of(Guide(index))

    return compile_schema


LIBRARIES = {
    "llguidance": use_llguidance,
    "xgrammar": use_xgrammar,
    "outlines-core": use_outlines_core,
}
