"""Mutations of a generated service: the questions about the broken pattern fail, no others."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from infer_scaffold.checklist import matching
from infer_scaffold.probe import connections
from infer_scaffold.probe.answers import Answer
from infer_scaffold.probe.catalogue import QUESTIONS
from infer_scaffold.probe.outcomes import Verdict
from infer_scaffold.probe.prober import Options, probe
from tests.conftest import Boot
from tests.probe.test_faulty import CASES

Change = Callable[[Path], None]


def swap(name: str, *pairs: tuple[str, str]) -> Change:
    """Replace texts of a module; each has to be in it."""

    def change(package: Path) -> None:
        text = (package / name).read_text()
        for old, new in pairs:
            assert old in text, old
            text = text.replace(old, new)
        (package / name).write_text(text)

    return change


@dataclass(frozen=True)
class Mutation:
    """One change of a service, the questions that have to fail, and the patterns asked about."""

    title: str
    noticed: set[str]
    asked: str
    change: Change | None
    settings: dict[str, Any] = field(default_factory=dict)
    endpoints: tuple[str, ...] = ("chat", "health")
    """The endpoints of the service: one without models starts in a second."""
    destructive: bool = False
    also: frozenset[str] = frozenset()
    """Questions that may fail or not, as the machine is fast or slow"""
    tries: int = 1
    """Runs until one fails: a fault in timing may not show on a busy machine."""


COLLECTED = """
async def collected(events):
    try:
        held = [each async for each in events]
    finally:
        await events.aclose()
    for each in held:
        yield each
"""
READ_WHOLE = """
    content = await file.read()
    if len(content) > 1 << 20:
        raise APIError(413, "too large")
"""
LIMITLESS = {"max_upload_size": 10**13}

EMBEDDINGS = ("embeddings", "health")
FILES = ("files", "health")

MUTATIONS = [
    Mutation(
        "the route blocks",
        {"free-loop"},
        "IS201",
        swap(
            "routers/embeddings.py",
            ("    async with reg", "    __import__('time').sleep(2)\n    async with reg"),
        ),
        endpoints=EMBEDDINGS,
    ),
    Mutation(
        "any encoding is taken",
        {"validation"},
        "IS202",
        swap(
            "schemas/embeddings.py",
            ('Literal["float", "base64"] | None = Field', "Any = Field"),
            ("ClassVar, Literal", "Any, ClassVar, Literal"),
        ),
        endpoints=EMBEDDINGS,
    ),
    Mutation(
        "errors are FastAPI's own",
        {"no-json", "content-type", "unknown-model", "unknown-route", "wrong-method"},
        "IS203",
        swap(
            "app.py",
            ("    add_error_handlers(app)\n", ""),
            ("    add_model_error_handler(app)\n", ""),
        ),
        endpoints=EMBEDDINGS,
    ),
    Mutation(
        "the error for invalid JSON speaks of a dictionary",
        {"no-json"},
        "IS203",
        swap(
            "serving/http/errors.py",
            (
                "        message = f\"The body is not valid JSON: {problem['ctx']['error']}.\"\n",
                "        message = 'Input should be a valid dictionary'\n",
            ),
        ),
        endpoints=EMBEDDINGS,
    ),
    Mutation(
        "the error for a wrong Content-Type speaks of an object",
        {"content-type"},
        "IS203",
        swap(
            "serving/http/errors.py",
            ("if wanted := type_wanted(request, error.body):", "if wanted := '':"),
        ),
        endpoints=EMBEDDINGS,
    ),
    Mutation(
        "JSON without a Content-Type is read",
        {"content-type"},
        "IS203",
        swap("app.py", ("FastAPI(", "FastAPI(strict_content_type=False, ")),
        endpoints=EMBEDDINGS,
    ),
    Mutation(
        "a gzip body is parsed as JSON",
        {"content-encoding"},
        "IS203",
        swap("serving/http/body.py", ('if encoding != "identity":', "if False:")),
        endpoints=EMBEDDINGS,
    ),
    Mutation(
        "an empty message ends in an error",
        {"no-500"},
        "IS203",
        swap("routers/chat.py", ("    head =", "    assert body.messages[0].content\n    head =")),
        {"max_queue": 16},
        destructive=True,
    ),
    Mutation(
        "an unknown model is a 400",
        {"unknown-model"},
        "IS203",
        swap(
            "serving/models/error_responses.py",
            (
                'HTTP_404_NOT_FOUND, message, param="model"',
                'HTTP_400_BAD_REQUEST, message, param="model"',
            ),
        ),
        endpoints=EMBEDDINGS,
    ),
    Mutation(
        "every key is accepted",
        {"wrong-key"},
        "IS203",
        swap(
            "serving/http/api_keys.py",
            ('return name if scheme.lower() == "bearer" else None', 'return name or "key-1"'),
        ),
        endpoints=FILES,
    ),
    Mutation(
        "a refusal has no Retry-After",
        {"overload"},
        "IS203",
        swap(
            "serving/models/error_responses.py",
            ('headers={"Retry-After": str(error.retry_after)},', ""),
        ),
        {"max_queue": 4},
        destructive=True,
    ),
    Mutation(
        "a call is in a chunk twice",
        {"tool-stream"},
        "IS501",
        swap(
            "routers/chat_stream.py",
            (
                "    choices = [Choice(",
                "    for each in deltas:\n"
                "        each.tool_calls = each.tool_calls and each.tool_calls * 2\n"
                "    choices = [Choice(",
            ),
        ),
    ),
    Mutation(
        "calls that were cut off are refused",
        {"cut-off-calls"},
        "IS501",
        swap(
            "schemas/chat_messages.py",
            ("            return self.arguments\n", "            raise\n"),
        ),
    ),
    Mutation(
        "too long a context is told in other words",
        {"context-overflow"},
        "IS501",
        swap(
            "serving/models/model_errors.py",
            ("This model's maximum context length is", "The model holds"),
        ),
    ),
    Mutation(
        "a stream says it is text",
        {"stream-media-type"},
        "IS301",
        swap("serving/http/sse.py", ('"text/event-stream"', '"text/plain"')),
    ),
    Mutation(
        "proxies may keep and collect a stream",
        {"stream-no-cache", "stream-no-buffering"},
        "IS301",
        swap(
            "serving/http/sse.py",
            ('"Cache-Control": "no-cache"', '"Cache-Control": "public"'),
            ('"X-Accel-Buffering"', '"X-Other"'),
        ),
    ),
    Mutation(
        "an event is empty",
        {"stream-framing"},
        "IS302",
        swap("serving/http/sse.py", ('DONE = b"', 'DONE = b"data: \\n\\n')),
    ),
    Mutation(
        "no [DONE]",
        {"stream-done"},
        "IS302",
        swap("serving/http/sse.py", ("data: [DONE]\\n\\n", "")),
    ),
    Mutation(
        "each chunk has an id of its own",
        {"stream-identity"},
        "IS302",
        swap("routers/chat_stream.py", ("id=head.id", "id=f'{head.id}-{id(choices)}'")),
    ),
    Mutation(
        "no finish_reason",
        {"stream-finish"},
        "IS302",
        swap(
            "routers/chat_stream.py",
            (".finish_reason = chunk.finish_reason", ".finish_reason = None"),
        ),
    ),
    Mutation(
        "usage for those who did not ask",
        {"stream-usage"},
        "IS302",
        swap("routers/chat_stream.py", ("if with_usage:", "if not with_usage:")),
    ),
    Mutation(
        "a stream comes in one lump",
        {"stream-delivery"},
        "IS303",
        swap(
            "serving/http/sse.py",
            (
                "super().__init__(events,",
                "events = collected(events)\n        super().__init__(events,",
            ),
            ("class EventStream", COLLECTED + "\n\nclass EventStream"),
        ),
        # Such a stream cannot be left after its first token.
        also=frozenset({"stream-disconnect"}),
    ),
    Mutation(
        "nothing is cancelled",
        {"stream-disconnect"},
        "IS303",
        swap(
            "serving/engine/continuous.py",
            ("                self._manager.cancel_request(request_id)\n", ""),
            (
                "                self._forget(request_id)\n            stream",
                "                pass\n            stream",
            ),
        ),
        {"max_batch_requests": 4},
        tries=3,
    ),
    Mutation(
        "there is no limit",
        {"upload-announced"},
        "IS4",
        None,
        LIMITLESS,
        endpoints=FILES,
    ),
    Mutation(
        "an upload is read whole",
        {"upload-announced", "upload-streamed"},
        "IS401",
        swap(
            "routers/files.py",
            ("    if not file.filename or", READ_WHOLE + "    if not file.filename or"),
        ),
        LIMITLESS,
        destructive=True,
        endpoints=FILES,
    ),
    Mutation(
        "the purpose is a query",
        {"upload-form", "upload-round-trip"},
        "IS402",
        swap("routers/files.py", ("Form(description=", "Query(description=")),
        endpoints=FILES,
    ),
    Mutation(
        "a deleted file stays",
        {"upload-round-trip"},
        "IS402",
        swap("routers/files.py", ("    await files.delete(file_id)\n", "")),
        endpoints=FILES,
    ),
    Mutation(
        "an answer is called something else",
        {"chat-schema"},
        "IS501",
        swap(
            "routers/chat_answer.py",
            ("return ChatCompletion(", "return ChatCompletion.model_construct("),
            ('"chat.completion"', '"chat"'),
        ),
    ),
    Mutation(
        "created is a text",
        {"chunk-schema"},
        "IS501",
        swap(
            "routers/chat_stream.py",
            ("        ChatCompletionChunk(", "        ChatCompletionChunk.model_construct("),
            ("created=head.created", "created=str(head.created)"),
        ),
    ),
    Mutation(
        "all embeddings are the first",
        {"embeddings-schema"},
        "IS501",
        swap("routers/embeddings.py", ("index=index", "index=0")),
        endpoints=EMBEDDINGS,
    ),
    Mutation(
        "base64 is not understood",
        {"embeddings-base64"},
        "IS501",
        swap("routers/embeddings.py", ('if encoding == "float"', "if encoding")),
        endpoints=EMBEDDINGS,
    ),
    Mutation(
        "a stream without text",
        {"openai-python"},
        "IS502",
        swap("routers/chat_stream.py", ("content=chunk.text or None", "content=None")),
    ),
    Mutation(
        "health has no process id",
        {"health"},
        "IS701",
        swap("routers/health.py", ("    pid: int", "    number: int"), ("pid=os", "number=os")),
        endpoints=FILES,
    ),
    Mutation(
        "there is no readiness endpoint",
        {"live-and-ready"},
        "IS701",
        swap("routers/health.py", ('"/ready"', '"/prepared"')),
        endpoints=FILES,
    ),
    Mutation(
        "models are made anew at every question",
        {"models", "model"},
        "IS702",
        swap(
            "routers/models.py",
            ("created=registry.created", "created=int(__import__('time').time() * 1000)"),
        ),
        endpoints=EMBEDDINGS,
    ),
    Mutation(
        "every name is a model",
        {"model"},
        "IS702",
        swap(
            "routers/models.py",
            ("return card(registry.spec(model_id)", "return card(registry.specs[0]"),
        ),
        endpoints=EMBEDDINGS,
    ),
    Mutation(
        "idle connections are closed after 5 s",
        {"keep-alive"},
        "IS101",
        None,
        {"keep_alive_seconds": 5},
        endpoints=FILES,
    ),
    Mutation(
        "Keep-Alive announces a timeout of 5 s",
        {"keep-alive"},
        "IS101",
        swap(
            "__main__.py",
            (
                "        log_config=",
                "        headers=[('Keep-Alive', 'timeout=5')],\n        log_config=",
            ),
        ),
        endpoints=FILES,
    ),
    Mutation(
        "it says that it is ready while it leaves",
        {"drain"},
        "IS101",
        swap("routers/health.py", ("if request.app.state.drain.draining:", "if False:")),
        destructive=True,
    ),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.title)
def test_the_questions_that_should_notice_do(mutation: Mutation, boot: Boot) -> None:
    answers = {"endpoints": list(mutation.endpoints)}
    server = boot(answers, mutation.change, api_keys="sk-tests", **mutation.settings)
    options = Options(
        key="sk-tests",
        pid=server.process.pid,
        destructive=mutation.destructive,
        silence=connections.LEAST,
        longest=120,
    )
    codes = matching([mutation.asked], [])
    failed: list[Answer] = []
    for _ in range(mutation.tries):
        told = asyncio.run(probe(server.url, options, codes))
        failed = [answer for answer in told if answer.verdict is Verdict.FAIL]
        if failed:
            break

    names = {answer.question.name for answer in failed}
    assert mutation.noticed <= names <= mutation.noticed | mutation.also
    for answer in failed:
        assert answer.request
        assert answer.got
        assert answer.wanted


def test_every_question_has_a_mutation_or_a_faulty_server() -> None:
    noticed = set().union(*(each.noticed for each in (*MUTATIONS, *CASES)))
    assert noticed == {question.name for question in QUESTIONS}
