"""The models that a setting lists: one source, or several as `name=source,name=source`."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .model import ModelSpec
from .model_errors import ConfigurationError

LOCAL = ("/", "./", "../", "~")
"""Beginnings of a path, which no hub id has"""

NAME = re.compile(r"[a-z0-9][\w.:@+-]*(/[a-z0-9][\w.:@+-]*)*", re.ASCII | re.IGNORECASE)
"""A name for clients, which fits into the URL of a model"""


@dataclass(frozen=True)
class ListedModel:
    """An entry of a setting such as INFER_CHAT_MODEL."""

    id: str
    """The name that clients use"""
    source: str
    """Hub id or local folder"""
    aliases: tuple[str, ...] = ()
    """Other names for clients: the source, if the entry gives no name"""
    revision: str = ""
    """Commit, tag or branch on the hub; empty for the newest"""


def listed_models(setting: str, listed: str, revisions: str) -> list[ListedModel]:
    """The models that a setting lists, none if it is empty.

    setting: its name. listed: its value. revisions: the value of its `…_REVISION`.

    Raises ConfigurationError.
    """
    models = [read_entry(setting, entry) for entry in split_entries(listed)]
    pinned = read_revisions(f"{setting}_REVISION", revisions, [model.id for model in models])
    return [replace(model, revision=pinned.get(model.id, "")) for model in models]


def named_sources(setting: str, listed: str) -> dict[str, str]:
    """The sources of `name=source,…`, by name. Raises ConfigurationError.

    setting: its name. listed: its value.
    """
    sources: dict[str, str] = {}
    for entry in split_entries(listed):
        model = read_entry(setting, entry)
        if model.aliases:
            raise ConfigurationError(f"{setting}: {entry!r} has no name; write name=source")
        if model.id in sources:
            raise ConfigurationError(f"{setting}: {model.id!r} is there twice")
        sources[model.id] = model.source
    return sources


def split_entries(listed: str) -> list[str]:
    """The entries of a list. A path that exists is one entry, with the commas that are in it."""
    if not listed or is_path(listed) or is_path(listed.partition("=")[2]):
        return [listed] if listed else []
    return [entry.strip() for entry in listed.split(",")]


def read_entry(setting: str, entry: str) -> ListedModel:
    """The model of `source` or `name=source`. Raises ConfigurationError."""
    name, sign, source = (part.strip() for part in entry.partition("="))
    if not sign or entry.startswith(LOCAL) or is_path(entry):
        if name := served_id(entry) if entry else "":
            return ListedModel(name, entry, (entry,))
        raise ConfigurationError(
            f"{setting}: {entry!r} is no model; write source or name=source, separated by commas"
        )
    if not source:
        raise ConfigurationError(f"{setting}: {entry!r} has no source after the =")
    if not NAME.fullmatch(name):
        raise ConfigurationError(
            f"{setting}: {name!r} cannot be the name of a model; it may have letters and digits, "
            "and after the first one . _ : @ + - /"
        )
    return ListedModel(name, source)


def read_revisions(setting: str, given: str, names: Sequence[str]) -> dict[str, str]:
    """Revisions by the names of their models, from `name=revision,…`, or from one alone if there is
    one model. Raises ConfigurationError.
    """
    if given and "=" not in given and len(names) == 1:
        return {names[0]: given}
    pinned: dict[str, str] = {}
    for entry in given.split(",") if given else []:
        name, _, revision = (part.strip() for part in entry.partition("="))
        if not revision:
            wrong = f"{entry.strip()!r} is not name=revision"
        elif name not in names:
            wrong = f"there is no model {name!r}"
        elif name in pinned:
            wrong = f"{name!r} is there twice"
        else:
            pinned[name] = revision
            continue
        raise ConfigurationError(f"{setting}: {wrong}; models are: {', '.join(names) or 'none'}")
    return pinned


def served_id(source: str) -> str:
    """The name that clients use: the hub id, or the last part of a local folder's path."""
    is_local = is_path(source) or source.startswith(LOCAL)
    return expanded(source).resolve().name if is_local else source


def expanded(source: str) -> Path:
    # Path.expanduser raises for a user who does not exist.
    return Path(os.path.expanduser(source))


def is_path(source: str) -> bool:
    # Path.exists raises for names that are too long, as a list may be.
    return os.path.exists(expanded(source)) if source else False


def check_names(specs: Iterable[ModelSpec]) -> None:
    """Raises ConfigurationError when two models would go by one name."""
    taken: set[str] = set()
    for spec in specs:
        names = {spec.id, *spec.aliases}
        twice = sorted((names & taken) | (set(spec.variants) & (names | taken)))
        if twice:
            raise ConfigurationError(
                f"Two models are called {twice[0]!r}. Give one of them another name; a setting that "
                "lists models takes name=source."
            )
        taken |= names | set(spec.variants)
