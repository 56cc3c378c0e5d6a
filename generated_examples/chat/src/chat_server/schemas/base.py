"""What all requests have in common."""

import logging
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

logger = logging.getLogger(__name__)


def check_unicode(text: str) -> str:
    """JSON can spell half of a surrogate pair, which is no character and no tokenizer takes."""
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

    @model_validator(mode="after")
    def warn_about_unknown_fields(self) -> Self:
        if self.model_extra:
            # Clients choose these names: as a list they are quoted, and the line stays short.
            names = [name[:64] for name in sorted(self.model_extra)[:10]]
            logger.warning("ignored unknown fields: %s", names)
        return self
