"""The settings of the service: INFER_* variables in the environment or in `.env`."""

import difflib
import ipaddress
import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import DotEnvSettingsSource, EnvSettingsSource, NoDecode, SettingsConfigDict

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
        (), description="Accepted bearer keys, separated by commas; empty: no authentication"
    )
    api_keys_file: str = Field(
        "", description="File with a line name:key for each key; read again when it changes"
    )
    rate_limit_requests: int = Field(
        0, ge=0, description="Requests a minute of each client (key, else address); 0: no limit"
    )
    rate_limit_tokens: int = Field(
        0, ge=0, description="Tokens a minute of each client (key, else address); 0: no limit"
    )
    rate_limit_concurrent: int = Field(
        0, ge=0, description="Concurrent requests of each client (key, else address); 0: no limit"
    )
    forwarded_allow_ips: Annotated[tuple[str, ...], NoDecode] = Field(
        ("127.0.0.1",),
        description="Proxies whose X-Forwarded-For and -Proto count: addresses, networks; *: all",
    )
    public_docs: bool = Field(False, description="Serve /docs and /openapi.json without a key")
    page: bool = Field(
        True, description="Serve a page at / to look at the models and to try them, without a key"
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Allowed CORS origins, separated by commas; *: all"
    )
    trusted_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Accepted host names, separated by commas; empty: all"
    )
    keep_alive_seconds: int = Field(
        75, ge=1, description="Seconds after which an idle connection is closed"
    )
    log_format: Literal["text", "json"] = Field("text", description="Format of the log lines")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level of the messages to log"
    )
    log_probes: bool = Field(
        False, description="Log requests to /health and /metrics that succeed, too"
    )
    metrics: Literal["open", "key", "off"] = Field(
        "open", description="Access to /metrics: open to all, only with an API key, or switched off"
    )
    metrics_port: int = Field(
        0, ge=0, le=65535, description="Another port on which /metrics is served as well; 0: none"
    )
    max_body_size: int = Field(
        4 * 1024 * 1024, gt=0, description="Largest request body in bytes, file uploads excluded"
    )
    body_timeout_seconds: float = Field(
        30.0, gt=0, description="Seconds without body data before the request is refused with 408"
    )
    max_connections: int = Field(
        1000, ge=1, description="Concurrent connections; fewer where the limit of open files is low"
    )
    request_timeout_seconds: float = Field(
        600.0, gt=0, description="Seconds that a request may take, load and wait included"
    )
    drain_seconds: float = Field(
        30.0, ge=0, description="Seconds that requests in flight get to finish after SIGTERM"
    )

    device: str = Field("auto", description="auto, cpu, cuda, or a device with an index")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Data type of the weights; auto: 16 bits where native on the device"
    )
    preload: bool = Field(
        False, description="Load all models at start; not ready until they are loaded"
    )
    idle_unload_seconds: float = Field(
        0.0, ge=0, description="Seconds without use after which a model is unloaded; 0: never"
    )
    max_queue: int = Field(
        256, ge=0, description="Requests that may wait for a model; more are refused with 429"
    )
    max_queue_tokens: int = Field(
        262144, ge=0, description="Tokens of waiting requests per model; more are refused with 429"
    )
    stall_seconds: float = Field(
        120.0, gt=0, description="Longest step in seconds; a model that exceeds it is reloaded"
    )
    trust_remote_code: bool = Field(
        False, description="Run the Python code that some models bring along with their weights"
    )

    chat_model: str = Field(
        "Qwen/Qwen2.5-0.5B-Instruct",
        description="Chat model: hub id or local folder; several: name=source,name=source",
    )
    max_batch_requests: int = Field(
        32, ge=1, description="Sequences that are generated together in one batch"
    )
    max_batch_tokens: int = Field(
        512, ge=16, description="Tokens in one forward pass; longer prompts are prefilled in chunks"
    )
    kv_cache_tokens: int = Field(
        32768, ge=256, description="Tokens that the KV cache holds, for all sequences together"
    )
    attention: Literal["auto", "sdpa", "flash"] = Field(
        "auto", description="Attention of the chat model; auto: flash where it works, else sdpa"
    )
    cuda_graphs: bool = Field(
        False, description="Run steps in CUDA graphs, each prepared while the last one is computed"
    )
    max_thinking_tokens: int = Field(
        0, ge=0, description="Tokens of a thought after which the answer has to begin; 0: no limit"
    )
    tool_prompt: bool = Field(
        False, description="Describe tools to models whose chat template has no place for them"
    )
    default_max_tokens: int = Field(
        1024, ge=1, description="max_tokens of requests that do not set it"
    )
    quantization: Literal["none", "int8", "int4", "fp8"] = Field(
        "none", description="Quantise the weights of the chat model while it is loaded"
    )
    chat_model_revision: str = Field(
        "",
        description="Commit, tag or branch of the chat model on the hub; "
        "several: name=revision,name=revision; empty: the newest",
    )
    chat_adapters: str = Field(
        "", description="LoRA adapters of the chat model: name=source,name=source"
    )
    heartbeat_seconds: float = Field(
        15, ge=0, description="Seconds of silence before an SSE keep-alive comment; 0: none"
    )
    stream_usage: Literal["request", "always"] = Field(
        "request", description="Send token usage at the end of a stream on request, or always"
    )

    embeddings_model: str = Field(
        "sentence-transformers/all-MiniLM-L6-v2",
        description="Embeddings model: hub id or local folder; several: name=source,name=source",
    )
    embeddings_batch_tokens: int = Field(
        2048, ge=1, description="Tokens in one forward pass of the encoder, padding included"
    )
    embeddings_batch_texts: int = Field(
        32, ge=1, description="Texts in one forward pass of the encoder"
    )
    embeddings_model_revision: str = Field(
        "",
        description="Commit, tag or branch of the embeddings model on the hub; "
        "several: name=revision,name=revision; empty: the newest",
    )
    rerank_model: str = Field(
        "",
        description="Model of /v1/rerank: hub id or local folder; "
        "several: name=source,name=source; empty: none",
    )
    rerank_model_revision: str = Field(
        "",
        description="Commit, tag or branch of the rerank model on the hub; "
        "several: name=revision,name=revision; empty: the newest",
    )

    files_url: str = Field(
        "file:./data/files", description="Storage of the files: file:///…, s3://bucket/…, memory://"
    )
    max_upload_size: int = Field(100 * 1024 * 1024, gt=0, description="Largest upload in bytes")
    max_pdf_pages: int = Field(
        200, ge=1, description="Largest number of pages of a PDF that is rendered"
    )
    pdf_timeout_seconds: float = Field(
        60.0, gt=0, description="Seconds that rendering one PDF may take"
    )
    batch_concurrency: int = Field(
        8, ge=0, description="Lines of batches in flight; 0: this process runs no batches"
    )

    @field_validator(
        "api_keys", "cors_origins", "trusted_hosts", "forwarded_allow_ips", mode="before"
    )
    @classmethod
    def split_list(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        parts = tuple(part for each in value.split(",") if (part := each.strip()))
        if not parts:
            raise ValueError("has no entries; unset the variable instead")
        return parts

    @field_validator("cors_origins")
    @classmethod
    def check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin not in ("*", "null") and not re.fullmatch(r"[\w.+-]+://[^/\s*]+/?", origin):
                raise ValueError(f"{origin!r} is not an origin such as https://example.com, nor *")
        return tuple(origin.rstrip("/").lower() for origin in value)

    @field_validator("trusted_hosts")
    @classmethod
    def check_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if not re.fullmatch(r"(\*\.)?[\w.-]+|\[?[0-9a-fA-F:.]+\]?", host):
                raise ValueError(f"{host!r} is not a host name such as example.com, *.example.com")
        return tuple(host.strip("[]").lower() for host in value)

    @field_validator("forwarded_allow_ips")
    @classmethod
    def check_proxies(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in value:
            try:
                ipaddress.ip_network("0.0.0.0/0" if proxy == "*" else proxy)
            except ValueError:
                raise ValueError(
                    f"{proxy!r} is not an address such as 10.0.0.1, a network such as 10.0.0.0/8, "
                    "nor *"
                ) from None
        if "*" in value and len(value) > 1:
            raise ValueError("* stands for all addresses; leave out the others")
        return value

    @field_validator("device")
    @classmethod
    def check_device(cls, value: str) -> str:
        kind, _, index = value.partition(":")
        # The CPU is always there, and tests run on it.
        known = value in ("auto", "cpu") or kind in DEVICES
        if not known or (":" in value and not index.isdecimal()):
            raise ValueError(f"must be auto, cpu or one of {', '.join(DEVICES)}, index optional")
        return value

    @property
    def has_keys(self) -> bool:
        return bool(self.api_keys or self.api_keys_file)


def variables() -> set[str]:
    """The names of all variables that are read, your own included."""
    names = {f"INFER_{name}" for name in Settings.model_fields}
    aliases = {field.validation_alias for field in Settings.model_fields.values()}
    return {name.upper() for name in names | {each for each in aliases if isinstance(each, str)}}


def misspelt() -> Iterator[str]:
    """A sentence about each variable in the environment or `.env` that is probably a misspelt
    setting: one that begins with INFER_ or resembles the name of a setting, and is not read.
    """
    known = variables()
    given = {*EnvSettingsSource(Settings).env_vars, *DotEnvSettingsSource(Settings).env_vars}
    for name in sorted(name.upper() for name in given):
        read = name in known or name.partition("__")[0] in known
        if read or name.startswith("INFER_SCAFFOLD_"):
            continue
        is_ours = name.startswith("INFER_")
        if near := difflib.get_close_matches(name, known, 1, 0.6 if is_ours else 0.9):
            yield f"there is no setting {name}; did you mean {near[0]}?"
        elif is_ours:
            yield f"there is no setting {name}; docs/settings.md lists them all"
