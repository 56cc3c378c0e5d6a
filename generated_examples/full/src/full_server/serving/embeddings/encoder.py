"""The encoder itself: tokens of texts in, vectors out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedTokenizerFast
from transformers.modeling_utils import PreTrainedModel

from ..models.device import Device
from ..models.model_errors import UnsupportedModel
from .head import read_head
from .layout import FEATURES, Layout, read_model_layout, read_module_config
from .pooling import pool, read_modes
from .token_model import TokenModel, load_transformer


class Encoder(TokenModel[Sequence[int]]):
    """A transformer with its tokenizer, its pooling and the modules after that."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        layout: Layout,
        modes: Sequence[str],
        head: nn.Sequential,
    ) -> None:
        super().__init__(model, tokenizer, layout)
        self.prompts = layout.prompts
        self._modes = modes
        self._head = head.to(model.device)
        self._truncate_dim = layout.truncate_dim
        self.dimensions: int = self.compute([self.make_item(1)]).size(1)

    @classmethod
    def load(cls, folder: Path, device: Device, *, trust_remote_code: bool = False) -> Self:
        """Raises SourceError for what is not supported, and for weights and settings that are missing;
        OSError for other missing files.
        """
        layout = read_model_layout(folder)
        if layout.task != FEATURES:
            raise UnsupportedModel(f"it is made for {layout.task} and gives no vectors")
        modes, head = read_modes_of(layout), read_head((layout.modules or [])[1:])
        model, tokenizer = load_transformer(
            layout, device, AutoModel, trust_remote_code=trust_remote_code
        )
        if any(tokenizer("a").get("token_type_ids", [])):  # as XLNet's does
            raise UnsupportedModel("its tokenizer gives types to tokens, which is not supported")
        return cls(model, tokenizer, layout, modes, head)

    def make_item(self, tokens: int) -> list[int]:
        return [0] * tokens

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included, neither padded nor truncated."""
        encoded = self._tokenizer(
            list(texts),
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def cut(self, text: str) -> list[int]:
        """Token ids of a text that is too long, as many as the model takes: its end is missing, the
        special tokens are there.
        """
        if not self._tokenizer.is_fast:
            encoded = self._tokenizer(text, truncation=True, max_length=self.max_length)
            return list(encoded["input_ids"])
        # Not by the tokenizer's own settings, which are those of all threads.
        backend: Any = self._tokenizer.backend_tokenizer
        encoding = backend.encode(text, add_special_tokens=False)
        encoding.truncate(self.max_length - backend.num_special_tokens_to_add(False))
        ids: list[int] = backend.post_process(encoding).ids
        return ids

    @torch.inference_mode()
    def compute(self, batch: Sequence[Sequence[int]]) -> Tensor:
        """B lists of token ids → [B, D] float32 on the CPU."""
        input_ids, mask = self.pad(batch)
        hidden = self._model(input_ids=input_ids, attention_mask=mask).last_hidden_state
        vectors: Tensor = self._head(pool(hidden, mask, self._modes))
        return vectors[:, : self._truncate_dim].cpu()


def read_modes_of(layout: Layout) -> tuple[str, ...]:
    """The poolings of a model. Raises SourceError if it has none, one that is not here, or no
    file that names them.
    """
    if layout.modules is None:
        return ("mean",)  # as sentence-transformers takes it for a model without its files
    kind, folder = layout.modules[0] if layout.modules else ("", layout.transformer)
    if kind != "Pooling":
        found = f"the module {kind}" if kind else "nothing"
        raise UnsupportedModel(f"it has {found} where its pooling is expected")
    return read_modes(read_module_config(folder), has_prompts=any(layout.prompts.texts.values()))
