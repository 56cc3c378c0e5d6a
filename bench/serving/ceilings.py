"""What the libraries reach without a server: `python -m bench.serving.ceilings < case.json`.

Prints one JSON object of figures. Runs in the generated service's environment.
"""

import json
import math
import sys
import time
from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    ContinuousBatchingConfig,
    GenerationConfig,
)

NATIVE = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
DTYPE = torch.bfloat16 if any(map(torch.cpu.get_capabilities().get, NATIVE)) else torch.float32
"""As the generated service chooses it"""

# As the generated service has them by default.
PAGE_SIZE = 64
KV_CACHE_TOKENS = 32768
MAX_BATCH_TOKENS = 512
MAX_BATCH_REQUESTS = 32


def tokenize(tokenizer: Any, prompts: list[str]) -> list[list[int]]:
    return [
        tokenizer.encode(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            ),
            add_special_tokens=False,
        )
        for prompt in prompts
    ]


def load_chat(folder: str) -> tuple[Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPE).eval()
    return tokenizer, model


def manager(folder: str, tokens: int, cases: dict[str, list[str]]) -> dict[str, float]:
    """Clients → tokens a second of the continuous batching manager, so many always in flight."""
    tokenizer, model = load_chat(folder)
    batching = model.init_continuous_batching(
        GenerationConfig(do_sample=False, eos_token_id=model.generation_config.eos_token_id),
        ContinuousBatchingConfig(
            page_size=PAGE_SIZE,
            num_blocks=math.ceil(KV_CACHE_TOKENS / PAGE_SIZE),
            max_batch_tokens=MAX_BATCH_TOKENS,
            max_requests_per_batch=MAX_BATCH_REQUESTS,
            use_cuda_graph=False,
            use_async_batching=False,
        ),
    )
    batching.warmup()
    batching.start()

    def run(prompts: list[list[int]], clients: int, length: int) -> int:
        waiting = iter(prompts)
        for _, prompt in zip(range(clients), waiting, strict=False):
            batching.add_request(prompt, max_new_tokens=length)
        generated = 0
        for _ in prompts:
            result = batching.get_result()
            if result is None or result.error is not None:
                raise RuntimeError(f"the manager failed: {result}")
            generated += len(result.generated_tokens)
            if (following := next(waiting, None)) is not None:
                batching.add_request(following, max_new_tokens=length)
        return generated

    figures = {}
    for clients, prompts in cases.items():
        encoded = tokenize(tokenizer, prompts)
        run([prompt[::-1] for prompt in encoded[: int(clients)]], int(clients), 4)  # warms up
        started = time.perf_counter()
        generated = run(encoded, int(clients), tokens)
        figures[clients] = generated / (time.perf_counter() - started)
    batching.stop(block=True)
    return figures


@torch.inference_mode()
def generate(folder: str, tokens: int, cases: dict[str, list[str]]) -> dict[str, float]:
    """Batch size → tokens a second of generate() on one padded batch of so many prompts."""
    tokenizer, model = load_chat(folder)
    figures = {}
    for size, prompts in cases.items():
        encoded = tokenize(tokenizer, prompts[: int(size)])
        batch = tokenizer.pad({"input_ids": encoded}, padding_side="left", return_tensors="pt")
        model.generate(**batch, do_sample=False, max_new_tokens=4)  # warms up
        started = time.perf_counter()
        sequences = model.generate(**batch, do_sample=False, max_new_tokens=tokens)
        seconds = time.perf_counter() - started
        new = sequences.shape[1] - batch["input_ids"].shape[1]
        figures[size] = new * int(size) / seconds
    return figures


@torch.inference_mode()
def encoder(folder: str, texts: list[str], sizes: list[int]) -> dict[str, float]:
    """Batch size → texts a second of the encoder on batches of texts of like length.

    Tokenized beforehand; mean pooling and normalization are part of it.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=DTYPE).eval()
    encoded = tokenizer(texts, truncation=True, max_length=256)["input_ids"]
    encoded.sort(key=len)

    def run(size: int, rows: list[list[int]]) -> None:
        for start in range(0, len(rows), size):
            batch = tokenizer.pad({"input_ids": rows[start : start + size]}, return_tensors="pt")
            hidden = model(**batch).last_hidden_state.float()
            weights = batch["attention_mask"].unsqueeze(-1).float()
            pooled = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
            torch.nn.functional.normalize(pooled, dim=-1).tolist()

    figures = {}
    for size in sizes:
        run(size, encoded[:: max(1, len(encoded) // (2 * size))])  # warms up on all lengths
        started = time.perf_counter()
        run(size, encoded)
        figures[str(size)] = len(encoded) / (time.perf_counter() - started)
    return figures


CASES = {"manager": manager, "generate": generate, "encoder": encoder}

if __name__ == "__main__":
    case = json.load(sys.stdin)
    figures = CASES[case.pop("case")](**case)
    print("\n" + json.dumps(figures))
