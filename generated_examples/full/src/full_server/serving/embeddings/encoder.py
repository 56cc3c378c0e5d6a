"""The encoder itself: reads the weights, turns batches of tokens into vectors."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from ..models.device import Device
from .pooling import Pooling, read_pooling


class Encoder:
    """An encoder with its tokenizer and its pooling."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, pooling: Pooling
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._pooling = pooling
        self.vocabulary: int = model.get_input_embeddings().weight.size(0)
        self.dimensions: int = model.config.hidden_size
        limits = (
            pooling.max_length,
            positions(model),
            tokenizer.model_max_length,
        )
        self.max_length: int = min(limit for limit in limits if limit)
        # WordPiece takes words of up to 100 characters for one token, whether it knows them or not.
        self.max_characters: int = self.max_length * max(100, *map(len, tokenizer.get_vocab()))
        """Of a text, white space aside. What is longer is too long whatever its tokens are"""

    @classmethod
    def load(cls, folder: Path, device: Device) -> Self:
        """Raises ValueError for a pooling that is not supported or weights that are missing, OSError
        for missing files."""
        disable_progress_bar()
        pooling = read_pooling(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model, report = AutoModel.from_pretrained(
            folder, dtype=device.dtype, output_loading_info=True
        )
        # transformers fills them with random numbers. Its own pooler is not used here.
        missing = sorted(name for name in report["missing_keys"] if not is_pooler(name))
        if missing:
            raise ValueError(f"{folder} lacks {len(missing)} weights, such as {missing[0]}")
        return cls(model.to(device.torch_device).eval(), tokenizer, pooling)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included, neither padded nor truncated."""
        if self._pooling.lower_case:
            texts = [text.lower() for text in texts]
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

    @torch.inference_mode()
    def encode(self, batch: Sequence[Sequence[int]]) -> Tensor:
        """B lists of token ids → [B, D] float32 on the CPU."""
        rows = [torch.tensor(tokens) for tokens in batch]
        input_ids = pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(tokens) for tokens in batch])
        mask = (torch.arange(input_ids.size(1)) < lengths.unsqueeze(1)).long()
        input_ids, mask = input_ids.to(self._model.device), mask.to(self._model.device)
        hidden = self._model(input_ids=input_ids, attention_mask=mask).last_hidden_state
        return self._pooling(hidden, mask).cpu()

    def share_cores(self, threads: int) -> threadpool_limits:
        """Gives the calling thread its part of the processor's cores, where so many compute.

        For good, or until the end of a `with` block.
        """
        # torch.set_num_threads would apply to all threads that start later.
        return threadpool_limits(max(1, torch.get_num_threads() // threads), user_api="openmp")

    def measure_pass_cost(self, tokens: int = 32, texts: int = 4) -> int:
        """Fixed cost of a forward pass, in tokens, from the times of one text and of several.

        Small on a CPU, where every token costs; large on a GPU, where launching the work does.
        Blocks for a few small passes.
        """

        def seconds(size: int) -> float:
            batch = [[0] * min(tokens, self.max_length)] * size
            times = []
            for _ in range(3):  # the first warms up
                started = time.perf_counter()
                self.encode(batch)
                times.append(time.perf_counter() - started)
            return min(times)

        alone, together = seconds(1), seconds(texts)
        saved_by_each = max(0.0, texts * alone - together) / (texts - 1)
        return round(saved_by_each * texts * tokens / together)


def is_pooler(weight: str) -> bool:
    return weight.startswith("pooler.") or ".pooler." in weight


def positions(model: PreTrainedModel) -> int | None:
    """The most tokens that the model has positions for; None where its configuration does not say.

    RoBERTa and its like begin to count after the id of the padding.
    """
    most: int | None = getattr(model.config, "max_position_embeddings", None)
    for module in model.modules():
        table = getattr(module, "position_embeddings", None)
        if isinstance(table, torch.nn.Embedding) and table.padding_idx is not None:
            return table.num_embeddings - table.padding_idx - 1
    return most
