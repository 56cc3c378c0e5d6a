"""Making a project: all of it or nothing, with a history, and nothing of this machine in it."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

from infer_scaffold import git
from infer_scaffold.errors import UserError
from infer_scaffold.project import generate, history, questions, template
from infer_scaffold.project.questions import Answers

QUESTIONS = questions.load(template.root())
MINIMAL = questions.preset_answers("minimal")


def new(path: Path, answers: Answers = MINIMAL, *, repository: bool = True) -> generate.Project:
    return generate.new(path, QUESTIONS, answers, repository=repository)


def git_out(folder: Path, *arguments: str) -> str:
    """The output of git in `folder`, without its last line break."""
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def everything(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_the_first_commit_on_main_is_the_whole_project(tmp_path: Path) -> None:
    project = new(tmp_path / "server")

    assert project.committed
    assert git_out(project.path, "symbolic-ref", "--short", "HEAD") == "main"
    assert git_out(project.path, "log", "--format=%s") == "Generate server"
    assert git_out(project.path, "status", "--porcelain", "--ignored") == ""
    assert sorted(git_out(project.path, "ls-files").splitlines()) == project.files
    assert generate.list_files(project.path) == project.files


def test_without_a_git_identity_one_is_lent(tmp_path: Path) -> None:
    project = new(tmp_path / "server")

    author = "infer-scaffold <infer-scaffold@localhost>"
    assert git_out(project.path, "log", "--format=%an <%ae>") == author
    assert "user" not in (project.path / ".git" / "config").read_text()


def test_a_git_identity_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "gitconfig"
    config.write_text("[user]\nname = Ada\nemail = ada@example.org\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))

    project = new(tmp_path / "server")

    assert git_out(project.path, "log", "--format=%an <%ae>") == "Ada <ada@example.org>"


def test_a_machine_s_git_settings_do_not_get_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = tmp_path / "template" / "hooks"
    hooks.mkdir(parents=True)
    for name in ("pre-commit", "prepare-commit-msg"):
        (hooks / name).write_text("#!/bin/sh\nexit 1\n")
        (hooks / name).chmod(0o755)
    (tmp_path / "ignore").write_text("*.toml\n")
    config = tmp_path / "gitconfig"
    config.write_text(
        "[commit]\ngpgSign = true\n[gpg]\nprogram = /nowhere\n[init]\ndefaultBranch = trunk\n"
        f"templateDir = {hooks.parent}\n[core]\nhooksPath = {hooks}\n"
        f"excludesFile = {tmp_path}/ignore\nautocrlf = true\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))

    project = new(tmp_path / "server")

    assert git_out(project.path, "symbolic-ref", "--short", "HEAD") == "main"
    assert sorted(git_out(project.path, "ls-files").splitlines()) == project.files


def test_a_surrounding_git_process_does_not_get_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git_out(other, "init", "--quiet")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
    monkeypatch.setenv("GIT_AUTHOR_DATE", "nonsense")

    project = new(tmp_path / "server")

    assert project.committed
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_AUTHOR_DATE"):
        monkeypatch.delenv(name)
    assert git_out(project.path, "log", "--format=%s") == "Generate server"
    assert git_out(other, "rev-list", "--all") == ""


def test_inside_a_work_tree_the_repository_is_left_out(tmp_path: Path) -> None:
    git_out(tmp_path, "init", "--quiet")

    project = new(tmp_path / "services" / "server")

    assert (project.committed, project.work_tree) == (False, tmp_path)
    assert not (project.path / ".git").exists()


def test_an_empty_folder_is_filled_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    inode = folder.stat().st_ino
    monkeypatch.chdir(folder)

    project = new(Path())

    assert project.path == folder
    assert folder.stat().st_ino == inode
    assert generate.list_files(Path.cwd()) == project.files
    assert git_out(folder, "status", "--porcelain") == ""


def test_a_new_folder_has_the_usual_permissions(tmp_path: Path) -> None:
    usual = tmp_path / "usual"
    usual.mkdir()

    assert new(tmp_path / "server").path.stat().st_mode == usual.stat().st_mode


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_failure_leaves_nothing_behind(
    exists: bool, failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a" / "server"
    if exists:
        path.mkdir(parents=True)
    before = everything(tmp_path)

    def fail(folder: Path, message: str) -> None:
        assert any(folder.iterdir())
        raise failure

    monkeypatch.setattr(git, "make_repository", fail)

    expected = UserError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(expected, match=r"No space left|^$"):
        new(path)
    assert everything(tmp_path) == before


def test_a_failure_while_an_empty_folder_is_filled_leaves_it_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def fail_late(self: Path, target: Path) -> Path:
        if self.name == "src":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_late)

    with pytest.raises(UserError, match="Input/output error"):
        generate.new(tmp_path, QUESTIONS, {"project_name": "server"})
    assert everything(tmp_path) == []


def test_when_git_fails_its_reason_is_told_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "gitconfig"
    config.write_text("[broken\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))

    with pytest.raises(UserError, match=r"^git refuses .*gitconfig.*; put that right"):
        new(tmp_path / "server")
    assert everything(tmp_path) == ["gitconfig"]


def test_a_link_to_an_empty_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")

    generate.new(tmp_path / "link", QUESTIONS, MINIMAL)

    assert (tmp_path / "real" / "pyproject.toml").is_file()
    assert (tmp_path / "link").is_symlink()


def test_the_answers_file_holds_the_public_address_and_only_what_was_asked(tmp_path: Path) -> None:
    new(tmp_path / "server")

    answers = yaml.safe_load((tmp_path / "server" / ".copier-answers.yml").read_text())
    assert answers == {
        "_commit": history.tag(history.current()),
        "_src_path": template.ADDRESS,
        "project_name": "server",
        "description": "OpenAI-compatible inference service",
        "endpoints": ["health"],
        "devices": ["cpu", "cuda"],
        "deploy": ["docker", "kubernetes"],
    }


def test_no_file_names_a_path_of_this_machine(tmp_path: Path) -> None:
    project = new(tmp_path / "server", questions.preset_answers("full"), repository=False)

    places = {str(template.root()), str(tmp_path), str(Path.home()) + "/", sys.prefix}
    for file in project.files:
        content = (project.path / file).read_text()
        assert not [place for place in places - {"//"} if place in content], file


def test_copier_s_own_settings_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "settings.yml"
    settings.write_text("defaults: {description: Somebody's default}\n")
    monkeypatch.setenv("COPIER_SETTINGS_PATH", str(settings))

    new(tmp_path / "server")

    answers = (tmp_path / "server" / ".copier-answers.yml").read_text()
    assert "description: OpenAI-compatible inference service\n" in answers


def test_a_description_is_text_and_no_template(tmp_path: Path) -> None:
    description = "{{ project_name }} {% raw %} {# x #} \\n \"quoted\" 'quoted' 🎉 ü"

    new(tmp_path / "server", {**MINIMAL, "description": description})

    answers = yaml.safe_load((tmp_path / "server" / ".copier-answers.yml").read_text())
    assert answers["description"] == description


def test_git_is_not_asked_about_every_file(tmp_path: Path) -> None:
    log = tmp_path / "log"
    fake = tmp_path / "bin" / "git"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexec {shutil.which("git")} "$@"\n')
    fake.chmod(0o755)
    path = f"{fake.parent}{os.pathsep}{os.environ['PATH']}"

    # A process of its own: copier remembers the PATH with which it was imported.
    command = [sys.executable, "-m", "infer_scaffold", "new", "server", "--yes"]
    subprocess.run(command, cwd=tmp_path, env=os.environ | {"PATH": path}, check=True)

    assert len(log.read_text().splitlines()) == 6


class TestCopierItself:
    """Render the template with plain copier, without `--trust`."""

    @pytest.fixture
    def released(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A repository with two releases of the template, at the public address."""
        repository = tmp_path / "repository"
        repository.mkdir()
        for name in ("copier.yml", "reserved.jinja", "moved.jinja"):
            shutil.copy(template.root() / name, repository)
        ignored = shutil.ignore_patterns("__pycache__", ".*_cache")
        shutil.copytree(template.root() / "template", repository / "template", ignore=ignored)
        git.make_repository(repository, "First")
        git_out(repository, "tag", "v0.1.0")
        (repository / "template" / "NEWS.md").write_text("New in this release.\n")
        git_out(repository, "add", "--all")
        who = ("-c", "user.name=x", "-c", "user.email=x@localhost")
        git_out(repository, *who, "commit", "--quiet", "--message=Second")
        git_out(repository, "tag", "v0.2.0")
        public = template.ADDRESS.replace("gh:", "https://github.com/") + ".git"
        monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
        monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.{repository}.insteadOf")
        monkeypatch.setenv("GIT_CONFIG_VALUE_0", public)
        monkeypatch.setenv("COPIER_CACHE_DIR", str(tmp_path / "cache"))
        return repository

    def copier(self, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the copier command; a failure shows what it said."""
        command = [sys.executable, "-m", "copier", *arguments]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        return result

    def test_update_finds_the_next_release(
        self, released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(history, "current", lambda: Version("0.1.0"))
        project = new(tmp_path / "server")
        before = git_out(project.path, "ls-files").splitlines()

        result = self.copier(project.path, "update", "--defaults")

        assert result.returncode == 0, result.stderr
        assert (project.path / "NEWS.md").read_text() == "New in this release.\n"
        answers = yaml.safe_load((project.path / ".copier-answers.yml").read_text())
        assert (answers["_src_path"], answers["_commit"]) == (template.ADDRESS, "v0.2.0")
        status = git_out(project.path, "status", "--porcelain").splitlines()
        assert [line.split()[-1] for line in status] == [".copier-answers.yml", "NEWS.md"]
        assert git_out(project.path, "ls-files").splitlines() == before

    def test_a_copy_of_a_fork_keeps_the_fork_s_address(
        self, released: Path, tmp_path: Path
    ) -> None:
        fork = f"git+file://{released}"
        data = ("--data", "project_name=server", "--data", "endpoints=[health]")

        result = self.copier(tmp_path, "copy", "--defaults", *data, fork, "server")

        assert result.returncode == 0, result.stderr
        answers = yaml.safe_load((tmp_path / "server" / ".copier-answers.yml").read_text())
        assert (answers["_src_path"], answers["_commit"]) == (fork, "v0.2.0")
        assert "package_name" not in answers
        assert "chat_model" not in answers

    def test_the_validators_hold_for_a_plain_folder_as_well(self, tmp_path: Path) -> None:
        for name in ("copier.yml", "reserved.jinja", "moved.jinja"):
            shutil.copy(template.root() / name, tmp_path)
        (tmp_path / "template").mkdir()
        for data, words in {
            "project_name=json": "standard library",
            "package_name=../../x": "cannot be chosen",
        }.items():
            given = ("--data", "project_name=server", "--data", data)
            result = self.copier(tmp_path, "copy", "--defaults", *given, ".", "server")
            assert result.returncode != 0
            assert words in result.stderr
            assert not (tmp_path / "server").exists()


@pytest.mark.parametrize(
    ("devices", "is_cpu_build"),
    [(["cpu"], True), (["cpu", "mps"], True), (["cpu", "cuda"], False), (["mps"], False)],
)
def test_uv_takes_torch_for_the_cpu_where_there_is_no_cuda(
    devices: list[str], is_cpu_build: bool, tmp_path: Path
) -> None:
    generate.render({"project_name": "server", "devices": devices}, tmp_path / "server")

    tools = tomllib.loads((tmp_path / "server" / "pyproject.toml").read_text())["tool"]
    assert ("uv" in tools) is is_cpu_build
    if is_cpu_build:
        [index], [source] = tools["uv"]["index"], tools["uv"]["sources"]["torch"]
        assert source["index"] == index["name"]
        assert index["explicit"]
    readme, operating = (
        (tmp_path / "server" / name).read_text() for name in ("README.md", "docs/operating.md")
    )
    assert "`uv sync`" in readme
    assert ("[[tool.uv.index]]" in operating) is (devices == ["cpu", "cuda"])


PARTS = {
    "docker": (
        "Dockerfile.",
        "compose.yaml",
        "docker-setup.sh",
        ".dockerignore",
        "deploy/replicas/",
    ),
    "kubernetes": ("deploy/kubernetes",),
    "ray": ("deploy/ray/", "src/server/ray_app.py"),
}


@pytest.mark.parametrize("deploy", [[], ["docker"], ["kubernetes"], ["ray"], list(PARTS)], ids=str)
def test_the_files_and_links_of_each_deployment(deploy: list[str], tmp_path: Path) -> None:
    generate.render({"project_name": "server", "deploy": deploy}, tmp_path)
    files = generate.list_files(tmp_path)
    for name, beginnings in PARTS.items():
        for beginning in beginnings:
            assert any(f.startswith(beginning) for f in files) is (name in deploy), beginning
    assert ("deploy/observability/alerts.yml" in files) is bool(deploy)
    assert ("deploy/observability/prometheus.yml" in files) is ("docker" in deploy)
    assert ("\nray = [" in (tmp_path / "pyproject.toml").read_text()) is ("ray" in deploy)
    for page in tmp_path.rglob("*.md"):
        for link in re.findall(r"\]\(([^):#]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists() or (tmp_path / link).exists(), (page.name, link)


def test_a_project_without_containers_has_no_deployment(tmp_path: Path) -> None:
    generate.render({"project_name": "server", "devices": ["mps"]}, tmp_path)
    assert not (tmp_path / "deploy").exists()
    assert not (tmp_path / "docs" / "containers.md").exists()
    assert (tmp_path / "docs" / "scaling.md").exists()
