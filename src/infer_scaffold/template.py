"""Where the template is, and the address and version under which projects remember it."""

from pathlib import Path

from infer_scaffold import __version__

# Generated projects find their updates here. It must never be a path of one machine.
ADDRESS = "gh:infer-scaffold/infer-scaffold"
VERSION_TAG = f"v{__version__}"


def root() -> Path:
    """Return the folder that holds copier.yml: inside the wheel, or the checkout's root."""
    package = Path(__file__).parent
    packaged = package / "_template"
    return packaged if packaged.is_dir() else package.parents[1]
