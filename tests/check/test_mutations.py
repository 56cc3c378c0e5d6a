"""Each pattern broken in a generated project: the one rule that should notice does."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from infer_scaffold.check.checker import check
from infer_scaffold.check.config import Config, load
from infer_scaffold.check.judgement import Profile, Verdict
from infer_scaffold.checklist import BY_CODE
from infer_scaffold.project import generate
from infer_scaffold.project.questions import Answers
from tests.template.test_boot import name_of
from tests.template.test_matrix import CHOICES, subsets


def everywhere(old: str, new: str) -> Callable[[Path], None]:
    """Replace a text in all modules; it must be in one of them."""

    def mutate(package: Path) -> None:
        found = 0
        for file in package.rglob("*.py"):
            text = file.read_text()
            found += text.count(old)
            file.write_text(text.replace(old, new))
        assert found, old

    return mutate


def in_file(name: str, *replacements: tuple[str, str]) -> Callable[[Path], None]:
    """Replace patterns in one module; each must match."""

    def mutate(package: Path) -> None:
        text = (package / name).read_text()
        for pattern, replacement in replacements:
            text, count = re.subn(pattern, replacement, text)
            assert count, pattern
        (package / name).write_text(text)

    return mutate


def append(name: str, code: str) -> Callable[[Path], None]:
    def mutate(package: Path) -> None:
        with (package / name).open("a") as file:
            file.write(code)

    return mutate


BLOCKING_HELPER = """

def read_slowly() -> str:
    time.sleep(1)
    return "done"


async def two_hops() -> str:
    return read_slowly()


@router.get("/v1/slow")
async def slow() -> str:
    return await two_hops()
"""
UNCHAINED = """

@router.get("/v1/files/{file_id}/size")
async def size(file_id: str) -> int:
    try:
        return int(file_id)
    except ValueError:
        raise HTTPException(status_code=400, detail="no number")
"""

STRICT = Config(Profile.STRICT)

MUTATIONS: list[tuple[str, Callable[[Path], None]]] = [
    ("IS101", in_file("app.py", (r"lifespan=lifespan,", ""))),
    ("IS101", in_file("app.py", (r"finally:\n(?: {12,}.*\n)+", "finally:\n            pass\n"))),
    ("IS102", in_file("app.py", (r"task\.cancel\(\)", "pass"), (r"await task\n", "pass\n"))),
    ("IS102", in_file("app.py", (r"await task\n", "pass\n"))),
    ("IS201", in_file("routers/models.py", (r"(async def list_models.*\n)", r"\1    open('x')\n"))),
    ("IS201", append("routers/models.py", "\n\nimport time" + BLOCKING_HELPER)),
    ("IS202", in_file("routers/embeddings.py", (r": EmbeddingsRequest\b", ": dict"))),
    ("IS203", append("routers/files.py", "\n\nfrom fastapi import HTTPException" + UNCHAINED)),
    ("IS301", everywhere("X-Accel-Buffering", "X-Other")),
    ("IS301", everywhere("text/event-stream", "text/plain")),
    ("IS302", everywhere("[DONE]", "[END]")),
    ("IS302", everywhere("model_dump_json", "model_dump")),
    ("IS303", everywhere("await asyncio.sleep(0)", "pass")),
    ("IS401", everywhere("HTTP_413", "HTTP_400")),
    ("IS402", everywhere("Form(", "Query(")),
    ("IS502", everywhere("from openai", "from our")),
    ("IS601", everywhere("include_router(", "mount_router(")),
    ("IS701", everywhere('"/health"', '"/state"')),
    ("IS701", in_file("routers/health.py", (r"getpid", "getuid"), (r"\bpid\b", "number"))),
    ("IS702", in_file("routers/models.py", (r'"/v1/models"', '"/v1/things"'))),
]
# Without the openai package's types nothing is left that holds the answers to the schema, and
# where the whole shutdown is gone, the tasks go on.
ALSO = {"IS502": {"IS501"}, "IS101": {"IS102"}}


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project") / "server"
    generate.render({"project_name": "server"}, folder)
    return folder


VARIANTS: list[Answers] = [{"endpoints": list(some)} for some in subsets(CHOICES["endpoints"])]
VARIANTS += [{**some, "streaming": "none"} for some in VARIANTS if "chat" in some["endpoints"]]


@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_what_is_generated_follows_the_letter(variant: Answers, tmp_path: Path) -> None:
    generate.render({"project_name": "server", **variant}, tmp_path / "server")

    report = check(tmp_path / "server", load(tmp_path / "server", profile=Profile.STRICT))

    assert report.unparsed == []
    assert [(each.pattern.code, each.findings) for each in report.unmet] == []
    judged = [each for each in report.judgements if each.verdict is not Verdict.NA]
    assert len(judged) >= 5


@pytest.mark.parametrize(("code", "mutate"), MUTATIONS)
def test_the_one_rule_that_should_notice_does(
    code: str, mutate: Callable[[Path], None], example: Path, tmp_path: Path
) -> None:
    package = tmp_path / "src" / "server"
    for file in (example / "src" / "server").rglob("*.py"):
        copy = package / file.relative_to(example / "src" / "server")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())

    mutate(package)

    report = check(tmp_path, STRICT)
    noticed = {each.pattern.code for each in report.unmet}
    assert code in noticed
    assert noticed <= {code} | ALSO.get(code, set())
    for each in report.unmet:
        assert each.findings
        for finding in each.findings:
            lines = (tmp_path / finding.path).read_text().splitlines()
            assert 1 <= finding.line <= len(lines)


def test_every_pattern_has_a_mutation() -> None:
    mutated = {code for code, _ in MUTATIONS}.union(*ALSO.values())
    assert mutated == set(BY_CODE)
