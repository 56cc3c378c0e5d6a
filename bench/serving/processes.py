"""Servers as process groups: started, watched through /proc, and surely ended."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.serving.load import Load, Outcome

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT = 120.0


class Failed(Exception):  # noqa: N818 (it is about the peer, not about this program)
    """A peer that does not work, with the reason in one line."""


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    port: int
    log: Path
    started: float

    @property
    def age(self) -> float:
        """Seconds since the process was started."""
        return time.monotonic() - self.started

    def wait_ready(self, path: str) -> float:
        """Seconds from the start of the process until `path` answers 200. Raises Failed."""
        while self.age < START_TIMEOUT:
            if self.process.poll() is not None:
                raise Failed(f"ended with {self.process.returncode}: {last_words(self.log)}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                if get_status(self.port, path) == 200:
                    return self.age
            time.sleep(0.02)
        raise Failed(f"not ready after {START_TIMEOUT:.0f} s: {last_words(self.log)}")

    def resident_bytes(self) -> int:
        """Resident memory of all its processes; pages that they share count for each."""
        return sum(statm_resident(pid) for pid in session_members(self.process.pid))

    def cpu_seconds(self) -> float:
        """User and system time of all its processes so far, in steps of 10 ms."""
        return sum(cpu_seconds(pid) for pid in session_members(self.process.pid))

    def thread_seconds(self) -> float:
        """The same to the nanosecond, but of the threads alone that still live."""
        return sum(thread_seconds(pid) for pid in session_members(self.process.pid))


@contextmanager
def serving(
    name: str, command: Sequence[str], port: int, env: Mapping[str, str], cwd: Path, logs: Path
) -> Iterator[Server]:
    """A running server, gone with all its processes when the block ends."""
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{name.replace(' ', '-').replace('/', '-')}.log"
    with log.open("wb") as output:
        started = time.monotonic()
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **env},
            cwd=cwd,
            start_new_session=True,
        )
    try:
        yield Server(process, port, log, started)
    finally:
        with uninterrupted():
            end(process)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Lets a second Ctrl-C wait, so that the first one leaves nothing running."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the whole session, SIGKILL to what is left of it after five seconds."""
    for number, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 10.0)):
        for pid in session_members(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if process.poll() is not None and not session_members(process.pid):
                return
            time.sleep(0.05)


def busy_seconds() -> float:
    """CPU time that the whole machine has spent so far, idling and waiting aside."""
    user, nice, system, _, _, irq, soft, *_ = Path("/proc/stat").read_text().split()[1:9]
    ticks = sum(int(value) for value in (user, nice, system, irq, soft))
    return ticks / os.sysconf("SC_CLK_TCK")


def put_load(load: Load) -> Outcome:
    """Runs the generator in a process of its own."""
    requests = len(load.requests)
    done = subprocess.run(
        [sys.executable, "-m", "bench.serving.load"],
        input=json.dumps(asdict(load)),
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        timeout=60 + load.timeout * (requests / load.clients + 1),
        check=True,
    )
    return Outcome.from_json(done.stdout)


def get_status(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "it said nothing")[:300]


def session_members(leader: int) -> list[int]:
    """The processes of a session, zombies aside. `start_new_session` made its id the leader's."""
    members = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and (fields := stat_fields(int(folder.name))):
            state, session = fields[0], int(fields[3])
            if session == leader and state != "Z":
                members.append(int(folder.name))
    return members


def stat_fields(pid: int) -> list[str]:
    """/proc/PID/stat from the state on: the name before it may hold anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def cpu_seconds(pid: int) -> float:
    fields = stat_fields(pid)
    ticks = int(fields[11]) + int(fields[12]) if fields else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def thread_seconds(pid: int) -> float:
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def statm_resident(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
