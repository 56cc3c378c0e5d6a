"""What all requests have in common."""

import logging

from pydantic import BaseModel, ConfigDict, model_validator

logger = logging.getLogger(__name__)


class APIRequest(BaseModel):
    """Accepts fields it does not know, as OpenAI's clients send new ones all the time."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="after")
    def warn_about_unknown_fields(self) -> "APIRequest":
        if self.model_extra:
            logger.warning("ignored unknown fields: %s", ", ".join(sorted(self.model_extra)))
        return self
