"""Rules for the grouping of routes, health endpoints, and the list of models."""

import ast
import re

from infer_scaffold.check.judgement import Finding, Profile, Verdict
from infer_scaffold.check.rules._finding import at
from infer_scaffold.check.service import Route, Service

_HEALTH = re.compile(r"/(health|healthz|health_check|healthcheck|livez|status|ping)/?$")
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
    included = any(
        isinstance(call.func, ast.Attribute) and call.func.attr == "include_router"
        for _, call in service.calls
    )
    direct = [route for route in service.routes if route.on_application]
    if included and len(direct) <= len(service.routes) / 2:
        return Verdict.PASS, []
    route = (direct or service.routes)[0]
    message = f"{len(direct)} routes are declared on the application itself."
    fix = "Group related endpoints in modules with an APIRouter, and include those."
    findings = [at(route.function.module, route.function.node, message, fix)]
    return (Verdict.PARTIAL if included else Verdict.FAIL), findings


def health(service: Service, profile: Profile) -> tuple[Verdict, list[Finding]]:
    """IS701: health says device, models, time and process."""
    if not service.routes:
        return Verdict.NA, []
    found = [
        route for route in service.routes if "GET" in route.methods and _HEALTH.search(route.path)
    ]
    if not found:
        route = service.routes[0]
        fix = "Add GET /health with the device, the loaded models, a timestamp and the process id."
        message = "There is no health endpoint."
        return Verdict.FAIL, [at(route.function.module, route.function.node, message, fix)]
    said = " ".join(_said(service, route) for route in found).lower()
    missing = [fact for fact, pattern in _FACTS.items() if not pattern.search(said)]
    if not missing:
        return Verdict.PASS, []
    function = found[0].function
    message = f"Health does not say {', '.join(missing)}."
    fix = "Add it: it is what people ask first when something is wrong."
    return Verdict.PARTIAL, [at(function.module, function.node, message, fix)]


def _said(service: Service, route: Route) -> str:
    """The source of a route's answer: its body, what it calls, and the models that it returns."""
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
        route = service.routes[0]
        fix = "Add GET /v1/models with id, created and owned_by of each model."
        message = "There is no list of models."
        return Verdict.FAIL, [at(route.function.module, route.function.node, message, fix)]
    said = " ".join(_said(service, route) for route in found)
    if re.search(r"\bdata\b|list|List", said):
        return Verdict.PASS, []
    function = found[0].function
    message = "The answer is not OpenAI's list: an object with `data`."
    fix = "Return {'object': 'list', 'data': [...]}."
    return Verdict.PARTIAL, [at(function.module, function.node, message, fix)]
