"""Tokens to text, piece by piece."""

import pytest

from chat_server.serving.chat.text import Detokenizer, StopMatcher

from ...tiny_chat import build_tokenizer

TEXTS = ["hello world", "naïve café", "日本語のテキスト", "👩‍👩‍👧‍👦 family", "a\n\n  b\tc"]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_text_and_never_split_a_character(text: str) -> None:
    tokenizer = build_tokenizer()
    detokenizer = Detokenizer(tokenizer.backend_tokenizer, hidden=[])
    pieces = [detokenizer.push(token) for token in tokenizer.encode(text)]
    assert "".join(pieces) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_hidden_tokens_are_not_shown() -> None:
    tokenizer = build_tokenizer()
    detokenizer = Detokenizer(tokenizer.backend_tokenizer, hidden=[tokenizer.eos_token_id])
    assert "".join(map(detokenizer.push, tokenizer.encode("hi<|end|>"))) == "hi"


def run(stops: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    matcher = StopMatcher(stops)
    shown = []
    for piece in pieces:
        text, stopped = matcher.push(piece)
        shown.append(text)
        if stopped:
            return shown, True
    return [*shown, matcher.flush()], False


@pytest.mark.parametrize(
    ("stops", "pieces", "shown", "stopped"),
    [
        ([], ["a", "b"], ["a", "b", ""], False),
        (["X"], ["a", "bXc"], ["a", "b"], True),
        (["STOP"], ["a S", "TO", "P b"], ["a ", "", ""], True),
        (["STOP"], ["a S", "TO", "N b"], ["a ", "", "STON b", ""], False),
        (["STOP"], ["ST", "STOP"], ["", "ST"], True),
        (["ab", "b"], ["xab"], ["x"], True),
        (["\n\n"], ["a\n", "b\n", "\n"], ["a", "\nb", ""], True),
        (["end"], ["the e"], ["the ", "e"], False),
    ],
)
def test_stop_strings_across_pieces(
    stops: list[str], pieces: list[str], shown: list[str], stopped: bool
) -> None:
    assert run(stops, pieces) == (shown, stopped)
