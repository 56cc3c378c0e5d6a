"""The state of a fleet as text, JSON, or a page that a team can publish."""

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from jinja2 import Environment
from packaging.version import Version

from infer_scaffold.fixes import Fix
from infer_scaffold.fleet import Service

_PAGE = Path(__file__).with_name("status.html.jinja")


def to_text(services: Sequence[Service], newest: Version) -> str:
    """Return a table with one row a service; colours are for a terminal."""
    rows: list[tuple[str, ...]] = [("service", "version", "behind", "High", "edited", "failing")]
    for service in services:
        if service.error:
            rows.append((service.name, "-", "-", "-", "-", service.error))
        else:
            edited = len(service.edited) + len(service.deleted)
            counts = (service.behind, len(service.severe), edited)
            failing = ", ".join(pattern.code for pattern in service.failing) or "-"
            rows.append((service.name, str(service.version), *map(str, counts), failing))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    styled = [typer.style(lines[0], bold=True)]
    for service, line in zip(services, lines[1:], strict=True):
        colour = "red" if service.needs_attention else "yellow" if service.behind else "green"
        styled.append(typer.style(line, fg=colour))
    return "\n".join([*styled, "", summary(services, newest)])


def summary(services: Sequence[Service], newest: Version) -> str:
    """Say in one line how the fleet stands."""
    behind = sum(bool(service.behind) for service in services)
    severe = sum(bool(service.severe) for service in services)
    unknown = sum(bool(service.error) for service in services)
    parts = [
        f"{len(services)} service{'s' if len(services) != 1 else ''}",
        f"{behind} behind {newest}",
        f"{severe} without fixes of High severity",
    ]
    if unknown:
        parts.append(f"{unknown} that cannot be read")
    return ", ".join(parts) + "."


def to_json(services: Sequence[Service], newest: Version) -> str:
    """Return a document with the newest version and one object a service."""
    document = {"newest": str(newest), "services": [_as_data(service) for service in services]}
    return json.dumps(document, indent=2, ensure_ascii=False)


def to_html(services: Sequence[Service], newest: Version, today: datetime.date) -> str:
    """Return one page that needs nothing besides itself."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(_PAGE.read_text(encoding="utf-8"))
    return page.render(
        services=services, newest=newest, today=today, summary=summary(services, newest)
    )


def _as_data(service: Service) -> dict[str, Any]:
    return {
        "path": str(service.path),
        "name": service.name,
        "version": str(service.version) if service.version else None,
        "behind": service.behind,
        "missing": [_fix_as_data(fix) for fix in service.missing],
        "edited": service.edited,
        "deleted": service.deleted,
        "failing": [pattern.code for pattern in service.failing],
        "error": service.error or None,
    }


def _fix_as_data(fix: Fix) -> dict[str, str]:
    return {
        "version": str(fix.version),
        "pattern": fix.pattern.code,
        "severity": str(fix.severity),
        "title": fix.title,
        "action": fix.action,
    }
