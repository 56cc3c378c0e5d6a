"""A transformer with its tokenizer: what encoders and cross-encoders have in common."""

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from string import whitespace
from typing import Any, Generic, TypeVar

import torch
from threadpoolctl import threadpool_limits
from tokenizers import normalizers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerFast
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING
from transformers.utils.logging import disable_progress_bar

from ..models.checkpoint import refuse_missing_weights
from ..models.device import Device
from ..models.model_errors import UnsupportedModel
from .layout import Layout

Item = TypeVar("Item")


class TokenModel(ABC, Generic[Item]):
    """A transformer that computes batches of items, which are tokens of texts."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, layout: Layout
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self.vocabulary: int = model.get_input_embeddings().weight.size(0)
        limits = (layout.max_length or tokenizer.model_max_length, positions(model))
        self.max_length: int = min(limit for limit in limits if limit and limit > 0)
        # WordPiece takes words of up to 100 characters for one token, whether it knows them or not.
        self._max_characters: int = self.max_length * max(100, *map(len, tokenizer.get_vocab()))
        """Of a text, white space aside. What is longer is too long whatever its tokens are"""

    @abstractmethod
    def compute(self, batch: Sequence[Item]) -> Tensor:
        """B items → [B, N] float32 on the CPU."""

    @abstractmethod
    def make_item(self, tokens: int) -> Item:
        """An item of so many tokens, to measure with."""

    def too_long(self, text: str) -> str | None:
        """Excess of a text that is too long at a glance; None for other texts."""
        most = self._max_characters
        if len(text) > most and len(text) - sum(map(text.count, whitespace)) > most:
            return f"more than {most} characters"
        return None

    def head(self, text: str) -> str:
        """The beginning of a text, which has at least as many tokens as the model takes: to tokenise
        all of it would take a hundred times its memory.
        """
        room = self._max_characters
        if len(text) <= room:
            return text
        for word in re.finditer(r"\S+", text):
            if (size := word.end() - word.start()) >= room:
                return text[: word.start() + room]
            room -= size
        return text

    def pad(self, rows: Sequence[Sequence[int]], value: int = 0) -> tuple[Tensor, Tensor]:
        """B lists of token ids → [B, T] ids and [B, T] mask, on the device of the model."""
        ids = pad_sequence([torch.tensor(row) for row in rows], True, value)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(ids.size(1)) < lengths.unsqueeze(1)).long()
        return ids.to(self._model.device), mask.to(self._model.device)

    def share_cores(self, threads: int) -> threadpool_limits:
        """Gives the calling thread its part of the processor's cores, where so many compute.

        For good, or until the end of a `with` block.
        """
        # torch.set_num_threads would apply to all threads that start later.
        return threadpool_limits(max(1, torch.get_num_threads() // threads), user_api="openmp")

    def measure_pass_cost(self, threads: int, tokens: int = 32, texts: int = 4) -> int:
        """Fixed cost of a forward pass, in tokens, from the times of one text and of several.

        Small on a CPU, where every token costs; large on a GPU, where launching the work does.
        Blocks for a few small passes, as one of so many threads.
        """

        def seconds(size: int) -> float:
            batch = [self.make_item(min(tokens, self.max_length))] * size
            times = []
            for _ in range(3):  # the first warms up
                started = time.perf_counter()
                self.compute(batch)
                times.append(time.perf_counter() - started)
            return min(times)

        with self.share_cores(threads):
            alone, together = seconds(1), seconds(texts)
        saved_by_each = max(0.0, texts * alone - together) / (texts - 1)
        return round(saved_by_each * texts * tokens / together)


def load_transformer(
    layout: Layout,
    device: Device,
    auto_class: Any,
    *,
    uses_pooler: bool = False,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The transformer of a model, and its tokenizer.

    auto_class: of transformers. uses_pooler: the weights of the model's own pooler count.

    Raises SourceError for weights that are missing, OSError for files.
    """
    disable_progress_bar()
    folder = layout.transformer
    trust = {"trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(folder, **trust, **layout.config_options)
    if hasattr(config, "use_cache"):
        config.use_cache = False  # nothing is generated
    if auto_class is AutoModel:
        auto_class = encoder_class(config)
    model, report = auto_class.from_pretrained(
        folder,
        config=config,
        dtype=device.dtype,
        output_loading_info=True,
        **trust,
        **layout.model_options,
    )
    missing = [name for name in report["missing_keys"] if uses_pooler or not is_pooler(name)]
    refuse_missing_weights(missing, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, **trust, **layout.tokenizer_options)
    if tokenizer.is_fast:  # its file may set both
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    if layout.lower_case:
        lower_case(tokenizer)
    return model.to(device.torch_device).eval(), tokenizer


def encoder_class(config: Any) -> Any:
    """The class of transformers that encodes texts: of T5 and its like, which generate too, the half
    that does. Raises UnsupportedModel for those without such a class: the other half would compute
    something else.
    """
    found = MODEL_FOR_TEXT_ENCODING_MAPPING.get(type(config), None)
    if found is not None and found.__name__.endswith("EncoderModel"):
        return found
    if config.is_encoder_decoder:
        raise UnsupportedModel(
            f"it is of the type {config.model_type}, which has an encoder and a decoder, and of these "
            "t5, mt5 and umt5 are supported"
        )
    return AutoModel


def lower_case(tokenizer: PreTrainedTokenizerFast) -> None:
    """Makes a tokenizer read texts as if they were written in lower case, special tokens aside."""
    backend = tokenizer.backend_tokenizer
    own = [backend.normalizer] if backend.normalizer else []
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])


def is_pooler(weight: str) -> bool:
    return weight.startswith("pooler.") or ".pooler." in weight


def positions(model: PreTrainedModel) -> int | None:
    """The most tokens that the model has positions for; None where its configuration does not say.

    RoBERTa and its like begin to count after the id of the padding.
    """
    most: int | None = getattr(model.config, "max_position_embeddings", None)
    for module in model.modules():
        table = getattr(module, "position_embeddings", None)
        padding: int | None = getattr(table, "padding_idx", None)
        if table is not None and padding is not None:
            length: int = table.weight.size(0)
            return length - padding - 1
    return most
