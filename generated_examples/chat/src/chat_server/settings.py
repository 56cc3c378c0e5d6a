"""Every knob of the service, typed and described: INFER_* in the environment or in `.env`."""

from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from .custom_settings import CustomSettings

DEVICES = ("cpu", "cuda")
"""The device types that this service is built for; INFER_DEVICE=auto takes the best one present."""


class Settings(CustomSettings):
    """The settings of one process. Field `chat_model` is the variable `INFER_CHAT_MODEL`."""

    model_config = SettingsConfigDict(
        env_prefix="INFER_", env_file=".env", env_ignore_empty=True, extra="ignore"
    )

    host: str = Field("127.0.0.1", description="Address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on")
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="Accepted bearer keys, separated by commas; empty lets everybody in"
    )
    log_format: Literal["text", "json"] = Field("text", description="One line of text or of JSON")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe messages to log"
    )
    max_body_size: int = Field(
        4 * 1024 * 1024, gt=0, description="Largest request body in bytes, uploads aside"
    )
    body_timeout_seconds: float = Field(
        30.0, gt=0, description="Silence in the middle of a request body that ends the request"
    )
    drain_seconds: float = Field(
        30.0, ge=0, description="Time that requests in flight get to finish after SIGTERM"
    )

    device: str = Field("auto", description="auto, cpu, cuda, or a device with an index")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Type of the weights; auto takes what the device computes natively"
    )
    preload: bool = Field(
        False, description="Load every configured model at start; not ready until they are loaded"
    )
    idle_unload_seconds: float = Field(
        0.0, ge=0, description="Unload a model that was not used for so long; 0 keeps it loaded"
    )
    max_queue: int = Field(
        256, ge=0, description="Requests that may wait for a model; more are answered with 429"
    )
    max_queue_tokens: int = Field(
        262144, ge=0, description="Tokens that may wait for a model; more are answered with 429"
    )
    request_timeout_seconds: float = Field(
        600.0, gt=0, description="Longest time that one request may take, waiting included"
    )

    chat_model: str = Field(
        "google/gemma-3-270m-it",
        description="Chat model: hub id or local folder",
    )
    max_batch_requests: int = Field(
        32, ge=1, description="Chat requests that generate together in one batch"
    )
    max_batch_tokens: int = Field(
        512, ge=16, description="Tokens in one forward pass; longer prompts are prefilled in pieces"
    )
    kv_cache_tokens: int = Field(
        32768, ge=256, description="Tokens of context that the KV cache holds for all requests"
    )
    default_max_tokens: int = Field(
        1024, ge=1, description="Longest answer in tokens where a request does not say"
    )
    heartbeat_seconds: float = Field(
        15, ge=0, description="Comment in a stream after such a silence; 0 sends none"
    )
    stream_usage: Literal["request", "always"] = Field(
        "request", description="Token usage ends a stream when asked for, or always"
    )

    @field_validator("api_keys", mode="before")
    @classmethod
    def split_keys(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(key for part in value.split(",") if (key := part.strip()))
        return value

    @field_validator("device")
    @classmethod
    def check_device(cls, value: str) -> str:
        kind, _, index = value.partition(":")
        # The CPU is always there, and tests run on it.
        known = value in ("auto", "cpu") or kind in DEVICES
        if not known or (":" in value and not index.isdecimal()):
            raise ValueError(f"must be auto, cpu or one of {', '.join(DEVICES)}, index or not")
        return value
