"""Yours: the settings that this service has beyond the template's.

The template wrote this file once and never touches it again; `copier update` leaves it alone.
A field is a variable in the environment, this one INFER_GREETING:

    from pydantic import Field
    from pydantic_settings import BaseSettings

    class CustomSettings(BaseSettings):
        greeting: str = Field("hello", description="Words to greet with")
"""

from pydantic_settings import BaseSettings


class CustomSettings(BaseSettings):
    """Your fields. `SettingsDep` hands them to a route, `custom.models` to a model."""
