"""The tokens that a request uses, counted by the models that it uses."""

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class TokenUsage:
    """Tokens of one HTTP request, those generated after its client has left included."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total(self) -> int:
        return self.prompt_tokens + self.completion_tokens


token_usage_var: ContextVar[TokenUsage | None] = ContextVar("token_usage", default=None)
