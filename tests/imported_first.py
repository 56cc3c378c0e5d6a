"""Imports what a service imports. For a process that forks services, which have it all then."""

import importlib
import os

MODULES = (
    *("fastapi.openapi.docs", "openai.types.responses", "prometheus_client", "pydantic_settings"),
    *("uvicorn.protocols.http.httptools_impl", "llguidance", "torch"),
    *("transformers.models.bert.modeling_bert", "transformers.models.llama.modeling_llama"),
)

# As a service of the tests has them, before the libraries read them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

for name in MODULES:
    importlib.import_module(name)
