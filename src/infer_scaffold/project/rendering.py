"""Renderings of one version of the template for many projects: compiled once, nothing written.

copier compiles every file anew for each project, a quarter of a second; a fleet has hundreds of
projects, and versions that have most of their files in common. A test holds the result to copier's
own.
"""

from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from types import CodeType
from typing import Any

import yaml
from jinja2 import FileSystemLoader, StrictUndefined, Template
from jinja2.sandbox import SandboxedEnvironment
from pathspec import GitIgnoreSpec

from infer_scaffold.project.questions import Answers

_SUFFIX = ".jinja"

_compiled: dict[tuple[str, str], CodeType] = {}
"""By the options of Jinja and the text. Jinja's own caches know a text by its file's path."""


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
        self._spec = lru_cache(GitIgnoreSpec.from_lines)

    def render(self, answers: Answers) -> dict[str, bytes]:
        """Return the files that the template manages, by path: not those written only once."""
        context = self._complete(answers)
        # As a new project: the re-exports of older ones do not count as edits.
        patterns = (each.render(context, _copier_operation="copy") for each in self._excluded)
        excluded = self._spec(tuple("\n".join(patterns).splitlines()))
        theirs = self._spec(tuple(self._config.get("_skip_if_exists", ())))
        files = {}
        for path, source in self._files:
            target = path.render(context)
            if excluded.match_file(target) or theirs.match_file(target):
                continue
            if isinstance(source, bytes):
                files[target] = source
            else:
                files[target] = source.render(context).encode()
        return files

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
    def _files(self) -> list[tuple[Template, bytes | Template]]:
        """The path of each file in a project, and its content, or what that is rendered from."""
        found: list[tuple[Template, bytes | Template]] = []
        for file in sorted(path for path in self._folder.rglob("*") if path.is_file()):
            name = file.relative_to(self._folder).as_posix()
            if "_copier_conf" in name or "{% yield" in name:
                continue  # the answers file, which is the project's own, and the re-exports
            target = str(PurePosixPath(name.removesuffix(_SUFFIX)))
            content: bytes | Template = file.read_bytes()
            if name.endswith(_SUFFIX):
                content = self._template(file.read_text(encoding="utf-8"))
            found.append((self._template(target), content))
        return found

    def _template(self, text: str) -> Template:
        key = self._options, text
        if key not in _compiled:
            _compiled[key] = self._environment.compile(text)
        globals_ = self._environment.make_globals(None)
        return Template.from_code(self._environment, _compiled[key], globals_)
