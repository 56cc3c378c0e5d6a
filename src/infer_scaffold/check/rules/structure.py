"""Rules for the grouping of routes, health endpoints, and the list of models."""

import ast
import re

from infer_scaffold.check.judgement import Finding, Profile, Verdict
from infer_scaffold.check.objects import last
from infer_scaffold.check.rules._finding import at
from infer_scaffold.check.service import Route, Service

_HEALTH = re.compile(
    r"/(health|healthz|health_check|healthcheck|livez|readyz|status|ping)/?$"
    r"|/health/(live|liveness|ready|readiness|check|status)/?$"
)
_FACTS = {
    "the device": re.compile(r"device|cuda|gpu"),
    "the loaded models": re.compile(r"model"),
    "a timestamp": re.compile(r"time|created|now|uptime"),
    "the process id": re.compile(r"\bpid\b|getpid"),
}


def routers(service: Service, profile: Profile) -> tuple[Verdict, list[Finding]]:
    """IS601: endpoints are grouped in routers."""
    if not service.routes:
        return Verdict.NA, []
    included = any(last(call.func) == "include_router" for _, call in service.calls)
    direct = [route for route in service.routes if route.on_application]
    if included and len(direct) <= len(service.routes) / 2:
        return Verdict.PASS, []
    message = f"{len(direct)} routes are declared on the application itself."
    fix = "Group related endpoints in modules with an APIRouter, and include those."
    if not direct:
        message = "No router is included in an application."
    findings = [at(*service.anchor, message, fix)]
    return (Verdict.PARTIAL if included else Verdict.FAIL), findings


def health(service: Service, profile: Profile) -> tuple[Verdict, list[Finding]]:
    """IS701: health says device, models, time and process."""
    if not service.routes:
        return Verdict.NA, []
    found = [
        route for route in service.routes if "GET" in route.methods and _HEALTH.search(route.path)
    ]
    if not found:
        fix = "Add GET /health with the device, the loaded models, a timestamp and the process id."
        return Verdict.FAIL, [at(*service.anchor, "There is no health endpoint.", fix)]
    known = [route for route in found if route.function is not None]
    said = " ".join(_said(service, route) for route in known).lower()
    missing = [fact for fact, pattern in _FACTS.items() if not pattern.search(said)]
    if not missing or len(known) < len(found):
        return Verdict.PASS, []
    message = f"Health does not say {', '.join(missing)}."
    fix = "Add it: it is what people ask first when something is wrong."
    return Verdict.PARTIAL, [at(*found[0].place, message, fix)]


def _said(service: Service, route: Route) -> str:
    """The source of a route's answer: its body, what it calls, and the models that it returns."""
    if route.function is None:
        return ""
    texts = []
    for function in service.reached(route.function):
        texts += [ast.unparse(each) for each in function.node.body]
        module = function.module
        names = {
            service.source.canonical(module, node)
            for node in ast.walk(function.node)
            if isinstance(node, ast.Name | ast.Attribute)
        }
        texts += [
            ast.unparse(service.source.classes[name][1]) for name in names if service.is_model(name)
        ]
    return " ".join(texts)


def models_list(service: Service, profile: Profile) -> tuple[Verdict, list[Finding]]:
    """IS702: GET /v1/models lists the models in OpenAI's form."""
    if not service.routes:
        return Verdict.NA, []
    found = [
        route
        for route in service.routes
        if "GET" in route.methods and re.search(r"(^|/)models/?$", route.path)
    ]
    if not found:
        if all(_HEALTH.search(route.path) for route in service.routes):
            return Verdict.NA, []
        fix = "Add GET /v1/models with id, created and owned_by of each model."
        return Verdict.FAIL, [at(*service.anchor, "There is no list of models.", fix)]
    known = [route for route in found if route.function is not None]
    said = " ".join(_said(service, route) for route in known)
    if re.search(r"\bdata\b|list|List", said) or len(known) < len(found):
        return Verdict.PASS, []
    message = "The answer is not OpenAI's list: an object with `data`."
    fix = "Return {'object': 'list', 'data': [...]}."
    return Verdict.PARTIAL, [at(*found[0].place, message, fix)]
