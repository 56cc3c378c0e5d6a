"""The API keys of a service and the names of their owners. They may come from a file, which is read
again while the service runs.
"""

import hmac
import logging
import os
import stat
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ..threads import run_in_thread

logger = logging.getLogger(__name__)

SETTING = "INFER_API_KEYS_FILE"

SECONDS_BETWEEN_READS = 1.0

MAX_SIZE = 1024 * 1024
MAX_NAME = 64
"""Limits of the file: its bytes, and the characters of a name"""


class KeyFileError(Exception):
    """The file of keys cannot be used. The message is one line for the operator, without a key."""


class APIKeys:
    """The keys that are accepted, each with a name. A name may have several keys.

    Digests are kept and compared, under a secret of this process: the time of a look-up depends on
    nothing that a client can choose, and tells nothing of the keys.
    """

    def __init__(
        self,
        keys: Sequence[str] = (),
        file: str = "",
        on_change: Callable[[frozenset[str]], None] = lambda names: None,
    ) -> None:
        """
        Args:
            keys: named key-1, key-2, … unless the file has them too.
            file: with a line `name:key` for each key; empty for none.
            on_change: is called with the names, at once and when they may have changed.

        Raises KeyFileError.
        """
        self._secret = os.urandom(32)
        self._file = file
        self._on_change = on_change
        self._given = {self._digest(key): f"key-{place}" for place, key in enumerate(keys, 1)}
        self._names = self._given
        self._latest = self._used = b""
        """Digests of what was read last, and of what is in use or was found broken"""
        if file:
            content = read_key_file(file)
            self._latest = self._used = self._digest(content)
            self._use(self._digests_of(content))
        else:
            on_change(self.names)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._names.values())

    def name_of(self, authorization: str) -> str | None:
        """The name of the key in a header `Authorization: Bearer KEY`; None if it is not accepted."""
        scheme, _, given = authorization.partition(" ")
        # Clients send the bytes of UTF-8, and headers are read as latin-1, where such a byte may
        # look like a space.
        name = self._names.get(self._digest(given.strip(" \t").encode("latin-1")))
        return name if scheme.lower() == "bearer" else None

    async def reload(self) -> None:
        """Takes over what has changed in the file. The keys stay where it is broken.

        A change takes effect when two reads give the same content: the first may have been of a
        file that was half written.
        """
        content: bytes | KeyFileError
        try:
            content = await run_in_thread(partial(read_key_file, self._file))
        except KeyFileError as error:
            content = error
        digest = self._digest(str(content) if isinstance(content, KeyFileError) else content)
        settled, self._latest = digest == self._latest, digest
        if not settled or digest == self._used:
            return
        self._used = digest
        try:
            if isinstance(content, KeyFileError):
                raise content
            self._use(await run_in_thread(partial(self._digests_of, content)))
        except KeyFileError as error:
            logger.error("%s; the keys stay as they were", error)
        else:
            logger.info("%s was read again: %d keys", SETTING, len(self._names))

    def _use(self, names: dict[bytes, str]) -> None:
        self._names = self._given | names
        self._on_change(self.names)

    def _digests_of(self, content: bytes) -> dict[bytes, str]:
        """The names in a file by the digests of their keys. Blocks. Raises KeyFileError."""
        return {self._digest(key): name for key, name in parse_keys(content).items()}

    def _digest(self, key: str | bytes) -> bytes:
        return hmac.digest(self._secret, key.encode() if isinstance(key, str) else key, "sha256")


def read_key_file(file: str) -> bytes:
    """Blocks. Raises KeyFileError."""
    try:
        # Anything else could have no end, or let the reader wait for one.
        if not stat.S_ISREG(os.stat(file).st_mode):
            raise broken("it is not a regular file")
        with Path(file).open("rb") as opened:
            content = opened.read(MAX_SIZE + 1)
    except OSError as error:
        raise broken((error.strerror or "it cannot be read").lower()) from None
    except ValueError:  # a NUL in the path
        raise broken("it is no path") from None
    if len(content) > MAX_SIZE:
        raise broken(f"it is larger than {MAX_SIZE} bytes")
    return content


def parse_keys(content: bytes) -> dict[str, str]:
    """The name of each key. Blank lines and those that begin with # say nothing.

    Raises KeyFileError, which names lines by their numbers: what is in them may be a key.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise broken("it is not UTF-8 text") from None
    names: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, colon, key = (part.strip() for part in line.partition(":"))
        if not (name and colon and key):
            raise broken(f"line {number} is not name:key")
        if len(name) > MAX_NAME or not line.isprintable():
            raise broken(
                f"line {number} has a name of more than {MAX_NAME} characters, or control characters"
            )
        if names.setdefault(key, name) != name:
            raise broken(f"the key in line {number} has another name in a line before")
    if not names:
        raise broken("it has no keys")
    return names


def broken(reason: str) -> KeyFileError:
    return KeyFileError(f"{SETTING}: {reason}")
