"""The servers that are measured side by side, and how each of them is started and asked."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.serving.environments import (
    PACKAGE,
    PINS,
    Models,
    project_env,
    python_of,
    render_project,
    version_of,
)
from bench.serving.load import Request
from bench.serving.processes import ROOT

OURS = "generated service"
SERVE = "transformers serve"
SERVE_BATCHING = "transformers serve, continuous batching"
LLAMA = "llama.cpp server, Q4_K_M"
LITSERVE = "LitServe"
INFINITY = "infinity, defaults"
INFINITY_BF16 = "infinity, bfloat16"

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True)
class Peer:
    """One server with one model."""

    name: str
    kind: str
    """chat or embeddings"""
    version: str
    environment: str | None
    """Its environment under bench/peers, None for this one"""
    command: Callable[[int], list[str]]
    """Port → command line"""
    model: str
    """What requests call the model"""
    ready: str = "/health"
    path: str = ""
    env: Callable[[int], Mapping[str, str]] = lambda port: {}
    cwd: Path = ROOT
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields that only this server wants"""
    one_at_a_time: bool = False
    """It computes one request after the other: it gets fewer of them, or it would take minutes"""
    shares: Mapping[int, float] = field(default_factory=dict)
    """Clients → the share of the requests that it gets, for a server that is slow there"""

    def chat(self, prompt: str, tokens: int, *, stream: bool = True) -> Request:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": tokens,
            "temperature": 0.0,
            **self.extra,
        }
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return Request(self.path, body, tokens)

    def embed(self, texts: list[str]) -> Request:
        body = {
            "model": self.model,
            "input": texts,
            "encoding_format": "base64",
            **self.extra,
        }
        return Request(self.path, body, len(texts))

    def chat_requests(self, clients: int, requests: int) -> int:
        """How many of the requests it gets."""
        if self.one_at_a_time:
            return max(clients, requests if clients == 1 else 0)
        return max(clients, round(requests * self.shares.get(clients, 1.0)))


def all_peers(models: Models) -> list[Peer]:
    return [*chat_peers(models), *embeddings_peers(models)]


def ours(kind: str, models: Models) -> Peer:
    project = render_project([kind, "health"])
    paths = {"chat": "/v1/chat/completions", "embeddings": "/v1/embeddings"}
    return Peer(
        name=OURS,
        kind=kind,
        version="this checkout",
        environment=None,
        command=lambda port: [sys.executable, "-m", PACKAGE],
        model=str(models.chat if kind == "chat" else models.embeddings),
        ready="/health/ready",
        path=paths[kind],
        env=lambda port: project_env(project, port, models),
        cwd=project,
    )


def chat_peers(models: Models) -> list[Peer]:
    def serve(port: int) -> list[str]:
        transformers = python_of("transformers").with_name("transformers")
        options = ["--host", "127.0.0.1", "--port", str(port)]
        return [str(transformers), "serve", str(models.chat), *options]

    def serve_batching(port: int) -> list[str]:
        batching = ["--cb-num-blocks", "256", "--cb-max-batch-tokens", "512"]
        return [*serve(port), "--continuous-batching", *batching]

    path = "/v1/chat/completions"
    return [
        ours("chat", models),
        Peer(
            name=SERVE,
            kind="chat",
            version=version_of("transformers", "transformers"),
            environment="transformers",
            command=serve,
            model=str(models.chat),
            path=path,
            env=lambda port: OFFLINE,
            one_at_a_time=True,
        ),
        Peer(
            name=SERVE_BATCHING,
            kind="chat",
            version=version_of("transformers", "transformers"),
            environment="transformers",
            command=serve_batching,
            model=str(models.chat),
            path=path,
            env=lambda port: OFFLINE,
        ),
        Peer(
            name=LLAMA,
            kind="chat",
            version="xllamacpp " + version_of("llama", "xllamacpp"),
            environment="llama",
            command=lambda port: [
                str(python_of("llama")),
                str(PINS / "llama_server.py"),
                str(models.gguf),
                str(models.chat / "chat_template.jinja"),
                str(port),
            ],
            model="gemma",
            path=path,
            extra={"ignore_eos": True},
            shares={16: 1 / 3},
        ),
        Peer(
            name=LITSERVE,
            kind="chat",
            version=version_of("litserve", "litserve"),
            environment="litserve",
            command=lambda port: [
                str(python_of("litserve")),
                str(PINS / "litserve_chat.py"),
                str(models.chat),
                str(port),
            ],
            model="gemma",
            path=path,
            env=lambda port: OFFLINE,
            one_at_a_time=True,
        ),
    ]


def embeddings_peers(models: Models) -> list[Peer]:
    def infinity(name: str, *options: str) -> Peer:
        return Peer(
            name=name,
            kind="embeddings",
            version=version_of("infinity", "infinity_emb"),
            environment="infinity",
            command=lambda port: [
                str(python_of("infinity").with_name("infinity_emb")),
                "v2",
                *("--model-id", str(models.embeddings), "--served-model-name", "minilm"),
                *("--engine", "torch", "--device", "cpu"),
                *("--host", "127.0.0.1", "--port", str(port)),
                *options,
            ],
            model="minilm",
            path="/embeddings",
            env=lambda port: {**OFFLINE, "INFINITY_ANONYMOUS_USAGE_STATS": "0"},
        )

    return [
        ours("embeddings", models),
        infinity(INFINITY),
        infinity(INFINITY_BF16, "--dtype", "bfloat16"),
        Peer(
            name=LITSERVE,
            kind="embeddings",
            version=version_of("litserve", "litserve"),
            environment="litserve",
            command=lambda port: [
                str(python_of("litserve")),
                str(PINS / "litserve_embeddings.py"),
                str(models.embeddings),
                str(port),
            ],
            model="minilm",
            path="/v1/embeddings",
            env=lambda port: OFFLINE,
        ),
    ]
