"""One function for each pattern: a service in, a verdict and its findings out."""

from collections.abc import Callable

from infer_scaffold.check.judgement import Finding, Profile, Verdict
from infer_scaffold.check.rules import (
    event_loop,
    handlers,
    lifecycle,
    openai,
    streaming,
    structure,
    uploads,
)
from infer_scaffold.check.service import Service

Rule = Callable[[Service, Profile], tuple[Verdict, list[Finding]]]

RULES: dict[str, Rule] = {
    "IS101": lifecycle.lifespan,
    "IS102": lifecycle.background_tasks,
    "IS201": event_loop.async_routes,
    "IS202": handlers.pydantic_models,
    "IS203": handlers.status_codes,
    "IS301": streaming.headers,
    "IS302": streaming.framing,
    "IS303": streaming.event_loop_yield,
    "IS401": uploads.size_limit,
    "IS402": uploads.form_parameters,
    "IS501": openai.response_schema,
    "IS502": openai.sdk_types,
    "IS601": structure.routers,
    "IS701": structure.health,
    "IS702": structure.models_list,
}
