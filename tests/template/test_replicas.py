"""Replicas behind the nginx of deploy/replicas/: tokens pass one by one, and one that leaves loses
nothing. With Debian's nginx.
"""

import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
import yaml

from infer_scaffold.project import generate
from tests.conftest import CopyRendering
from tests.server import Server

ROOT = Path(__file__).parents[2]
NGINX = ROOT / os.environ.get("NGINX", "tests/nginx/usr/sbin/nginx")
CHAT = "/v1/chat/completions"
OWN_FOLDERS = "".join(
    f"{kind}_temp_path {kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
)


@dataclass
class Service:
    """Replicas and the proxy before them."""

    replicas: list[Server]
    url: str


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def proxy(project: Path, replicas: list[Server], port: int) -> subprocess.Popen[bytes]:
    """Start nginx with the project's configuration, for these addresses in place of a name."""
    text = (project / "deploy" / "replicas" / "nginx.conf").read_text()
    name = re.search(r"server replicas:8000( .*);", text)
    assert name is not None
    addresses = [replica.url.removeprefix("http://") + name[1] for replica in replicas]
    text = text.replace(name[0], " ".join(f"server {address};" for address in addresses))
    for old, new in (
        ("listen 8000;", f"listen 127.0.0.1:{port};"),
        ("http {\n", f"http {{\n{OWN_FOLDERS}\n"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    (project / "nginx.conf").write_text(text)
    assert NGINX.exists(), "`make test` brings nginx, or name it with NGINX"
    settings = ["-g", "daemon off; pid nginx.pid;"]
    return subprocess.Popen([NGINX, "-p", project, "-c", project / "nginx.conf", *settings])


@pytest.fixture
def service(
    tiny_models: dict[str, Path], tmp_path: Path, copy_rendering: CopyRendering
) -> Iterator[Service]:
    project, port = tmp_path / "project", free_port()
    endpoints = ["chat", "files", "health"]
    copy_rendering({"project_name": "tiny-server", "endpoints": endpoints}, project)
    settings = {
        "device": "cpu",
        "dtype": "float32",
        "kv_cache_tokens": 8192,
        "preload": True,
        "files_url": (tmp_path / "files").as_uri(),
        "chat_model": tiny_models["chat_model"],
    }
    with ExitStack() as stack:
        replicas = [stack.enter_context(Server(project, fresh=False, **settings)) for _ in range(2)]
        nginx = proxy(project, replicas, port)
        stack.callback(nginx.wait)
        stack.callback(nginx.kill)
        service = Service(replicas, f"http://127.0.0.1:{port}")
        deadline = time.monotonic() + 60
        for url in (*(replica.url for replica in replicas), service.url):
            while not is_ready(url):
                assert time.monotonic() < deadline, [each.messages() for each in replicas]
                time.sleep(0.1)
        yield service


def is_ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health/ready", timeout=5).status_code == 200
    except httpx2.TransportError:
        return False


def body(tokens: int) -> dict[str, object]:
    return {
        "model": "tiny-chat",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": tokens,
        "ignore_eos": True,
    }


def ask(url: str, tokens: int = 4) -> int:
    return httpx2.post(f"{url}{CHAT}", json=body(tokens), timeout=60).status_code


def stream(url: str, tokens: int) -> list[tuple[float, bytes]]:
    """What arrives, with the time."""
    asked = body(tokens) | {"stream": True}
    with httpx2.stream("POST", f"{url}{CHAT}", json=asked, timeout=60) as answer:
        assert answer.status_code == 200
        return [(time.monotonic(), read) for read in answer.iter_raw()]


def asked(replica: Server) -> int:
    return replica.messages().count(f"path={CHAT}")


def test_tokens_pass_one_by_one(service: Service) -> None:
    reads = stream(service.url, 200)
    assert b"".join(read for _, read in reads).endswith(b"data: [DONE]\n\n")
    assert len(reads) > 50
    assert reads[-1][0] - reads[0][0] > 0.05
    with ThreadPoolExecutor(8) as clients:
        assert set(clients.map(lambda _: ask(service.url), range(16))) == {200}
    assert all(asked(replica) for replica in service.replicas)


def test_a_replica_that_leaves_loses_nothing(service: Service) -> None:
    leaving, staying = service.replicas
    with ThreadPoolExecutor(12) as clients:
        streams = [clients.submit(stream, service.url, 400) for _ in range(6)]
        deadline = time.monotonic() + 30
        while "infer_requests_in_flight 0.0" in httpx2.get(f"{leaving.url}/metrics").text:
            assert time.monotonic() < deadline
        leaving.process.send_signal(15)
        statuses = list(clients.map(lambda _: ask(service.url), range(60)))
        ended = [each.result() for each in streams]
    assert set(statuses) == {200}
    for reads in ended:
        assert b"".join(read for _, read in reads).endswith(b"data: [DONE]\n\n")
    assert leaving.process.wait(20) == 0
    assert asked(leaving) >= 1
    assert {ask(service.url) for _ in range(10)} == {200}
    assert asked(staying) >= 60


def test_a_replica_that_is_killed_takes_only_its_own_along(service: Service) -> None:
    killed, _ = service.replicas
    assert {ask(service.url) for _ in range(4)} == {200}
    killed.process.kill()
    killed.process.wait()
    with ThreadPoolExecutor(4) as clients:
        assert set(clients.map(lambda _: ask(service.url), range(30))) == {200}


def test_a_session_stays_on_its_replica_as_long_as_that_lives(service: Service) -> None:
    def process(session: str | None) -> int:
        headers = {"X-Session-ID": session} if session else {}
        pid: int = httpx2.get(f"{service.url}/health", headers=headers, timeout=30).json()["pid"]
        return pid

    pids = {replica.process.pid for replica in service.replicas}
    homes = {session: process(session) for session in map(str, range(16))}
    assert set(homes.values()) == pids
    for _ in range(3):
        assert {session: process(session) for session in homes} == homes
    assert {process(None) for _ in range(10)} == pids

    dead, alive = service.replicas
    dead.process.kill()
    dead.process.wait()
    assert {process(session) for session in homes} == {alive.process.pid}


def test_sessions_are_told_apart_among_the_addresses_of_one_name(service: Service) -> None:
    # Replicas of compose have one name, and those here a name each. With `consistent` nginx takes
    # turns among the addresses of a name.
    text = (service.replicas[0].log.parent / "deploy" / "replicas" / "nginx.conf").read_text()
    assert "hash $http_x_session_id;" in text


def test_an_address_that_a_client_invents_is_not_believed(service: Service) -> None:
    headers = {"X-Forwarded-For": "192.0.2.66"}
    assert httpx2.get(f"{service.url}/v1/models", headers=headers).status_code == 200
    log = "".join(replica.messages() for replica in service.replicas)
    assert "path=/v1/models" in log
    assert "192.0.2.66" not in log


def test_errors_and_uploads_pass(service: Service) -> None:
    answer = httpx2.post(f"{service.url}{CHAT}", json={"model": "none"}, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages"
    large = b"x" * 30_000_000
    stored = httpx2.post(
        f"{service.url}/v1/files",
        data={"purpose": "user_data"},
        files={"file": ("a.bin", large)},
        timeout=60,
    ).json()
    content = httpx2.get(f"{service.url}/v1/files/{stored['id']}/content", timeout=60).content
    assert content == large


@pytest.mark.parametrize("devices", [["cpu"], ["cuda"], ["cpu", "cuda"]])
def test_compose_publishes_the_proxy_alone(devices: list[str], tmp_path: Path) -> None:
    class Loader(yaml.SafeLoader):
        """Compose's own tag: what stands here takes the place of what stood before."""

    Loader.add_constructor("!override", lambda loader, node: loader.construct_sequence(node, True))
    generate.render({"project_name": "tiny-server", "devices": devices}, tmp_path)
    own = yaml.safe_load((tmp_path / "compose.yaml").read_text())["services"]
    text = (tmp_path / "deploy" / "replicas" / "compose.yaml").read_text()
    services = yaml.load(text, Loader)["services"]  # noqa: S506 (a safe one)
    proxy = services.pop("proxy")
    assert proxy["ports"] == ["127.0.0.1:8000:8000"]
    assert {name.partition("-")[0] for name in services} == set(devices) <= set(own)
    for each in services.values():
        assert each["ports"] == []
        assert each["networks"]["default"]["aliases"] == ["replicas"]
    gpus = [
        each["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
        for name, each in services.items()
        if name.startswith("cuda")
    ]
    assert gpus == ([["0"], ["1"]] if "cuda" in devices else [])
