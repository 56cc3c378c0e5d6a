"""The address of the client behind a proxy, and no other one than a trusted proxy tells."""

import logging
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from full_server.__main__ import server_config
from full_server.settings import Settings

pytestmark = pytest.mark.anyio

PROXY = "127.0.0.1"
CLIENT = "203.0.113.7"


@pytest.fixture
def logged(
    make_client: Callable[..., TestClient], caplog: pytest.LogCaptureFixture
) -> Callable[..., Any]:
    """Makes a request as uvicorn hands it to the app, and returns the client of its access line."""

    async def ask(peer: str, *forwarded: str, **settings: Any) -> str:
        caplog.set_level(logging.INFO, "access")
        app: Any = make_client(**settings).app
        config = server_config(app, Settings(_env_file=None, **settings))
        config.load()
        transport = httpx2.ASGITransport(config.loaded_app, client=(peer, 1))
        headers = [("x-forwarded-for", each) for each in forwarded]
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url="http://x") as client,
        ):
            await client.get("/v1/models", headers=headers)
        line = vars([record for record in caplog.records if record.name == "access"][-1])
        return str(line["client"])

    return ask


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ([CLIENT], CLIENT),
        ([f"{CLIENT}:4711"], CLIENT),
        (["2001:db8::7"], "2001:db8::7"),
        (["[2001:db8::7]:4711"], "2001:db8::7"),
        # A client may send the header itself; the proxy adds what it sees at the end.
        ([f"10.9.9.9, {CLIENT}"], CLIENT),
        (["10.9.9.9", CLIENT], CLIENT),
        ([f"10.9.9.9, {CLIENT}, {PROXY}"], CLIENT),
        ([], PROXY),
        ([""], PROXY),
    ],
)
async def test_a_proxy_on_this_machine_tells_the_client(
    logged: Callable[..., Any], forwarded: list[str], client: str
) -> None:
    assert await logged(PROXY, *forwarded) == client


@pytest.mark.parametrize("peer", ["10.0.0.5", "192.0.2.1", "2001:db8::1"])
async def test_others_cannot_tell_another_address(logged: Callable[..., Any], peer: str) -> None:
    assert await logged(peer, CLIENT) == peer


@pytest.mark.parametrize(
    ("allowed", "peer", "trusted"),
    [
        ("10.0.0.0/8", "10.1.2.3", True),
        ("192.0.2.1, 10.0.0.0/8", "10.1.2.3", True),
        ("192.0.2.1,10.0.0.0/8", "192.0.2.1", True),
        ("fd00::/8", "fd00::1", True),
        ("*", "192.0.2.9", True),
        ("10.0.0.0/8", PROXY, False),
        ("10.0.0.1", "10.0.0.2", False),
    ],
)
async def test_proxies_elsewhere_are_listed(
    logged: Callable[..., Any], allowed: str, peer: str, trusted: bool
) -> None:
    found = await logged(peer, CLIENT, forwarded_allow_ips=allowed)
    assert found == (CLIENT if trusted else peer)
