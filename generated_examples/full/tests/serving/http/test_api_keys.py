"""Keys from a file: its lines, its changes while the service runs, and the names of keys."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx2
import pytest
from fastapi import APIRouter, FastAPI
from prometheus_client import CollectorRegistry, generate_latest
from starlette.responses import StreamingResponse
from starlette.testclient import TestClient

from full_server import __main__ as service
from full_server import app as wiring
from full_server import custom
from full_server.serving.http import api_keys
from full_server.serving.http.api_keys import MAX_SIZE, APIKeys, KeyFileError, parse_keys
from full_server.serving.http.client import client_var
from full_server.serving.http.http_metrics import HTTPMetrics
from full_server.serving.http.token_usage import TokenUsage

from ...conftest import wait_until


def header(key: str) -> dict[str, bytes]:
    return {"authorization": f"Bearer {key}".encode()}


def as_read(key: str) -> str:
    """A header with this key, as the service reads it: bytes as latin-1."""
    return f"Bearer {key}".encode().decode("latin-1")


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("alice:sk-1", {"sk-1": "alice"}),
        (
            "# all keys\n\n  alice : sk-1 \r\n\t# bob:sk-3\nbob:sk-2\n",
            {"sk-1": "alice", "sk-2": "bob"},
        ),
        ("\ufeffalice:sk-1\n", {"sk-1": "alice"}),
        ("alice:sk:1::", {"sk:1::": "alice"}),
        ("alice:#sk", {"#sk": "alice"}),
        ("alice:two words", {"two words": "alice"}),
        ("alice:voilà", {"voilà": "alice"}),
        ("Zoë Ünal:schlüssel-🔑", {"schlüssel-🔑": "Zoë Ünal"}),
        ("alice:old\nalice:new\n", {"old": "alice", "new": "alice"}),
        ("alice:sk-1\nalice:sk-1\n", {"sk-1": "alice"}),
    ],
)
def test_lines_of_the_file(tmp_path: Path, content: str, names: dict[str, str]) -> None:
    assert parse_keys(content.encode()) == names
    file = tmp_path / "keys"
    file.write_bytes(content.encode())
    keys = APIKeys(file=str(file))
    assert {key: keys.name_of(as_read(key)) for key in names} == names
    assert keys.names == set(names.values())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it has no keys"),
        (b"# alice:sk-secret\n\n", "it has no keys"),
        (b"alice:sk-1\nsk-secret\n", "line 2 is not name:key"),
        (b":sk-secret", "line 1 is not name:key"),
        (b"sk-secret:", "line 1 is not name:key"),
        (b"alice:sk-secret\n\nbob:sk-secret", "the key in line 3 has another name"),
        (b"alice:sk-secret\x07", "control characters"),
        (b"alice:sk-\0secret", "control characters"),
        (b"sk-secret" * 8 + b":x", "more than 64 characters"),
        (b"alice:sk-secret\xff", "not UTF-8"),
        ("alice:sk-secret".encode("utf-16"), "not UTF-8"),
    ],
)
def test_a_broken_file_is_one_line_without_a_key(content: bytes, said: str) -> None:
    with pytest.raises(KeyFileError) as refused:
        parse_keys(content)
    message = str(refused.value)
    assert message.startswith("INFER_API_KEYS_FILE: ")
    assert said in message
    assert "secret" not in message
    assert "\n" not in message


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    fifo, large = tmp_path / "fifo", tmp_path / "large"
    os.mkfifo(fifo)
    large.write_text("alice:" + "k" * MAX_SIZE)
    for file, said in (
        (tmp_path / "none", "no such file or directory"),
        (tmp_path, "not a regular file"),
        (fifo, "not a regular file"),
        (large, "larger than 1048576 bytes"),
        ("a\0b", "no path"),
    ):
        with pytest.raises(KeyFileError, match=said):
            APIKeys(file=str(file))


def test_a_broken_file_ends_the_start_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "keys").write_text("alice sk-secret")
    monkeypatch.setenv("INFER_API_KEYS_FILE", str(tmp_path / "keys"))
    monkeypatch.setattr(service, "configure_logging", lambda *_: None)  # it is for a process
    with pytest.raises(SystemExit) as ended:
        service.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "INFER_API_KEYS_FILE: line 1 is not name:key\n"


def test_a_file_of_many_keys_is_searched_at_once(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("".join(f"team-{number}:sk-{number:032}\n" for number in range(20_000)))
    keys = APIKeys(file=str(file))
    started = time.perf_counter()
    for _ in range(1000):
        assert keys.name_of(f"Bearer sk-{19_999:032}") == "team-19999"
        assert keys.name_of("Bearer wrong") is None
    assert time.perf_counter() - started < 2  # comparing each with all of them takes 10 s


def test_keys_are_not_kept(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("alice:sk-secret")
    keys = APIKeys(["sk-secret-too"], str(tmp_path / "keys"))
    assert "sk-secret" not in repr(vars(keys))
    assert APIKeys(["a"])._names.keys().isdisjoint(APIKeys(["a"])._names)


def test_keys_of_the_setting_have_names_too(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("alice:in-both\nbob:sk-2\n")
    keys = APIKeys(["sk-1", "in-both", "schlüssel"], str(tmp_path / "keys"))
    found = [keys.name_of(as_read(key)) for key in ("sk-1", "in-both", "schlüssel", "sk-2", "")]
    assert found == ["key-1", "alice", "key-3", "bob", None]
    for scheme in ("Basic sk-1", "sk-1", "Bearersk-1", ""):
        assert keys.name_of(scheme) is None


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text("alice:sk-old\n")
    return file


def test_a_change_counts_when_it_is_read_twice(file: Path) -> None:
    keys = APIKeys(file=str(file))

    def reload() -> list[str | None]:
        asyncio.run(keys.reload())
        return [keys.name_of(f"Bearer {key}") for key in ("sk-old", "sk", "sk-new")]

    old = reload()
    assert old == ["alice", None, None]
    file.write_text("alice:sk")  # the first half of what is written
    assert reload() == old
    file.write_text("alice:sk-new\n")
    assert reload() == old
    assert reload() == [None, None, "alice"]


@pytest.fixture
def make(
    make_client: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., TestClient]:
    """Makes a client of a service that reads its file often."""
    monkeypatch.setattr(wiring, "SECONDS_BETWEEN_READS", 0.01)
    return make_client


def status_of(client: TestClient, key: str) -> int:
    return client.get("/v1/models", headers=header(key)).status_code


def rewrite(file: Path, content: str) -> None:
    file.write_text(content)


def replace(file: Path, content: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(content)
    new.replace(file)


def mount(file: Path, content: str) -> None:
    """Kubernetes' way: the file is a link through `..data`, a link that is put in place at once."""
    folder = file.parent
    version = folder / f"..{time.monotonic_ns()}"
    version.mkdir()
    (version / file.name).write_text(content)
    (folder / "..next").symlink_to(version.name)
    (folder / "..next").replace(folder / "..data")
    if not file.is_symlink():
        file.unlink()
        file.symlink_to(Path("..data") / file.name)


@pytest.mark.parametrize("write", [rewrite, replace, mount])
def test_rotation_without_a_restart(
    make: Callable[..., TestClient], file: Path, write: Callable[[Path, str], None]
) -> None:
    write(file, "alice:sk-old\n")
    with make(api_keys_file=str(file), api_keys="sk-setting") as client:
        for old, new in (("sk-old", "sk-mid"), ("sk-mid", "sk-new")):
            write(file, f"alice:{old}\nalice:{new}\n")
            wait_until(lambda new=new: status_of(client, new) == 200)
            assert status_of(client, old) == 200
            write(file, f"alice:{new}\n")
            wait_until(lambda old=old: status_of(client, old) == 401)
            assert status_of(client, new) == status_of(client, "sk-setting") == 200


@pytest.mark.parametrize("keys", ["alice:sk-a\nbob:sk-b\n", None])
def test_a_client_is_a_key_or_a_connection(
    make: Callable[..., TestClient], file: Path, keys: str | None
) -> None:
    settings = {}
    if keys is not None:
        file.write_text(keys)
        settings["api_keys_file"] = str(file)
    with make(**settings) as client:
        app = client.app
        assert isinstance(app, FastAPI)

        @app.get("/who")
        async def who() -> str:
            return client_var.get()

        names = [client.get("/who", headers=header(key)).json() for key in ("sk-a", "sk-b")]
        assert names == (["alice", "bob"] if keys else ["testclient:50000"] * 2)
    assert client_var.get() == ""


@pytest.mark.parametrize("content", ["", "alice sk-new\n", "alice:sk-new\nbob:sk-new\n", None])
def test_a_file_that_breaks_keeps_the_keys_and_leaves_one_line(
    make: Callable[..., TestClient],
    file: Path,
    caplog: pytest.LogCaptureFixture,
    content: str | None,
) -> None:
    caplog.set_level(logging.INFO, api_keys.__name__)
    with make(api_keys_file=str(file)) as client:
        file.unlink() if content is None else file.write_text(content)
        wait_until(lambda: "stay as they were" in caplog.text)
        time.sleep(0.1)
        assert (status_of(client, "sk-old"), status_of(client, "sk-new")) == (200, 401)
        lines = [each for each in caplog.records if each.name == api_keys.__name__]
        assert [each.levelname for each in lines] == ["ERROR"]
        file.write_text("alice:sk-new\n")
        wait_until(lambda: status_of(client, "sk-new") == 200)
        assert status_of(client, "sk-old") == 401
        assert "INFER_API_KEYS_FILE was read again: 1 keys" in caplog.text
    assert "sk-" not in caplog.text


def test_names_are_in_the_access_line_and_in_metrics_and_keys_nowhere(
    make: Callable[..., TestClient], file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    file.write_text("alice:sk-secret-1\nalice:sk-secret-2\nbob:sk-secret-3\n")
    with make(api_keys_file=str(file), api_keys="sk-secret-4") as client:
        for number in (1, 2, 3, 4, 5):
            client.get("/v1/models", headers=header(f"sk-secret-{number}"))
        client.get("/v1/none", headers=header("sk-secret-1"))
        metrics = client.get("/metrics").text
        lines = [vars(record) for record in caplog.records if record.name == "access"]
        assert [line.get("key_name") for line in lines] == [
            *("alice", "alice", "bob", "key-1", None, "alice")
        ]
        for sample in (
            'infer_key_requests_total{key_name="alice",status="2xx"} 2.0',
            'infer_key_requests_total{key_name="alice",status="4xx"} 1.0',
            'infer_key_requests_total{key_name="bob",status="2xx"} 1.0',
            'infer_key_requests_total{key_name="key-1",status="2xx"} 1.0',
        ):
            assert sample in metrics
        everything = metrics + "".join(repr(vars(record)) for record in caplog.records)
        assert "sk-secret" not in everything

        file.write_text("carol:sk-secret-3\n")
        wait_until(lambda: status_of(client, "sk-secret-1") == 401)
        after = client.get("/metrics").text
        assert 'key_name="key-1"' in after
        assert "alice" not in after
        assert "bob" not in after


def test_a_name_that_has_gone_is_not_counted_again() -> None:
    registry = CollectorRegistry()
    metrics = HTTPMetrics(registry)
    metrics.keep_keys(frozenset({"alice", "bob"}))
    for names in ({"alice", "bob"}, {"bob"}):
        metrics.keep_keys(frozenset(names))
        for name in ("alice", "bob"):
            metrics.answered_key(name, 200, TokenUsage(prompt_tokens=3, completion_tokens=2))
    page = generate_latest(registry).decode()
    assert "alice" not in page
    assert 'infer_key_tokens_total{key_name="bob",kind="prompt"} 6.0' in page
    assert 'infer_key_tokens_total{key_name="bob",kind="completion"} 4.0' in page


def test_an_answer_that_has_begun_outlives_its_key(
    make: Callable[..., TestClient], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    router, go_on, answers = APIRouter(), Event(), list[httpx2.Response]()

    @router.get("/own/stream")
    def stream() -> StreamingResponse:
        def parts() -> Iterator[str]:
            yield "first "
            go_on.wait(30)
            yield "last"

        return StreamingResponse(parts())

    monkeypatch.setattr(custom, "ROUTERS", [router])
    with make(api_keys_file=str(file)) as client:
        app: Any = client.app

        def ask() -> None:
            answers.append(client.get("/own/stream", headers=header("sk-old")))

        asking = Thread(target=ask)
        asking.start()
        wait_until(lambda: app.state.drain.in_flight)
        file.write_text("alice:sk-new\n")
        wait_until(lambda: status_of(client, "sk-old") == 401)
        assert app.state.drain.in_flight == 1
        go_on.set()
        asking.join()
    assert (answers[0].status_code, answers[0].text) == (200, "first last")
