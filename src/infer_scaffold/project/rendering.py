"""Renderings of one version of the template for many projects: compiled once, nothing written.

copier compiles every file anew for each project, a quarter of a second; a fleet has hundreds of
projects. A test holds the result to copier's own.
"""

from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from jinja2 import FileSystemLoader, StrictUndefined, Template
from jinja2.sandbox import SandboxedEnvironment
from pathspec import GitIgnoreSpec

from infer_scaffold.project.questions import Answers

_SUFFIX = ".jinja"


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
        self._spec = lru_cache(GitIgnoreSpec.from_lines)

    def render(self, answers: Answers) -> dict[str, bytes]:
        """Return the files that the template manages, by path: not those written only once."""
        context = self._complete(answers)
        # As a new project: the re-exports of older ones do not count as edits.
        patterns = (each.render(context, _copier_operation="copy") for each in self._excluded)
        excluded = self._spec(tuple("\n".join(patterns).splitlines()))
        theirs = self._spec(tuple(self._config.get("_skip_if_exists", ())))
        files = {}
        for name, path, source in self._files:
            target = path.render(context)
            if excluded.match_file(target) or theirs.match_file(target):
                continue
            if isinstance(source, bytes):
                files[target] = source
            else:
                files[target] = self._environment.get_template(name).render(context).encode()
        return files

    def _complete(self, answers: Answers) -> dict[str, Any]:
        """Add the defaults of what was not asked to the answers."""
        context = dict(answers)
        for name, question in self._config.items():
            if name.startswith("_") or name in context:
                continue
            default = question.get("default")
            if isinstance(default, str):
                default = self._environment.from_string(default).render(context)
            context[name] = default
        return context

    @cached_property
    def _excluded(self) -> list[Template]:
        return [self._environment.from_string(pattern) for pattern in self._config["_exclude"]]

    @cached_property
    def _files(self) -> list[tuple[str, Template, bytes | None]]:
        """The template's files: name, path in a project, content if it is copied as it is."""
        found: list[tuple[str, Template, bytes | None]] = []
        for file in sorted(path for path in self._folder.rglob("*") if path.is_file()):
            name = file.relative_to(self._folder).as_posix()
            if "_copier_conf" in name or "{% yield" in name:
                continue  # the answers file, which is the project's own, and the re-exports
            target = str(PurePosixPath(name.removesuffix(_SUFFIX)))
            content = None if name.endswith(_SUFFIX) else file.read_bytes()
            found.append((name, self._environment.from_string(target), content))
        return found
