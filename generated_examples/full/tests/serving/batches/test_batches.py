"""/v1/batches: a file of requests in, files of answers out, whatever happens meanwhile."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from starlette.testclient import TestClient

from full_server.routers import batches as batches_router
from full_server.serving.batches import batch_claims, batch_run, batch_runner, input_lines
from full_server.serving.batches.input_lines import MAX_LINES

from ...conftest import wait_until
from .inputs import URL, api_of, begin, body, counts, documents, ended, line

ENDPOINTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "tiny-chat",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 4,
        "temperature": 0,
    },
    "/v1/completions": {"model": "tiny-chat", "prompt": "hello", "temperature": 0},
    "/v1/responses": {"model": "tiny-chat", "input": "hello", "max_output_tokens": 4},
    "/v1/embeddings": {"model": "tiny-embeddings", "input": ["hello", "world"]},
}

SAMPLE = "infer_batches_lines_total"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "files"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_run, "SAVE_SECONDS", 0.05)
    monkeypatch.setattr(batch_runner, "SCAN_SECONDS", 0.05)
    monkeypatch.setattr(batch_runner, "FAILURE_SECONDS", 0.05)
    monkeypatch.setattr(batch_runner, "RENEW_SECONDS", 0.1)


@pytest.fixture
def client(make_client: Callable[..., TestClient], folder: Path) -> Iterator[TestClient]:
    with make_client(files_url=folder.as_uri()) as client:
        yield client


def metric(client: TestClient, name: str) -> float:
    """A metric of the service, the sum of its series."""
    text = client.get("/metrics").text
    return sum(float(each.split()[-1]) for each in text.splitlines() if each.startswith(name))


def lines_kept(folder: Path) -> int:
    """Results in parts: what no run computes again."""
    parts = folder.glob("batches/*/parts/*")
    return sum(len(part.read_bytes().splitlines()) for part in parts)


@pytest.mark.parametrize("url", ENDPOINTS)
def test_official_client(client: TestClient, url: str) -> None:
    api = api_of(client)
    lines = [line(number, url=url, body=ENDPOINTS[url]) for number in range(3)]
    wrong = line(3, url=url, body={"model": ENDPOINTS[url]["model"]})
    batch = begin(api, [*lines, "", wrong], endpoint=url, metadata={"for": "tests"})
    assert batch.status in ("validating", "in_progress")
    assert batch.metadata == {"for": "tests"}
    assert batch.expires_at == batch.created_at + 24 * 3600

    done = ended(api, batch)
    assert (done.status, counts(done)) == ("completed", (3, 1, 4))
    assert done.model == ENDPOINTS[url]["model"]
    assert done.created_at <= (done.in_progress_at or 0) <= (done.finalizing_at or 0)
    assert (done.finalizing_at or 0) <= (done.completed_at or 0)

    live = client.post(url, json=ENDPOINTS[url]).json()
    for document in documents(api, done.output_file_id).values():
        assert document["error"] is None
        assert document["response"]["status_code"] == 200
        assert document["response"]["request_id"]
        answer = document["response"]["body"]
        assert set(answer) == set(live)
        assert answer.get("choices") == live.get("choices")
        assert answer.get("data") == live.get("data")
    failed = documents(api, done.error_file_id)["line-3"]["response"]
    assert failed["status_code"] == 400
    assert failed["body"] == client.post(url, json=wrong["body"]).json()


def test_the_list_is_paged_and_newest_first(client: TestClient) -> None:
    api = api_of(client)
    made = [begin(api, [line()]).id for _ in range(3)]
    assert [each.id for each in api.batches.list(limit=2).data] == made[:0:-1]
    assert [each.id for each in api.batches.list(limit=1)] == made[::-1]
    page = client.get("/v1/batches", params={"limit": 2, "after": made[2]}).json()
    assert [each["id"] for each in page["data"]] == made[1::-1]
    assert page["has_more"] is False


INPUTS = {
    "no JSON": (["{", line()], "invalid_json_line", 1),
    "no object": ([line(), "[]"], "invalid_request", 2),
    "no id": ([line(custom_id=None)], "missing_required_parameter", 1),
    "no body": ([line(body="x")], "missing_required_parameter", 1),
    "a stream": ([line(body=body() | {"stream": True})], "invalid_request", 1),
    "an id twice": ([line(), "", line()], "duplicate_custom_id", 3),
    "another URL": ([line(url="/v1/rerank")], "url_mismatch", 1),
    "another method": ([line(method="GET")], "invalid_method", 1),
    "no such model": ([line(body=body() | {"model": "gpt"})], "model_not_found", 1),
    "no lines": (["", " "], "empty_file", None),
    "too deep": (["[" * 100_000], "invalid_json_line", 1),
    "too long": ([line(custom_id="x" * 500, body=body() | {"user": "x" * 2000})], None, 1),
    "too many lines": ([line(number) for number in range(11)], "too_many_tasks", None),
}


@pytest.mark.parametrize("problem", INPUTS)
def test_an_input_that_is_refused(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
    assert MAX_LINES == 50_000
    monkeypatch.setattr(batch_run, "MAX_LINES", 10)
    lines, code, number = INPUTS[problem]
    if problem == "too long":
        app: Any = client.app
        object.__setattr__(app.state.batch_runner._context, "max_line", 2000)
        code = "invalid_request"
    api = api_of(client)
    batch = ended(api, begin(api, lines))
    assert batch.status == "failed"
    assert batch.failed_at
    assert batch.output_file_id is batch.error_file_id is None
    assert batch.errors is not None and batch.errors.data
    assert (batch.errors.data[0].code, batch.errors.data[0].line) == (code, number)


def test_all_lines_have_one_model(client: TestClient) -> None:
    app: Any = client.app
    object.__setattr__(app.state.batch_runner._context, "is_model", lambda name: True)
    api = api_of(client)
    batch = ended(api, begin(api, [line(), line(1, body=body() | {"model": "other"})]))
    assert batch.errors is not None and batch.errors.data
    assert (batch.errors.data[0].code, batch.errors.data[0].line) == ("model_mismatch", 2)


def test_requests_that_are_refused(client: TestClient) -> None:
    api = api_of(client)
    file = api.files.create(file=("a", b"{}"), purpose="user_data")
    with pytest.raises(openai.BadRequestError, match="purpose=batch"):
        api.batches.create(input_file_id=file.id, endpoint=URL, completion_window="24h")
    with pytest.raises(openai.NotFoundError) as missing:
        begin(api, [line()], input_file_id=f"file-{'0' * 32}")
    assert missing.value.code == "file_not_found"
    for fields in (
        {"endpoint": "/v1/rerank"},
        {"completion_window": "1h"},
        {"metadata": {"a": 1}},
        {"metadata": {str(number): "" for number in range(17)}},
        {"output_expires_after": {"anchor": "created_at", "seconds": 60}},
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            begin(api, [line()], **fields)
        assert refused.value.param is not None
        assert refused.value.param.startswith(next(iter(fields)))
    for unknown in ("batch_1", f"batch_{'0' * 32}", "..%2f"):
        for look in (api.batches.retrieve, api.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                look(unknown)


def test_files_of_a_batch_expire(client: TestClient) -> None:
    api = api_of(client)
    expiry = {"anchor": "created_at", "seconds": 3600}
    batch = ended(api, begin(api, [line()], output_expires_after=expiry))
    file = api.files.retrieve(batch.output_file_id or "")
    assert file.expires_at == file.created_at + 3600


def test_an_input_that_is_deleted_meanwhile(
    client: TestClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_lines, "PIECE", 1000)
    api = api_of(client)
    batch = begin(api, (line(number, 100) for number in range(1000)))
    wait_until(lambda: lines_kept(folder))
    api.files.delete(batch.input_file_id)
    done = ended(api, batch)
    assert done.status == "failed"
    assert done.errors is not None and done.errors.data
    assert done.errors.data[0].code == "file_not_found"
    assert 0 < counts(done)[0] == len(documents(api, done.output_file_id)) < 1000


def test_cancel(client: TestClient, folder: Path) -> None:
    api = api_of(client)
    batch = begin(api, (line(number, 100) for number in range(1000)))
    wait_until(lambda: lines_kept(folder))
    assert api.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    done = ended(api, batch)
    assert done.status == "cancelled"
    assert done.cancelling_at and done.cancelled_at
    completed, failed, total = counts(done)
    assert 0 < completed < total == 1000
    assert failed == 0
    assert len(documents(api, done.output_file_id)) == completed
    assert api.batches.cancel(batch.id).status == "cancelled"
    other = ended(api, begin(api, [line()]))
    with pytest.raises(openai.BadRequestError, match="'completed' cannot be cancelled"):
        api.batches.cancel(other.id)


def test_a_batch_is_cancelled_before_it_begins(
    make_client: Callable[..., TestClient], folder: Path
) -> None:
    with make_client(files_url=folder.as_uri(), batch_concurrency=0) as none:
        batch = begin(api_of(none), ["no JSON"])
        assert api_of(none).batches.cancel(batch.id).status == "cancelling"
    with make_client(files_url=folder.as_uri()) as client:
        done = ended(api_of(client), batch)
    assert (done.status, counts(done)) == ("cancelled", (0, 0, 0))
    assert done.output_file_id is done.error_file_id is None


def test_expiry(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_router, "WINDOW_SECONDS", 2)
    assert client.post(URL, json=body()).status_code == 200  # the load of the model takes long
    api = api_of(client)
    batch = begin(api, (line(number, 20) for number in range(1000)))
    done = ended(api, batch)
    assert done.status == "expired"
    assert done.expired_at and done.expires_at and done.expired_at >= done.expires_at
    completed, failed, total = counts(done)
    assert 0 < completed and completed + failed == total == 1000
    assert len(documents(api, done.output_file_id)) == completed
    errors = documents(api, done.error_file_id)
    assert len(errors) == failed
    for error in errors.values():
        assert error["response"] is None
        assert error["error"]["code"] == "batch_expired"


def test_a_restart_repeats_nothing_that_is_kept(
    make_client: Callable[..., TestClient], folder: Path
) -> None:
    total = 60
    with make_client(files_url=folder.as_uri()) as first:
        batch = begin(api_of(first), (line(number, 40) for number in range(total)))
        wait_until(lambda: lines_kept(folder) >= 5)
    kept = lines_kept(folder)
    assert kept < total, "it was done before the service ended"
    with make_client(files_url=folder.as_uri()) as second:
        api = api_of(second)
        done = ended(api, batch)
        assert (done.status, counts(done)) == ("completed", (total, 0, total))
        assert len(documents(api, done.output_file_id)) == total
        assert metric(second, SAMPLE) == total - kept
        wait_until(lambda: not list(folder.glob("open/*")))
    assert lines_kept(folder) == 0
    assert list(folder.glob("batches/*/claims/*")) == []


def test_a_batch_whose_process_has_died_goes_on(
    make_client: Callable[..., TestClient], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make_client(files_url=folder.as_uri(), batch_concurrency=0) as none:
        batch = begin(api_of(none), [line()])
    claim = folder / "batches" / batch.id / "claims" / "00000007"
    claim.parent.mkdir()
    claim.write_bytes(b"of a process that was killed")
    with make_client(files_url=folder.as_uri()) as client:
        api = api_of(client)
        time.sleep(0.5)
        assert api.batches.retrieve(batch.id).status == "validating", "the claim counts"
        monkeypatch.setattr(batch_claims, "CLAIM_SECONDS", 0.3)
        assert ended(api, batch).status == "completed"


def test_two_processes_run_each_line_once(
    make_client: Callable[..., TestClient], folder: Path
) -> None:
    with (
        make_client(files_url=folder.as_uri()) as first,
        make_client(files_url=folder.as_uri()) as second,
    ):
        apis = [api_of(first), api_of(second)]
        batches = [
            begin(apis[number % 2], [line(each) for each in range(15)]) for number in range(8)
        ]
        for number, batch in enumerate(batches):
            done = ended(apis[(number + 1) % 2], batch)
            assert counts(done) == (15, 0, 15)
            assert len(documents(apis[0], done.output_file_id)) == 15
        run = [metric(client, SAMPLE) for client in (first, second)]
        assert sum(run) == 8 * 15
        assert metric(first, "infer_batches_total") + metric(second, "infer_batches_total") == 8
        assert len([file for file in apis[0].files.list() if file.purpose == "batch_output"]) == 8


def test_a_batch_belongs_to_its_key(
    make_client: Callable[..., TestClient], folder: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("one:sk-one\ntwo:sk-two\n")
    settings = {"files_url": folder.as_uri(), "api_keys_file": str(keys)}
    with make_client(**settings) as client:
        one, two = api_of(client, "sk-one"), api_of(client, "sk-two")
        batch = begin(one, [line()])
        assert two.batches.list().data == []
        for look in (two.batches.retrieve, two.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                look(batch.id)
        assert ended(one, batch).status == "completed"
        assert [each.id for each in one.batches.list()] == [batch.id]
        text = client.get("/metrics").text
    tokens = 'infer_key_tokens_total{key_name="%s",kind="prompt"} '
    assert float(text.partition(tokens % "one")[2].split()[0]) > 0
    assert tokens % "two" not in text or float(text.partition(tokens % "two")[2].split()[0]) == 0


def test_open_batches_of_a_key_are_bounded(
    make_client: Callable[..., TestClient], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches_router, "MAX_OPEN", 2)
    with make_client(files_url=folder.as_uri(), batch_concurrency=0) as client:
        api = api_of(client)
        for _ in range(2):
            begin(api, [line()])
        with pytest.raises(openai.RateLimitError, match="2 batches"):
            begin(api, [line()])


def test_the_log_says_how_a_batch_ended_and_nothing_of_its_lines(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    api = api_of(client)
    with caplog.at_level("INFO"):
        batch = ended(api, begin(api, [line(custom_id="secret-id")]))
    found = [each.message for each in caplog.records if each.name.startswith("full_server.")]
    assert f"{batch.id} completed: 1 of 1 lines completed, 0 failed" in found
    assert "secret-id" not in caplog.text
    assert "hello" not in caplog.text


def test_requests_go_before_lines(make_client: Callable[..., TestClient], folder: Path) -> None:
    """There is one slot, and a line that needs it for seconds."""
    with make_client(files_url=folder.as_uri(), max_batch_requests=1) as client:
        client.post(URL, json=body())
        api = api_of(client)
        batch = begin(api, [line(0, tokens=700)])
        wait_until(lambda: metric(client, "vllm:num_requests_running") == 1)
        app: Any = client.app
        started = time.monotonic()
        for number in range(3):
            assert client.post(URL, json=body(number)).status_code == 200
        waited = time.monotonic() - started
        assert api.batches.retrieve(batch.id).status == "in_progress"
        done = ended(api, batch)
        took = time.monotonic() - started
        assert metric(client, "infer_batches_lines_interrupted_total") >= 1
        assert app.state.batch_runner._runs == {}
    assert counts(done) == (1, 0, 1)
    assert waited < took / 3


def test_a_damaged_state_harms_no_other_batch(client: TestClient, folder: Path) -> None:
    api = api_of(client)
    bad = ended(api, begin(api, [line()]))
    (folder / "batches" / bad.id / "steps" / "ended.json").write_text(json.dumps({"id": 1}))
    (folder / "open").mkdir(exist_ok=True)
    (folder / "open" / bad.id).write_bytes(b"")
    good = begin(api, [line()])
    assert ended(api, good).status == "completed"
    assert [each.id for each in api.batches.list()] == [good.id]
    with pytest.raises(openai.NotFoundError):
        api.batches.retrieve(bad.id)
