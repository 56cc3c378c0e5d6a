"""A rendered project as a process of its own, as it runs in production."""

import multiprocessing
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Self

STARTED = re.compile(r"running on (http://127\.0\.0\.1:\d+)")
IMPORTED = re.compile(r"^import time:.*\| *(\S+)$", re.MULTILINE)

# Imports of torch and transformers take most of a start. A process that has done them forks.
IMPORTED_FIRST = "tests.imported_first"


class ForkedProcess:
    """A fork of a process with the libraries imported, with the interface of `Popen`."""

    def __init__(self, package: str, project: Path, environ: dict[str, str], log: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([IMPORTED_FIRST])
        self._process: ForkServerProcess = context.Process(
            target=run_forked, args=(package, project, environ, log)
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("python -m <package>", timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()


def run_forked(package: str, project: Path, environ: dict[str, str], log: Path) -> None:
    """Become `python -m package`, in a process that has just been forked."""
    os.dup2(os.open(log, os.O_WRONLY), 2)
    os.chdir(project)
    os.environ.clear()
    os.environ.update(environ)
    sys.path.insert(0, str(project / "src"))
    sys.argv = [package]
    runpy.run_module(package, run_name="__main__", alter_sys=True)


class Server:
    """`python -m <package>` from the sources of a project, which need not be installed."""

    def __init__(self, project: Path, *, fresh: bool = True, **settings: Any) -> None:
        """Start it on a free port; `settings` are those of the service, in lower case.

        `fresh`: by a Python that has imported nothing, which takes seconds.
        """
        (package,) = [path.parent.name for path in project.glob("src/*/__main__.py")]
        handle, log = tempfile.mkstemp(prefix="server-", suffix=".log", dir=project)
        os.close(handle)
        self.log = Path(log)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("INFER_")}
        given = {f"INFER_{name.upper()}": str(value) for name, value in settings.items()}
        own = {
            "PYTHONPATH": str(project / "src"),
            "HF_HUB_OFFLINE": "1",
            # Tiny models gain nothing from more threads, which wait for each other.
            "OMP_NUM_THREADS": "1",
            # The system picks the port, so that no two servers can ever get the same.
            "INFER_PORT": "0",
        }
        self.process: subprocess.Popen[bytes] | ForkedProcess
        if fresh:
            self.process = subprocess.Popen(
                # With a line in the log for every module, once it is imported.
                [sys.executable, "-X", "importtime", "-m", package],
                env=kept | own | given,
                cwd=project,
                stderr=self.log.open("wb"),
            )
        else:
            self.process = ForkedProcess(package, project, kept | own | given, self.log)
        self.url = ""

    def __enter__(self) -> Self:
        try:
            self._wait_until_up()
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()

    def imported(self) -> set[str]:
        """The modules that a fresh process has imported so far."""
        return set(IMPORTED.findall(self.log.read_text()))

    def messages(self) -> str:
        """The log of the service, without the lines about imports."""
        lines = self.log.read_text().splitlines()
        return "\n".join(line for line in lines if not line.startswith("import time:"))

    def terminate(self, timeout: float) -> int:
        """Ask it to leave, as a container platform does; return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + 60
        while not (started := STARTED.search(self.messages())):
            assert self.process.poll() is None, self.messages()
            assert time.monotonic() < deadline, self.messages()
            time.sleep(0.05)
        self.url = started.group(1)

    def _kill(self) -> None:
        self.process.kill()
        self.process.wait()
