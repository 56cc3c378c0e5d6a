"""How long people wait: for help, for a project, for its server. Run it as `make speed`.

Medians of interleaved runs, written to bench/results/speed.md. The limits are goals: a slower
machine fails nothing. `python bench/speed.py WORD` measures the rows whose name has a word in it,
and leaves the others as they are.
"""

import os
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import transformers
import yaml

from infer_scaffold import git
from infer_scaffold.project import generate, history
from infer_scaffold.project.answers_file import ANSWERS_FILE
from infer_scaffold.project.rendering import Renderer

ROUNDS = 7
FLEET = 200
COPIES = 10  # of the fleet, for a large one
LIBRARIES = Path(transformers.__file__).parents[1]
COLUMNS = "| what | median | spread | goal |\n|---|---|---|---|"
RESULTS = Path(__file__).parent / "results" / "speed.md"
STARTED = re.compile(rb"running on (http://\S+)")


def seconds(*command: str) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


@dataclass
class Row:
    """A row of the table: what is measured, and how."""

    name: str
    run: Callable[[], float]
    goal: str = ""
    rounds: int = ROUNDS

    def line(self, times: list[float]) -> str:
        """Return the row with what was measured."""
        spread = f"{min(times):.2f} to {max(times):.2f} s" if len(times) > 1 else ""
        return f"| {self.name} | {statistics.median(times):.2f} s | {spread} | {self.goal} |"


def help_() -> float:
    return seconds(sys.executable, "-m", "infer_scaffold", "--help")


def new() -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/myserver"
        return seconds(sys.executable, "-m", "infer_scaffold", "new", path, "--yes")


def boot(project: Path) -> float:
    """From the start of the process until it listens; no model is loaded."""
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "myserver"],
        env=os.environ | {"PYTHONPATH": str(project / "src"), "INFER_PORT": "0"},
        cwd=project,
        stderr=subprocess.PIPE,
    ) as server:
        assert server.stderr is not None
        for line in server.stderr:
            if STARTED.search(line):
                break
        taken = time.perf_counter() - started
        server.kill()
    return taken


def make_old(folder: Path) -> Path:
    """Commit a project of the first release with a change of its owner's."""
    oldest = history.versions()[0]
    source, project = history.unpack(oldest, folder / "old-template"), folder / "old"
    generate.render({"project_name": "myserver"}, project, source=source, tag=history.tag(oldest))
    (project / "notes.md").write_text("Ours.\n")
    git.make_repository(project, "Generate")
    return project


def make_fleet(folder: Path) -> None:
    """Full services of the newest release, each with a line of its owner's in the settings."""
    newest = history.versions()[-1]
    source, project = history.unpack(newest, folder / "template"), folder / "project"
    generate.render({"project_name": "myserver"}, project, source=source, tag=history.tag(newest))
    answers = (project / ANSWERS_FILE).read_text()
    renderer = Renderer(source)
    for number in range(FLEET):
        name = f"service-{number}"
        service = folder / "fleet" / "team-0" / name
        shutil.copytree(project, service)
        package = (service / "src" / "myserver").rename(service / "src" / f"service_{number}")
        record = answers.replace("myserver", name)
        (service / ANSWERS_FILE).write_text(record)
        for path, content in renderer.render(yaml.safe_load(record)).items():
            (service / path).write_bytes(content)
        with (package / "settings.py").open("a") as settings:
            settings.write(f"\nOURS = {number}\n")
    for copy in range(COPIES):
        team = folder / "large-fleet" / f"team-{copy}"
        shutil.copytree(folder / "fleet" / "team-0", team, copy_function=os.link)


def status(folder: Path) -> float:
    """Exits with 1 when a service lacks something."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "infer_scaffold", "status", str(folder)]
    subprocess.run(command, check=False, capture_output=True)
    return time.perf_counter() - started


def first_status(folder: Path, verdicts: Path) -> float:
    """When no verdict is kept yet."""
    shutil.rmtree(verdicts, ignore_errors=True)
    return status(folder)


def make_large(project: Path, folder: Path, files: list[Path]) -> int:
    """A service among files of libraries; returns the number of files."""
    for file in files:
        copy = folder / "libraries" / file.relative_to(LIBRARIES)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    shutil.copytree(project / "src", folder / "src")
    return sum(1 for _ in folder.rglob("*.py"))


def check_large(folder: Path) -> float:
    """Exits with 1, as transformers' own server is among the files."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "infer_scaffold", "check", str(folder)]
    subprocess.run(command, check=False, capture_output=True)
    return time.perf_counter() - started


def imported(statement: str) -> float:
    """Time of an import beyond that of an interpreter that does nothing."""
    return seconds(sys.executable, "-c", statement) - seconds(sys.executable, "-c", "pass")


def imports_copier() -> bool:
    script = "import sys; from infer_scaffold.cli import main; sys.argv[1:] = ['--help']\n"
    script += "try: main()\nexcept SystemExit: pass\nsys.exit('copier' in sys.modules)"
    return subprocess.run([sys.executable, "-c", script], capture_output=True).returncode != 0


def main() -> None:
    words = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "myserver"
        new_project = [sys.executable, "-m", "infer_scaffold", "new", str(project), "--yes"]
        subprocess.run([*new_project, "--no-git"], check=True, capture_output=True)
        # The first run judges each service anew; the services of people are another matter.
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        fleets = Path(folder) / "fleets"
        fleets.mkdir()
        make_fleet(fleets)
        fleet, large_fleet = fleets / "fleet", fleets / "large-fleet"
        old = make_old(Path(folder))
        large, mixed, fifth = (Path(folder) / name for name in ("large", "mixed", "fifth"))
        first, second = (
            sorted((LIBRARIES / library).rglob("*.py")) for library in ("transformers", "torch")
        )
        files = make_large(project, large, first[:1000])
        many = make_large(project, mixed, first + second)
        few = make_large(project, fifth, (first + second)[::5])
        services = "full services, each changed by its owner, once it has judged them"
        rows: list[Row] = [
            Row("`infer-scaffold --help`", help_, "without importing copier"),
            Row("`infer-scaffold new myserver --yes`, git included", new, "1 s"),
            Row("boot of the full service, no model loaded", lambda: boot(project), "1 s"),
            Row(
                f"`infer-scaffold update --dry-run` from {history.versions()[0]}",
                lambda: seconds(
                    sys.executable, "-m", "infer_scaffold", "update", str(old), "--dry-run"
                ),
                "2 s",
            ),
            Row(f"`infer-scaffold status` of {FLEET} {services}", lambda: status(fleet), "5 s"),
            Row(
                "the same status for the first time (measured once)",
                lambda: first_status(fleet, Path(os.environ["XDG_CACHE_HOME"])),
                rounds=1,
            ),
            Row(
                f"`infer-scaffold status` of {COPIES * FLEET} {services}",
                lambda: status(large_fleet),
                "30 s",
                rounds=3,
            ),
            Row(
                "`infer-scaffold check` of the full service",
                lambda: seconds(sys.executable, "-m", "infer_scaffold", "check", str(project)),
            ),
            Row(f"`infer-scaffold check` of {files} files", lambda: check_large(large), "4 s"),
            Row(
                f"`infer-scaffold check` of {few} files, every fifth of the next row",
                lambda: check_large(fifth),
                rounds=3,
            ),
            Row(
                f"`infer-scaffold check` of {many} files of torch and transformers",
                lambda: check_large(mixed),
                "5 times the row above",
                rounds=3,
            ),
            Row("`import torch`, when a model is first needed", lambda: imported("import torch")),
            Row("`import transformers`, likewise", lambda: imported("import transformers")),
        ]
        rows = [row for row in rows if not words or any(word in row.name for word in words)]
        for row in rows:
            if row.rounds > 1:
                row.run()  # byte-compiles, and warms the disk's cache
        times: dict[str, list[float]] = {row.name: [] for row in rows}
        for number in range(ROUNDS):
            for row in rows:
                if number < row.rounds:
                    times[row.name].append(row.run())
        shutil.rmtree(project)

    lines = [row.line(times[row.name]) for row in rows]
    if words:
        text = with_lines(RESULTS.read_text(), lines)
    else:
        text = "\n".join([f"# Speed\n\n{head()}\n\n{COLUMNS}", *lines]) + "\n"
    RESULTS.write_text(text)
    print(text)


def with_lines(text: str, lines: list[str]) -> str:
    """Return a table with some rows replaced, which may have other numbers in their names."""

    def name(line: str) -> str:
        return re.sub(r"\d+", "", line.split("|")[1]) if line.startswith("|") else line

    new = {name(line): line for line in lines}
    kept = [new.pop(name(line), line) for line in text.splitlines()]
    return "\n".join([*kept, *new.values()]) + "\n"


def head() -> str:
    verdict = "does" if imports_copier() else "does not"
    # Of all the commands above, the largest; in KiB on Linux.
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    machine = f"Python {platform.python_version()}, {os.cpu_count()} cores, {ROUNDS} rounds."
    return f"{machine} No process took more than {memory} MiB. `--help` {verdict} import copier."


if __name__ == "__main__":
    main()
