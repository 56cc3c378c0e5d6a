"""Errors of models. `error_responses` gives each its HTTP status."""


class ModelError(Exception):
    """The model cannot answer. The message is written for the client."""


class ConfigurationError(ValueError):
    """The settings do not say which models to serve. The message is one line for the operator."""


class UnknownModel(ModelError):
    """No such model is configured, or it does not do what was asked of it."""


class InvalidInput(ModelError):
    """The input can never be answered; `param` is the field of the request that is to blame."""

    def __init__(self, message: str, param: str, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ContextExceeded(InvalidInput):
    """The input does not fit the model.

    LiteLLM and LangChain tell it by the message, and then try a model with a longer context or
    shorten the conversation: the first sentence and the code in it are OpenAI's.
    """

    def __init__(self, limit: int, however: str, param: str) -> None:
        """limit: tokens that the model holds. however: ends the second sentence."""
        code = "context_length_exceeded"
        super().__init__(
            f"This model's maximum context length is {limit} tokens. However, {however} ({code}).",
            param,
            code,
        )


class Overloaded(ModelError):
    """Too much work waits already. Worth another try after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class LoadFailed(ModelError):
    """The model could not be loaded. The cause is chained and logged, not shown.

    The next attempt is due in `retry_after` seconds; with `permanent` it will fail as well,
    until the settings or the files change.
    """

    def __init__(self, message: str, retry_after: int = 1, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.permanent = permanent


class SourceError(Exception):
    """The files of a model cannot be had. The registry makes a LoadFailed of it.

    `reason` is the end of a sentence for clients, without paths and secrets; `remedy` tells the
    operator the way out. `permanent`: only a change of settings or rights mends it.
    """

    def __init__(self, reason: str, remedy: str, *, permanent: bool = True) -> None:
        super().__init__(f"{reason}; {' '.join(remedy.split())}")
        self.reason = reason
        self.permanent = permanent


class UnsupportedModel(SourceError):
    """The files of a model ask for a computation that is not here. Leaving it out would give answers
    that are merely plausible.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason, "choose another model")


class Unavailable(ModelError):
    """The model is loaded but cannot work now: its thread died, or it is being unloaded."""


class StillLoading(ModelError):
    """The request's time is over before its model is loaded. The load goes on: worth another try."""


class DeadlineExceeded(ModelError):
    """The answer took longer than a request may take."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"The answer took longer than {seconds:g} seconds.")
