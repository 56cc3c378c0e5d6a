"""The errors of batches. `..routers.batches` gives the first its HTTP status."""


class BatchNotFound(Exception):
    """No such batch, or it belongs to another key."""


class InvalidLine(Exception):
    """A line of the input cannot be a request: the batch fails."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


class ClaimLost(Exception):
    """Another process runs the batch."""
