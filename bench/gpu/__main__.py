"""Runs a bundle: the generated tests on the GPU, the self-check, sampling, memory and a benchmark.

It needs no network. The results go into bench/results/gpu.md; a run with `--device cpu` is small,
shows that this program works, and writes no results.
"""

import argparse
import json
import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NO_GPU = (
    "make gpu needs a Linux machine with an NVIDIA GPU (compute capability 8.0 or later), its "
    "driver and Python 3.11 or later; --device cpu shows that the program works."
)
STEPS = ("card", "self_check", "sampling", "memory", "bench")


@dataclass
class Step:
    """One part of the run."""

    name: str
    passed: bool
    lines: list[str]
    """What the page says of it"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--bundle", type=Path, default=ROOT, help="folder of make gpu-bundle")
    parser.add_argument("--result", type=Path, default=ROOT / "bench" / "results" / "gpu.md")
    chosen = parser.parse_args()
    if chosen.device == "cuda" and not has_gpu():
        print(NO_GPU, file=sys.stderr)
        return 2
    bundle = chosen.bundle.resolve()
    if not (bundle / "project").is_dir():
        print(f"{bundle} is no bundle: make gpu-bundle writes one.", file=sys.stderr)
        return 2
    python = installed(bundle) if chosen.device == "cuda" else Path(sys.executable)
    steps = [run_tests(python, bundle, chosen.device)]
    print_step(steps[-1])
    for name in STEPS:
        steps.append(run_step(name, python, bundle, chosen.device))
        print_step(steps[-1])
    if chosen.device == "cuda":
        chosen.result.parent.mkdir(parents=True, exist_ok=True)
        chosen.result.write_text(page(steps), encoding="utf-8")
        print(f"Results: {chosen.result}")
    return 0 if all(step.passed for step in steps) else 1


def has_gpu() -> bool:
    """Whether there is a driver of NVIDIA, which is asked of nobody but the system."""
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists()


def installed(bundle: Path) -> Path:
    """The interpreter of an environment with the bundle's wheels and nothing else."""
    folder = bundle / ".venv"
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        wheels = sorted(str(path) for path in (bundle / "wheels").glob("*.whl"))
        install = [str(python), "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        subprocess.run([*install, *wheels], check=True)
    return python


def environment(bundle: Path) -> dict[str, str]:
    paths = [bundle / "project" / "src", bundle / "project" / "tests", bundle]
    ours = {name: value for name, value in os.environ.items() if not name.startswith("INFER_")}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    return {**ours, **offline, "PYTHONPATH": os.pathsep.join(map(str, paths))}


def run_tests(python: Path, bundle: Path, device: str) -> Step:
    """The generated tests, with models on the device."""
    files = ["tests"] if device == "cuda" else ["tests/serving/engine/test_acceleration.py"]
    done = subprocess.run(
        [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        cwd=bundle / "project",
        env=environment(bundle) | {"TEST_DEVICE": device},
        capture_output=True,
        text=True,
        check=False,
    )
    output = (done.stdout.strip() or done.stderr.strip() or "pytest said nothing").splitlines()
    failed = [f"- `{line}`" for line in output if line.startswith("FAILED")]
    return Step("The generated tests", done.returncode == 0, [output[-1], *failed])


def run_step(name: str, python: Path, bundle: Path, device: str) -> Step:
    """Runs a part in a process of its own, so that one that dies takes no other along."""
    done = subprocess.run(
        [str(python), "-m", "bench.gpu.checks", name, device, str(bundle / "models")],
        cwd=bundle,
        env=environment(bundle),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        words = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        return Step(name, False, [f"ended with {done.returncode}: {words}"])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return Step(found["title"], found["passed"], found["lines"])


def print_step(step: Step) -> None:
    verdict = "passed" if step.passed else "FAILED"
    print(f"{verdict}: {step.name}", *step.lines, sep="\n  ", flush=True)


def page(steps: list[Step]) -> str:
    parts = [
        f"## {step.name}: {'passed' if step.passed else 'failed'}\n\n" + "\n".join(step.lines)
        for step in steps
    ]
    return "# On a GPU\n\n" + "\n\n".join(parts) + "\n\nAgain: `make gpu`, see bench/gpu.\n"


if __name__ == "__main__":
    sys.exit(main())
