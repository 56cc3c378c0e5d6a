"""The proof that a batch computes what the model computes alone.

A batch packs all sequences into one row and reads their past from pages of the KV cache. The code
of some models is not made for that: it fails at the first request, or computes something else
without an error. So a model is batched after it has shown on its real weights that it may be.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle, islice, takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .adapter_mix import AdapterMix
from .continuous import PAGE_SIZE, CheckSequence, ContinuousBatchingEngine
from .sampling import SamplingState
from .sampling_params import SamplingOptions, SamplingParams
from .transformers_private import cache_of, key_value_width, makes_wanted_logits

CAPS = ("attn_logit_softcap", "attn_softcap", "attention_logit_cap")
ALIBI = (("position_embedding_type", "alibi"), ("model_type", "bloom"))

SHORT_PROMPT = 2
LONG_ANSWER = 2

FEWEST_TOKENS, MOST_TOKENS = 6, 192
"""Length of the longer prompt. On an accelerator, and for a small model, its tokens cost next to
nothing, so that it leaves the first page of the KV cache and a small sliding window behind."""

TOKENS_TIMES_PARAMETERS = 7_000_000_000
"""Work for a processor in one plain pass. A model of 1B parameters gets the fewest tokens."""

COMPARED_LOGITS = 4096
"""Logits of a row that are compared, the vocabulary's first. A model of 1B parameters with a
vocabulary of 128k spends more on its output embeddings than on one layer of each kind."""

TOLERANCES = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.25}
"""Largest `distance` between batch and plain pass that is rounding.

Measured: 3e-6, 0.008 and 0.07 with gemma-3-270m, less with a dozen tiny random models. Attention
that is wrong gave 0.3 and more, but for scores without their cap: `capped_attention` caps them,
and `known_obstacle` knows the models that have theirs under another name.
"""

GRAPH_TOKENS = 8
GRAPH_SAMPLING: list[SamplingOptions] = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 1.0, "top_p": 0.9},
]
"""Requests with which the graphs are checked"""

CHECKED_ADAPTERS = 8
"""Adapters that are checked, the first ones. All are computed alike."""

PATIENCE = 30.0
"""Seconds that the batch may take beyond a multiple of what the plain pass took"""


def known_obstacle(config: PreTrainedConfig) -> str | None:
    """Reason why a model of this configuration cannot be batched; None where nothing is known.

    A short trial might miss these: their effect is small, or comes with long texts only.
    """
    for key, value in leaves(config.get_text_config().to_dict()):
        if key in CAPS and value:
            return f"its attention scores are capped ({key}), which paged attention leaves out"
        if (key in ("alibi", "use_alibi") and value) or (key, value) in ALIBI:
            return "its positions are ALiBi biases, which a packed batch gets wrong"
        if key == "rope_type" and ("dynamic" in value or value == "longrope"):
            return f"its positions ({value} RoPE) depend on the longest text in the batch"
        if key == "keep_window_size" and value:
            return f"its attention keeps as many tokens ({key}) of the whole batch"
    return None


def leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every key with a value that is no mapping, at any depth."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value)
        else:
            yield key, value


def fit_tokens(model: PreTrainedModel, tokens: Sequence[int], kv_cache_tokens: int) -> list[int]:
    """As many tokens as the check takes of this model: the longer prompt and its answer.

    tokens: those of an ordinary text, which are repeated if need be.
    """
    length = MOST_TOKENS
    if model.device.type == "cpu":
        affordable = TOKENS_TIMES_PARAMETERS // model.num_parameters()
        length = min(max(affordable, FEWEST_TOKENS), MOST_TOKENS)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", kv_cache_tokens)
    length = min(length, kv_cache_tokens // 2, context - LONG_ANSWER)
    return list(islice(cycle(tokens), length + LONG_ANSWER))


def make_check_sequences(tokens: Sequence[int], adapter: int = 0) -> list[CheckSequence]:
    """A short and a long beginning of one text, each with what follows there as its answer.

    One plain pass over the text says what both must give.

    adapter: number of the adapter that computes them; 0 for none
    """
    length = len(tokens) - LONG_ANSWER
    chunk = chunk_size(length)
    # The short answer goes on until both sequences generate.
    passes = 1 + math.ceil((length - chunk + SHORT_PROMPT) / (chunk - 1))
    lengths = (SHORT_PROMPT, passes + 1), (length, LONG_ANSWER)
    return [
        CheckSequence(tokens[:prompt], tokens[prompt : prompt + n], adapter)
        for prompt, n in lengths
    ]


@contextmanager
def abridged(model: PreTrainedModel, length: int) -> Iterator[None]:
    """Leaves out the layers that are built like earlier ones, and most rows of the output
    embeddings, until the block ends.

    Each pass of a processor reads all weights. Layers of one kind are right or wrong together, and
    so are the rows, which know nothing of a batch. A prompt of `length` tokens that fills a page of
    the KV cache passes all layers, because later requests may share the page. So it does on an
    accelerator, where it costs next to nothing.
    """
    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", None)
    if model.device.type != "cpu" or length >= PAGE_SIZE or not isinstance(layers, nn.ModuleList):
        yield
        return
    head = model.get_output_embeddings()
    decoder.layers = layers[: first_of_each_kind(layers, model.config.get_text_config())]
    if type(head) is nn.Linear:
        model.set_output_embeddings(PartialHead(head))
    try:
        yield
    finally:
        decoder.layers = layers
        model.set_output_embeddings(head)


class PartialHead(nn.Module):
    """The output embeddings cut to the logits that are compared; the others are 0."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.vocabulary = head.out_features
        self.weight = head.weight[:COMPARED_LOGITS]
        self.bias = None if head.bias is None else head.bias[:COMPARED_LOGITS]

    def forward(self, hidden: Tensor) -> Tensor:
        logits = functional.linear(hidden, self.weight, self.bias)
        return functional.pad(logits, (0, self.vocabulary - logits.shape[-1]))


def first_of_each_kind(layers: nn.ModuleList, config: PreTrainedConfig) -> int:
    """The number of layers, from the first on, among which each kind is found.

    Layers are of one kind if they have the same attention and the same modules with the same
    plain attributes, such as `use_rope` or `sliding_window`.
    """
    attention = getattr(config, "layer_types", None) or [None] * len(layers)
    kinds = [
        (kind, *((type(module), plain_attributes(module)) for module in layer.modules()))
        for kind, layer in zip(attention, layers, strict=False)
    ]
    return max((kinds.index(kind) + 1 for kind in kinds), default=len(layers))


def plain_attributes(module: nn.Module) -> list[tuple[str, object]]:
    """Numbers, texts and flags of a module, but for its position."""
    return [
        (name, value)
        for name, value in vars(module).items()
        if isinstance(value, bool | int | float | str) and name != "layer_idx"
    ]


def chunk_size(length: int) -> int:
    """Tokens of a pass, so that a prompt of this length is read in two to five of them, beside the
    short prompt and its answer."""
    return max(SHORT_PROMPT + 3, length // 4)


class PlainPass(NamedTuple):
    """Results of one forward pass over the text of the check."""

    logits: Tensor
    """[N, V] float32, a row for each token of the answers"""
    kv_width: int | None
    """See `key_value_width`"""


@torch.inference_mode()
def plain_pass(
    model: PreTrainedModel, sequences: Sequence[CheckSequence], adapters: AdapterMix | None = None
) -> PlainPass:
    """adapters: those of the model, of which all sequences have the same one"""
    if adapters is not None:
        adapters.use(sequences[0].params.adapter)
    text = sequences[-1].prompt + sequences[-1].answer
    ids = torch.tensor([text], device=model.device)
    rows = torch.tensor(
        [len(each.prompt) - 1 + i for each in sequences for i in range(len(each.answer))],
        device=model.device,
    )
    if makes_wanted_logits(model):  # the others cost as much as the rest of a small model
        output = model(ids, use_cache=True, logits_to_keep=rows)
        logits = output.logits[0]
    else:
        output = model(ids, use_cache=True)
        logits = output.logits[0, rows]
    width = key_value_width(model.config.get_text_config(), cache_of(output))
    return PlainPass(torch.as_tensor(logits).float(), width)


def distance(actual: Tensor, expected: Tensor) -> float:
    """Largest relative error of a row, for [N, V] logits each: |a - e| / |e - mean(e)|.

    Unrelated logits are about 1 apart. Rounding: see TOLERANCES.
    """
    spread = (expected - expected.mean(dim=-1, keepdim=True)).norm(dim=-1)
    return float(((actual - expected).norm(dim=-1) / spread).max())


def check_batch(
    engine: ContinuousBatchingEngine,
    sequences: Sequence[CheckSequence],
    expected: Tensor,
    *,
    dtype: torch.dtype,
    plain_seconds: float,
) -> None:
    """Runs the sequences in one batch and compares each step with the plain pass.

    sequences: those of the base model, then those of each adapter, all of one text.
    expected: [N, V] logits of the plain passes; plain_seconds: what these took.

    Raises RuntimeError when the batch fails or computes something else, TimeoutError when it takes
    too long.
    """
    with_adapters = len({each.params.adapter for each in sequences})
    chunk = chunk_size(len(sequences[-1].prompt)) * with_adapters
    requests = [(each.prompt, each) for each in sequences]
    engine.run_check(requests, chunk, seconds=PATIENCE + 10 * plain_seconds)
    actual = torch.cat([each.logits() for each in sequences])
    error = distance(actual[:, :COMPARED_LOGITS], expected[:, :COMPARED_LOGITS])
    if not error <= TOLERANCES.get(dtype, TOLERANCES[torch.bfloat16]):  # NaN is not
        raise RuntimeError(f"its logits in a batch are {error:.1%} off those of a plain pass")


def check_graphs(engine: ContinuousBatchingEngine, tokens: Sequence[int]) -> None:
    """Compares what steps in CUDA graphs choose with what the same steps choose without them.

    Raises RuntimeError where they have less than half in common: what a graph gets wrong, it gets
    wrong from its first repetition on.
    """

    def answers(**params: Any) -> list[list[int]]:
        sequences = []
        for number, sampling in enumerate(GRAPH_SAMPLING):
            chosen = SamplingParams(max_tokens=GRAPH_TOKENS, seed=number, **sampling, **params)
            prompt = list(tokens[: SHORT_PROMPT + number])
            sequences.append((prompt, SamplingState(chosen, prompt, [], [])))
        return engine.run_check(sequences, len(tokens), seconds=10 * PATIENCE)

    # Logprobs are reported on the host, so that such a step is in no graph.
    pairs = zip(answers(), answers(top_logprobs=0), strict=True)
    common = sum(common_beginning(*pair) for pair in pairs)
    if common < GRAPH_TOKENS * len(GRAPH_SAMPLING) / 2:
        raise RuntimeError("its tokens in CUDA graphs are not those without")


def common_beginning(first: Sequence[int], second: Sequence[int]) -> int:
    """Tokens until the first that differs. Rounding may make one another, and all after it."""
    same = (mine == other for mine, other in zip(first, second, strict=False))
    return sum(1 for _ in takewhile(bool, same))
