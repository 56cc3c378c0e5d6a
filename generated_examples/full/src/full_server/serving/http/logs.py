"""Logging of the whole process, uvicorn included: one line a record, as text or as JSON."""

import json
import logging
import logging.config
from contextvars import ContextVar
from typing import Literal

from .tracing import trace_var

request_id_var: ContextVar[str | None] = ContextVar("request_id", default=None)

STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))).union(
    ("asctime", "color_message", "message", "request_id", "trace_id")
)


def extras(record: logging.LogRecord) -> dict[str, object]:
    """The fields that the caller passed as `extra`."""
    return {key: value for key, value in vars(record).items() if key not in STANDARD_FIELDS}


class RequestIdFilter(logging.Filter):
    """Puts the id of the request at hand on every record, and of its trace if it has one."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id_var.get()
        trace = trace_var.get()
        record.trace_id = trace.id if trace else None
        return True


def quoted(value: object) -> str:
    """The value, quoted if it has spaces or control characters, so that a record stays one line."""
    text = str(value)
    return text if text.isprintable() and " " not in text else json.dumps(text)


class TextFormatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = extras(record) | {"request_id": getattr(record, "request_id", None)}
        fields["trace_id"] = getattr(record, "trace_id", None)
        pairs = [f"{key}={quoted(value)}" for key, value in fields.items() if value is not None]
        return " ".join([super().formatMessage(record), *pairs])


class JSONFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": getattr(record, "request_id", None),
            **extras(record),
        }
        if trace_id := getattr(record, "trace_id", None):
            fields["trace_id"] = trace_id
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def configure_logging(style: Literal["text", "json"], level: str) -> None:
    """Sends everything to stderr. Call it once, from the entry point and never from a library."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": {"request_id": {"()": RequestIdFilter}},
            "formatters": {
                "text": {
                    "()": TextFormatter,
                    "format": "%(asctime)s %(levelname)-7s %(name)s: %(message)s",
                },
                "json": {"()": JSONFormatter},
            },
            "handlers": {
                "stderr": {
                    "class": "logging.StreamHandler",
                    "formatter": style,
                    "filters": ["request_id"],
                }
            },
            "loggers": {
                # transformers gives it a handler of its own unless it finds it set up.
                "ContinuousBatchingLogger": {
                    "handlers": ["stderr"],
                    "level": "WARNING",
                    "propagate": False,
                }
            },
            "root": {"handlers": ["stderr"], "level": level.upper()},
        }
    )
