"""Fixtures that several test modules share."""

import gc
import hashlib
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from jinja2.sandbox import SandboxedEnvironment

from infer_scaffold.cli import main
from infer_scaffold.project import generate, history, template
from infer_scaffold.project.questions import Answers
from tests.server import Server

# Before torch reads it, here and in the processes that tests start. Models as small as those of the
# tests gain nothing from more threads, which wait for each other and for those of other workers.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@dataclass(frozen=True)
class Outcome:
    """The exit code and output of a run of the command line."""

    code: object
    out: str
    err: str


Run = Callable[..., Outcome]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that take minutes, so that all cores have work to the end."""
    items.sort(key=lambda item: "test_generated_tests" not in item.nodeid)


@pytest.fixture(scope="module", autouse=True)
def _libraries_are_not_searched() -> None:
    """Exempt what is imported by now from garbage collection, a fifth of some tests' time."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _renderings_are_quick() -> Iterator[None]:
    """Let all renderings in this process share what takes most of their time.

    The code that Jinja compiles follows from the text, its name, the syntax, which is the lexer's,
    and the extensions; the fingerprint of the template follows from files that no test changes.
    """
    root, fingerprint = template.root(), history.fingerprint
    fingerprint_of_root = cache(partial(fingerprint, root))
    compile_ = SandboxedEnvironment.compile
    compiled: dict[object, Any] = {}

    def compile_once(
        environment: SandboxedEnvironment, source: Any, name: str | None = None, *more: Any
    ) -> Any:
        # Extensions begin anew with each text: copier's tag `yield` may come once in each.
        text = environment.preprocess(source, name)
        known = (text, name, more[1:], environment.lexer, *environment.extensions)
        if known not in compiled:
            compiled[known] = compile_(environment, text, name, *more)
        return compiled[known]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(SandboxedEnvironment, "compile", compile_once)
        patched.setattr(
            history,
            "fingerprint",
            lambda source: fingerprint_of_root() if source == root else fingerprint(source),
        )
        yield


@pytest.fixture(autouse=True)
def _no_personal_git(monkeypatch: pytest.MonkeyPatch) -> None:
    """Isolate the tests from the git settings and the repository of the user."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.delenv(f"GIT_{role}_NAME", raising=False)
        monkeypatch.delenv(f"GIT_{role}_EMAIL", raising=False)


@pytest.fixture(autouse=True)
def _no_personal_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keep the verdicts of services that the tests judge apart from those of the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run the command line in this process, which saves the import of copier."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["infer-scaffold", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        return Outcome(stopped.value.code or 0, *capsys.readouterr())

    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of a run have in common."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


def made_once(shared: Path, what: object, make: Callable[[Path], object]) -> Path:
    """The folder that `make` fills, which the first one who asks for it does for all workers.

    It is to be copied: a change would be one for all tests.
    """
    folder = shared / hashlib.sha256(repr(what).encode()).hexdigest()
    if not folder.exists():
        begun = Path(tempfile.mkdtemp(dir=shared)) / "made"
        make(begun)
        with suppress(OSError):  # Another worker was faster.
            begun.rename(folder)
    return folder


CopyRendering = Callable[[Answers, Path], None]


@pytest.fixture(scope="session")
def copy_rendering(shared: Path) -> CopyRendering:
    """Render a project for a test of something else: a copy of the first one of these answers."""

    def copy_rendering(answers: Answers, destination: Path) -> None:
        what = ("project", sorted(answers.items()))
        kept = made_once(shared, what, partial(generate.render, answers))
        shutil.copytree(kept, destination, dirs_exist_ok=True)

    return copy_rendering


Boot = Callable[..., Server]


def builders(name: str) -> ModuleType:
    """A module of the template's own tests that builds models; it is the same in every project."""
    path = template.root() / "template" / "tests" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of models, by the setting that names them."""
    folder = tmp_path_factory.mktemp("models")
    chat, embeddings = builders("tiny_chat"), builders("tiny_embeddings")
    return {
        "chat_model": chat.build_chat_model(folder / "tiny-chat"),
        "embeddings_model": embeddings.build_embeddings_model(folder / "tiny-embeddings"),
    }


@pytest.fixture
def boot(
    tiny_models: dict[str, Path], tmp_path: Path, copy_rendering: CopyRendering
) -> Iterator[Boot]:
    """Render a project of the given answers and start it on the tiny models."""
    with ExitStack() as servers:
        yield partial(start, servers, tmp_path, tiny_models, copy_rendering, fresh=False)


@pytest.fixture
def fresh_boot(
    tiny_models: dict[str, Path], tmp_path: Path, copy_rendering: CopyRendering
) -> Iterator[Boot]:
    """The same by a Python that has imported nothing yet: it tells what the service imports."""
    with ExitStack() as servers:
        yield partial(start, servers, tmp_path, tiny_models, copy_rendering, fresh=True)


def start(
    servers: ExitStack,
    folder: Path,
    tiny_models: dict[str, Path],
    copy_rendering: CopyRendering,
    answers: dict[str, Any],
    change: Callable[[Path], None] | None = None,
    *,
    fresh: bool,
    **settings: Any,
) -> Server:
    project = folder / "server"
    copy_rendering({"project_name": "tiny-server", **answers}, project)
    if change is not None:
        change(project / "src" / "tiny_server")
    settings = {
        "device": "cpu",
        "dtype": "float32",
        "kv_cache_tokens": 4096,
        "files_url": (folder / "files").as_uri(),
        **tiny_models,
        **settings,
    }
    return servers.enter_context(Server(project, fresh=fresh, **settings))
