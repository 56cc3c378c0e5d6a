"""deploy/ray/ works on a real Ray: streams, disconnects, drain, crashes and autoscaling.

One local cluster for all tests, whose order spares starts of replicas.
"""

import copy
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
import ray
import yaml
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from infer_scaffold.project import generate
from tests.conftest import CopyRendering

CHAT = "/v1/chat/completions"
PATIENCE = 120.0
SETTINGS = {
    "device": "cpu",
    "dtype": "float32",
    "kv_cache_tokens": 8192,
    "max_batch_requests": 8,
    "max_queue": 8,
    "preload": "true",
}
# What takes seconds by default, in tenths of a second.
QUICK = {
    "graceful_shutdown_wait_loop_s": 0.2,
    "health_check_period_s": 1,
    "ray_actor_options": {"num_cpus": 0.2},
}


def free_ports(count: int) -> int:
    """The first of so many ports in a row that are free."""
    while True:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
        try:
            for number in range(port, port + count):
                with socket.socket() as each:
                    each.bind(("127.0.0.1", number))
        except (OSError, OverflowError):
            continue
        return port


def eventually(found: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """What is found as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, serve.status()
        time.sleep(0.05)
    return value


@dataclass
class Cluster:
    """The rendered serve config on a local Ray."""

    url: str
    metrics_port: int
    config: dict[str, Any]

    def deploy(self, **options: Any) -> None:
        """Apply the config with other options of the deployment, which restart nothing."""
        config = copy.deepcopy(self.config)
        deployment = config["applications"][0]["deployments"][0]
        deployment |= QUICK | options
        if options.get("num_replicas", 0) is None:
            del deployment["num_replicas"]
        schema = ServeDeploySchema.model_validate(config)
        _get_global_client().deploy_apps(schema, _blocking=False)

    def running(self) -> int:
        """Replicas that run, and no other ones that start or stop."""
        (application,) = serve.status().applications.values()
        states = (
            application.deployments["Replica"].replica_states if application.deployments else {}
        )
        return states.get("RUNNING", 0) if len(states) == 1 else 0

    def scale(self, count: int) -> None:
        self.deploy(num_replicas=count)
        eventually(lambda: self.running() == count)

    def pids(self) -> set[int]:
        """Processes of the replicas that answer; each of two is asked after a few requests."""
        answers = [httpx2.get(f"{self.url}/health", timeout=30) for _ in range(20)]
        return {answer.json()["pid"] for answer in answers if answer.status_code == 200}

    def total(self, metric: str) -> float:
        """A metric, added up over the replicas."""
        total = 0.0
        for rank in range(3):
            url = f"http://127.0.0.1:{self.metrics_port + rank}/metrics"
            try:
                page = httpx2.get(url, timeout=PATIENCE).text
            except (httpx2.ConnectError, httpx2.ReadError, httpx2.RemoteProtocolError):
                continue  # there is none, or it leaves; a page that is late counts
            total += sum(map(float, re.findall(rf"^{re.escape(metric)} (\S+)$", page, re.M)))
        return total

    def stream(self, tokens: int) -> list[tuple[float, bytes]]:
        """What arrives, with the time."""
        asked = body(tokens) | {"stream": True}
        with httpx2.stream("POST", f"{self.url}{CHAT}", json=asked, timeout=60) as answer:
            assert answer.status_code == 200
            return [(time.monotonic(), read) for read in answer.iter_raw()]

    @contextmanager
    def load(self, clients: int, tokens: int) -> Iterator[list[tuple[float, int]]]:
        """Requests without a pause until the block ends: when each began, and its status, or 0."""
        answers: list[tuple[float, int]] = []
        over = threading.Event()

        def go_on() -> None:
            while not over.is_set():
                started, status = time.monotonic(), 0
                with suppress(httpx2.TransportError):
                    url = f"{self.url}{CHAT}"
                    status = httpx2.post(url, json=body(tokens), timeout=60).status_code
                answers.append((started, status))

        with ThreadPoolExecutor(clients) as pool:
            working = [pool.submit(go_on) for _ in range(clients)]
            try:
                yield answers
            finally:
                over.set()
            for each in working:
                each.result()


def body(tokens: int) -> dict[str, object]:
    return {
        "model": "tiny-chat",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": tokens,
        "ignore_eos": True,
    }


def is_whole(reads: list[tuple[float, bytes]]) -> bool:
    return b"".join(read for _, read in reads).endswith(b"data: [DONE]\n\n")


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory, copy_rendering: CopyRendering) -> Path:
    folder = tmp_path_factory.mktemp("ray") / "project"
    answers = {"endpoints": ["chat", "health"], "deploy": ["ray"], "devices": ["cpu"]}
    copy_rendering({"project_name": "tiny-server", **answers}, folder)
    return folder


@pytest.fixture(scope="session")
def cluster(
    project: Path, tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    config = yaml.safe_load((project / "deploy" / "ray" / "serve.yaml").read_text())
    metrics_port, port = free_ports(3), free_ports(1)
    settings = SETTINGS | {"chat_model": tiny_models["chat_model"], "metrics_port": metrics_port}
    (application,) = config["applications"]
    application["runtime_env"]["env_vars"] |= {
        **{f"INFER_{name.upper()}": str(value) for name, value in settings.items()},
        "PYTHONPATH": str(project / "src"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    del config["http_options"]
    # A short path: Ray puts sockets below it.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100_000_000,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        cluster = Cluster(f"http://127.0.0.1:{port}", metrics_port, config)
        cluster.scale(2)
        yield cluster
    finally:
        serve.shutdown()
        ray.shutdown()


def test_the_models_are_loaded_before_the_first_request(cluster: Cluster) -> None:
    assert cluster.total('infer_model_loaded{model_name="tiny-chat"}') == 2
    assert len(cluster.pids()) == 2


def test_tokens_pass_one_by_one_and_the_request_has_one_id(cluster: Cluster) -> None:
    reads = cluster.stream(200)
    assert is_whole(reads)
    assert len(reads) > 50
    assert reads[-1][0] - reads[0][0] > 0.05
    headers = {"X-Request-ID": "the-client-s-own"}
    answer = httpx2.get(f"{cluster.url}/v1/models", headers=headers)
    assert answer.headers.get_list("x-request-id") == ["the-client-s-own"]


def test_more_than_the_batch_are_answered_at_once_and_too_many_refused(cluster: Cluster) -> None:
    cluster.scale(2)
    with ThreadPoolExecutor(80) as clients:
        answers = list(
            clients.map(
                lambda _: httpx2.post(f"{cluster.url}{CHAT}", json=body(300), timeout=60),
                range(80),
            )
        )
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 2 * (8 + 8)
    refused = answers[statuses.index(429)]
    assert refused.json()["error"]["code"] == "overloaded"
    assert int(refused.headers["retry-after"]) > 0


def test_a_client_that_leaves_is_noticed(cluster: Cluster) -> None:
    cluster.scale(2)
    aborted = 'vllm:request_success_total{finished_reason="abort",model_name="tiny-chat"}'
    before = cluster.total(aborted)
    asked = body(2000) | {"stream": True}
    with httpx2.stream("POST", f"{cluster.url}{CHAT}", json=asked, timeout=60) as answer:
        next(answer.iter_raw())
    eventually(lambda: cluster.total(aborted) == before + 1)


def test_a_replica_that_is_killed_takes_only_its_own_along(cluster: Cluster) -> None:
    cluster.scale(2)
    victim, *_ = cluster.pids()
    with cluster.load(4, tokens=20) as answers:
        time.sleep(0.5)
        killed = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: cluster.running() != 2)
        eventually(lambda: cluster.running() == 2)
    failed = [started for started, status in answers if status != 200]
    assert len([1 for started, _ in answers if started > killed]) > 50
    assert len(failed) <= 4
    assert all(started < killed for started in failed), [started - killed for started in failed]
    assert victim not in cluster.pids()


def test_a_scale_down_cuts_no_stream(cluster: Cluster) -> None:
    cluster.scale(2)
    with ThreadPoolExecutor(6) as clients:
        streams = [clients.submit(cluster.stream, 1000) for _ in range(6)]
        eventually(lambda: cluster.total('vllm:num_requests_running{model_name="tiny-chat"}') == 6)
        started = time.monotonic()
        cluster.scale(1)
        took = time.monotonic() - started
        ended = [each.result() for each in streams]
    assert all(map(is_whole, ended))
    assert took < PATIENCE
    assert len(cluster.pids()) == 1


def test_the_time_to_leave_is_longer_than_a_request_may_take(cluster: Cluster) -> None:
    (application,) = _get_global_client().get_serve_details()["applications"].values()
    options = application["deployments"]["Replica"]["deployment_config"]
    assert options["max_ongoing_requests"] == 1000
    assert options["graceful_shutdown_timeout_s"] == 600 + 15


def test_replicas_come_and_go_with_the_load(cluster: Cluster) -> None:
    cluster.deploy(
        num_replicas=None,
        autoscaling_config={
            "min_replicas": 1,
            "max_replicas": 3,
            "target_ongoing_requests": 2,
            "metrics_interval_s": 0.1,
            "look_back_period_s": 0.5,
            "upscale_delay_s": 0.2,
            "downscale_delay_s": 0.5,
        },
    )
    eventually(lambda: cluster.running() == 1)
    with cluster.load(8, tokens=100) as answers:
        eventually(lambda: cluster.running() == 3)
    assert {status for _, status in answers} == {200}
    eventually(lambda: cluster.running() == 1)


def test_a_replica_is_unhealthy_while_a_model_does_not_work(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(project / "src")
    from tiny_server import ray_app

    check = ray_app.Replica.func_or_class.check_health

    def replica(dead: list[str], wanted: set[str]) -> Any:
        registry = SimpleNamespace(dead=dead, wanted=wanted)
        return SimpleNamespace(service=SimpleNamespace(state=SimpleNamespace(registry=registry)))

    check(replica([], set()))
    for broken in (replica(["a"], set()), replica([], {"a"})):
        with pytest.raises(RuntimeError, match="models that do not work: a"):
            check(broken)
    for name in [name for name in sys.modules if name.split(".")[0] == "tiny_server"]:
        del sys.modules[name]


@pytest.mark.parametrize("devices", [["cpu"], ["cpu", "cuda"]])
def test_the_manifest_runs_the_same_deployment(devices: list[str], tmp_path: Path) -> None:
    answers = {"project_name": "tiny_server", "devices": devices, "deploy": ["ray"]}
    generate.render(answers, tmp_path)
    folder = tmp_path / "deploy" / "ray"
    config = yaml.safe_load((folder / "serve.yaml").read_text())
    settings, service = yaml.safe_load_all((folder / "rayservice.yaml").read_text())
    on_kubernetes = yaml.safe_load(service["spec"]["serveConfigV2"])
    for each in (config, on_kubernetes):
        ServeDeploySchema.model_validate(each)
        (application,) = each["applications"]
        assert application["import_path"] == "tiny_server.ray_app:build"
        assert [each["name"] for each in application["deployments"]] == ["Replica"]
    cluster = service["spec"]["rayClusterConfig"]
    (workers,) = cluster["workerGroupSpecs"]
    for group in (cluster["headGroupSpec"], workers):
        (container,) = group["template"]["spec"]["containers"]
        sources = [next(iter(each.values()))["name"] for each in container["envFrom"]]
        assert sources == [settings["metadata"]["name"], "tiny-server"]
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) is ("cuda" in devices)
    pyproject = (tmp_path / "pyproject.toml").read_text()
    assert f"ray[serve]>={ray.__version__.rpartition('.')[0]}," in pyproject
    assert cluster["rayVersion"].rpartition(".")[0] == ray.__version__.rpartition(".")[0]
