"""Check the source of a service against the checklist."""

import dataclasses
import gc
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from infer_scaffold.check import accepted
from infer_scaffold.check.changed import Changed
from infer_scaffold.check.config import Config
from infer_scaffold.check.judgement import Finding, Judgement, Verdict
from infer_scaffold.check.rules import RULES
from infer_scaffold.check.service import Service
from infer_scaffold.check.source import Source, read
from infer_scaffold.checklist import BY_CODE
from infer_scaffold.errors import UserError

_LONGEST = 300  # seconds of processor time


@dataclass(frozen=True)
class Report:
    """The verdict on every pattern, and the files that could not be read: path, line, reason.

    `lines` are the texts of the lines that findings are at. `ignored` and `baselined` count the
    findings that were accepted, `stale` the entries of the baseline that are found no longer.
    """

    judgements: list[Judgement]
    unparsed: list[tuple[Path, int, str]]
    lines: dict[tuple[Path, int], str] = field(default_factory=dict)
    ignored: int = 0
    baselined: int = 0
    stale: int = 0
    elsewhere: int = 0
    """The number of findings outside of the lines that are asked for."""

    @property
    def failing(self) -> list[Judgement]:
        """The patterns that the service does not follow."""
        return [each for each in self.judgements if each.verdict is Verdict.FAIL]

    @property
    def unmet(self) -> list[Judgement]:
        """The patterns that it does not follow in full."""
        return [each for each in self.judgements if each.verdict in (Verdict.FAIL, Verdict.PARTIAL)]

    @property
    def known(self) -> list[accepted.Known]:
        """The entries of a baseline of this report."""
        return [
            accepted.known(each.pattern.code, finding, self.lines[finding.path, finding.line])
            for each in self.unmet
            for finding in each.findings
        ]


def check(path: Path, config: Config = Config()) -> Report:  # noqa: B008
    """Judge the service below a folder, without the findings in its baseline.

    Raises UserError if there is no FastAPI service, or no baseline that can be read.
    """
    report = check_all(path, config)
    known = accepted.read_baseline(path)
    if not known:
        return report
    before = known.total()
    left = known.copy()
    judgements = [_without(each, report.lines, left) for each in report.judgements]
    # Patterns that were not checked have no stale entries.
    stale = sum(count for entry, count in left.items() if entry.code in config.codes)
    return dataclasses.replace(
        report, judgements=judgements, baselined=before - left.total(), stale=stale
    )


def on_lines(report: Report, changed: Changed) -> Report:
    """Return a report with the findings on lines that have changed alone."""
    judgements = [
        _with(each, [found for found in each.findings if changed.has(found.path, found.line)])
        for each in report.judgements
    ]
    kept = sum(len(each.findings) for each in judgements)
    found = sum(len(each.findings) for each in report.judgements)
    return dataclasses.replace(report, judgements=judgements, elsewhere=found - kept)


def _without(
    judgement: Judgement, lines: dict[tuple[Path, int], str], known: Counter[accepted.Known]
) -> Judgement:
    """Return a judgement without known findings, and count these down."""
    kept = []
    for finding in judgement.findings:
        entry = accepted.known(judgement.pattern.code, finding, lines[finding.path, finding.line])
        if known[entry]:
            known[entry] -= 1
        else:
            kept.append(finding)
    return _with(judgement, kept)


def _with(judgement: Judgement, findings: list[Finding]) -> Judgement:
    """Return a judgement with other findings; with none left, the verdict is a pass."""
    accepted_all = judgement.findings and not findings
    verdict = Verdict.PASS if accepted_all else judgement.verdict
    return dataclasses.replace(judgement, verdict=verdict, findings=findings)


def check_all(path: Path, config: Config = Config()) -> Report:  # noqa: B008
    """Judge the service below a folder, regardless of its baseline.

    Raises UserError if there is no FastAPI service.
    """
    if not os.path.isdir(path):  # noqa: PTH112 - False, too, without permission
        raise UserError(f"{path} is no folder; give the folder of a service.")
    with _no_collection(), _in_time(path):
        source = read(path, config.exclude)
        service = Service(source)
        if not service.routes and not service.applications and not source.unparsed:
            raise UserError(f"{path} has no FastAPI application; give the folder of a service.")
        judgements = []
        for code in (code for code in RULES if code in config.codes):
            verdict, findings = RULES[code](service, config.profile)
            judgements.append(Judgement(BY_CODE[code], verdict, findings))
    return _placed(source, Report(judgements, source.unparsed))


def _placed(source: Source, report: Report) -> Report:
    """Sort findings, count columns in characters, keep their lines, leave out the ignored."""
    files = {finding.path for each in report.unmet for finding in each.findings}
    contents = {each.path: each.content for each in source.modules if each.path in files}
    comments = {file: accepted.ignored(content) for file, content in contents.items()}
    # Python's own lines: str.splitlines knows more ends of lines than a compiler does.
    by_line = {file: content.splitlines() for file, content in contents.items()}
    lines: dict[tuple[Path, int], str] = {}
    judgements, ignored = [], 0
    for judgement in report.judgements:
        kept = []
        # Two routes may reach the same place.
        for finding in dict.fromkeys(judgement.findings):
            text = by_line[finding.path][finding.line - 1]
            if judgement.pattern.code in comments[finding.path].get(finding.line, ()):
                ignored += 1
                continue
            before = text[: finding.column - 1].decode("utf-8", errors="replace")
            lines[finding.path, finding.line] = text.decode("utf-8", errors="replace")
            kept.append(dataclasses.replace(finding, column=len(before) + 1))
        kept.sort(key=lambda each: (str(each.path), each.line, each.column))
        judgements.append(_with(judgement, kept))
    return dataclasses.replace(report, judgements=judgements, lines=lines, ignored=ignored)


@contextmanager
def _in_time(path: Path) -> Iterator[None]:
    """Limit the time for a service. Raises UserError when it is over.

    The processor time of this process: what else the machine does changes no verdict.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or not hasattr(signal, "SIGPROF"):
        yield
        return

    def stop(*_: object) -> NoReturn:
        raise UserError(
            f"{path} takes more than {_LONGEST} s of processor time to judge; "
            "exclude what is generated, with exclude in [tool.infer-scaffold] of pyproject.toml."
        )

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, _LONGEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Suspend garbage collection: syntax trees are millions of objects without cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # not searched at the end of the process either
        if enabled:
            gc.enable()
