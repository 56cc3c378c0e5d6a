"""What is compiled: schemas as people send them, those of AWS, a test suite of every keyword."""

import json
import random
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench.serving.environments import python_of, version_of

SAMPLE = 100
"""So many of the 1,900 schemas of CloudFormation's resources, which cfn-lint brings"""


def closed(**properties: Any) -> dict[str, Any]:
    """An object as the clients of OpenAI's strict mode describe it."""
    rest = {"required": list(properties), "additionalProperties": False}
    return {"type": "object", "properties": properties, **rest}


STRING = {"type": "string"}
STEPS = {"type": "array", "items": closed(text=STRING, done={"type": "boolean"})}
NODES = {"type": "array", "items": {"$ref": "#/$defs/node"}}
TYPICAL: list[dict[str, Any]] = [
    {"type": "object"},
    closed(city=STRING, unit={"enum": ["C", "F"]}),
    closed(steps=STEPS, score={"type": "number", "minimum": 0, "maximum": 1}),
    {"$defs": {"node": closed(name=STRING, children=NODES)}, "$ref": "#/$defs/node"},
    closed(
        code={"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
        count={"type": "integer", "minimum": 1, "maximum": 500},
        note={"anyOf": [{"type": "string", "maxLength": 200}, {"type": "null"}]},
    ),
]


class Case(NamedTuple):
    group: str
    schema: dict[str, Any]
    forbidden: list[Any]
    """Values that are invalid against the schema"""


def download(folder: Path) -> None:
    """Fetches the JSON-Schema-Test-Suite: the source distribution of jsonschema brings it."""
    if not list(folder.glob("jsonschema-*.tar.gz")):
        pip = [str(python_of("grammar")), "-m", "pip", "download", "--quiet", "--no-deps"]
        source = f"jsonschema=={version_of('grammar', 'jsonschema')}"
        subprocess.run([*pip, "--no-binary", ":all:", "-d", str(folder), source], check=True)


def cases(folder: Path) -> Iterator[Case]:
    """folder: where `download` put its file."""
    yield from (Case("typical", schema, []) for schema in TYPICAL)
    environment = python_of("grammar").parent.parent
    paths = sorted(environment.glob("lib/*/site-packages/cfnlint/data/schemas/resources/*.json"))
    for path in random.Random(0).sample(paths, SAMPLE):
        yield Case("real", json.loads(path.read_text(), object_hook=without_format), [])
    with tarfile.open(next(folder.glob("jsonschema-*.tar.gz"))) as archive:
        for name in sorted(archive.getnames()):
            if "/tests/draft2020-12/" in name and name.endswith(".json") and "optional" not in name:
                file = archive.extractfile(name)
                assert file is not None
                for case in json.load(file):
                    forbidden = [test["data"] for test in case["tests"] if not test["valid"]]
                    if isinstance(case["schema"], dict):
                        yield Case("test suite", case["schema"], forbidden)


def without_format(node: dict[str, Any]) -> dict[str, Any]:
    """CloudFormation has formats of its own."""
    return {k: v for k, v in node.items() if k != "format" or not isinstance(v, str)}
