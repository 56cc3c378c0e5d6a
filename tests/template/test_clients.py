"""The full variant answers OpenAI's own clients, which read streams and errors each in its way."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import Boot

KEY = "sk-tests"
TESTS = Path(__file__).parents[1]
OLDER = TESTS / "clients" / ".venv" / "bin" / "python"
PYTHON = (
    "models chat tools history documents responses response_tools "
    "embeddings files completions errors"
)
NODE = "models chat tools history responses embeddings files errors"


# One test and not one for each client, as every process of the service costs seconds.
def test_every_client_is_served(boot: Boot) -> None:
    for installed in OLDER, TESTS / "node" / "node_modules" / "openai":
        assert installed.exists(), "`make test` installs it"
    server = boot({"endpoints": ["chat", "embeddings", "files", "health"]}, api_keys=KEY)
    where = {"OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": KEY}

    def done(*command: str | Path) -> str:
        """The steps that the program says it did, or why it did not."""
        result = subprocess.run(
            command,
            env=os.environ | where,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return " ".join(result.stdout.split()) if result.returncode == 0 else result.stderr

    script = TESTS / "clients" / "client.py"
    answers = [
        done(OLDER, script),
        done(sys.executable, script),
        done("node", TESTS / "node" / "client.mjs"),
    ]
    assert answers == [f"openai 2 {PYTHON}", f"openai 3 {PYTHON}", NODE], server.messages()
    assert "Traceback" not in server.messages()


def test_the_lock_names_no_registry() -> None:
    assert "://" not in (TESTS / "node" / "package-lock.json").read_text()
