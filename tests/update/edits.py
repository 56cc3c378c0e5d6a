"""Edits of owners to their projects, each as a function of the project's folder.

Every edit applies to a project of any version of the template, old or new.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

Edit = Callable[[Path], None]
PACKAGE = "myserver"


def change(file: Path, old: str, new: str) -> None:
    """Replace the one place where `old` stands."""
    text = file.read_bytes().decode()
    assert text.count(old) == 1, f"{file.name} has {old!r} {text.count(old)} times"
    file.write_bytes(text.replace(old, new).encode())


def own_router(project: Path) -> None:
    package = project / "src" / PACKAGE
    (package / "routers" / "echo.py").write_text(
        "from fastapi import APIRouter\n\nrouter = APIRouter()\n\n\n"
        '@router.get("/echo")\nasync def echo(text: str) -> str:\n    return text\n'
    )
    custom = package / "custom.py"
    change(custom, "from .settings import", "from .routers import echo\nfrom .settings import")
    change(custom, "ROUTERS: list[APIRouter] = []", "ROUTERS: list[APIRouter] = [echo.router]")


def own_model(project: Path) -> None:
    package = project / "src" / PACKAGE
    (package / "models" / "reranker.py").write_text(
        '"""Our reranker."""\n\n\nclass Reranker: ...\n'
    )
    change(
        package / "custom.py",
        "    return []",
        "    from .models.reranker import Reranker\n\n    return [ModelSpec('r', Reranker, ...)]",
    )


def changed_settings(project: Path) -> None:
    settings = project / "src" / PACKAGE / "settings.py"
    change(settings, 'str = Field("127.0.0.1"', 'str = Field("0.0.0.0"')
    change(settings, "port: int = Field(8000,", "port: int = Field(9000,")
    change(settings, "max_upload_size: int = Field(100 *", "max_upload_size: int = Field(500 *")


def own_setting_and_variable(project: Path) -> None:
    example = project / ".env.example"
    example.write_text(example.read_text() + "\n# Words to greet with\n# INFER_GREETING=hello\n")


def added_dependencies(project: Path) -> None:
    pyproject = project / "pyproject.toml"
    change(
        pyproject,
        "    # Yours go below; updates leave this end of the list alone.\n",
        "    # Yours go below; updates leave this end of the list alone.\n"
        '    "numpy>=2",\n    "sqlalchemy>=2",\n',
    )
    change(pyproject, "    # Yours go below.\n", '    # Yours go below.\n    "ipython",\n')


def pinned_torch(project: Path) -> None:
    change(project / "pyproject.toml", '"torch>=2.13,<3"', '"torch==2.13.0"')


def own_version_and_tools(project: Path) -> None:
    pyproject = project / "pyproject.toml"
    change(pyproject, 'version = "0.1.0"', 'version = "3.2.1"')
    pyproject.write_text(pyproject.read_text() + '\n[tool.coverage.run]\nsource = ["src"]\n')


def edited_dockerfile(project: Path) -> None:
    dockerfile = project / "Dockerfile.cpu"
    change(dockerfile, "FROM python:3.13-slim", "FROM registry.example/python:3.13-slim")
    change(
        dockerfile,
        "WORKDIR /app\n",
        "WORKDIR /app\nRUN apt-get update && apt-get install --yes ffmpeg\n",
    )


def edited_deployment(project: Path) -> None:
    new = project / "deploy" / "kubernetes" / "base" / "deployment.yaml"
    file = new if new.exists() else project / "deploy" / "kubernetes.yaml"
    change(file, "replicas: 1", "replicas: 4")
    change(file, "image: myserver:", "image: registry.example/myserver:")
    change(file, "memory: 8Gi", "memory: 24Gi")


def renamed_test(project: Path) -> None:
    (project / "tests" / "test_settings.py").rename(project / "tests" / "test_knobs.py")


def deleted_files(project: Path) -> None:
    (project / "Dockerfile.cuda").unlink()
    shutil.rmtree(project / "deploy")
    shutil.rmtree(project / "bench")


def crlf_files(project: Path) -> None:
    for name in ("README.md", "src/myserver/app.py", "src/myserver/settings.py"):
        file = project / name
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))


def crlf_and_edited(project: Path) -> None:
    changed_settings(project)
    crlf_files(project)


def lock_file(project: Path) -> None:
    (project / "uv.lock").write_text("version = 1\nrequires-python = '>=3.11'\n")


def own_workflow(project: Path) -> None:
    (project / ".github" / "workflows" / "deploy.yml").write_text("on: push\njobs: {}\n")


def own_readme_sections(project: Path) -> None:
    readme = project / "README.md"
    line = "a table of their own below this line.\n"
    change(
        readme, line, f"{line}\n| variable | meaning |\n|---|---|\n| `INFER_GREETING` | Words |\n"
    )
    readme.write_text(readme.read_text() + "\n## Who to call\n\nThe platform team.\n")


def own_code_in_a_router(project: Path) -> None:
    change(
        project / "src" / PACKAGE / "routers" / "models.py",
        "\nrouter = APIRouter(",
        "\nOWNER = 'platform'\n\nrouter = APIRouter(",
    )


def everything(project: Path) -> None:
    for edit in EDITS:
        if edit not in (everything, crlf_files, crlf_and_edited):
            edit(project)
    crlf_files(project)


EDITS: list[Edit] = [
    own_router,
    own_model,
    changed_settings,
    own_setting_and_variable,
    added_dependencies,
    pinned_torch,
    own_version_and_tools,
    edited_dockerfile,
    edited_deployment,
    renamed_test,
    deleted_files,
    crlf_files,
    crlf_and_edited,
    lock_file,
    own_workflow,
    own_readme_sections,
    own_code_in_a_router,
    everything,
]
