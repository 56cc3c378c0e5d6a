"""The questions in their order: those that change the service come last."""

from infer_scaffold.probe import (
    connections,
    discovery,
    endpoints,
    files,
    health,
    schemas,
    shutdown,
    streams,
)
from infer_scaffold.probe.answers import Question

_ALL: tuple[Question, ...] = (
    *discovery.QUESTIONS,  # always asked, whatever the patterns
    *endpoints.QUESTIONS,
    *streams.QUESTIONS,
    *files.QUESTIONS,
    *schemas.QUESTIONS,
    *health.QUESTIONS,
    *connections.QUESTIONS,  # late: the others are asked while its connection is idle
    *shutdown.QUESTIONS,
)
QUESTIONS = tuple(sorted(_ALL, key=lambda question: (question.destructive, question is _ALL[-1])))


def asked(code: str) -> list[str]:
    """Return the questions about a pattern as lines for its page."""
    return [
        f"{question.holds} (`{question.name}`{', destructive' if question.destructive else ''})"
        for question in QUESTIONS
        if question.code == code
    ]
