"""The service on tiny models that are built on the spot: no network, no downloads."""

import gc
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import pytest
from starlette.testclient import TestClient

from chat_server.app import create_app
from chat_server.settings import Settings

os.environ["HF_HUB_OFFLINE"] = "1"
# Models this small gain nothing from more threads, which wait for each other on busy machines.
os.environ.setdefault("OMP_NUM_THREADS", "1")

T = TypeVar("T")


@pytest.fixture(scope="module", autouse=True)
def _libraries_are_not_searched() -> None:
    """Exempts what is imported by now from garbage collection, as a service does with a model.

    Engines collect garbage when they end, and would look through all of torch each time.
    """
    gc.freeze()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def tiny_settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings that make the service run on tiny models and in a folder of its own."""
    folder = tmp_path_factory.mktemp("service")
    from .tiny_chat import build_chat_model

    return {
        "device": os.environ.get("TEST_DEVICE", "cpu"),
        "dtype": "float32",
        "chat_model": str(build_chat_model(folder / "tiny-chat")),
        "kv_cache_tokens": 4096,
    }


@pytest.fixture(scope="session")
def make_client(tiny_settings: dict[str, Any]) -> Callable[..., TestClient]:
    """Makes a client of a new service in this process, with the settings given."""

    def make(**settings: Any) -> TestClient:
        app = create_app(Settings(_env_file=None, **tiny_settings | settings))
        return TestClient(app, raise_server_exceptions=False)

    return make


@pytest.fixture(scope="session")
def client(make_client: Callable[..., TestClient]) -> Iterator[TestClient]:
    """One service for all tests that change nothing about it."""
    with make_client() as client:
        yield client


class Server:
    """The service as a process of its own, as it runs in production."""

    def __init__(self, settings: dict[str, Any], log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = ("127.0.0.1", port)
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        environment = {f"INFER_{name}".upper(): str(value) for name, value in settings.items()}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "chat_server"],
            env=os.environ | environment | {"INFER_PORT": str(port)},
            stderr=log.open("wb"),
        )

    def resident_bytes(self) -> int:
        """Its memory, where the system tells it as Linux does; else 0."""
        statm = Path(f"/proc/{self.process.pid}/statm")
        if not statm.exists():
            return 0
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def is_up(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            httpx2.get(f"{self.url}/v1/models")
        except httpx2.TransportError:
            return False
        return True


def wait_until(condition: Callable[[], T | None], seconds: float = 60) -> T:
    """The first true result of `condition`. Machines are slow at times."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds:g} s")


def delay(owner: Any, method: str, seconds: float) -> None:
    """Makes a blocking method of an object take longer."""
    call = getattr(owner, method)

    def call_late(*args: Any, **kwargs: Any) -> Any:
        time.sleep(seconds)
        return call(*args, **kwargs)

    setattr(owner, method, call_late)


@contextmanager
def held(owner: Any, method: str) -> Iterator[None]:
    """Makes a blocking method of an object wait for the end of the block."""
    call, over = getattr(owner, method), threading.Event()

    def call_late(*args: Any, **kwargs: Any) -> Any:
        over.wait(60)
        return call(*args, **kwargs)

    setattr(owner, method, call_late)
    try:
        yield
    finally:
        over.set()


def delay_load(registry: Any, id_: str, seconds: float) -> Any:
    """Takes a model that is loaded away from the service, which gets it back when it loads it."""
    entry = registry._entries[id_]
    model, entry.model = entry.model, None
    registry._load_blocking = lambda spec: model
    delay(registry, "_load_blocking", seconds)
    return model


@pytest.fixture(scope="session")
def start(
    tiny_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []
    logs = tmp_path_factory.mktemp("logs")

    def start(**settings: Any) -> Server:
        server = Server(tiny_settings | settings, logs / f"{len(servers)}.log")
        servers.append(server)
        wait_until(server.is_up)
        return server

    yield start
    for server in servers:
        server.process.kill()
        server.process.wait()


@pytest.fixture
def make_server(start: Callable[..., Server]) -> Iterator[Callable[..., Server]]:
    """Starts the service as a process, with the settings given, for one test."""
    servers: list[Server] = []

    def make(**settings: Any) -> Server:
        servers.append(start(**settings))
        return servers[-1]

    yield make
    for server in servers:
        server.process.kill()


@pytest.fixture(scope="session")
def narrow_server(start: Callable[..., Server]) -> Server:
    """One process for all tests, which answers one request at a time and lets none wait."""
    one = {}
    one["max_batch_requests"] = 1
    return start(max_queue=0, **one)
