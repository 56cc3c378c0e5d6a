"""The how-to pages of docs/, followed on a generated service."""

import re
from pathlib import Path

import httpx2

from tests.conftest import Boot

ROOT = Path(__file__).parents[2]
FILE = re.compile(r"^`src/myserver/(\S+)`:\n\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_an_endpoint_of_ones_own(fresh_boot: Boot) -> None:
    page = (ROOT / "docs" / "how-to" / "own-endpoint.md").read_text("utf-8")
    files = dict(FILE.findall(page))
    assert sorted(files) == ["custom.py", "routers/similarity.py"]

    def change(package: Path) -> None:
        for name, text in files.items():
            (package / name).write_text(text)

    server = fresh_boot({"endpoints": ["embeddings", "health"]}, change)
    assert "torch" not in server.imported()
    with httpx2.Client(base_url=server.url, timeout=60) as http:

        def ask(**body: object) -> httpx2.Response:
            return http.post("/v1/similarity", json={"model": "tiny-embeddings", **body})

        same = ask(texts=["hello world", "hello world"])
        assert same.status_code == 200, server.messages()
        assert round(same.json()["similarity"], 2) == 1.0
        assert ask(texts=["hello world", "quick fox"]).json()["similarity"] < 0.99
        # What the page says of errors.
        assert ask(model="none", texts=["a", "b"]).status_code == 404
        wrong = ask(texts=["alone"])
        assert wrong.status_code == 400
        assert wrong.json()["error"]["param"].startswith("texts")
        paths = http.get("/openapi.json").json()["paths"]
        assert "/v1/similarity" in paths
