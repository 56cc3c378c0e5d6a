"""The page / of a generated service, in a browser, with the keyboard alone."""

import json
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from tests.conftest import Boot

NODE = Path(__file__).parents[1] / "node"
KEY = "sk-tests"


def test_models_are_tried_with_the_keyboard(boot: Boot, tmp_path: Path) -> None:
    server = boot({"endpoints": ["chat", "embeddings", "health"]}, api_keys=KEY)

    result = subprocess.run(
        ["node", "service_page.mjs", server.url, KEY, str(tmp_path)],
        cwd=NODE,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert result.returncode == 0, result.stderr + server.messages()
    seen = json.loads(result.stdout)
    # The browser notes requests without a key and with a wrong one, and the answer that is stopped.
    stopped = f"failed: {server.url}/v1/chat/completions"
    assert {each for each in seen["problems"] if "401" not in each} == {stopped}
    assert {urlsplit(url).netloc for url in seen["requests"]} == {urlsplit(server.url).netloc}
    assert seen["overflow"] == [0, 0]
    assert seen["before"] == "They are shown with a key."
    assert "API key" in seen["refused"]
    assert seen["first"].startswith("You\nhello\ntiny-chat\n")
    assert seen["status"].startswith("12 tokens in ")
    assert "the first after" in seen["status"]
    assert seen["similarity"] == "Cosine similarity: 1.0000"
    assert "tiny-chat\tchat\tLoaded, requests share a batch" in seen["models"]
    assert [urlsplit(link).path for link in seen["links"]] == ["/metrics"]
    assert seen["turns"] == 0
