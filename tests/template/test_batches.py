"""A batch of a service that is killed: the next process answers what is left, and nothing twice."""

import json
import re
import time
from pathlib import Path
from typing import Any

import httpx2

from infer_scaffold.project import generate
from tests.server import Server

LINES = 60
URL = "/v1/chat/completions"
# A process waits a minute for one that has died, and keeps answers every five seconds.
QUICK = {
    ("batch_claims.py", "CLAIM_SECONDS"): ("60.0", "2.0"),
    ("batch_claims.py", "RENEW_SECONDS"): ("10.0", "0.5"),
    ("batch_run.py", "SAVE_SECONDS"): ("5.0", "0.1"),
}


def hurry(project: Path) -> None:
    for (name, constant), (slow, quick) in QUICK.items():
        (file,) = project.glob(f"src/*/serving/batches/{name}")
        text = file.read_text()
        assert text.count(f"{constant} = {slow}") == 1
        file.write_text(text.replace(f"{constant} = {slow}", f"{constant} = {quick}"))


def start_batch(server: Server) -> str:
    body = {
        "model": "tiny-chat",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 100,
        "ignore_eos": True,
    }
    lines = [
        json.dumps({"custom_id": f"{number}", "method": "POST", "url": URL, "body": body})
        for number in range(LINES)
    ]
    file = httpx2.post(
        f"{server.url}/v1/files",
        data={"purpose": "batch"},
        files={"file": ("batch.jsonl", "\n".join(lines).encode())},
        timeout=60,
    ).json()
    asked = {"input_file_id": file["id"], "endpoint": URL, "completion_window": "24h"}
    batch: dict[str, Any] = httpx2.post(f"{server.url}/v1/batches", json=asked, timeout=60).json()
    return str(batch["id"])


def batch_of(server: Server, batch_id: str) -> dict[str, Any]:
    batch: dict[str, Any] = httpx2.get(f"{server.url}/v1/batches/{batch_id}", timeout=60).json()
    return batch


def answered(server: Server) -> int:
    """The lines that this process has answered."""
    metrics = httpx2.get(f"{server.url}/metrics", timeout=60).text
    found = re.findall(r'^infer_batches_lines_total\{result="completed"\} (\S+)', metrics, re.M)
    return int(float(found[0])) if found else 0


def kept(folder: Path) -> int:
    """The answers that are in the store."""
    return sum(
        len(part.read_bytes().splitlines()) for part in folder.glob("batches/*/parts/*[0-9]")
    )


def test_a_batch_goes_on_after_a_kill(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    project, store = tmp_path / "project", tmp_path / "store"
    generate.render({"project_name": "tiny-server", "endpoints": ["chat", "files"]}, project)
    hurry(project)
    settings: Any = {
        "device": "cpu",
        "files_url": store.as_uri(),
        "chat_model": tiny_models["chat_model"],
    }
    with Server(project, fresh=False, **settings) as killed:
        batch_id = start_batch(killed)
        deadline = time.monotonic() + 120
        while not kept(store):
            assert time.monotonic() < deadline, killed.messages()
            time.sleep(0.01)
        killed.process.kill()
        killed.process.wait()
    before = kept(store)
    assert 0 < before < LINES

    with Server(project, fresh=False, **settings) as server:
        deadline = time.monotonic() + 120
        while (batch := batch_of(server, batch_id))["status"] != "completed":
            assert time.monotonic() < deadline, batch
            time.sleep(0.1)
        # What the store had is not answered again.
        assert answered(server) == LINES - before
        output = httpx2.get(f"{server.url}/v1/files/{batch['output_file_id']}/content", timeout=60)
    counts = batch["request_counts"]
    assert (counts["total"], counts["completed"], counts["failed"]) == (LINES, LINES, 0)
    assert batch.get("error_file_id") is None
    lines = [json.loads(line) for line in output.text.splitlines()]
    assert sorted(int(line["custom_id"]) for line in lines) == list(range(LINES))
    assert len({line["id"] for line in lines}) == LINES
    assert all(line["response"]["status_code"] == 200 for line in lines)
