"""The file store: whatever is cut short leaves nothing that can be seen."""

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.exceptions import BaseError

from full_server.serving.files import store as files_store
from full_server.serving.files.file_errors import FileNotFound
from full_server.serving.files.store import FileStore, StoredFile, local_folder, new_id

from ...uploads import kept_in

pytestmark = pytest.mark.anyio


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "files"


@pytest.fixture
def store(folder: Path) -> FileStore:
    return FileStore(folder.as_uri())


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def save(store: FileStore, *parts: bytes) -> StoredFile:
    return await store.save(chunks(*parts), filename="a.bin", purpose="user_data")


async def content(store: FileStore, file: StoredFile) -> bytes:
    download = await store.content(file)
    return b"".join([bytes(chunk) async for chunk in download.chunks])


async def test_two_stores_on_one_folder(store: FileStore, folder: Path) -> None:
    other = FileStore(folder.as_uri())
    file = await save(store, b"hel", b"lo")
    assert await other.retrieve(file.id) == file
    assert await content(other, file) == b"hello"
    await other.delete(file.id)
    for gone in (store.retrieve(file.id), store.delete(file.id), store.content(file)):
        with pytest.raises(FileNotFound):
            await gone


async def test_memory() -> None:
    store = FileStore("memory://")
    file = await store.save(chunks(b"a"), filename="a", purpose="b", pages=chunks(b"1", b"2"))
    assert await store.list_files(limit=1) == ([file], False)
    assert (await store.page(file, 2)).size == 1
    await store.delete(file.id)
    assert await store.list_files(limit=1) == ([], False)


@pytest.mark.parametrize("cancelled", [True, False])
@pytest.mark.parametrize("in_pages", [True, False])
async def test_nothing_is_left_of_a_failure(
    store: FileStore, folder: Path, cancelled: bool, in_pages: bool
) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield bytes(12 * 1024 * 1024)
        await asyncio.sleep(0.05)
        assert kept_in(folder)
        if cancelled:
            saving.cancel()
            await asyncio.Event().wait()
        raise OSError("no space left")

    source, pages = (chunks(b"hello"), broken()) if in_pages else (broken(), None)
    work = store.save(source, filename="a", purpose="batch", pages=pages)
    saving = asyncio.create_task(work)
    with pytest.raises(asyncio.CancelledError if cancelled else OSError):
        await saving
    assert await store.list_files(limit=10) == ([], False)
    assert kept_in(folder) == []


async def test_nothing_is_left_where_metadata_cannot_be_written(
    store: FileStore, folder: Path
) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(BaseError, match="File too large"):
            await store.save(chunks(b"a"), filename="a", purpose="batch", pages=chunks(b"1"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert kept_in(folder) == []


DIE_WHILE_SAVING = """
import asyncio, os, signal, sys
from full_server.serving.files.store import FileStore

async def chunks():
    yield bytes(12 * 1024 * 1024)
    await asyncio.sleep(0.1)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(FileStore(sys.argv[1]).save(chunks(), filename="a", purpose="batch"))
"""


async def test_nothing_is_seen_of_a_killed_process(store: FileStore, folder: Path) -> None:
    command = [sys.executable, "-c", DIE_WHILE_SAVING, folder.as_uri()]
    await asyncio.to_thread(subprocess.run, command, check=False)
    assert kept_in(folder), "killed before it wrote anything"
    assert await store.list_files(limit=10) == ([], False)
    whole = await save(store, b"hello")
    await store.sweep()
    assert len(kept_in(folder)) > 2, "another process may still be writing it"
    await store.sweep(older_than=timedelta(0))
    assert kept_in(folder) == [f"content/{whole.id}", f"meta/{whole.id}.json"]


async def test_sweep_takes_only_what_is_old_and_unseen(store: FileStore, folder: Path) -> None:
    whole = await save(store, b"hello")
    old, young = new_id(), new_id()
    foreign = ["content/README", "pages/notes/1.png", "meta/a#b"]
    for name in (f"content/{old}", f"content/{old}#1", f"pages/{old}/1.png", *foreign):
        write(folder / name, age=90_000)
    write(folder / f"content/{young}", age=80_000)
    os.utime(folder / f"content/{whole.id}", (0, 0))
    await store.sweep()
    assert kept_in(folder) == sorted(
        [f"content/{young}", f"content/{whole.id}", f"meta/{whole.id}.json", *foreign]
    )


def write(path: Path, age: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    os.utime(path, (time.time() - age, time.time() - age))


DAMAGED = ["", "{", "[]", "null", b"\xff\xfe", '{"id": 1}', "{}" * 10, '{"id": "other"}']


@pytest.mark.parametrize("damage", [*DAMAGED, "of another"])
async def test_damaged_metadata_harms_only_its_file(
    store: FileStore, folder: Path, damage: str | bytes, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = [await save(store), await save(store)]
    path = folder / "meta" / f"{bad.id}.json"
    if damage == "of another":
        damage = good.model_dump_json()
    path.write_bytes(damage if isinstance(damage, bytes) else damage.encode())
    assert await store.list_files(limit=10) == ([good], False)
    with pytest.raises(FileNotFound):
        await store.retrieve(bad.id)
    assert bad.id in caplog.text
    await store.delete(bad.id)
    assert kept_in(folder) == [f"content/{good.id}", f"meta/{good.id}.json"]
    with pytest.raises(FileNotFound):
        await store.delete(bad.id)


async def test_content_that_is_gone(store: FileStore, folder: Path) -> None:
    file = await save(store)
    (folder / "content" / file.id).unlink()
    with pytest.raises(FileNotFound):
        await store.content(file)
    assert (await store.list_files(limit=10))[0] == [file]
    await store.delete(file.id)
    assert kept_in(folder) == []


async def test_one_of_many_files_costs_little(store: FileStore, folder: Path) -> None:
    newest = await save(store)
    for number in range(10_000):
        other = newest.model_copy(update={"id": f"file-{number:032x}"})
        (folder / "meta" / f"{other.id}.json").write_text(other.model_dump_json())
    started = time.process_time()
    assert await store.list_files(limit=1, after="file-" + "f" * 32) == ([newest], True)
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize("kind", ["folder", "memory"])
async def test_a_page_reads_its_own_files_alone(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileStore(folder.as_uri() if kind == "folder" else "memory://")
    files = [await save(store, b"x") for _ in range(50)]
    read: list[str] = []
    get = obstore.get_async

    async def get_and_note(objects: Any, path: str) -> Any:
        read.append(path)
        return await get(objects, path)

    monkeypatch.setattr(obstore, "get_async", get_and_note)
    newest_first = files[::-1]
    for order, expected in (("asc", files), ("desc", newest_first)):
        for start in (0, 20, 47):
            after = expected[start - 1].id if start else None
            own = [f"meta/{file.id}.json" for file in expected[start : start + 4]]
            store._known.clear()
            for reads in (sorted(own), []):  # what has been read is not read again
                read.clear()
                page = await store.list_files(limit=3, after=after, order=order)  # type: ignore[arg-type]
                assert page == (expected[start : start + 3], start < 47)
                assert sorted(read) == reads


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_a_page_is_whole_when_little_metadata_is_kept(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, order: Any
) -> None:
    monkeypatch.setattr(files_store, "MAX_KNOWN", 3)
    ids = [(await save(store, b"x")).id for _ in range(10)]
    expected = ids if order == "asc" else ids[::-1]
    for limit in (2, 10):  # the first leaves what the second needs, and pushes out
        page, _ = await store.list_files(limit=limit, order=order)
        assert [file.id for file in page] == expected[:limit]


def test_ids_sort_by_time() -> None:
    ids = []
    for _ in range(100):
        ids.append(new_id())
        time.sleep(0.00001)
    assert ids == sorted(ids)
    assert len(set(ids)) == 100


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("file:///srv/my%20files", Path("/srv/my files")),
        ("file:/srv/files", Path("/srv/files")),
        ("file:./data/files", Path("data/files").absolute()),
        ("file:data", Path("data").absolute()),
        ("s3://bucket/prefix", None),
        ("memory://", None),
    ],
)
def test_folder_of_a_url(url: str, folder: Path | None) -> None:
    assert local_folder(url) == folder


def test_url_that_is_no_folder() -> None:
    with pytest.raises(ValueError, match="file:///absolute/path"):
        FileStore("file://data/files")


async def test_an_expired_file_is_gone(store: FileStore, folder: Path) -> None:
    kept = await store.save(chunks(b"a"), filename="a", purpose="batch", expires_after=3600)
    assert kept.expires_at == kept.created_at + 3600
    gone = await store.save(
        chunks(b"b"), filename="b", purpose="batch", pages=chunks(b"1"), expires_after=0
    )
    with pytest.raises(FileNotFound):
        await store.retrieve(gone.id)
    assert await store.list_files(limit=9) == ([kept], False)
    await store.sweep()
    assert kept_in(folder) == [f"content/{kept.id}", f"meta/{kept.id}.json"]


def twins() -> tuple[FileStore, FileStore]:
    """Two stores on one bucket, as two processes have them."""
    first, second = FileStore("memory://"), FileStore("memory://")
    second.objects = first.objects
    return first, second


async def put_metadata(store: FileStore, count: int) -> list[str]:
    ids = [f"file-{number:032x}" for number in range(1, count + 1)]
    for id_ in ids:
        file = StoredFile(id=id_, size=1, created_at=1, filename="a", purpose=f"p{id_[-1]}")
        await obstore.put_async(store.objects, f"meta/{id_}.json", file.model_dump_json().encode())
    return ids


async def walk(store: FileStore, limit: int, **choice: Any) -> list[str]:
    """The ids of all pages."""
    ids: list[str] = []
    after = None
    while True:
        page, more = await store.list_files(limit=limit, after=after, **choice)
        ids += [file.id for file in page]
        assert len(page) == limit or not more
        if not more:
            return ids
        after = ids[-1]


@pytest.mark.parametrize("limit", [1, 7, 50, 300])
async def test_stores_that_share_a_bucket_list_the_same(limit: int) -> None:
    stores = twins()
    ids = await put_metadata(stores[0], 120)
    rng = random.Random(limit)
    for _ in range(6):
        for store in rng.sample(stores, 2):
            assert await walk(store, limit) == ids[::-1]
            assert await walk(store, limit, order="asc") == ids
            purpose = [id_ for id_ in ids if id_.startswith("file-0") and id_.endswith("3")]
            assert await walk(store, limit, purpose="p3") == purpose[::-1]
        for id_ in rng.sample(ids, 15):
            await rng.choice(stores).delete(id_)
            ids.remove(id_)
        ids.append((await save(rng.choice(stores), b"x")).id)


@pytest.mark.parametrize("after", ["a sweep", "a page"])
async def test_a_page_costs_no_more_where_there_are_many_files(
    monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    store = twins()[0]
    ids = await put_metadata(store, 3000)
    if after == "a sweep":
        await store.sweep()
    else:
        await store.list_files(limit=20)
    listed, read = 0, 0
    list_, get = obstore.list, obstore.get_async

    def list_counted(*arguments: Any, **options: Any) -> Any:
        async def portions() -> AsyncIterator[Any]:
            nonlocal listed
            async for portion in list_(*arguments, chunk_size=50, **options):
                listed += len(portion)
                yield portion

        return portions()

    async def get_counted(*arguments: Any) -> Any:
        nonlocal read
        read += 1
        return await get(*arguments)

    monkeypatch.setattr(obstore, "list", list_counted)
    monkeypatch.setattr(obstore, "get_async", get_counted)
    for place, expected in ((None, ids[:-21:-1]), (ids[1000], ids[999:979:-1])):
        listed = read = 0
        page, more = await store.list_files(limit=20, after=place)
        assert [file.id for file in page] == expected
        assert more
        assert listed <= 100
        assert read <= (0 if after == "a sweep" or place is None else 21)


async def test_few_places_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_store, "MAX_PLACES", 30)
    stores = twins()
    ids = await put_metadata(stores[0], 120)
    for store in stores * 2:
        assert await walk(store, 7) == ids[::-1]
        assert len(store._places) <= 30
