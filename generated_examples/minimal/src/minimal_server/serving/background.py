"""Periodic work beside the requests."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)


async def repeat(seconds: float, action: Callable[[], Awaitable[object]]) -> None:
    """Runs `action` now and then every `seconds`, until it is cancelled."""
    try:
        while True:
            try:
                await action()
            except Exception:
                logger.exception("background work failed, next try in %g s", seconds)
            await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        logger.debug("background work cancelled")
        raise
