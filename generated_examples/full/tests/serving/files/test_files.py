"""/v1/files: what it keeps, lists and gives back, and which requests it refuses."""

import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from starlette.testclient import TestClient

from full_server.routers.files import attachment

from ...uploads import MULTIPART_HEADERS, kept_in, multipart, upload


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "files"


@pytest.fixture
def client(make_client: Callable[..., TestClient], folder: Path) -> Iterator[TestClient]:
    with make_client(files_url=folder.as_uri()) as client:
        yield client


@pytest.fixture
def ids(client: TestClient) -> list[str]:
    """Five files, the first and the last of which are for batches."""
    purposes = ["batch", "vision", "vision", "vision", "batch"]
    return [upload(client, purpose=purpose).json()["id"] for purpose in purposes]


def follow(client: TestClient, **params: Any) -> list[list[str]]:
    """The ids of all pages of the list, as a client follows them."""
    pages = []
    for _ in range(10):
        page = client.get("/v1/files", params=params).json()
        pages.append([file["id"] for file in page["data"]])
        if not page["has_more"]:
            return pages
        assert (page["first_id"], page["last_id"]) == (pages[-1][0], pages[-1][-1])
        params["after"] = page["last_id"]
    raise AssertionError("The list does not end.")


def test_a_file_comes_back_as_it_went_in(client: TestClient, folder: Path) -> None:
    content = bytes(range(256)) * 10_000
    file = upload(client, content, "data.bin").json()
    assert file == {
        "id": file["id"],
        "object": "file",
        "bytes": len(content),
        "created_at": pytest.approx(time.time(), abs=60),
        "filename": "data.bin",
        "purpose": "user_data",
        "status": "processed",
    }
    assert client.get(f"/v1/files/{file['id']}").json() == file
    assert client.get("/v1/files").json()["data"] == [file]

    download = client.get(f"/v1/files/{file['id']}/content")
    assert download.content == content
    assert download.headers["content-length"] == str(len(content))
    assert download.headers["content-type"] == "application/octet-stream"
    assert download.headers["x-content-type-options"] == "nosniff"

    answer = client.delete(f"/v1/files/{file['id']}").json()
    assert answer == {"id": file["id"], "object": "file", "deleted": True}
    assert client.get(f"/v1/files/{file['id']}").status_code == 404
    assert client.delete(f"/v1/files/{file['id']}").status_code == 404
    assert kept_in(folder) == []


def test_official_client(client: TestClient) -> None:
    http_client: Any = client
    files = OpenAI(
        base_url="http://testserver/v1",
        api_key="unused",
        http_client=http_client,
        _strict_response_validation=True,
    ).files
    file = files.create(file=("a.jsonl", b"{}\n"), purpose="batch")
    other = files.create(file=("b.txt", b"b"), purpose="user_data")
    assert files.retrieve(file.id) == file
    assert [each.id for each in islice(files.list(limit=1), 3)] == [other.id, file.id]
    assert files.content(file.id).read() == b"{}\n"
    assert files.delete(file.id).deleted


def test_an_empty_file_is_a_file(client: TestClient) -> None:
    file = upload(client, b"").json()
    assert file["bytes"] == 0
    assert client.get(f"/v1/files/{file['id']}/content").content == b""


def test_list_is_newest_first(client: TestClient, ids: list[str]) -> None:
    assert follow(client) == [ids[::-1]]


@pytest.mark.parametrize("limit", [1, 2, 4, 5, 6])
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_of_the_list(client: TestClient, ids: list[str], limit: int, order: str) -> None:
    expected = ids if order == "asc" else ids[::-1]
    pages = follow(client, limit=limit, order=order)
    assert pages == [expected[start : start + limit] for start in range(0, 5, limit)]


def test_list_by_purpose(client: TestClient, ids: list[str]) -> None:
    assert follow(client, purpose="batch", limit=1) == [[ids[4]], [ids[0]]]
    assert follow(client, purpose="assistants") == [[]]


def test_deleting_page_by_page_skips_nothing(client: TestClient, ids: list[str]) -> None:
    page = client.get("/v1/files", params={"limit": 2}).json()
    for file in page["data"]:
        client.delete(f"/v1/files/{file['id']}")
    assert follow(client, after=page["last_id"]) == [ids[2::-1]]


@pytest.mark.parametrize(
    ("param", "value"),
    [("limit", "0"), ("limit", "10001"), ("order", "up"), ("after", "x"), ("after", "../x")],
)
def test_bad_parameter_of_the_list_is_named(client: TestClient, param: str, value: str) -> None:
    answer = client.get("/v1/files", params={param: value})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "fun"}, "purpose"),
        ({"purpose": ""}, "purpose"),
        ({"pdf_dpi": 35}, "pdf_dpi"),
        ({"pdf_dpi": 301}, "pdf_dpi"),
        ({"convert_pdf": "perhaps"}, "convert_pdf"),
        ({"convert_pdf": True}, "convert_pdf"),
        ({"expires_after[seconds]": 3600}, "expires_after"),
        ({"expires_after[anchor]": "created_at"}, "expires_after"),
        ({"expires_after[anchor]": "now"}, "expires_after[anchor]"),
        ({"expires_after[seconds]": 3599}, "expires_after[seconds]"),
        ({"expires_after[seconds]": 2_592_001}, "expires_after[seconds]"),
        ({"expires_after[seconds]": "soon"}, "expires_after[seconds]"),
        ({"name": "x" * 256}, "file"),
    ],
)
def test_bad_field_of_an_upload_is_named(
    client: TestClient, folder: Path, fields: dict[str, Any], param: str
) -> None:
    answer = upload(client, **fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert kept_in(folder) == []


def test_missing_field_is_named(client: TestClient) -> None:
    no_purpose = client.post("/v1/files", files={"file": ("a.txt", b"hello")})
    no_file = client.post("/v1/files", data={"purpose": "batch"})
    for answer, param in ((no_purpose, "purpose"), (no_file, "file")):
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param
        assert answer.json()["error"]["code"] == "missing_required_parameter"


@pytest.mark.parametrize(
    "body",
    [
        multipart(b"hello", filename=""),
        multipart(b"hello").removesuffix(b"\r\n--x--\r\n"),
        b"garbage",
        b"",
    ],
    ids=["no file name", "cut off", "garbage", "empty"],
)
def test_bad_form(client: TestClient, folder: Path, body: bytes) -> None:
    answer = client.post("/v1/files", content=body, headers=MULTIPART_HEADERS)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
    assert kept_in(folder) == []


def test_one_file_at_a_time(client: TestClient, folder: Path) -> None:
    files = [("file", ("a", b"a")), ("file", ("b", b"b"))]
    answer = client.post("/v1/files", files=files, data={"purpose": "batch"})
    assert answer.status_code == 400
    assert kept_in(folder) == []


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "..\\..\\boot.ini",
        "naïve – 文件 🎉.txt",
        'quo"te; filename=x.html',
        "a%2e%2e%2fb%",
    ],
)
def test_names_are_kept_and_never_become_a_path(
    client: TestClient, folder: Path, name: str
) -> None:
    body = multipart(b"hello", filename=name.replace("\\", "\\\\").replace('"', '\\"'))
    file = client.post("/v1/files", content=body, headers=MULTIPART_HEADERS).json()
    assert file["filename"] == name
    assert kept_in(folder) == [f"content/{file['id']}", f"meta/{file['id']}.json"]
    assert client.get(f"/v1/files/{file['id']}").json() == file


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a b.txt", "attachment; filename=\"a b.txt\"; filename*=UTF-8''a%20b.txt"),
        ("é文.txt", "attachment; filename=\"__.txt\"; filename*=UTF-8''%C3%A9%E6%96%87.txt"),
        ('a"b', "attachment; filename=\"a_b\"; filename*=UTF-8''a%22b"),
        ("a\r\nb: c\0", "attachment; filename=\"a__b_ c_\"; filename*=UTF-8''a%0D%0Ab%3A%20c%00"),
        ("../x", "attachment; filename=\"x\"; filename*=UTF-8''x"),
        ("..\\x\\", "attachment; filename=\"file\"; filename*=UTF-8''file"),
    ],
)
def test_names_stay_inside_their_header(name: str, header: str) -> None:
    assert attachment(name) == header


def test_download_is_named(client: TestClient) -> None:
    file_id = upload(client, name="文.txt").json()["id"]
    download = client.get(f"/v1/files/{file_id}/content")
    assert download.headers["content-disposition"] == attachment("文.txt")


@pytest.mark.parametrize(
    "file_id",
    [
        "..",
        "%2e%2e",
        "..%2f..%2fetc%2fpasswd",
        "file-..%2f..%2fmeta",
        "file-" + "0" * 32,
        "file-" + "0" * 31 + "G",
        "file-" + "0" * 32 + "%0a",
        "file-%00",
        "x" * 5000,
    ],
)
@pytest.mark.parametrize("rest", ["", "/content", "/pages/1"])
def test_unknown_id_is_a_404(client: TestClient, file_id: str, rest: str) -> None:
    answer = client.get(f"/v1/files/{file_id}{rest}")
    assert answer.status_code == 404
    assert answer.json()["error"]["message"]


def test_store_that_does_not_work_is_a_503(client: TestClient, folder: Path) -> None:
    (folder / "content").write_text("a file where a folder should be")
    answer = upload(client)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "file_store_unavailable"
    assert str(folder) not in answer.text


@pytest.mark.parametrize("seconds", [3600, 2_592_000])
def test_a_file_says_when_it_expires(client: TestClient, seconds: int) -> None:
    openai = OpenAI(base_url="http://testserver/v1", api_key="none", http_client=client)
    file = openai.files.create(
        file=("a.jsonl", b"{}"),
        purpose="evals",
        expires_after={"anchor": "created_at", "seconds": seconds},
    )
    assert file.expires_at == file.created_at + seconds
    assert openai.files.retrieve(file.id).expires_at == file.expires_at
    assert file.purpose == "evals"
