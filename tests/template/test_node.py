"""The full variant answers OpenAI's client for JavaScript, which reads streams and errors its own
way.
"""

import subprocess
from pathlib import Path

from tests.conftest import Boot

FOLDER = Path(__file__).parents[1] / "node"


def test_openai_node_is_served(boot: Boot) -> None:
    assert (FOLDER / "node_modules" / "openai").is_dir(), "`make test` installs it"
    server = boot({"endpoints": ["chat", "embeddings", "files", "health"]})

    result = subprocess.run(
        ["node", FOLDER / "client.mjs", server.url],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert result.returncode == 0, result.stderr + server.messages()
    assert result.stdout.split() == ["models", "chat", "embeddings", "files", "errors"]


def test_the_lock_names_no_registry() -> None:
    assert "://" not in (FOLDER / "package-lock.json").read_text()
