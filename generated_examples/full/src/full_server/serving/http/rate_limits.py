"""Limits of one client: requests and tokens a minute, and requests at the same time.

A client is the name of an API key or, in a service without keys, an IP address.
"""

import math
from ipaddress import IPv6Address, ip_address
from time import monotonic

from fastapi import status
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import APIError
from .middleware import refuse
from .token_usage import TokenUsage

SECONDS_BETWEEN_SWEEPS = 60.0

ROUNDING = 1e-6
"""Error of the arithmetic that is forgiven: who waits as long as told is not sent away again"""


class Allowance:
    """An amount a minute, which comes back bit by bit, as OpenAI's limits do.

    It can be overdrawn, because the tokens of an answer are known at its end. The debt is paid off
    before anything is left again, so that the limit holds over time.
    """

    def __init__(self, limit: int, now: float) -> None:
        self.limit = limit
        self._left = float(limit)
        self._time = now

    def left(self, now: float) -> float:
        self._left = min(self.limit, self._left + (now - self._time) * self.limit / 60)
        self._time = now
        return self._left

    def has(self, amount: int, now: float) -> bool:
        return self.left(now) >= amount - ROUNDING

    def take(self, amount: int, now: float) -> None:
        self._left = self.left(now) - amount

    def remaining(self, now: float) -> int:
        return max(0, math.floor(self.left(now) + ROUNDING))

    def seconds_until(self, amount: int, now: float) -> float:
        """Seconds after which so much is left, if nothing is taken before."""
        return max(0.0, amount - self.left(now)) * 60 / self.limit


class Account:
    """The allowances of one client, and its requests in flight."""

    def __init__(self, requests: int, tokens: int, now: float) -> None:
        self.allowances = {
            name: Allowance(limit, now)
            for name, limit in (("requests", requests), ("tokens", tokens))
            if limit
        }
        self.running = 0

    def take(self, name: str, amount: int, now: float) -> None:
        if name in self.allowances:
            self.allowances[name].take(amount, now)

    def is_full(self, now: float) -> bool:
        """True if this is the account of a client that has not asked for anything."""
        return not self.running and all(
            each.has(each.limit, now) for each in self.allowances.values()
        )

    def headers(self, now: float) -> dict[str, str]:
        """The headers that OpenAI's clients read."""
        headers = {}
        for name, each in self.allowances.items():
            headers[f"x-ratelimit-limit-{name}"] = str(each.limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(each.remaining(now))
            headers[f"x-ratelimit-reset-{name}"] = duration(each.seconds_until(each.limit, now))
        return headers


class RateLimitMiddleware:
    """Refuses requests of a client that has used up one of its limits, 0 for none.

    Requests that only read (GET, HEAD, OPTIONS) are not counted.
    """

    def __init__(
        self, app: ASGIApp, requests: int = 0, tokens: int = 0, concurrent: int = 0
    ) -> None:
        self.app = app
        self.requests = requests
        self.concurrent = concurrent
        self.tokens = tokens
        self._accounts: dict[str, Account] = {}
        self._next_sweep = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_counted(scope):
            await self.app(scope, receive, send)
            return
        account = self._account_of(client_of(scope))
        if refused := self._refusal(account, scope):
            await refuse(refused, scope, receive, send)
            return
        usage: TokenUsage = scope["state"]["token_usage"]
        charged = 0

        def charge() -> None:
            nonlocal charged
            account.take("tokens", usage.total - charged, monotonic())
            charged = usage.total

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                charge()
                MutableHeaders(scope=message).update(account.headers(monotonic()))
            await send(message)

        account.running += 1
        account.take("requests", 1, monotonic())
        try:
            await self.app(scope, receive, send_with_headers)
        finally:
            charge()  # of a stream, which has ended
            account.running -= 1

    def _account_of(self, client: str) -> Account:
        now = monotonic()
        if client not in self._accounts:
            if now >= self._next_sweep:
                self._next_sweep = now + SECONDS_BETWEEN_SWEEPS
                for name in [name for name, each in self._accounts.items() if each.is_full(now)]:
                    del self._accounts[name]
            self._accounts[client] = Account(self.requests, self.tokens, now)
        return self._accounts[client]

    def _refusal(self, account: Account, scope: Scope) -> APIError | None:
        now = monotonic()
        spent = [
            (f"{name} per minute", each.limit, each.seconds_until(1, now))
            for name, each in account.allowances.items()
            if not each.has(1, now)
        ]
        if self.concurrent and account.running >= self.concurrent:
            spent.append(("concurrent requests", self.concurrent, 1.0))
        if not spent:
            return None
        what, limit, seconds = max(spent, key=lambda each: each[2])
        name = scope["state"].get("key_name")
        whose = "The address of the client" if name is None else f"The key {name!r}"
        return APIError(
            status.HTTP_429_TOO_MANY_REQUESTS,
            f"{whose} has reached its limit of {what}: {limit}. Try again in {duration(seconds)}.",
            code="rate_limit_exceeded",
            headers={"Retry-After": str(math.ceil(seconds)), **account.headers(now)},
        )


def is_counted(scope: Scope) -> bool:
    if scope["type"] == "http":
        return scope["method"] not in ("GET", "HEAD", "OPTIONS")
    return bool(scope["type"] == "websocket")


def client_of(scope: Scope) -> str:
    """The name of the client's key; without one its address, or its network if that is IPv6: one
    client has all addresses of such a network.
    """
    name: str | None = scope["state"].get("key_name")
    if name is not None:
        return name
    host: str = scope["client"][0] if scope.get("client") else ""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    return str(IPv6Address(int(address) >> 64 << 64)) if address.version == 6 else host


def duration(seconds: float) -> str:
    """`seconds` as OpenAI's headers have them: 120ms, 7.66s, 6m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds < 60:
        return f"{seconds:.4g}s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s"
