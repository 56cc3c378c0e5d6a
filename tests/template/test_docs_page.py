"""The page /docs of a generated service works in a browser that reaches no other machine."""

import json
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import httpx2

from tests.conftest import Boot

NODE = Path(__file__).parents[1] / "node"
KEY = "sk-tests"


def test_the_operations_are_there_to_be_tried(boot: Boot) -> None:
    everything = {"endpoints": ["chat", "embeddings", "files", "health"]}
    server = boot(everything, api_keys=KEY, public_docs=True)

    result = subprocess.run(
        ["node", "docs.mjs", server.url, KEY],
        cwd=NODE,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert result.returncode == 0, result.stderr + server.messages()
    seen = json.loads(result.stdout)
    assert seen["problems"] == []
    assert {urlsplit(url).netloc for url in seen["requests"]} == {urlsplit(server.url).netloc}
    paths = httpx2.get(f"{server.url}/openapi.json").json()["paths"]
    expected = [[method.upper(), path] for path, methods in paths.items() for method in methods]
    assert ["POST", "/v1/chat/completions"] in expected
    assert sorted(seen["operations"]) == sorted(expected)
    assert seen["tried"]["status"] == "200"
    assert '"id": "tiny-chat"' in seen["tried"]["text"]
