"""`make gpu`, as far as a machine without a GPU can run it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.gpu import __main__ as gpu
from bench.gpu import bundle

ROOT = Path(__file__).parents[1]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    command = [sys.executable, "-m", "bench.gpu", *options]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(gpu.has_gpu(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_it_needs(tmp_path: Path) -> None:
    result = tmp_path / "gpu.md"
    done = run("--bundle", str(tmp_path), "--result", str(result))
    assert done.returncode == 2
    assert done.stderr == gpu.NO_GPU + "\n"
    assert not result.exists()


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    done = run("--bundle", str(tmp_path), "--device", "cpu")
    assert done.returncode == 2
    assert done.stderr == f"{tmp_path} is no bundle: make gpu-bundle writes one.\n"


def test_all_of_it_on_a_processor(tmp_path: Path) -> None:
    """Small, and without the wheels, which the environment of the tests has."""
    folder, result = tmp_path / "bundle", tmp_path / "gpu.md"
    bundle.write(folder)
    done = run("--bundle", str(folder), "--device", "cpu", "--result", str(result))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("passed: ") == 1 + len(gpu.STEPS)
    assert "0 are others than the CPU's, captured" in done.stdout
    for model in ("gemma3_text", "llama", "mistral", "mixtral", "qwen3"):
        assert (
            f"| {model} | attention=auto | sdpa (cpu has no flash attention) | 96 |" in done.stdout
        )
    assert "not measured" not in done.stdout
    assert not result.exists()  # no figures of a GPU without one


def test_a_part_that_dies_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bench" / "gpu").mkdir(parents=True)
    (tmp_path / "bench" / "gpu" / "checks.py").write_text("raise SystemExit('out of order')")
    step = gpu.run_step("memory", Path(sys.executable), tmp_path, "cpu")
    assert (step.passed, step.lines) == (False, ["ended with 1: out of order"])
    assert "## memory: failed" in gpu.page([step])
