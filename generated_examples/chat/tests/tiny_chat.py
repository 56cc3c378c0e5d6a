"""A chat model of a few kilobytes with random weights: real files, real loading, instant answers."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.modeling_utils import PreTrainedModel

TEMPLATE = """\
{% if tools %}{{ '<|system|>' + tools | tojson + '<|end|>' }}{% endif %}
{%- for message in messages %}
{%- if message['role'] not in ('system', 'user', 'assistant', 'tool') %}
{{- raise_exception('unknown role') }}
{%- endif %}
{{- '<|' + message['role'] + '|>' + message['content'] }}
{%- for call in message['tool_calls'] %}
{{- '\\n' if not loop.first }}<tool_call>
{{- '\\n{"name": "' + call['function']['name'] + '", "arguments": ' }}
{{- call['function']['arguments'] | tojson + '}\\n' }}</tool_call>
{%- endfor %}
{{- '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""

SPECIAL = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
SPECIAL += ["<tool_call>", "</tool_call>"]


def build_tokenizer(
    template: str = TEMPLATE, marks: Sequence[str] = (), *, special: bool = True
) -> PreTrainedTokenizerFast:
    """Byte-level: every string has tokens, and most characters beyond ASCII have several.

    marks: texts that have a token of their own, beside those of TEMPLATE; special: or ordinary
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[*SPECIAL, *(mark for mark in marks if special and mark not in SPECIAL)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["hello world, how are you today?"] * 4, trainer)
    if not special:
        tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in marks])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", chat_template=template
    )


def save(
    model: PreTrainedModel, folder: Path, tokenizer: PreTrainedTokenizerFast | None = None
) -> Path:
    tokenizer = tokenizer or build_tokenizer()
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build_chat_model(
    folder: Path, tokenizer: PreTrainedTokenizerFast | None = None, seed: int = 0
) -> Path:
    """A Llama, which is batched."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=max(300, len(tokenizer or ())),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
    )
    model = LlamaForCausalLM(config)
    model.lm_head.weight.data[SPECIAL.index("<|end|>")] = 0  # greedy answers never end early
    return save(model, folder, tokenizer)


def build_recurrent_model(folder: Path) -> Path:
    """A Mamba, which has no attention and cannot be batched."""
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=300, hidden_size=32, state_size=4, num_hidden_layers=2)
    return save(MambaForCausalLM(config), folder)
