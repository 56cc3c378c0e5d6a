"""The checklist: the patterns that an inference service follows, as data."""

from dataclasses import dataclass
from enum import StrEnum

from infer_scaffold.errors import UserError


class Severity(StrEnum):
    """How much a service suffers where a pattern is missing."""

    HIGH = "High"
    MEDIUM = "Medium"
    LOW = "Low"


@dataclass(frozen=True)
class Pattern:
    """One pattern. The code is its name for ever: files of teams mention it."""

    code: str
    title: str
    severity: Severity
    category: str


_HIGH, _MEDIUM, _LOW = Severity.HIGH, Severity.MEDIUM, Severity.LOW

PATTERNS: tuple[Pattern, ...] = (
    Pattern("IS101", "Lifespan context manager", _HIGH, "Application lifecycle"),
    Pattern("IS102", "Background task cleanup", _HIGH, "Application lifecycle"),
    Pattern("IS201", "Async route handlers", _HIGH, "Endpoint design"),
    Pattern("IS202", "Pydantic request and response models", _MEDIUM, "Endpoint design"),
    Pattern("IS203", "HTTP errors with proper status codes", _MEDIUM, "Endpoint design"),
    Pattern("IS301", "Server-sent events for streaming", _HIGH, "Streaming responses"),
    Pattern("IS302", "SSE format with JSON data", _HIGH, "Streaming responses"),
    Pattern("IS303", "Event loop yield for real-time streaming", _HIGH, "Streaming responses"),
    Pattern("IS401", "File size validated before processing", _HIGH, "File uploads"),
    Pattern("IS402", "Form parameters for file metadata", _LOW, "File uploads"),
    Pattern("IS501", "OpenAI response schema", _HIGH, "OpenAI API compatibility"),
    Pattern("IS502", "OpenAI types from the SDK", _MEDIUM, "OpenAI API compatibility"),
    Pattern("IS601", "APIRouter for endpoint groups", _LOW, "Router organization"),
    Pattern("IS701", "Health check endpoint", _MEDIUM, "Health and monitoring"),
    Pattern("IS702", "List of loaded models", _LOW, "Health and monitoring"),
)

BY_CODE = {pattern.code: pattern for pattern in PATTERNS}


def matching(select: str | None, ignore: str | None) -> frozenset[str]:
    """Return the codes that begin with one of `select` and with none of `ignore`.

    Both are lists with commas; without `select` all codes are taken. Raises UserError for one
    that no code begins with.
    """
    wanted = _prefixes("--select", select) if select else ("",)
    unwanted = _prefixes("--ignore", ignore) if ignore else ()
    return frozenset(
        code for code in BY_CODE if code.startswith(wanted) and not code.startswith(unwanted)
    )


def _prefixes(flag: str, given: str) -> tuple[str, ...]:
    prefixes = tuple(part.strip().upper() for part in given.split(",") if part.strip())
    for prefix in prefixes:
        if not any(code.startswith(prefix) for code in BY_CODE):
            raise UserError(f"{flag}: there is no {prefix!r}; choose from {', '.join(BY_CODE)}.")
    return prefixes
