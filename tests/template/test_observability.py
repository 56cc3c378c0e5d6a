"""deploy/observability/ works with a real Prometheus: its configuration, alerts and dashboard."""

import json
import math
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from infer_scaffold.project.questions import PRESETS
from tests.conftest import CopyRendering
from tests.server import Server

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / os.environ.get("PROMETHEUS", "tests/prometheus/usr/bin/prometheus")
METRIC = re.compile(r"\b((?:vllm:|infer_|http_|process_|up\b)\w*)(?=\{)")
VARIABLES = {"$job": "tiny-server", "$instance": ".*", "$__rate_interval": "10m"}
PATIENCE = 60.0


def promtool(folder: Path, *arguments: str) -> None:
    """Run Prometheus' own checks in a folder."""
    assert PROMETHEUS.exists(), "`make test` brings Prometheus, or name it with PROMETHEUS"
    result = subprocess.run(
        [PROMETHEUS.with_name("promtool"), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


Render = Callable[..., Path]


@pytest.fixture(scope="session")
def render(copy_rendering: CopyRendering) -> Render:
    def render(folder: Path, preset: str = "full") -> Path:
        copy_rendering({"project_name": "tiny-server", **PRESETS[preset]}, folder)
        return folder

    return render


def read(folder: Path, name: str) -> Any:
    return yaml.safe_load((folder / "deploy" / "observability" / name).read_text("utf-8"))


def alerts(project: Path) -> dict[str, Any]:
    (group,) = read(project, "alerts.yml")["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def queries(project: Path) -> dict[str, list[str]]:
    """The expressions of the dashboard by panel, as Grafana would ask them."""
    found = {}
    for panel in read(project, "dashboard.json")["panels"]:
        if panel["type"] == "row":
            continue
        asked = [target["expr"] for target in panel["targets"]]
        for variable, value in VARIABLES.items():
            asked = [query.replace(variable, value) for query in asked]
        found[panel["title"]] = asked
    return found


@dataclass(frozen=True)
class Monitored:
    """A service under load, and the Prometheus that watches it."""

    project: Path
    service: Server
    url: str
    client: httpx2.Client

    def ask(self, path: str, **parameters: str) -> Any:
        answer = self.client.get(f"{self.url}/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def values(self, query: str) -> list[float]:
        result = self.ask("query", query=query)["result"]
        numbers = [float(each["value"][1]) for each in result]
        return [number for number in numbers if not math.isnan(number)]

    def await_value(self, query: str, seconds: float = PATIENCE) -> list[float]:
        """What the query gives as soon as it gives something; nothing after so many seconds."""
        deadline = time.monotonic() + seconds
        while not (found := self.values(query)) and time.monotonic() < deadline:
            time.sleep(0.1)
        return found

    def alerts(self) -> list[str]:
        return [each["annotations"]["summary"] for each in self.ask("alerts")["alerts"]]

    def put_load(self) -> None:
        """Sends some of each: chats that are streamed together, embeddings, errors."""

        def post(path: str, **arguments: Any) -> httpx2.Response:
            return self.client.post(f"{self.service.url}{path}", **arguments)

        question = {"role": "user", "content": "tell a story " * 20}
        chat = {"model": "tiny-chat", "messages": [question], "max_tokens": 20, "stream": True}
        with ThreadPoolExecutor(3) as pool:
            for answer in pool.map(lambda _: post("/v1/chat/completions", json=chat), range(6)):
                assert answer.text.endswith("data: [DONE]\n\n")
        texts = {"model": "tiny-embeddings", "input": ["a", "the quick brown fox", "b"]}
        assert post("/v1/embeddings", json=texts).status_code == 200
        assert post("/v1/embeddings", json={**texts, "model": "unknown"}).status_code == 404
        missing = {"model": "missing", "query": "a", "documents": ["b"]}
        assert post("/v1/rerank", json=missing).status_code == 503


@pytest.fixture(scope="session")
def monitored(
    tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, render: Render
) -> Iterator[Monitored]:
    folder = tmp_path_factory.mktemp("monitored")
    project = render(folder / "project")
    settings = {"device": "cpu", "dtype": "float32", "kv_cache_tokens": 4096}
    with (
        Server(project, **settings, **tiny_models, rerank_model="/no/such/missing") as service,
        prometheus(project, service, folder / "prometheus") as url,
        httpx2.Client(timeout=60) as client,
    ):
        watched = Monitored(project, service, url, client)
        watched.put_load()  # a rate begins with the second sample of a series
        assert watched.await_value("infer_model_load_failures_total == 1")
        watched.put_load()
        yield watched


def eventually(holds: Callable[[], bool], found: Callable[[], object]) -> None:
    """Wait for it. On a busy machine a scrape may fail, as it has to be over within its second."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, found()
        time.sleep(0.2)


class prometheus:  # noqa: N801
    """Prometheus with the configuration of a project, that reads one service each second."""

    def __init__(self, project: Path, service: Server, folder: Path) -> None:
        shutil.copytree(project / "deploy" / "observability", folder)
        config = read(project, "prometheus.yml")
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        (job,) = config["scrape_configs"]
        assert job.pop("dns_sd_configs")[0]["port"] == 8000
        job["static_configs"] = [{"targets": [service.url.removeprefix("http://")]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.folder = folder

    def __enter__(self) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.log = (self.folder / "log").open("wb")
        self.process = subprocess.Popen(
            [
                PROMETHEUS,
                f"--config.file={self.folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={self.folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            stderr=self.log,
        )
        deadline = time.monotonic() + PATIENCE
        while not self.is_ready(f"http://{address}/-/ready"):
            log = (self.folder / "log").read_text()
            assert self.process.poll() is None, log
            assert time.monotonic() < deadline, log
            time.sleep(0.05)
        return f"http://{address}"

    def is_ready(self, url: str) -> bool:
        try:
            return httpx2.get(url).status_code == 200
        except httpx2.TransportError:
            return False

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


def test_the_service_is_scraped(monitored: Monitored) -> None:
    def targets() -> list[tuple[str, str]]:
        found = monitored.ask("targets")["activeTargets"]
        return [(target["health"], target["lastError"]) for target in found]

    eventually(lambda: targets() == [("up", "")], targets)


def test_every_panel_has_data(monitored: Monitored) -> None:
    everything = queries(monitored.project)
    assert len(everything) > 20
    empty = [(title, query) for title, each in everything.items() for query in each]

    def is_full() -> bool:  # when the last load has been scraped
        empty[:] = [(title, query) for title, query in empty if not monitored.values(query)]
        return not empty

    eventually(is_full, lambda: empty)


def test_the_alerts_are_evaluated_over_metrics_that_exist(monitored: Monitored) -> None:
    def unhealthy() -> list[Any]:
        (group,) = monitored.ask("rules")["groups"]
        return [rule for rule in group["rules"] if rule["health"] != "ok"]

    eventually(lambda: unhealthy() == [], unhealthy)
    known = set(monitored.ask("label/__name__/values"))
    for name, rule in alerts(monitored.project).items():
        used = METRIC.findall(rule["expr"])
        assert used, name
        assert set(used) <= known, name


def test_an_alert_says_what_is_wrong(monitored: Monitored) -> None:
    address = monitored.service.url.removeprefix("http://")
    expected = [f"missing cannot be loaded on {address}"]
    eventually(lambda: monitored.alerts() == expected, monitored.alerts)


@pytest.mark.parametrize("preset", PRESETS)
def test_promtool_accepts_what_a_preset_renders(
    preset: str, tmp_path: Path, render: Render
) -> None:
    project = render(tmp_path / preset, preset)
    folder = project / "deploy" / "observability"
    promtool(folder, "check", "config", "prometheus.yml")
    promtool(folder, "test", "rules", "alerts_test.yml")

    page = (project / "docs" / "operating.md").read_text("utf-8")
    table = page.partition("\n### Alerts\n")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.M)) == sorted(alerts(project))
    fires = {
        sample["labels"]
        for case in read(project, "alerts_test.yml")["tests"]
        for sample in case["promql_expr_test"][0]["exp_samples"]
    }
    assert fires == {f'{{alertname="{name}"}}' for name in alerts(project)}


@pytest.mark.parametrize("preset", PRESETS)
def test_the_dashboard_has_what_the_preset_has(preset: str, tmp_path: Path, render: Render) -> None:
    project = render(tmp_path / preset, preset)
    dashboard = read(project, "dashboard.json")
    json.loads((project / "deploy" / "observability" / "dashboard.json").read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    rows = [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]
    endpoints = PRESETS[preset].get("endpoints", ["chat", "embeddings"])
    parts = {"Chat": "chat", "Embeddings": "embeddings"}
    expected = [row for row, endpoint in parts.items() if endpoint in endpoints]
    assert rows == ["Service", *(["Models"] if expected else []), *expected]


def test_compose_mounts_files_that_exist(tmp_path: Path, render: Render) -> None:
    project = render(tmp_path / "full")
    services = yaml.safe_load((project / "compose.yaml").read_text("utf-8"))["services"]
    for name in ("prometheus", "grafana"):
        assert services[name]["profiles"] == ["observability"]
        for volume in services[name]["volumes"]:
            source = volume.partition(":")[0]
            assert not source.startswith(".") or (project / source).exists(), volume
