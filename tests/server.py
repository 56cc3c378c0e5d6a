"""A rendered project as a process of its own, as it runs in production."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

STARTED = re.compile(r"running on (http://127\.0\.0\.1:\d+)")
IMPORTED = re.compile(r"^import time:.*\| *(\S+)$", re.MULTILINE)


class Server:
    """`python -m <package>` from the sources of a project, which need not be installed."""

    def __init__(self, project: Path, **settings: Any) -> None:
        """Start it on a free port; `settings` are those of the service, in lower case."""
        (package,) = [path.parent.name for path in project.glob("src/*/__main__.py")]
        self.log = project / "server.log"
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
        self.process = subprocess.Popen(
            # With a line in the log for every module, once it is imported.
            [sys.executable, "-X", "importtime", "-m", package],
            env=kept | own | given,
            cwd=project,
            stderr=self.log.open("wb"),
        )
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
        """The modules that the process has imported so far."""
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
