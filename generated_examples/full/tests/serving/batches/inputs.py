"""Inputs of batches, and what comes of them."""

import json
from collections.abc import Iterable
from typing import Any

from openai import OpenAI
from openai.types import Batch
from starlette.testclient import TestClient

from ...conftest import wait_until

URL = "/v1/chat/completions"


def body(number: int = 0, tokens: int = 4) -> dict[str, Any]:
    """A request to URL. tokens: how long its answer is, where there is one"""
    message = {"role": "user", "content": f"hello {number}"}
    return {"model": "tiny-chat", "messages": [message], "max_tokens": tokens, "temperature": 0}


def line(number: int = 0, tokens: int = 4, **changes: Any) -> dict[str, Any]:
    whole = {"custom_id": f"line-{number}", "method": "POST", "url": URL}
    return whole | {"body": body(number, tokens)} | changes


def api_of(client: TestClient, key: str = "unused") -> OpenAI:
    http_client: Any = client
    return OpenAI(
        base_url="http://testserver/v1",
        api_key=key,
        http_client=http_client,
        max_retries=0,
        _strict_response_validation=True,
    )


def begin(api: OpenAI, lines: Iterable[Any], **fields: Any) -> Batch:
    content = "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines)
    file = api.files.create(file=("in.jsonl", content.encode()), purpose="batch")
    arguments: Any = {"input_file_id": file.id, "endpoint": URL, "completion_window": "24h"}
    return api.batches.create(**arguments | fields)


def ended(api: OpenAI, batch: Batch) -> Batch:
    def look() -> Batch | None:
        now = api.batches.retrieve(batch.id)
        return now if now.status in ("completed", "failed", "expired", "cancelled") else None

    return wait_until(look)


def documents(api: OpenAI, file_id: str | None) -> dict[str, Any]:
    """The lines of a file by their custom id."""
    if file_id is None:
        return {}
    assert api.files.retrieve(file_id).purpose == "batch_output"
    lines = [json.loads(each) for each in api.files.content(file_id).text.splitlines()]
    found = {each["custom_id"]: each for each in lines}
    assert len(found) == len(lines), "a line has two results"
    return found


def counts(batch: Batch) -> tuple[int, int, int]:
    assert batch.request_counts is not None
    return batch.request_counts.completed, batch.request_counts.failed, batch.request_counts.total
