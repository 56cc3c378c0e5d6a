"""GET /: a page to look at the models and to try them. It needs no build step and no other host."""

import re
from base64 import b64encode
from hashlib import sha256
from html import escape
from pathlib import Path
from string import Template

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

PAGE_PATH = "/"
PAGE_NAME = "serving-page"
"""Name of its route, which tells it from a route of the owner's at the same path"""

SOURCE = Path(__file__).with_name("page.html")


def add_page(app: FastAPI, links: list[str]) -> None:
    """Adds the page. links: paths of other pages, without the first slash"""
    source = SOURCE.read_text("utf-8")
    anchors = "".join(f'<a href="{escape(link)}">{escape(link)}</a>' for link in links)
    page = Template(source).substitute(title=escape(app.title), links=anchors)
    headers = {
        "Content-Security-Policy": content_security_policy(page),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }

    @app.get(PAGE_PATH, name=PAGE_NAME, include_in_schema=False)
    async def get_page() -> HTMLResponse:
        return HTMLResponse(page, headers=headers)


def content_security_policy(page: str) -> str:
    """The page's own script and style, by their hashes, and requests to this service."""

    def hashes(tag: str) -> str:
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = (b64encode(sha256(block.encode()).digest()).decode() for block in blocks)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
