"""A model whose files cannot be had: one line with the way out, for each way to fail."""

import errno
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx2
import pytest

from embeddings_server.serving.models.hub import fetch_model, hub_failure
from embeddings_server.serving.models.model_errors import SourceError

from ...conftest import Server, wait_until

KIND, SETTING = "embeddings", "INFER_EMBEDDINGS_MODEL"

REFUSALS = {
    "gated": (403, {"X-Error-Code": "GatedRepo"}),
    "gated-without-token": (401, {"X-Error-Code": "GatedRepo"}),
    "private": (401, {"X-Error-Code": "RepoNotFound"}),
    "misspelt": (404, {"X-Error-Code": "RepoNotFound"}),
    "disabled": (403, {"X-Error-Message": "Access to this resource is disabled."}),
    "no-revision": (404, {"X-Error-Code": "RevisionNotFound"}),
    "bad-token": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
    "forbidden": (403, {}),
    "limited": (429, {}),
    "broken": (500, {}),
    "teapot": (418, {}),
}
"""Status and headers of the hub's answers, by the name of the model"""

SHA = "0" * 40
SHA_OF_V1 = "1" * 40

REPOSITORIES = {
    "readme": ["README.md"],
    "older": [
        "1_Dense/config.json",
        "1_Dense/weights.bin",
        "config.json",
        "modeling.py",
        "pytorch_model.bin",
        "tokenizer.json",
        "training_args.bin",
    ],
    "newer": [
        "config.json",
        "consolidated.safetensors",
        "model.safetensors",
        "original/model.safetensors",
        "pytorch_model.bin",
        "tokenizer.json",
    ],
    "gguf": ["README.md", "model-Q4.gguf", "model-Q8.gguf"],
}
"""Files of the models that the hub has"""


class FakeHub(BaseHTTPRequestHandler):
    """Answers as the hub does to huggingface_hub's own client."""

    def do_GET(self) -> None:
        name = next((name for name in REFUSALS if f"/{name}/" in f"{self.path}/"), None)
        status, headers = REFUSALS[name] if name else (200, {})
        sha = SHA_OF_V1 if "/revision/v1" in self.path else SHA
        repository = next((name for name in REPOSITORIES if f"/{name}" in self.path), "readme")
        files = REPOSITORIES[repository]
        info = {"id": "owner/x", "sha": sha, "siblings": [{"rfilename": file} for file in files]}
        tree = [{"type": "file", "path": file, "size": 2, "oid": "0" * 40} for file in files]
        body = json.dumps(tree if "/tree/" in self.path else info).encode()
        if "/resolve/" in self.path:
            body = b"{}"
            revision = self.path.partition("/resolve/")[2].partition("/")[0]
            headers = headers | {"ETag": '"0"', "X-Repo-Commit": revision}
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: the tests read the service's log."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The address of a hub on this machine, which processes that a test starts will ask."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield url
    server.shutdown()
    server.server_close()


SCRIPT = """
import json, sys
from embeddings_server.serving.models.model_errors import SourceError
from embeddings_server.serving.models.hub import fetch_model

for hub_id in sys.argv[2:]:
    try:
        fetch_model(hub_id, sys.argv[1])
    except SourceError as error:
        print(json.dumps([error.reason, str(error), error.permanent]))
"""


FETCH = """
import sys
from embeddings_server.serving.models.hub import fetch_model

folder = fetch_model(sys.argv[1], sys.argv[2], revision=sys.argv[3], trust_remote_code=sys.argv[4] == "code")
print(folder.name, *sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()))
"""


def fetched(hub_id: str, revision: str = "", code: str = "") -> list[str]:
    """The commit of a model, and the files of it that are downloaded."""
    result = subprocess.run(
        [sys.executable, "-c", FETCH, hub_id, SETTING, revision, code],
        capture_output=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.decode().split()


def failures(*hub_ids: str) -> list[tuple[str, str, bool]]:
    """Reason, line for the log, and whether a retry mends nothing, of each model, in a process
    of its own: huggingface_hub reads its environment when it is imported.
    """
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, SETTING, *hub_ids], capture_output=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return [tuple(json.loads(line)) for line in result.stdout.splitlines()]


WANTED = {
    "owner/gated": ("it is gated on the hub", "https://huggingface.co/owner/gated", True),
    "owner/gated-without-token": ("it is gated on the hub", "HF_TOKEN", True),
    "owner/private": ("the hub has no such model, or it is private", "HF_TOKEN", True),
    "owner/misspelt": ("the hub has no such model, or it is private", SETTING, True),
    "owner/disabled": ("it is disabled on the hub", SETTING, True),
    "owner/no-revision": ("the hub has no such revision of it", "/commits/main", True),
    "owner/bad-token": ("the hub refuses the access of this service", "HF_TOKEN", True),
    "owner/forbidden": ("the hub refuses the access of this service", "HF_TOKEN", True),
    "owner/limited": ("the hub limits the requests of this service", "HF_TOKEN", False),
    "owner/broken": ("the hub answered with status 500", SETTING, False),
    "owner/teapot": ("the hub answered with status 418", SETTING, True),
    "owner/readme": (
        "it is not a model that transformers can read, as it has no config.json",
        SETTING,
        True,
    ),
    "owner/gguf": (
        "its repository holds GGUF files, of which one has to be chosen",
        "hf download owner/gguf model-Q4.gguf",
        True,
    ),
    "owner/too/deep": ("it is neither a folder nor the id of a model on the hub", SETTING, True),
    "--odd--": ("it is neither a folder nor the id of a model on the hub", SETTING, True),
}


def test_each_answer_of_the_hub_is_one_line_with_the_way_out(hub: str) -> None:
    for hub_id, found in zip(WANTED, failures(*WANTED), strict=True):
        reason, way_out, permanent = WANTED[hub_id]
        assert (found[0], found[2]) == (reason, permanent), hub_id
        assert way_out in found[1], hub_id
        assert "\n" not in found[1], hub_id


def test_older_weights_are_downloaded_where_there_are_no_others(hub: str) -> None:
    parts = ["1_Dense/config.json", "1_Dense/weights.bin", "config.json"]
    weights = ["pytorch_model.bin", "tokenizer.json"]
    assert fetched("owner/older") == [SHA, *parts, *weights]
    assert fetched("owner/older", code="code") == [SHA, *parts, "modeling.py", *weights]
    assert fetched("owner/newer") == [SHA, "config.json", "model.safetensors", "tokenizer.json"]


def test_a_revision_is_a_commit_a_tag_or_a_branch(hub: str) -> None:
    assert fetched("owner/newer", "v1")[0] == SHA_OF_V1
    assert fetched("owner/newer", "2" * 40)[0] == "2" * 40


def prefetched() -> subprocess.CompletedProcess[str]:
    """The program of the init container, as a process."""
    command = [sys.executable, "-m", "embeddings_server.prefetch"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_files_that_are_prefetched_need_no_hub_later(
    hub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CHAT", "EMBEDDINGS"):
        monkeypatch.setenv(f"INFER_{name}_MODEL", "a=owner/newer,b=owner/older")
        monkeypatch.setenv(f"INFER_{name}_MODEL_REVISION", "b=v1")
    assert prefetched().returncode == 0
    # A pod that starts while the hub is away goes on with what is there.
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert prefetched().returncode == 0
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetched("owner/newer")[0] == SHA
    assert fetched("owner/older", "v1")[0] == SHA_OF_V1


def test_a_model_that_cannot_be_prefetched_is_one_line(
    hub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SETTING, "owner/gated")
    ended = prefetched()
    assert ended.returncode == 1
    [line] = [each for each in ended.stderr.splitlines() if " INFO " not in each]
    assert line.startswith("it is gated on the hub")


def test_a_folder_has_no_revisions(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=f"no revisions; unset {SETTING}_REVISION"):
        fetch_model(str(tmp_path), SETTING, revision="main")


def test_no_connection_to_the_hub(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the port that discards
    assert [(reason, permanent) for reason, _, permanent in failures("owner/model")] == [
        ("the hub cannot be reached", False)
    ]


def test_the_hub_is_switched_off(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    [(reason, line, permanent)] = failures("owner/model")
    assert "HF_HUB_OFFLINE forbids a download" in reason
    assert f"{SETTING}=<" in line
    assert permanent


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk has no room"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "cannot be written"),
        (RuntimeError("what nobody\nhas seen"), "could not be downloaded"),
    ],
)
def test_failures_of_this_machine(error: Exception, reason: str) -> None:
    failure = hub_failure("owner/model", SETTING, error)
    assert reason in failure.reason
    assert "\n" not in str(failure)
    assert not failure.permanent


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "no-weights").mkdir()
    (tmp_path / "no-weights" / "config.json").write_text("{}")
    for name, reason in {
        "gone": "does not exist",
        "file": "not a folder",
        "empty": "no config.json",
        "no-weights": "no weights",
    }.items():
        with pytest.raises(Exception, match=reason) as failure:
            fetch_model(str(tmp_path / name), SETTING)
        assert str(tmp_path) not in failure.value.reason
        assert SETTING in str(failure.value)


def errors(server: Server) -> list[str]:
    """The lines of the log that are no plain information."""
    return [line for line in server.log.read_text().splitlines() if " INFO " not in line]


REQUESTS = {
    "chat": ("chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
    "embeddings": ("embeddings", {"input": "Hi"}),
}


def test_the_client_and_the_log_say_why(hub: str, make_server: Callable[..., Server]) -> None:
    server = make_server(**{f"{KIND}_model": "owner/gated"})
    path, body = REQUESTS[KIND]

    answer = httpx2.post(f"{server.url}/v1/{path}", json={"model": "owner/gated", **body})

    assert answer.status_code == 503
    assert answer.headers["x-should-retry"] == "false"
    assert answer.json()["error"]["message"] == (
        f"The {KIND} model 'owner/gated' could not be loaded: it is gated on the hub."
    )
    again = httpx2.post(f"{server.url}/v1/{path}", json={"model": "owner/gated", **body})
    assert again.json() == answer.json()
    [line] = errors(server)
    assert " ERROR " in line
    for part in (f"the {KIND} model owner/gated", "https://huggingface.co/owner/gated", SETTING):
        assert part in line


def test_preloading_says_it_once_and_retries_briefly(
    hub: str, make_server: Callable[..., Server]
) -> None:
    server = make_server(preload=True, **{f"{KIND}_model": "owner/misspelt"})

    lines = wait_until(lambda: len(found := errors(server)) > 1 and found)

    assert all(" ERROR " in line and "owner/misspelt" in line for line in lines)
    assert [SETTING in line for line in lines[:2]] == [True, False]
    assert len(lines[1]) < len(lines[0])


def test_at_debug_level_the_log_has_the_traceback(
    hub: str, make_server: Callable[..., Server]
) -> None:
    server = make_server(preload=True, log_level="debug", **{f"{KIND}_model": "owner/gated"})
    wait_until(lambda: "GatedRepoError" in server.log.read_text())
    assert "Traceback" in server.log.read_text()
