"""The encoder itself: reads the weights, turns batches of tokens into vectors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from .device import Device
from .pooling import Pooling, read_pooling


class Encoder:
    """An encoder with its tokenizer and its pooling."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, pooling: Pooling
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._pooling = pooling
        self.vocabulary: int = model.config.vocab_size
        self.dimensions: int = model.config.hidden_size
        limits = (
            pooling.max_length,
            getattr(model.config, "max_position_embeddings", None),
            tokenizer.model_max_length,
        )
        self.max_length: int = min(limit for limit in limits if limit)

    @classmethod
    def load(cls, folder: Path, device: Device) -> Self:
        """Raises ValueError for a pooling that is not supported, OSError for missing files."""
        disable_progress_bar()
        pooling = read_pooling(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModel.from_pretrained(folder, dtype=device.dtype)
        return cls(model.to(device.torch_device).eval(), tokenizer, pooling)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included, neither padded nor truncated."""
        if self._pooling.lower_case:
            texts = [text.lower() for text in texts]
        encoded = self._tokenizer(list(texts), padding=False, truncation=False, verbose=False)
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    @torch.inference_mode()
    def encode(self, batch: Sequence[Sequence[int]]) -> Tensor:
        """B lists of token ids → [B, D] float32 on the CPU."""
        width = max(len(tokens) for tokens in batch)
        input_ids = torch.zeros((len(batch), width), dtype=torch.long)
        mask = torch.zeros_like(input_ids)
        for row, tokens in enumerate(batch):
            input_ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        input_ids, mask = input_ids.to(self._model.device), mask.to(self._model.device)
        hidden = self._model(input_ids=input_ids, attention_mask=mask).last_hidden_state
        return self._pooling(hidden, mask).cpu()
