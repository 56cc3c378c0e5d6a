"""All questions. What changes the service comes last."""

from infer_scaffold.probe import endpoints, health, lifecycle, schemas, streaming, uploads
from infer_scaffold.probe.model import Question

_ALL: tuple[Question, ...] = (
    *endpoints.QUESTIONS,
    *streaming.QUESTIONS,
    *uploads.QUESTIONS,
    *schemas.QUESTIONS,
    *health.QUESTIONS,
    *lifecycle.QUESTIONS,
)
QUESTIONS = tuple(sorted(_ALL, key=lambda question: (question.destructive, question is _ALL[-1])))
