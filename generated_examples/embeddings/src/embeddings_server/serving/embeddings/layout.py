"""sentence-transformers' files beside a model: its modules, its limits, its prompts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..models.checkpoint import transformer_folder
from ..models.model_errors import InvalidInput, SourceError, UnsupportedModel

TRANSFORMER_FILES = [
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
]
"""Names of the file that describes the transformer; later versions write the first alone"""

FEATURES = "feature-extraction"
SCORES = "sequence-classification"
"""Tasks of a transformer, in sentence-transformers' words"""

OURS = (
    "trust_remote_code",
    "dtype",
    "torch_dtype",
    "device_map",
    "cache_dir",
    "revision",
    "token",
    "ignore_mismatched_sizes",
)
"""Arguments that a model's files do not decide"""

PROMPTS_BY_TYPE = {
    "query": ("query", "search_query", "retrieval.query"),
    "document": (
        "document",
        "passage",
        "corpus",
        "search_document",
        "retrieval.passage",
        "retrieval.document",
    ),
}
"""Names that models give to the prompts for the two sides of a search"""


@dataclass(frozen=True)
class Prompts:
    """Texts that are put in front of an input, by name."""

    texts: Mapping[str, str]
    default: str = ""
    """The text for requests that choose none"""

    def choose(self, name: str | None, input_type: str | None) -> str:
        """The text with a name, or for a type of input. Raises InvalidInput if there is none."""
        if name is not None and input_type is not None:
            raise InvalidInput(
                "prompt_name and input_type both choose a prompt: send one of them.", "input_type"
            )
        if name is not None:
            if name not in self.texts:
                raise InvalidInput(
                    f"The model has no prompt of this name; its prompts are: {self}.", "prompt_name"
                )
            return self.texts[name]
        if input_type is None:
            return self.default
        sides = {
            side: next(filter(None, map(self.texts.get, names)), "")
            for side, names in PROMPTS_BY_TYPE.items()
        }
        # sentence-transformers saves both with every model, empty where there are none.
        if not any(sides.values()):
            raise InvalidInput(
                "The model has no prompts for queries and documents; "
                f"its prompts are: {self}. Leave input_type out.",
                "input_type",
            )
        # With a prompt for one side alone, the other side is embedded as it is.
        return sides[input_type]

    def __str__(self) -> str:
        return ", ".join(sorted(name for name, text in self.texts.items() if text)) or "none"


@dataclass(frozen=True)
class Layout:
    """The settings in the files of a model."""

    transformer: Path
    """Folder of the weights, the configuration and the tokenizer"""
    modules: Sequence[tuple[str, Path]] | None
    """Types and folders of the modules after the transformer; None where no file lists them"""
    task: str
    """FEATURES or SCORES"""
    prompts: Prompts
    max_length: int | None = None
    """Longest text in tokens that the model was made for"""
    lower_case: bool = False
    truncate_dim: int | None = None
    """Number of dimensions of each vector that the model keeps"""
    activation: str | None = None
    """Of a cross-encoder's scores"""
    model_options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of transformers' from_pretrained, for the model"""
    config_options: Mapping[str, Any] = field(default_factory=dict)
    tokenizer_options: Mapping[str, Any] = field(default_factory=dict)


def read_model_layout(folder: Path) -> Layout:
    """Raises UnsupportedModel for what this service would have to leave out."""
    listed = [read_module(each) for each in read_json(folder / "modules.json") or []]
    if not listed:  # then sentence-transformers reads none of its other files, either
        return Layout(folder, None, FEATURES, Prompts({}))
    whole = read_json(folder / "config_sentence_transformers.json")
    if (kind := listed[0][0]) != "Transformer":
        raise UnsupportedModel(f"it begins with the module {kind}, which is not supported")
    transformer = transformer_folder(folder)
    described: list[dict[str, Any]] = [read_json(transformer / name) for name in TRANSFORMER_FILES]
    first = next(filter(None, described), {})
    refuse_special(first)
    tokenizer_options = options(first, "processor_kwargs", "tokenizer_args")
    return Layout(
        transformer,
        [(each, folder / path) for each, path in listed[1:]],
        first.get("transformer_task", FEATURES),
        read_prompts(whole),
        max_length=tokenizer_options.get("model_max_length") or first.get("max_seq_length"),
        lower_case=bool(first.get("do_lower_case")),
        truncate_dim=whole.get("truncate_dim"),
        activation=whole.get("activation_fn"),
        model_options=options(first, "model_kwargs", "model_args"),
        config_options=options(first, "config_kwargs", "config_args"),
        tokenizer_options=tokenizer_options,
    )


def read_module(entry: Mapping[str, str]) -> tuple[str, str]:
    """Type and folder of a module, from modules.json."""
    package, _, kind = entry["type"].rpartition(".")
    if package.partition(".")[0] != "sentence_transformers":
        raise UnsupportedModel(f"it needs the module {entry['type']}, which is code of its own")
    return kind, entry["path"]


def refuse_special(transformer: Mapping[str, Any]) -> None:
    """Raises UnsupportedModel for a transformer whose output is not one vector a token."""
    for name in ("query_length", "document_length", "query_expansion", "tokenizer_name_or_path"):
        if transformer.get(name) is not None:
            raise UnsupportedModel(f"it sets {name}, which is not supported")
    text = transformer.get("modality_config", {}).get("text", {})
    if text.get("method", "forward") != "forward":
        raise UnsupportedModel(f"it computes texts with {text['method']}, which is not supported")


def read_prompts(config: Mapping[str, Any]) -> Prompts:
    texts = {name: text or "" for name, text in (config.get("prompts") or {}).items()}
    name = config.get("default_prompt_name")
    # sentence-transformers gives every model these two, empty where its files say nothing.
    if name is not None and name not in {*texts, "query", "document"}:
        raise UnsupportedModel(f"its default prompt {name!r} is not among its prompts")
    return Prompts(texts, texts.get(name, ""))


def options(config: Mapping[str, Any], name: str, older_name: str) -> dict[str, Any]:
    """Arguments that the model's files give to transformers. What they are loaded with otherwise is
    this service's decision.
    """
    given = config.get(name) or config.get(older_name) or {}
    return {key: value for key, value in given.items() if key not in OURS}


def read_module_config(folder: Path) -> dict[str, Any]:
    """The settings of a module after the transformer. Raises SourceError if they are missing."""
    config: dict[str, Any] = read_json(folder / "config.json")
    if not config:
        raise SourceError(
            f"its module {folder.name} has no config.json",
            f"{folder} lacks it: copy or download the model anew",
        )
    return config


def read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}
