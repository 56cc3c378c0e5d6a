"""The time by which a request must be answered."""

import asyncio


class Deadline:
    """Made once for each request, when all of it has arrived, and used for all that it waits for:
    the load of a model, its queue, tokenising, compiling, generating and rendering.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.time = asyncio.get_running_loop().time() + seconds
        """On the clock of the event loop"""
