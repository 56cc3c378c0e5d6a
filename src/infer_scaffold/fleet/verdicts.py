"""Verdicts of earlier runs on services that have not changed since.

Judging a service takes half a second, a fleet has hundreds of them, and few change in a week. A
verdict is kept under the digest of everything that it depends on: the files, the configuration,
the baseline and the code that judges.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import platformdirs

import infer_scaffold
from infer_scaffold.check import accepted, checker, config
from infer_scaffold.check.exclude import Excluded
from infer_scaffold.check.source import python_files
from infer_scaffold.reading import Unreadable, content

_KEPT = 30 * 86_400  # seconds without use
_FRESH = 86_400  # seconds until a use is noted again


@dataclass(frozen=True)
class Verdict:
    """The codes of the patterns that a service fails, and why a file could not be read."""

    failing: tuple[str, ...]
    unread: str


def judge(path: Path, read: Callable[[Path], bytes] = content) -> Verdict:
    """Return the verdict of `check` on a service, whose files `read` has read perhaps already.

    Raises UserError, as `check` does.
    """
    chosen = config.load(path)
    file = _file(path, chosen, read)
    if file is not None:
        known = _read(file)
        if known is not None:
            return known
    report = checker.check(path, chosen)
    unread = [f"{name}:{line} cannot be read ({why})" for name, line, why in report.unparsed]
    verdict = Verdict(tuple(each.pattern.code for each in report.failing), "".join(unread[:1]))
    if file is not None:
        _write(file, verdict)
    return verdict


def tidy() -> None:
    """Delete what has not been used for a month."""
    with suppress(OSError):
        for file in _folder().iterdir():
            if file.stat().st_mtime < time.time() - _KEPT:
                file.unlink()


def _folder() -> Path:
    return platformdirs.user_cache_path("infer-scaffold") / "verdicts"


def _file(path: Path, chosen: config.Config, read: Callable[[Path], bytes]) -> Path | None:
    """Return where the verdict on a service is kept; None if a file of it cannot be read."""
    excluded = Excluded(chosen.exclude)
    digest = hashlib.sha256(_judge())
    digest.update(repr((chosen.profile, sorted(chosen.codes), chosen.exclude)).encode())
    files = [file.relative_to(path) for file, _ in python_files(path)]
    files = [file for file in files if file not in excluded]
    if os.path.lexists(path / accepted.BASELINE_FILE):
        files.append(Path(accepted.BASELINE_FILE))
    try:
        for file in files:
            text = read(path / file)
            name = os.fsencode(file)
            digest.update(b"%d %d " % (len(name), len(text)) + name + text)
    except Unreadable:
        return None
    return _folder() / f"{digest.hexdigest()}.json"


@lru_cache
def _judge() -> bytes:
    """Return the digest of the code that judges: it changes between two releases."""
    digest = hashlib.sha256(sys.version.encode())  # whose syntax is read
    for file in sorted(Path(infer_scaffold.__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.digest()


def _read(file: Path) -> Verdict | None:
    try:
        found = json.loads(content(file))
        verdict = Verdict(tuple(map(str, found["failing"])), str(found["unread"]))
    except (Unreadable, ValueError, KeyError, TypeError, RecursionError):
        return None
    with suppress(OSError):
        if file.stat().st_mtime < time.time() - _FRESH:
            os.utime(file)
    return verdict


def _write(file: Path, verdict: Verdict) -> None:
    """Keep a verdict, if there is a place for it: it can always be found again."""
    unfinished = file.with_suffix(f".{os.getpid()}")
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(asdict(verdict)), encoding="utf-8")
        unfinished.replace(file)
