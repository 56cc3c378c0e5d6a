"""Reading of untrusted files: of any kind and size, or gone when they are read."""

import os
import stat
from pathlib import Path

LIMIT = 1_000_000  # bytes: the source files that people write are a tenth of it
_NO_WAITING = getattr(os, "O_NONBLOCK", 0)  # Windows has none, and no pipes among files


class Unreadable(Exception):  # noqa: N818 - what came of a file, as SyntaxError is
    """A file that cannot be read; the message is the reason."""


def content(path: Path, limit: int = LIMIT) -> bytes:
    """Return the bytes of a regular file, or of what a link to one leads to.

    Never waits, as a pipe would let it, and never reads without an end, as a device would.
    Raises Unreadable for everything else, and for more than `limit` bytes.
    """
    try:
        # Asked before it is opened: opening a device may already do something.
        _require_regular(path.stat())
        with os.fdopen(os.open(path, os.O_RDONLY | _NO_WAITING), "rb") as file:
            _require_regular(os.fstat(file.fileno()))
            found = file.read(limit + 1)
    except FileNotFoundError:
        raise Unreadable("a link to nothing" if path.is_symlink() else "it is gone") from None
    except (OSError, ValueError) as error:
        raise Unreadable(reason(error)) from None
    if len(found) > limit:
        raise Unreadable(f"it is larger than {limit / 1_000_000:g} MB")
    return found


def _require_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise Unreadable("it is no regular file")


def reason(error: Exception) -> str:
    """Return what went wrong with a file, without its path."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
