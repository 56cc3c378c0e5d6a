"""Reading the input of a batch in pieces."""

import pytest

from full_server.serving.batches import input_lines
from full_server.serving.batches.input_lines import split_lines

pytestmark = pytest.mark.anyio


async def lines_of(content: bytes, limit: int = 100) -> list[tuple[int, bytes]]:
    async def read(start: int, length: int) -> bytes:
        return content[start : start + length]

    return [each async for each in split_lines(read, limit)]


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("content", [b"", b"\n", b"a", b"a\n", b"a\nbb\n\n \nccc", b"\n\na\n\n"])
async def test_lines_are_those_of_python(
    monkeypatch: pytest.MonkeyPatch, content: bytes, piece: int
) -> None:
    monkeypatch.setattr(input_lines, "PIECE", piece)
    expected = [each for each in enumerate(content.split(b"\n"), 1) if each[1].strip()]
    assert await lines_of(content) == expected


@pytest.mark.parametrize("piece", [1, 4, 1000])
async def test_no_more_than_a_line_is_in_memory(
    monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(input_lines, "PIECE", piece)
    found = await lines_of(b"short\n" + b"x" * 5000 + b"\nlast", limit=10)
    assert found == [(1, b"short"), (2, b"x" * 11), (3, b"last")]
