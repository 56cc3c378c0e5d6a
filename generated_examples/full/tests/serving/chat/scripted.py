"""Models that write what a test says: their logits are changed, all else is real."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from starlette.testclient import TestClient
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from full_server.serving.engine.adjustments import Adjustments
from full_server.serving.engine.sampling import SamplingState

ADJUST = SamplingState.adjust


def script(
    monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerFast, text: str
) -> list[int]:
    """Lets the model write `text` and end, as far as sampling allows it. Returns its tokens."""
    tokens = list(tokenizer.encode(text, add_special_tokens=False))
    end = tokenizer.eos_token_id

    def adjust_to_script(state: SamplingState, row: int, adjustments: Adjustments) -> None:
        token = tokens[state.position] if state.position < len(tokens) else end

        def write(logits: Tensor) -> None:
            logits[token] += 1000

        adjustments.watch(row, write)
        ADJUST(state, row, adjustments)

    monkeypatch.setattr(SamplingState, "adjusts", True)
    monkeypatch.setattr(SamplingState, "adjust", adjust_to_script)
    return tokens


def ask(client: TestClient, **fields: Any) -> dict[str, Any]:
    """The choice of a whole answer, and its usage. A streamed answer has to be the same."""
    body = {
        "model": "tiny-chat",
        "messages": [{"role": "user", "content": "hello"}],
        "temperature": 0,
        "max_tokens": 200,
    } | fields
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    whole = response.json()
    usage = {"stream_options": {"include_usage": True}}
    streamed = client.post("/v1/chat/completions", json=body | {"stream": True} | usage)
    assert joined(streamed.text) == comparable(whole)
    choice: dict[str, Any] = whole["choices"][0]
    return choice | {"usage": whole["usage"]}


def comparable(answer: dict[str, Any]) -> dict[str, Any]:
    choice = answer["choices"][0]
    message = choice["message"]
    logprobs = choice.get("logprobs") or {"content": []}
    return {
        "content": message.get("content") or "",
        "thought": message.get("reasoning_content") or "",
        "calls": [tuple(call["function"].values()) for call in message.get("tool_calls") or []],
        "reason": choice["finish_reason"],
        "logprobs": [each["token"] for each in logprobs["content"]],
        "usage": answer["usage"],
    }


def joined(text: str) -> dict[str, Any]:
    """The events of a streamed answer as one."""
    *frames, done = [each for each in text.split("\n\n") if each.startswith("data: ")]
    assert done == "data: [DONE]"
    chunks = [json.loads(frame.removeprefix("data: ")) for frame in frames]
    choices = [chunk["choices"][0] for chunk in chunks[:-1]]
    deltas = [choice["delta"] for choice in choices]
    assert all(len(delta) == 1 for delta in deltas[1:-1]), "an event says one thing"
    return {
        "content": "".join(delta.get("content") or "" for delta in deltas),
        "thought": "".join(delta.get("reasoning_content") or "" for delta in deltas),
        "calls": joined_calls([call for each in deltas for call in each.get("tool_calls") or []]),
        "reason": choices[-1]["finish_reason"],
        "logprobs": [
            entry["token"]
            for choice in choices
            for entry in (choice.get("logprobs") or {"content": []})["content"]
        ],
        "usage": chunks[-1]["usage"],
    }


def joined_calls(pieces: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    calls: list[tuple[str, str]] = []
    for piece in pieces:
        function = piece["function"]
        if "id" in piece:
            calls.append((function["arguments"], function["name"]))
        else:
            arguments, name = calls[piece["index"]]
            calls[piece["index"]] = arguments + function["arguments"], name
    return calls
