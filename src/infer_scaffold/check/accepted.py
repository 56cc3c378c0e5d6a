"""Findings that a team has accepted: by a comment where they are, or in its baseline.

`# infer-scaffold: ignore[IS201] reason` stands on the line of a finding, or alone above it. The
baseline is a file with the findings at the time it was written: later ones are reported.
"""

import contextlib
import io
import json
import os
import re
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from infer_scaffold import reading
from infer_scaffold.check.judgement import Finding
from infer_scaffold.errors import UserError

BASELINE_FILE = ".infer-scaffold-baseline.json"
_COMMENT = re.compile(r"#\s*infer-scaffold:\s*ignore\[([^\]]*)\]")


@dataclass(frozen=True, order=True)
class Known:
    """An entry of a baseline: a finding by the text of its line, which moves with the code."""

    code: str
    path: str
    text: str


def known(code: str, finding: Finding, line: str) -> Known:
    """Return the entry of a finding in a baseline."""
    return Known(code, finding.path.as_posix(), line.strip())


def ignored(content: bytes) -> dict[int, frozenset[str]]:
    """Return the codes that comments of a file accept, by line; after an error, none.

    The file has to be in UTF-8, whatever a coding line says.
    """
    if b"infer-scaffold:" not in content:
        return {}
    found: dict[int, frozenset[str]] = {}
    text = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8")
    for token in _tokens(text):
        match = _COMMENT.search(token.string) if token.type == tokenize.COMMENT else None
        if match:
            codes = frozenset(each.strip().upper() for each in match[1].split(","))
            alone = not token.line[: token.start[1]].strip()
            line = token.start[0] + alone
            found[line] = found.get(line, frozenset()) | codes
    return found


def _tokens(text: io.TextIOWrapper) -> Iterator[tokenize.TokenInfo]:
    with contextlib.suppress(tokenize.TokenError, SyntaxError):
        yield from tokenize.generate_tokens(text.readline)


def read_baseline(folder: Path) -> Counter[Known]:
    """Read the baseline of a folder; one that is missing is empty. Raises UserError."""
    file = folder / BASELINE_FILE
    try:
        if not os.path.lexists(file):
            return Counter()
        document = json.loads(reading.content(file).decode())
        return Counter(
            Known(str(each["code"]), str(each["path"]), str(each["text"]))
            for each in document["findings"]
        )
    except (reading.Unreadable, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{file} cannot be used; write it again with --write-baseline.") from error


def write_baseline(folder: Path, findings: Iterable[Known]) -> Path:
    """Write the baseline of a folder, sorted, so that its changes can be reviewed."""
    file = folder / BASELINE_FILE
    entries = [
        {"code": each.code, "path": each.path, "text": each.text} for each in sorted(findings)
    ]
    text = json.dumps({"findings": entries}, indent=2, ensure_ascii=False) + "\n"
    unfinished = file.with_suffix(".tmp")
    try:
        # Bytes of a name that are no text become what JSON has for them, such as \udcff.
        unfinished.write_bytes(text.encode(errors="backslashreplace"))
        unfinished.replace(file)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise UserError(
            f"{file} cannot be written ({reading.reason(error)}); put that right."
        ) from error
    return file
