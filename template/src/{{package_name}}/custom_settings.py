"""Yours: the settings that this service has beyond the template's.

The template wrote this file once and never touches it again; `copier update` leaves it alone.
"""

from pydantic_settings import BaseSettings


class CustomSettings(BaseSettings):
    """A field `greeting: str = "hello"` here is the variable `INFER_GREETING`."""
