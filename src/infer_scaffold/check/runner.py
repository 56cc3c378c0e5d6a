"""Hold the source of a service against the checklist."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from infer_scaffold.check.model import Judgement, Profile, Verdict
from infer_scaffold.check.rules import RULES
from infer_scaffold.check.service import Service
from infer_scaffold.check.source import read
from infer_scaffold.checklist import BY_CODE
from infer_scaffold.errors import UserError


@dataclass(frozen=True)
class Report:
    """The verdict on every pattern, and the files that could not be read: path, line, reason."""

    judgements: list[Judgement]
    unparsed: list[tuple[Path, int, str]]

    def only(self, codes: Collection[str]) -> "Report":
        """Return the report on some patterns."""
        kept = [each for each in self.judgements if each.pattern.code in codes]
        return Report(kept, self.unparsed)

    @property
    def failing(self) -> list[Judgement]:
        """The patterns that the service does not follow."""
        return [each for each in self.judgements if each.verdict is Verdict.FAIL]

    @property
    def unmet(self) -> list[Judgement]:
        """The patterns that it does not follow in full."""
        return [each for each in self.judgements if each.verdict in (Verdict.FAIL, Verdict.PARTIAL)]


def check(path: Path, profile: Profile = Profile.DEFAULT) -> Report:
    """Judge the service below a folder. Raises UserError if there is no FastAPI service."""
    if not path.is_dir():
        raise UserError(f"{path} is no folder; give the folder of a service.")
    source = read(path)
    service = Service(source)
    if not service.routes and not service.applications and not source.unparsed:
        raise UserError(f"{path} has no FastAPI application; give the folder of a service.")
    judgements = []
    for code, rule in RULES.items():
        verdict, findings = rule(service, profile)
        ordered = sorted(findings, key=lambda each: (str(each.path), each.line, each.column))
        judgements.append(Judgement(BY_CODE[code], verdict, ordered))
    return Report(judgements, source.unparsed)
