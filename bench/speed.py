"""How long people wait: for help, for a project, for its server. Run it as `make speed`.

Medians of interleaved runs, written to bench/results/speed.md. The limits are goals: a slower
machine fails nothing.
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
from pathlib import Path

import transformers

from infer_scaffold import git
from infer_scaffold.project import generate, history

ROUNDS = 7
FLEET = 200
RESULTS = Path(__file__).parent / "results" / "speed.md"
STARTED = re.compile(rb"running on (http://\S+)")


def seconds(*command: str) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


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


def make_fleet(project: Path, folder: Path) -> None:
    """Copies of a project under other names, as if the newest release had made them."""
    newest = history.tag(history.versions()[-1])
    for number in range(FLEET):
        copy = folder / f"service-{number}"
        shutil.copytree(project, copy)
        answers = copy / ".copier-answers.yml"
        text = re.sub(r"(?m)^_commit: .*", f"_commit: {newest}", answers.read_text())
        answers.write_text(text.replace("myserver", f"service-{number}"))


def status(folder: Path) -> float:
    """Exits with 1 when a service lacks something."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "infer_scaffold", "status", str(folder)]
    subprocess.run(command, check=False, capture_output=True)
    return time.perf_counter() - started


def make_large(project: Path, folder: Path) -> int:
    """A service among the first thousand files of transformers; returns the number of files."""
    library = Path(transformers.__file__).parent
    for file in sorted(library.rglob("*.py"))[:1000]:
        copy = folder / "transformers" / file.relative_to(library)
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
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "myserver"
        new_project = [sys.executable, "-m", "infer_scaffold", "new", str(project), "--yes"]
        subprocess.run([*new_project, "--no-git"], check=True, capture_output=True)
        fleet = Path(folder) / "fleet"
        make_fleet(project, fleet)
        old = make_old(Path(folder))
        large = Path(folder) / "large"
        files = make_large(project, large)
        measured: dict[str, tuple[Callable[[], float], str]] = {
            "`infer-scaffold --help`": (help_, "without importing copier"),
            "`infer-scaffold new myserver --yes`, git included": (new, "1 s"),
            "boot of the full service, no model loaded": (lambda: boot(project), "1 s"),
            f"`infer-scaffold update --dry-run` from {history.versions()[0]}": (
                lambda: seconds(
                    sys.executable, "-m", "infer_scaffold", "update", str(old), "--dry-run"
                ),
                "2 s",
            ),
            f"`infer-scaffold status` of {FLEET} full services": (lambda: status(fleet), "10 s"),
            "`infer-scaffold check` of the full service": (
                lambda: seconds(sys.executable, "-m", "infer_scaffold", "check", str(project)),
                "",
            ),
            f"`infer-scaffold check` of {files} files": (lambda: check_large(large), "4 s"),
            "`import torch`, when a model is first needed": (
                lambda: imported("import torch"),
                "",
            ),
            "`import transformers`, likewise": (lambda: imported("import transformers"), ""),
        }
        for run, _ in measured.values():
            run()  # byte-compiles, and warms the disk's cache
        times: dict[str, list[float]] = {name: [] for name in measured}
        for _ in range(ROUNDS):
            for name, (run, _) in measured.items():
                times[name].append(run())
        shutil.rmtree(project)

    lines = ["| what | median | spread | goal |", "|---|---|---|---|"]
    for name, (_, goal) in measured.items():
        values = times[name]
        spread = f"{min(values):.2f} to {max(values):.2f} s"
        lines.append(f"| {name} | {statistics.median(values):.2f} s | {spread} | {goal} |")
    verdict = "does" if imports_copier() else "does not"
    # Of all the commands above, the largest; in KiB on Linux.
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    head = f"Python {platform.python_version()}, {os.cpu_count()} cores, {ROUNDS} rounds."
    head += f" No process took more than {memory} MiB."
    text = f"# Speed\n\n{head} `--help` {verdict} import copier.\n\n" + "\n".join(lines) + "\n"
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
