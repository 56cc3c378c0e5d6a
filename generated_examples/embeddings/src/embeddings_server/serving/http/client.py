"""The client of the request at hand."""

from contextvars import ContextVar

client_var: ContextVar[str] = ContextVar("client", default="")
"""The name of its key, or the address of its connection where no keys are asked for; empty outside of
requests. Clients that wait for one model get equal shares of it."""
