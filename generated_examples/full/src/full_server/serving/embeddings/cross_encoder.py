"""The cross-encoder: pairs of a query and a document in, a score for each out."""

import inspect
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast
from transformers.modeling_utils import PreTrainedModel

from ..models.device import Device
from ..models.model_errors import UnsupportedModel
from .head import make_activation
from .layout import SCORES, Layout, read_model_layout
from .token_model import TokenModel, load_transformer

if TYPE_CHECKING:
    from tokenizers import Encoding


@dataclass(frozen=True)
class TokenPair:
    """The tokens of a query and a document."""

    ids: list[int]
    types: list[int]
    """For each token, 0 if it is the query's and 1 if it is the document's; empty where the model
    does not ask"""

    def __len__(self) -> int:
        return len(self.ids)


class CrossEncoder(TokenModel[TokenPair]):
    """A transformer that classifies pairs, with its tokenizer and its activation."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        layout: Layout,
        activation: nn.Module,
    ) -> None:
        super().__init__(model, tokenizer, layout)
        if not tokenizer.is_fast:
            raise UnsupportedModel("its tokenizer cannot be made a fast one, which is needed here")
        self._activation = activation
        self._backend = tokenizer.backend_tokenizer
        self._specials: int = self._backend.num_special_tokens_to_add(True)
        # Decoders look for the last token that is not this one.
        self._padding: int = model.config.get_text_config().pad_token_id or 0
        self._has_types = (
            "token_type_ids" in tokenizer.model_input_names
            and "token_type_ids" in inspect.signature(model.forward).parameters
        )
        self.compute([self.make_item(1)] * 2)

    @classmethod
    def load(cls, folder: Path, device: Device, *, trust_remote_code: bool = False) -> Self:
        """Raises SourceError for what is not supported and for missing weights, OSError for other
        missing files.
        """
        layout = read_model_layout(folder)
        if layout.modules:
            kind = layout.modules[0][0]
            raise UnsupportedModel(f"it has the module {kind} and is not a cross-encoder")
        if layout.modules is not None and layout.task != SCORES:
            raise UnsupportedModel(f"it is made for {layout.task} and is not a cross-encoder")
        if layout.prompts.default:
            raise UnsupportedModel("it has a default prompt, which is not supported")
        model, tokenizer = load_transformer(
            layout,
            device,
            AutoModelForSequenceClassification,
            uses_pooler=True,
            trust_remote_code=trust_remote_code,
        )
        if (labels := model.config.num_labels) != 1:
            reason = f"it has {labels} labels, and one is needed, which says how relevant a text is"
            raise UnsupportedModel(reason)
        return cls(model, tokenizer, layout, make_activation(activation_of(layout, model.config)))

    def make_item(self, tokens: int) -> TokenPair:
        token = 0 if self._padding else 1
        return TokenPair([token] * tokens, [0] * tokens if self._has_types else [])

    def read(self, texts: Sequence[str]) -> "list[Encoding]":
        """The tokens of each text, without special tokens."""
        encodings: list[Encoding] = self._backend.encode_batch(
            list(texts), add_special_tokens=False
        )
        return encodings

    def size(self, query: "Encoding", document: "Encoding") -> int:
        """Number of tokens of a pair, special tokens included."""
        return len(query) + len(document) + self._specials

    def join(self, query: "Encoding", document: "Encoding") -> TokenPair:
        """The tokens of a pair. What is too long is cut as tokenizers do with `longest_first`: at the
        end of the longer text, or of both, but not between special tokens.
        """
        if self.size(query, document) > self.max_length:
            room = self.max_length - self._specials
            short, long = share(room, min(len(query), len(document)))
            keep = (short, long) if len(query) <= len(document) else (long, short)
            query, document = deepcopy(query), deepcopy(document)
            query.truncate(keep[0])
            document.truncate(keep[1])
        pair = self._backend.post_process(query, document)
        return TokenPair(pair.ids, pair.type_ids if self._has_types else [])

    @torch.inference_mode()
    def compute(self, batch: Sequence[TokenPair]) -> Tensor:
        """B pairs → [B, 1] float32 on the CPU."""
        input_ids, mask = self.pad([pair.ids for pair in batch], self._padding)
        types = {}
        if self._has_types:
            types["token_type_ids"], _ = self.pad([pair.types for pair in batch])
        logits = self._model(input_ids=input_ids, attention_mask=mask, **types).logits
        scores: Tensor = self._activation(logits.float())
        return scores.cpu()


def share(room: int, shorter: int) -> tuple[int, int]:
    """Tokens that the shorter and the longer of two texts keep, as tokenizers count with
    `longest_first`. shorter: what the shorter one has.
    """
    if shorter <= room // 2:
        return shorter, room - shorter
    return room // 2, room - room // 2


def activation_of(layout: Layout, config: Any) -> str:
    """The full name of the activation that sentence-transformers applies to the scores."""
    own = getattr(config, "sentence_transformers", None) or {}
    older = getattr(config, "sbert_ce_default_activation_function", None)
    return layout.activation or own.get("activation_fn") or older or "torch.nn.Sigmoid"
