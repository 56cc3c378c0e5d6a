"""The base of all requests."""

import logging
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

from ..serving.models.model_errors import InvalidInput

logger = logging.getLogger(__name__)


def check_unicode(text: str) -> str:
    """Raises ValueError for half a surrogate pair, which JSON can hold and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"is not valid Unicode at position {error.start}") from error
    return text


Text = Annotated[str, AfterValidator(check_unicode)]
"""For everything that a tokenizer will read"""


class APIRequest(BaseModel):
    """Accepts fields it does not know, as OpenAI's clients send new ones all the time."""

    model_config = ConfigDict(extra="allow")

    hints: ClassVar[Sequence[str]] = ()
    """Fields that may be left aside: they change no answer"""
    unsupported: ClassVar[Mapping[str, Sequence[object]]] = {}
    """Fields that are refused, unless they have one of the values that ask for nothing"""
    reasons: ClassVar[Mapping[str, str]] = {}
    """The rest of the sentence that refuses a field, where it can say what to send instead"""

    @model_validator(mode="after")
    def check_other_fields(self) -> Self:
        extra = self.model_extra or {}
        for name in self.unsupported.keys() & extra.keys():
            if extra[name] not in (None, *self.unsupported[name]):
                # It passes through pydantic, which would blame the request as a whole.
                reason = self.reasons.get(name, "is not supported by this endpoint")
                raise InvalidInput(f"{name}: {reason}", name)
        if unknown := sorted(extra.keys() - {*self.hints, *self.unsupported}):
            # Clients choose these names: as a list they are quoted, and the line stays short.
            names = [name[:64] for name in unknown[:10]]
            logger.warning("ignored unknown fields: %s", names)
        return self
