"""The checklist: the patterns that an inference service follows, as data."""

from dataclasses import dataclass
from enum import StrEnum


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
