"""The state of a fleet as text, JSON, or a page that a team can publish."""

import datetime
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from jinja2 import Environment
from packaging.version import Version

from infer_scaffold.fleet.fixes import Fix
from infer_scaffold.fleet.survey import Service
from infer_scaffold.visible import shortened, visible

_NAME, _NOTE = 40, 70  # characters of a column, at most
_CODES = 4  # patterns that a row names
_PAGE = Path(__file__).with_name("status.html.jinja")


def to_text(services: Sequence[Service], newest: Version) -> str:
    """Return a table with one row a service; colours are for a terminal."""
    rows: list[tuple[str, ...]] = [
        ("service", "version", "behind", "High", "edited", "core", "failing", "note")
    ]
    names = _labels(services)
    rows += [_row(service, name) for service, name in zip(services, names, strict=True)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    styled = [typer.style(lines[0], bold=True)]
    for service, line in zip(services, lines[1:], strict=True):
        colour = "red" if service.needs_attention else "yellow" if service.is_late else "green"
        styled.append(typer.style(line, fg=colour))
    return "\n".join([*styled, "", summary(services, newest)])


def _labels(services: Sequence[Service]) -> list[str]:
    """The names, and the paths of those that share one: of a long path, its end."""
    names = Counter(service.name for service in services)
    labels = []
    for service in services:
        if names[service.name] == 1:
            labels.append(shortened(service.name, _NAME))
        else:
            path = visible(str(service.path))
            labels.append(path if len(path) <= _NAME else f"...{path[3 - _NAME :]}")
    return labels


def _row(service: Service, name: str) -> tuple[str, ...]:
    codes = [pattern.code for pattern in service.failing]
    more = f" and {len(codes) - _CODES} more" if len(codes) > _CODES else ""
    failing = f"{', '.join(codes[:_CODES])}{more}" or "-"
    note = shortened(notes(service), _NOTE)
    if service.version is None:
        return name, "-", "-", "-", "-", "-", failing, note
    edited = len(service.edited) + len(service.deleted)
    counts = (service.behind, len(service.severe), edited)
    return name, version_text(service), *map(str, counts), core_text(service), failing, note


def version_text(service: Service) -> str:
    """Return the version that the files have, and the one that is claimed where it differs."""
    claimed = f" (claims {service.claimed})" if service.claimed != service.version else ""
    return f"{service.version}{claimed}"


def core_text(service: Service) -> str:
    """Say whether the folder that is the template's alone is as the template has it."""
    if service.core is None:
        return "-"
    edited = len(service.core)
    return f"{edited} file{'s' if edited != 1 else ''} edited" if edited else "untouched"


def notes(service: Service) -> str:
    """Return the note of a row, errors first."""
    older = len(service.older)
    found = [
        service.error,
        f"of the template {service.template}" if service.template else "",
        f"{older} file{'s' if older != 1 else ''} as before {service.version}" if older else "",
        f"its package is in {service.package or '.'}" if service.is_moved else "",
    ]
    return "; ".join(filter(None, found))


def summary(services: Sequence[Service], newest: Version) -> str:
    """Return a summary of the fleet in one line."""
    behind = sum(bool(service.behind) for service in services)
    severe = sum(bool(service.severe) for service in services)
    unknown = sum(bool(service.error) for service in services)
    foreign = sum(bool(service.template) for service in services)
    parts = [
        f"{len(services)} service{'s' if len(services) != 1 else ''}",
        f"{behind} behind {newest}",
        f"{severe} without fixes of High severity",
    ]
    if foreign:
        parts.append(f"{foreign} of another template")
    if unknown:
        parts.append(f"{unknown} that cannot be read")
    return ", ".join(parts) + "."


def to_json(services: Sequence[Service], newest: Version) -> str:
    """Return a document with the newest version and one object a service."""
    document = {"newest": str(newest), "services": [_as_data(service) for service in services]}
    return json.dumps(document, indent=2)


def to_html(services: Sequence[Service], newest: Version, today: datetime.date) -> str:
    """Return one page that needs nothing besides itself."""
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_finalize
    )
    page = environment.from_string(_PAGE.read_text(encoding="utf-8"))
    return page.render(
        services=zip(services, _labels(services), strict=True),
        notes=notes,
        version_text=version_text,
        core_text=core_text,
        today=today,
        summary=summary(services, newest),
    )


def _finalize(value: object) -> object:
    return visible(value) if isinstance(value, str) else value


def _as_data(service: Service) -> dict[str, Any]:
    return {
        "path": str(service.path),
        "name": service.name,
        "version": str(service.version) if service.version else None,
        "claims": str(service.claimed) if service.claimed else None,
        "template": service.template or None,
        "package": service.package if service.is_moved else None,
        "behind": service.behind,
        "missing": [_fix_as_data(fix) for fix in service.missing],
        "edited": service.edited,
        "deleted": service.deleted,
        "core": None if service.core is None else _core_as_data(service.core),
        "older": service.older,
        "failing": [pattern.code for pattern in service.failing],
        "error": service.error or None,
    }


def _core_as_data(edited: list[str]) -> dict[str, Any]:
    return {"untouched": not edited, "edited": edited}


def _fix_as_data(fix: Fix) -> dict[str, str]:
    return {
        "version": str(fix.version),
        "pattern": fix.pattern.code,
        "severity": str(fix.severity),
        "title": fix.title,
        "action": fix.action,
    }
