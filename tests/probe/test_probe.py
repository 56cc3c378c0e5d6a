"""`infer-scaffold probe` as its users meet it."""

import json
import socket
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import httpx2
import pytest

from infer_scaffold.checklist import PAGES
from infer_scaffold.probe.sse import parse
from tests.conftest import Boot, Run
from tests.probe.test_hostile import MODELS, reply, serving

KEY = "sk-tests"
SERVICE: dict[str, Any] = {"endpoints": ["files", "health"]}


def stay(package: Path) -> None:
    """Keep files that are deleted."""
    file = package / "routers" / "files.py"
    text = file.read_text()
    assert "    await files.delete(file_id)\n" in text
    file.write_text(text.replace("    await files.delete(file_id)\n", ""))


def test_text(boot: Boot, run: Run) -> None:
    server = boot(SERVICE, stay, api_keys=KEY)

    outcome = run("probe", server.url, "--api-key", KEY, "--select", "IS4,IS501")

    assert (outcome.code, outcome.err) == (1, "")
    lines = outcome.out.splitlines()
    # The summary, what is not as wanted in detail, and then all else.
    assert lines[0] == (
        "3 of 4 answers are as wanted, 11 questions do not apply. Look at upload-round-trip."
    )
    assert lines[2] == "IS402  fail   upload-round-trip     A file comes back as it was."
    assert lines[3].startswith("    request  GET /v1/files/file-")
    assert lines[4].startswith("    got      200, application/json: {")
    assert lines[5].startswith("    wanted   status 404")
    assert "IS401  pass   upload-announced      A length above the limit is a 413." in lines
    assert "    not asked: no model answers chat requests" in lines
    assert KEY not in outcome.out


def test_it_deletes_what_it_made(boot: Boot, run: Run) -> None:
    server = boot(SERVICE)
    mine = httpx2.post(
        f"{server.url}/v1/files", files={"file": ("mine", b"x")}, data={"purpose": "user_data"}
    ).json()

    assert run("probe", server.url, "--select", "IS4").code == 0

    left = httpx2.get(f"{server.url}/v1/files").json()["data"]
    assert [file["id"] for file in left] == [mine["id"]]


def test_json(boot: Boot, run: Run) -> None:
    # The address may end in /v1, as clients have it.
    outcome = run("probe", f"{boot(SERVICE).url}/v1/", "--format", "json", "--select", "IS7")

    document = json.loads(outcome.out)
    assert outcome.code == 0
    assert [(each["name"], each["verdict"]) for each in document["answers"]] == [
        ("health", "pass"),
        ("live-and-ready", "pass"),
        ("metrics", "pass"),
        ("models", "pass"),
        ("model", "skip"),
    ]
    assert document["answers"][-1]["reason"] == "no model is listed"


def test_a_sound_service(boot: Boot, run: Run) -> None:
    server = boot({"endpoints": ["embeddings"]})

    outcome = run("probe", server.url, "--format", "json", "--select", "IS101,IS203")

    found = {each["name"]: each for each in json.loads(outcome.out)["answers"]}
    assert outcome.code == 0
    assert found["content-type"]["verdict"] == found["content-encoding"]["verdict"] == "pass"
    assert found["keep-alive"]["verdict"] == "pass"
    # The silence that closes a connection with uvicorn's defaults, and not the longest one.
    assert 5 < found["keep-alive"]["seconds"] < 15


def test_no_wait_for_a_service_that_says_close(run: Run) -> None:
    with serving(lambda path, connection: connection.sendall(MODELS)) as address:
        outcome = run("probe", address, "--format", "json", "--select", "IS101")

    (answer,) = json.loads(outcome.out)["answers"]
    # Nothing was asked, which is no success.
    assert (outcome.code, answer["verdict"]) == (3, "skip")
    assert answer["reason"] == "the service closes every connection after its answer, and says so"
    assert answer["seconds"] < 5


def test_junit(boot: Boot, run: Run) -> None:
    server = boot(SERVICE, stay)

    outcome = run("probe", server.url, "--format", "junit", "--select", "IS4")

    suite = ET.fromstring(outcome.out)  # noqa: S314
    assert outcome.code == 1
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "0")
    (failure,) = suite.iter("failure")
    assert failure.get("message") == "A file comes back as it was."
    assert "wanted: status 404" in (failure.text or "")


class Page(HTMLParser):
    """The tags, the links and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html(run: Run) -> None:
    markup = "<script>alert(1)</script><a href=//evil>\u202e\x1b[2J"

    def answer(path: str, connection: socket.socket) -> None:
        found = MODELS if path == "/v1/models" else reply(markup.encode(), status="404 No")
        connection.sendall(found)

    with serving(answer) as address:
        outcome = run("probe", address, "--format", "html", "--select", "IS203,IS7")

    page = Page(outcome.out)
    assert outcome.code == 1
    assert not page.tags & {"script", "link", "img", "iframe", "form", "object", "base"}
    assert all(link.startswith(PAGES) for link in page.links)
    assert "<script>alert(1)</script><a href=//evil>" in page.text
    assert not set("\u202e\x1b") & set(outcome.out)
    summary, details = page.text.index("answers are as wanted"), page.text.index("Not as wanted")
    assert summary < details < page.text.index("All else")


def test_progress_on_a_terminal(tmp_path: Path) -> None:
    pexpect = pytest.importorskip("pexpect", reason="there are no pseudo-terminals here")
    with serving(lambda path, connection: connection.sendall(MODELS)) as address:
        child = pexpect.spawn(
            sys.executable,
            ["-m", "infer_scaffold", "probe", address, "--select", "IS702"],
            cwd=tmp_path,
            env={"PATH": "", "TERM": "xterm", "PYTHONPATH": ":".join(sys.path)},
            dimensions=(40, 200),
            encoding="utf-8",
            timeout=60,
        )
        child.expect(r"\d+/\d+ models")
        child.expect_exact("answers are as wanted")
        child.expect_exact("IS702")
        child.expect(pexpect.EOF)
        child.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ftp://127.0.0.1"], "ftp://127.0.0.1 is no address; give one like http://host:8000."),
        (["http://"], "is no address"),
        (["http://127.0.0.1:99999"], "is no address"),
        (["127.0.0.1:1", "--select", "XX"], "--select: there is no 'XX'; choose from IS101,"),
        (["127.0.0.1:1", "--timeout", "0"], "Invalid value for '--timeout'"),
    ],
)
def test_refusals(arguments: list[str], message: str, run: Run) -> None:
    outcome = run("probe", *arguments)

    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
    assert outcome.err.count("\n") == 1


def test_a_service_that_wants_a_key(boot: Boot, run: Run) -> None:
    outcome = run("probe", boot(SERVICE, api_keys=KEY).url)

    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.err == "error: the service wants a key: give it with --api-key.\n"


def test_something_that_is_no_web_server(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        outcome = run("probe", f"127.0.0.1:{port}", "--timeout", "1")

    assert (outcome.code, outcome.out) == (3, "")
    assert "nothing answers at" in outcome.err


@pytest.mark.parametrize("layout", ["text", "json", "junit", "html"])
def test_a_service_that_cannot_be_asked(layout: str, run: Run) -> None:
    outcome = run("probe", "http://127.0.0.1:1", "--format", layout)

    said = "nothing answers at http://127.0.0.1:1: "
    assert outcome.code == 3
    assert (outcome.err.count("\n"), said in outcome.err) == (1, True)
    match layout:
        case "text":
            assert outcome.out == ""
        case "json":
            document = json.loads(outcome.out)
            assert (document["answers"], said in document["error"]) == ([], True)
        case "junit":
            suite = ET.fromstring(outcome.out)  # noqa: S314
            (error,) = suite.iter("error")
            assert (suite.get("tests"), suite.get("errors")) == ("1", "1")
            assert said in error.get("message", "")
        case _:
            assert said in outcome.out
            assert outcome.out.endswith("</html>\n")


@pytest.mark.parametrize(
    ("reads", "data", "rest"),
    [
        ([b"data: 1\n\ndata: 2\n\n"], ["1", "2"], b""),
        ([b"da", b"ta: 1\r\n", b"\r\ndata:2\n", b"\n"], ["1", "2"], b""),
        ([b": ping\n\nevent: x\ndata: 1\ndata: 2\n\n"], ["1\n2"], b""),
        ([b"data: 1\n\ndata: 2\n"], ["1"], b"data: 2\n"),
        ([b"data: \xc3", b"\xbc\n\n"], ["ü"], b""),
        ([b"data\n\n"], [""], b""),
    ],
)
def test_events(reads: list[bytes], data: list[str], rest: bytes) -> None:
    events, left = parse([(float(at), read) for at, read in enumerate(reads)])

    assert ([event.data for event in events], left) == (data, rest)
    assert not any(event.malformed for event in events)


def test_a_line_that_is_none() -> None:
    ((event,), _) = parse([(0.0, b'{"error": 1}\n\n')])

    assert event.malformed == ('{"error": 1}',)
