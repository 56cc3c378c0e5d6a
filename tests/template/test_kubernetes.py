"""deploy/kubernetes/ with real tools: built by kubectl, held to Kubernetes' schemas and checkov."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from infer_scaffold.project import template
from infer_scaffold.project.questions import PRESETS
from infer_scaffold.project.rendering import Renderer
from tests.template.custom_resources import SCHEMAS

ROOT = Path(__file__).parents[2]
KUBECTL = ROOT / os.environ.get("KUBECTL", "tests/kubernetes/kubectl")
TOOLS = ROOT / "tests" / "kubernetes" / ".venv" / "bin"
NAME = "tiny-server"
OVERLAY = re.compile(r"```yaml\n(apiVersion: kustomize.*?)```", re.DOTALL)

Object = dict[str, Any]


@cache
def build(folder: Path) -> tuple[Object, ...]:
    """The objects that kubectl would apply."""
    assert KUBECTL.exists(), "`make test` brings kubectl, or name it with KUBECTL"
    result = subprocess.run(
        [KUBECTL, "kustomize", folder], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    return tuple(yaml.load_all(result.stdout, yaml.CSafeLoader))


@cache
def renderer() -> Renderer:
    return Renderer(template.root())


def render(project: Path, answers: Object) -> None:
    """What runs a service in containers, and the code that counts."""
    given = {"package_name": NAME.replace("-", "_"), "project_name": NAME, **answers}
    for name, content in renderer().render(given).items():
        if not name.startswith(("src/", "tests/")) or name.endswith("metrics.py"):
            file = project / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)


class Manifests:
    """deploy/kubernetes/ of one project, and what can be made of it."""

    def __init__(self, project: Path) -> None:
        self.project = project
        self.folder = project / "deploy" / "kubernetes"
        self.overlays = sorted(path.name for path in (self.folder / "overlays").iterdir())
        self.components = sorted(path.name for path in (self.folder / "components").iterdir())

    def plain(self, device: str) -> tuple[Object, ...]:
        return build(self.folder / "overlays" / device)

    def production(self, device: str, *left_out: str) -> tuple[Object, ...]:
        """The overlay of docs/containers.md, of this device, with all components but some."""
        text = (self.project / "docs" / "containers.md").read_text()
        [overlay] = [yaml.safe_load(found) for found in OVERLAY.findall(text)]
        chosen = [name for name in self.components if name not in left_out]
        # One autoscaler, after what they change.
        chosen.sort(key=lambda name: (name != "ha", name))
        assert {f"../../components/{name}" for name in self.components} >= {*overlay["components"]}
        overlay["resources"] = [f"../{device}"]
        overlay["components"] = [f"../../components/{name}" for name in chosen]
        folder = self.folder / "overlays" / "-".join(["own", device, *left_out])
        folder.mkdir(exist_ok=True)
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
        return build(folder)

    def all(self) -> Iterator[tuple[str, tuple[Object, ...]]]:
        for device in self.overlays:
            yield device, self.plain(device)
            yield f"{device}-keda", self.production(device, "hpa")
        if "hpa" in self.components:
            yield "hpa", self.production("cpu", "keda")


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Manifests]:
    """Of each preset."""
    found = {}
    for preset, answers in PRESETS.items():
        project = tmp_path_factory.mktemp(preset)
        render(project, answers)
        found[preset] = Manifests(project)
    return found


def one(objects: tuple[Object, ...], kind: str, name: str = NAME) -> Object:
    [found] = [each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def kinds(objects: Iterable[Object]) -> set[str]:
    return {each["kind"] for each in objects}


def pod(objects: tuple[Object, ...]) -> Object:
    found: Object = one(objects, "Deployment")["spec"]["template"]["spec"]
    return found


def server(objects: tuple[Object, ...]) -> Object:
    [found] = pod(objects)["containers"]
    return dict(found)


def in_bytes(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([a-zA-Z]+)", text).groups()  # type: ignore[union-attr]
    return int(number) << {"k": 10, "m": 20, "g": 30}[unit[0].lower()]


def test_every_object_is_valid(manifests: dict[str, Manifests], tmp_path: Path) -> None:
    objects = [found for each in manifests.values() for _, built in each.all() for found in built]
    different = {json.dumps(found): found for found in objects}.values()
    custom, builtin = [], []
    for found in different:
        schema = SCHEMAS.get((found["apiVersion"], found["kind"]))
        if schema is None:
            builtin.append(found)
        else:
            jsonschema.Draft202012Validator(schema).validate(found)
            custom.append(found)
    assert kinds(custom) == {kind for _, kind in SCHEMAS}
    file = tmp_path / "objects.yaml"
    file.write_text("---\n".join(json.dumps(found) + "\n" for found in builtin))
    result = subprocess.run(
        [TOOLS / "kubernetes-validate", "--strict", "-k", "1.37", file],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("passed for resource") == len(builtin)


def test_checkov_finds_nothing_without_a_written_reason(
    manifests: dict[str, Manifests], tmp_path: Path
) -> None:
    full = manifests["full"]
    for name, objects in full.all():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump_all(objects))
    for file in ("Dockerfile.cpu", "Dockerfile.cuda"):
        (tmp_path / file).write_text((full.project / file).read_text())
    shutil.copytree(full.project / ".github", tmp_path / ".github")
    result = subprocess.run(
        [
            *(TOOLS / "checkov", "--directory", tmp_path, "--output", "json", "--compact"),
            *("--framework", "kubernetes", "dockerfile", "github_actions"),
        ],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"BC_SKIP_MAPPING": "TRUE", "LOG_LEVEL": "ERROR"},
    )
    reports = {report["check_type"]: report for report in json.loads(result.stdout)}
    assert {*reports} == {"kubernetes", "dockerfile", "github_actions"}, result.stderr
    failed = [
        (check["check_id"], check["check_name"], check["resource"], check["file_path"])
        for report in reports.values()
        for check in report["results"]["failed_checks"]
    ]
    assert failed == []
    skipped = reports["kubernetes"]["results"]["skipped_checks"]
    assert all(len(check["check_result"]["suppress_comment"]) > 20 for check in skipped)
    assert reports["kubernetes"]["summary"]["passed"] > 300


def test_what_is_rendered_follows_the_answers(
    manifests: dict[str, Manifests], tmp_path: Path
) -> None:
    assert {preset: each.components for preset, each in manifests.items()} == {
        "full": ["gateway", "ha", "hpa", "keda", "monitoring"],
        "chat": ["gateway", "ha", "hpa", "keda", "monitoring"],
        "embeddings": ["ha", "hpa", "keda", "monitoring"],
        "files": ["ha", "monitoring"],
        "minimal": ["ha", "monitoring"],
    }
    for devices, overlays in ((["cpu"], ["cpu"]), (["cuda"], ["cuda"]), (["mps"], None)):
        project = tmp_path / devices[0]
        render(project, {"devices": devices})
        if overlays is None:
            assert not (project / "deploy").exists()
            assert not (project / ".github" / "workflows" / "image.yml").exists()
        else:
            assert Manifests(project).overlays == overlays
            assert ("nvidia.com/gpu" in json.dumps(Manifests(project).plain(overlays[0]))) == (
                overlays == ["cuda"]
            )


@pytest.mark.parametrize("preset", PRESETS)
def test_names_lead_to_objects(preset: str, manifests: dict[str, Manifests]) -> None:
    for _, objects in manifests[preset].all():
        labels = one(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
        spec = pod(objects)
        one(objects, "ConfigMap")
        assert spec["serviceAccountName"] == one(objects, "ServiceAccount")["metadata"]["name"]
        claims = {
            volume["persistentVolumeClaim"]["claimName"]
            for volume in spec["volumes"]
            if "persistentVolumeClaim" in volume
        }
        names = {
            each["metadata"]["name"] for each in objects if each["kind"] == "PersistentVolumeClaim"
        }
        assert claims == names
        volumes = {volume["name"] for volume in spec["volumes"]}
        for container in (*spec.get("initContainers", ()), *spec["containers"]):
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        selectors = [one(objects, "Service")["spec"]["selector"]]
        selectors.append(one(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"])
        for kind in ("PodDisruptionBudget", "InferencePool"):
            if kind in kinds(objects):
                selectors.append(one(objects, kind)["spec"]["selector"]["matchLabels"])
        assert all(selector.items() <= labels.items() for selector in selectors)
        if "ServiceMonitor" in kinds(objects):
            monitored = one(objects, "ServiceMonitor")["spec"]
            service = one(objects, "Service")
            chosen = monitored["selector"]["matchLabels"]
            assert chosen.items() <= service["metadata"]["labels"].items()
            ports = {port["name"] for port in service["spec"]["ports"]}
            assert {each["port"] for each in monitored["endpoints"]} <= ports
        for kind in ("HorizontalPodAutoscaler", "ScaledObject"):
            if kind in kinds(objects):
                assert one(objects, kind)["spec"]["scaleTargetRef"]["name"] == NAME
        if "HTTPRoute" in kinds(objects):
            for rule in one(objects, "HTTPRoute")["spec"]["rules"]:
                for backend in rule["backendRefs"]:
                    one(objects, backend.get("kind", "Service"), backend["name"])


def test_the_overlays_choose_image_and_node(manifests: dict[str, Manifests]) -> None:
    full = manifests["full"]
    cpu, cuda = full.plain("cpu"), full.plain("cuda")
    assert server(cpu)["image"] == f"{NAME}:cpu"
    assert server(cuda)["image"] == f"{NAME}:cuda"
    assert "nvidia.com/gpu" not in json.dumps(cpu)
    assert server(cuda)["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert pod(cuda)["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert pod(cuda)["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert one(cuda, "ConfigMap")["data"]["INFER_DEVICE"] == "cuda"
    own = full.production("cuda", "hpa")
    images = {each["image"] for each in (*pod(own)["initContainers"], server(own))}
    assert images == {f"registry.example.com/{NAME}:1.0"}


def test_an_image_that_the_owner_has_entered_downloads_the_models(tmp_path: Path) -> None:
    render(tmp_path, {})
    file = tmp_path / "deploy" / "kubernetes" / "base" / "deployment.yaml"
    file.write_text(re.sub("image: .*", "image: registry.example/own:7", file.read_text()))
    objects = Manifests(tmp_path).plain("cuda")
    assert server(objects)["image"] == "registry.example/own:7"
    assert pod(objects)["initContainers"][0]["image"] == "registry.example/own:7"


@pytest.mark.parametrize("preset", PRESETS)
def test_a_rollout_of_ha_is_no_outage(preset: str, manifests: dict[str, Manifests]) -> None:
    for autoscaler, device in product(("hpa", "keda"), manifests[preset].overlays):
        objects = manifests[preset].production(device, autoscaler)
        spec = one(objects, "Deployment")["spec"]
        assert spec["strategy"] == {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
        }
        # Nothing that only one node can have.
        for each in objects:
            if each["kind"] == "PersistentVolumeClaim":
                assert each["spec"]["accessModes"] == ["ReadWriteMany"]
        data = one(objects, "ConfigMap")["data"]
        mounts = {mount["mountPath"] for mount in server(objects)["volumeMounts"]}
        assert "/app/data" not in mounts
        if "files" in PRESETS[preset]["endpoints"]:
            assert data["INFER_FILES_URL"].startswith("s3://")
        assert one(objects, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
        if "ScaledObject" in kinds(objects):
            assert one(objects, "ScaledObject")["spec"]["minReplicaCount"] == 2
            assert "replicas" not in spec
        elif "HorizontalPodAutoscaler" in kinds(objects):
            assert one(objects, "HorizontalPodAutoscaler")["spec"]["minReplicas"] == 2
            assert "replicas" not in spec
        else:
            assert spec["replicas"] == 2
        # Load balancers hear of it, then requests in flight end, then the kill would come.
        pause = server(objects)["lifecycle"]["preStop"]["sleep"]["seconds"]
        drain = int(data["INFER_DRAIN_SECONDS"])
        assert pause + drain + 10 <= pod(objects)["terminationGracePeriodSeconds"]


def test_autoscalers_ask_for_metrics_that_there_are(manifests: dict[str, Manifests]) -> None:
    source = "".join(
        file.read_text() for file in (manifests["full"].project / "src").rglob("*metrics.py")
    )
    scaled = one(manifests["full"].production("cpu", "hpa"), "ScaledObject")["spec"]["triggers"]
    asked = [
        re.findall(r"(vllm:\w+)\{job=\"(.*?)\"\}", each["metadata"]["query"]) for each in scaled
    ]
    wanted = ["vllm:num_requests_waiting", "vllm:num_requests_running"]
    assert asked == [[(name, NAME)] for name in wanted]
    autoscaler = one(manifests["full"].production("cpu", "keda"), "HorizontalPodAutoscaler")
    metrics = [each["pods"]["metric"]["name"] for each in autoscaler["spec"]["metrics"]]
    assert metrics == [name.replace(":", "_") for name in wanted]
    for name in wanted:
        assert name in source


@pytest.mark.parametrize("preset", PRESETS)
def test_the_alerts_are_those_of_the_dashboard(
    preset: str, manifests: dict[str, Manifests]
) -> None:
    project = manifests[preset].project
    plain = yaml.safe_load((project / "deploy" / "observability" / "alerts.yml").read_text())
    rule = one(manifests[preset].production("cpu", "hpa"), "PrometheusRule")
    assert rule["spec"] == plain


def test_chat_goes_through_the_picker_and_uploads_do_not(manifests: dict[str, Manifests]) -> None:
    objects = manifests["full"].production("cpu", "hpa")
    picked, rest = one(objects, "HTTPRoute")["spec"]["rules"]
    assert picked["backendRefs"][0]["kind"] == "InferencePool"
    paths = {match["path"]["value"] for match in picked["matches"]}
    assert paths == {"/v1/chat/completions", "/v1/completions", "/v1/responses"}
    assert rest["matches"] == [{"path": {"type": "PathPrefix", "value": "/"}}]
    ports = [port["number"] for port in one(objects, "InferencePool")["spec"]["targetPorts"]]
    assert ports == [port["containerPort"] for port in server(objects)["ports"]]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_compose_confines_as_kubernetes_does(
    preset: str, device: str, manifests: dict[str, Manifests]
) -> None:
    project = manifests[preset].project
    service = yaml.safe_load((project / "compose.yaml").read_text())["services"][device]
    objects = manifests[preset].plain(device)
    container, spec = server(objects), pod(objects)
    rights = container["securityContext"]
    assert service["read_only"] is rights["readOnlyRootFilesystem"] is True
    assert service["cap_drop"] == rights["capabilities"]["drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert rights["allowPrivilegeEscalation"] is False
    limits = container["resources"]["limits"]
    allowed = re.fullmatch(
        r"\$\{MEMORY_LIMIT:-(.*)\}", service["deploy"]["resources"]["limits"]["memory"]
    )
    assert allowed is not None
    assert in_bytes(allowed[1]) == in_bytes(limits["memory"])
    grace = spec["terminationGracePeriodSeconds"]
    assert service["stop_grace_period"] == f"{grace}s"
    temporary = [each.partition(":")[0] for each in service.get("tmpfs", [])]
    volumes = [each.rpartition(":")[2] for each in service.get("volumes", [])]
    writable = {
        mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")
    }
    assert {*temporary, *volumes} == writable
    if temporary:  # memory, and so a part of the limit
        [size] = re.findall(r"size=(\w+)", service["tmpfs"][0])
        [tmp] = [each for each in spec["volumes"] if each["name"] == "tmp"]
        assert in_bytes(size) == in_bytes(tmp["emptyDir"]["sizeLimit"])
    home = {each["name"]: each.get("value") for each in container["env"]}["HOME"]
    assert service["environment"]["HOME"] == home == "/tmp"  # noqa: S108
    assert (
        f"USER {spec['securityContext']['runAsUser']}"
        in (project / f"Dockerfile.{device}").read_text().splitlines()
    )


def test_every_container_of_compose_is_confined(manifests: dict[str, Manifests]) -> None:
    project = manifests["full"].project

    class Loader(yaml.SafeLoader):
        """Compose's own tag."""

    Loader.add_constructor("!override", lambda loader, node: loader.construct_sequence(node, True))
    services = yaml.safe_load((project / "compose.yaml").read_text())["services"]
    text = (project / "deploy" / "replicas" / "compose.yaml").read_text()
    services["proxy"] = yaml.load(text, Loader)["services"]["proxy"]  # noqa: S506 (a safe one)
    assert {*services} == {"cpu", "cuda", "prometheus", "grafana", "proxy"}
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["logging"]["options"] == {"max-size": "10m", "max-file": "5"}
        assert service["deploy"]["resources"]["limits"]["memory"]
        assert service["restart"] == "unless-stopped"


def test_workflows_name_actions_by_commit(manifests: dict[str, Manifests]) -> None:
    folder = manifests["full"].project / ".github" / "workflows"
    used = [
        line.strip()
        for file in folder.iterdir()
        for line in file.read_text().splitlines()
        if "uses:" in line
    ]
    assert len(used) >= 5
    for line in used:
        assert re.search(r"uses: [\w./-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+$", line), line
