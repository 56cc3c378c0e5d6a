"""`python -m <package>.prefetch`: downloads the files of the models that the settings name, and
ends. The service then starts without the hub.
"""

import logging
import sys
from functools import partial

from pydantic import ValidationError

from .serving.http.logs import configure_logging
from .serving.models.hub import fetch_adapter, fetch_model
from .serving.models.model_errors import ConfigurationError, SourceError
from .serving.models.model_list import listed_models, named_sources
from .serving.models.progress import progress_told_to
from .settings import Settings

logger = logging.getLogger(__name__)

KINDS = ("chat_model", "embeddings_model", "rerank_model")
"""The settings that name models, of which a service has some"""


def prefetch_models(settings: Settings) -> None:
    """Raises ConfigurationError, and SourceError for a model that cannot be had."""
    for kind in KINDS:
        setting = f"INFER_{kind}".upper()
        revisions = getattr(settings, f"{kind}_revision", "")
        for model in listed_models(setting, getattr(settings, kind, ""), revisions):
            with progress_told_to(partial(logger.info, "%s: %s", model.source)):
                fetch_model(
                    model.source,
                    setting,
                    revision=model.revision,
                    trust_remote_code=settings.trust_remote_code,
                )


def prefetch_adapters(settings: Settings) -> None:
    """An adapter that cannot be had is logged: the service starts without it, too.

    Raises ConfigurationError.
    """
    listed = named_sources("INFER_CHAT_ADAPTERS", getattr(settings, "chat_adapters", ""))
    for name, source in listed.items():
        try:
            fetch_adapter(source)
        except SourceError as error:
            logger.error("the adapter %s: %s", name, error)


def main() -> None:
    try:
        settings = Settings()
        configure_logging(settings.log_format, settings.log_level)
        prefetch_models(settings)
        prefetch_adapters(settings)
    except (ValidationError, ConfigurationError, SourceError) as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
