"""Renderings of one version of the template for many projects: compiled once, nothing written.

copier compiles every file anew for each project, a quarter of a second; a fleet has hundreds of
projects, and versions that have most of their files in common. A test holds the result to copier's
own.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import CodeType
from typing import Any

import yaml
from jinja2 import FileSystemLoader, StrictUndefined, Template
from jinja2.sandbox import SandboxedEnvironment
from pathspec import GitIgnoreSpec

from infer_scaffold.project.questions import Answers

_SUFFIX = ".jinja"
_ANY_NAME = "any_name"

_compiled: dict[tuple[str, str], CodeType] = {}
"""By the options of Jinja and the text. Jinja's own caches know a text by its file's path."""


@dataclass
class _Chosen:
    """The files for some answers: their paths, a line each, and what they are rendered from."""

    paths: Template
    sources: list[bytes | Template]


class Renderer:
    """The template in a folder, as copier.yml and the files describe it."""

    def __init__(self, root: Path) -> None:
        self._config = yaml.safe_load((root / "copier.yml").read_text(encoding="utf-8"))
        self._folder = root / self._config["_subdirectory"]
        options = self._config["_envops"] | {"undefined": StrictUndefined}
        self._environment = SandboxedEnvironment(
            loader=FileSystemLoader([self._folder, root]),
            extensions=["jinja2_ansible_filters.AnsibleCoreFiltersExtension"],
            **options,
        )
        self._options = repr(sorted(self._config["_envops"].items()))
        self._choices: dict[str, _Chosen] = {}

    def render(self, answers: Answers) -> dict[str, bytes]:
        """Return the files that the template manages, by path: not those written only once."""
        context = self._complete(answers)
        chosen = self._chosen(context)
        paths = chosen.paths.render(context).split("\n")
        return {
            path: source if isinstance(source, bytes) else source.render(context).encode()
            for path, source in zip(paths, chosen.sources, strict=True)
        }

    def _chosen(self, context: Answers) -> "_Chosen":
        """Return the files for some answers. The names of a project have no part in the choice.

        So that one choice serves a fleet: most of the patterns hold the name of the package, and
        there are a hundred of them.
        """
        named = {**context, "project_name": _ANY_NAME, "package_name": _ANY_NAME}
        # As a new project: the re-exports of older ones do not count as edits.
        patterns = (each.render(named, _copier_operation="copy") for each in self._excluded)
        lines = "\n".join(patterns)
        if lines not in self._choices:
            excluded = GitIgnoreSpec.from_lines(lines.splitlines())
            theirs = GitIgnoreSpec.from_lines(self._config.get("_skip_if_exists", ()))
            paths, sources = [], []
            for path, source in self._files:
                target = self._template(path).render(named)
                if not excluded.match_file(target) and not theirs.match_file(target):
                    paths.append(path)
                    sources.append(source)
            self._choices[lines] = _Chosen(self._template("\n".join(paths)), sources)
        return self._choices[lines]

    def _complete(self, answers: Answers) -> dict[str, Any]:
        """Add the defaults of what was not asked to the answers."""
        context = dict(answers)
        for name, question in self._config.items():
            if name.startswith("_") or name in context:
                continue
            default = question.get("default")
            if isinstance(default, str):
                default = self._template(default).render(context)
            context[name] = default
        return context

    @cached_property
    def _excluded(self) -> list[Template]:
        return [self._template(pattern) for pattern in self._config["_exclude"]]

    @cached_property
    def _files(self) -> list[tuple[str, bytes | Template]]:
        """The path of each file as the template has it, and its content, or what renders that."""
        found: list[tuple[str, bytes | Template]] = []
        for file in sorted(path for path in self._folder.rglob("*") if path.is_file()):
            name = file.relative_to(self._folder).as_posix()
            if "_copier_conf" in name or "{% yield" in name:
                continue  # the answers file, which is the project's own, and the re-exports
            target = str(PurePosixPath(name.removesuffix(_SUFFIX)))
            content: bytes | Template = file.read_bytes()
            if name.endswith(_SUFFIX):
                content = self._template(file.read_text(encoding="utf-8"))
            found.append((target, content))
        return found

    def _template(self, text: str) -> Template:
        key = self._options, text
        if key not in _compiled:
            _compiled[key] = self._environment.compile(text)
        globals_ = self._environment.make_globals(None)
        return Template.from_code(self._environment, _compiled[key], globals_)
