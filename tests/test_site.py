"""docs/ as a site: it builds, its links lead somewhere, and it needs nothing from other hosts."""

import os
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]


class Page(HTMLParser):
    """The links of a page, what a browser loads for it, and the anchors that it offers."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(file.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors.add(given.get("id", ""))
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") != "canonical" and "href" in given:
            self.loaded.append(given["href"])
        elif "src" in given:
            self.loaded.append(given["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. A link between pages that leads nowhere ends the build."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {file: Page(file) for file in site.rglob("*.html") if file.name != "404.html"}


def inside(pages: dict[Path, Page], kind: str) -> Iterator[tuple[Path, str]]:
    for file, page in pages.items():
        for link in getattr(page, kind):
            if not urlsplit(link).scheme:
                yield file, link


def test_every_page_is_built(pages: dict[Path, Page], site: Path) -> None:
    written = {file.relative_to(ROOT / "docs") for file in (ROOT / "docs").rglob("*.md")}
    built = {file.relative_to(site) for file in pages}

    assert {str(file.with_suffix(".html")).replace("README", "index") for file in written} == {
        str(file) for file in built
    }


def test_links_and_their_anchors_exist(pages: dict[Path, Page]) -> None:
    broken = []
    for file, link in inside(pages, "links"):
        parts = urlsplit(link)
        target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
        anchor = unquote(parts.fragment)
        if not target.is_file() or (anchor and anchor not in pages[target].anchors):
            broken.append((file.name, link))
    assert broken == []
    assert sum(1 for _ in inside(pages, "links")) > 1000


def test_what_a_page_loads_is_in_the_site(pages: dict[Path, Page]) -> None:
    loaded = {link for page in pages.values() for link in page.loaded}
    assert [link for link in loaded if urlsplit(link).netloc] == []

    missing = [
        (file.name, link)
        for file, link in inside(pages, "loaded")
        if not (file.parent / urlsplit(link).path).is_file()
    ]
    assert missing == []
    assert any(link.endswith("demo.svg") for link in loaded)


def test_a_page_is_found_by_its_words(site: Path) -> None:
    index = (site / "search" / "search_index.json").read_text("utf-8")
    assert "INFER_MAX_UPLOAD_SIZE" in index
