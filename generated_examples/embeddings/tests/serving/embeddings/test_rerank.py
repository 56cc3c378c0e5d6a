"""POST /v1/rerank, against the plain forward pass."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient
from transformers import AutoModelForSequenceClassification, BertModel

from embeddings_server.serving.embeddings.cross_encoder import CrossEncoder, share
from embeddings_server.serving.embeddings.rerank_model import RerankModel
from embeddings_server.serving.models.device import Device
from embeddings_server.serving.models.model_errors import SourceError
from embeddings_server.settings import Settings

from ...conftest import wait_until
from ...tiny_embeddings import (
    build_embeddings_model,
    build_rerank_model,
    build_tokenizer,
    make_config,
    write_json,
)

QUERY = "where do cats sleep"
DOCUMENTS = ["a cat on the sofa", "x", "the market fell", "ab " * 12, ""]
REQUEST = {"model": "tiny-rerank", "query": QUERY, "documents": DOCUMENTS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_rerank_model(tmp_path_factory.mktemp("rerank") / "tiny-rerank")


@pytest.fixture(scope="module")
def reranker(make_client: Callable[..., TestClient], folder: Path) -> Iterator[TestClient]:
    with make_client(rerank_model=str(folder)) as client:
        yield client


def ask(client: TestClient, **changes: Any) -> dict[str, Any]:
    response = client.post("/v1/rerank", json=REQUEST | changes)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def reference(folder: Path, query: str, document: str) -> tuple[float, int]:
    """Score and tokens of a pair, cut to what the model takes."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    inputs = build_tokenizer()(
        [query], [document], truncation="longest_first", max_length=64, return_tensors="pt"
    )
    with torch.inference_mode():
        return model(**inputs).logits.sigmoid().item(), inputs.input_ids.numel()


def test_the_scores_are_those_of_the_model(reranker: TestClient, folder: Path) -> None:
    answer = ask(reranker)
    expected = [reference(folder, QUERY, document) for document in DOCUMENTS]
    scores = {each["index"]: each["relevance_score"] for each in answer["results"]}
    for index, (score, _) in enumerate(expected):
        assert scores[index] == pytest.approx(score, abs=1e-6)
    assert max(scores.values()) - min(scores.values()) > 0.01
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    tokens = sum(tokens for _, tokens in expected)
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert answer["model"] == "tiny-rerank"
    assert all("document" not in each for each in answer["results"])


def test_alone_as_together(reranker: TestClient) -> None:
    together = {each["index"]: each["relevance_score"] for each in ask(reranker)["results"]}
    with ThreadPoolExecutor(5) as clients:
        answers = clients.map(lambda text: ask(reranker, documents=[text]), DOCUMENTS)
        for index, answer in enumerate(answers):
            (result,) = answer["results"]
            assert result["relevance_score"] == pytest.approx(together[index], abs=1e-6)


def test_the_fields_of_a_request(reranker: TestClient) -> None:
    best, *_ = ask(reranker)["results"]
    assert ask(reranker, top_n=1)["results"] == [best]
    assert len(ask(reranker, top_n=99)["results"]) == len(DOCUMENTS)
    objects = [{"text": text} for text in DOCUMENTS]
    answer = ask(reranker, documents=objects, return_documents=True, top_n=1)
    assert answer["results"] == [best | {"document": objects[best["index"]]}]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"query": ""}, "query"),
        ({"query": "word " * 40}, "documents"),
        ({"query": "x" * 7000}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": "a"}, "documents"),
        ({"documents": [{"text": "a", "image": "b"}]}, "documents[0].image"),
        ({"documents": ["a", "ab " * 40]}, "documents"),
        ({"documents": ["a", "x" * 7000]}, "documents"),
        ({"documents": ["a"] * 3000}, "documents"),
        ({"top_n": 0}, "top_n"),
        ({"top_n": True}, "top_n"),
        ({"return_documents": 1}, "return_documents"),
        ({"truncate": "START"}, "truncate"),
        ({"rank_fields": ["title"]}, "rank_fields"),
        ({"max_tokens_per_doc": 10}, "max_tokens_per_doc"),
    ],
)
def test_bad_requests_name_the_field(
    reranker: TestClient, change: dict[str, Any], param: str
) -> None:
    response = reranker.post("/v1/rerank", json=REQUEST | change)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("query", "document"),
    [
        ("word", "ab " * 500),
        ("ab " * 500, "word"),
        ("ab " * 300, "cd " * 200),
        ("ab " * 20, "cd " * 13),
        ("ab " * 14, "cd " * 300),
    ],
)
def test_pairs_are_cut_on_request(
    reranker: TestClient, folder: Path, query: str, document: str
) -> None:
    answer = ask(reranker, query=query, documents=[document], truncate=True)
    score, tokens = reference(folder, query, document)
    assert answer["results"][0]["relevance_score"] == pytest.approx(score, abs=1e-6)
    assert answer["usage"]["total_tokens"] == tokens
    refused = reranker.post("/v1/rerank", json=REQUEST | {"query": query, "documents": [document]})
    assert (refused.status_code == 400) == (tokens == 64)


@pytest.mark.parametrize(
    ("room", "shorter", "kept"), [(9, 2, (2, 7)), (9, 4, (4, 5)), (9, 6, (4, 5)), (8, 6, (4, 4))]
)
def test_the_room_is_shared(room: int, shorter: int, kept: tuple[int, int]) -> None:
    assert share(room, shorter) == kept


def test_a_long_query_is_read_once(reranker: TestClient) -> None:
    ask(reranker)
    started = time.monotonic()
    ask(reranker, query="ab " * 100_000, documents=["a"] * 500, truncate=True)
    assert time.monotonic() - started < 30  # for each document it would take minutes


def test_without_a_model_it_is_a_404(client: TestClient) -> None:
    for model in ("tiny-rerank", "tiny-embeddings"):
        response = client.post("/v1/rerank", json=REQUEST | {"model": model})
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"


def test_limits_are_those_of_embeddings(
    make_client: Callable[..., TestClient], folder: Path
) -> None:
    settings = {"rerank_model": str(folder), "max_queue_tokens": 0, "embeddings_batch_texts": 1}
    heavy = REQUEST | {"documents": ["word " * 5] * 2000}
    with make_client(**settings) as client:
        ask(client)

        def post(_: int) -> int:
            return client.post("/v1/rerank", json=heavy).status_code

        with ThreadPoolExecutor(4) as clients:
            assert set(clients.map(post, range(4))) == {200, 429}


def test_a_request_that_takes_too_long_is_a_504(
    make_client: Callable[..., TestClient], folder: Path
) -> None:
    settings = {"rerank_model": str(folder), "embeddings_batch_texts": 1}
    with make_client(request_timeout_seconds=0.2, **settings) as client:
        wait_until(lambda: client.post("/v1/rerank", json=REQUEST).status_code == 200)
        heavy = REQUEST | {"documents": ["word " * 5] * 2048}
        assert client.post("/v1/rerank", json=heavy).status_code == 504
        assert client.post("/v1/rerank", json=REQUEST).status_code == 200


def test_it_is_listed(reranker: TestClient) -> None:
    assert reranker.get("/v1/models/tiny-rerank").json()["type"] == "rerank"


def load(folder: Path) -> CrossEncoder:
    return CrossEncoder.load(folder, Device("cpu", "float32"))


def test_several_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="3 labels"):
        load(build_rerank_model(tmp_path / "model", labels=3))


def test_an_embeddings_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not a cross-encoder"):
        load(build_embeddings_model(tmp_path / "model"))


@pytest.mark.parametrize("missing", ["classifier.weight", "bert.pooler.dense.weight"])
def test_weights_are_not_made_up(tmp_path: Path, missing: str) -> None:
    folder = build_rerank_model(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights[missing]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match=missing):
        load(folder)


def test_a_model_without_a_classifier_is_refused(tmp_path: Path) -> None:
    BertModel(make_config()).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(SourceError, match="it is a BertModel and not a cross-encoder"):
        RerankModel.load(str(tmp_path), Device("cpu", "float32"), Settings(_env_file=None))


@pytest.mark.parametrize(
    "entry",
    [
        {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
    ],
)
def test_the_model_names_its_activation(tmp_path: Path, entry: dict[str, Any]) -> None:
    folder = build_rerank_model(tmp_path / "model")
    config = AutoModelForSequenceClassification.from_pretrained(folder).config.to_dict()
    write_json(folder / "config.json", config | entry)
    model = RerankModel.load(
        str(folder), Device("cpu", "float32"), Settings(_env_file=None, embeddings_batch_texts=4)
    )
    try:
        (score,) = asyncio.run(model.rank(QUERY, DOCUMENTS[:1])).scores
    finally:
        model.unload()
    expected, _ = reference(folder, QUERY, DOCUMENTS[0])
    assert torch.tensor(score).sigmoid().item() == pytest.approx(expected, abs=1e-6)
    assert score != pytest.approx(expected, abs=1e-3)
