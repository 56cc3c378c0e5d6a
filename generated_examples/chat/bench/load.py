"""Puts load on the running service: `python bench/load.py --concurrency 1,4,16 --requests 32`.

Asks /v1/models what there is, and measures the first chat model and the first embeddings model.
"""

import argparse
import asyncio
import itertools
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from openai import APIError, AsyncOpenAI, BadRequestError

WORDS = "the quick brown fox jumps over the lazy dog and runs into the deep dark forest".split()


@dataclass(frozen=True)
class Sample:
    """The measurements of one request."""

    first: float
    """Seconds until the first text arrived"""
    total: float
    """Seconds until the end"""
    units: int
    """Tokens or texts"""


@dataclass(frozen=True)
class Round:
    """The measurements of all requests of one concurrency."""

    samples: list[Sample]
    seconds: float
    errors: list[str]


Work = Callable[[int], Awaitable[Sample]]


def text(number: int, words: int) -> str:
    """A text of so many words that no cache has seen."""
    return " ".join([f"{number}:", *itertools.islice(itertools.cycle(WORDS), words)])


def chat_streamed(client: AsyncOpenAI, model: str, max_tokens: int) -> Work:
    async def work(number: int) -> Sample:
        started = time.perf_counter()
        first, tokens = 0.0, 0
        stream = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": f"Tell a long story about {text(number, 20)}"}],
            max_tokens=max_tokens,
            stream=True,
            stream_options={"include_usage": True},
        )
        async for chunk in stream:
            if not first and chunk.choices and chunk.choices[0].delta.content:
                first = time.perf_counter() - started
            if chunk.usage:
                tokens = chunk.usage.completion_tokens
        total = time.perf_counter() - started
        return Sample(first or total, total, tokens)

    return work


def chat_whole(client: AsyncOpenAI, model: str, max_tokens: int) -> Work:
    async def work(number: int) -> Sample:
        started = time.perf_counter()
        answer = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": f"Tell a long story about {text(number, 20)}"}],
            max_tokens=max_tokens,
        )
        total = time.perf_counter() - started
        return Sample(total, total, answer.usage.completion_tokens if answer.usage else 0)

    return work


def embeddings(client: AsyncOpenAI, model: str, texts: int, max_words: int) -> Work:
    async def work(number: int) -> Sample:
        # Lengths as they come in practice: short, long and in between.
        batch = [text(number, 1 + (number * 37 + i * 11) % max_words) for i in range(texts)]
        started = time.perf_counter()
        await client.embeddings.create(model=model, input=batch)
        total = time.perf_counter() - started
        return Sample(total, total, texts)

    return work


async def run(work: Work, numbers: Sequence[int], concurrency: int) -> Round:
    """One request for each number, at most `concurrency` at a time."""
    samples: list[Sample] = []
    errors: list[str] = []
    waiting = iter(numbers)

    async def client() -> None:
        for number in waiting:
            try:
                samples.append(await work(number))
            except APIError as error:
                errors.append(error.message)

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    return Round(samples, time.perf_counter() - started, errors)


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[round(share * (len(ordered) - 1))] if ordered else float("nan")


async def sweep(title: str, unit: str, work: Work, levels: Sequence[int], requests: int) -> bool:
    """Prints one line for each concurrency. False if requests failed."""
    print(f"\n{title}")
    columns = ("clients", f"{unit}/s", "first p50", "first p95", "total p50", "total p95", "failed")
    print(" ".join(f"{column:>10}" for column in columns))
    numbers = itertools.count(int(time.time()))
    errors: list[str] = []
    for level in levels:
        count = max(requests, level)
        result = await run(work, list(itertools.islice(numbers, count)), level)
        errors += result.errors
        firsts = [sample.first * 1000 for sample in result.samples]
        totals = [sample.total * 1000 for sample in result.samples]
        rate = sum(sample.units for sample in result.samples) / result.seconds
        times = [percentile(values, share) for values in (firsts, totals) for share in (0.5, 0.95)]
        cells = [f"{level}", f"{rate:.1f}", *(f"{ms:.0f} ms" if totals else "-" for ms in times)]
        print(" ".join(f"{cell:>10}" for cell in (*cells, f"{len(result.errors)}")), flush=True)
    for message, _ in Counter(errors).most_common(3):
        print(f"failed: {message}")
    return not errors


async def measure(client: AsyncOpenAI, options: argparse.Namespace) -> bool:
    models: dict[str, str] = {}
    async for card in client.models.list():
        models.setdefault(getattr(card, "type", "other"), card.id)
    if not models.keys() & {"chat", "embeddings"}:
        raise SystemExit("The service has neither a chat model nor an embeddings model.")

    fine = True
    if name := models.get("chat"):
        chat = chat_streamed(client, name, options.max_tokens)
        title = f"chat, streamed: {name}"
        try:
            await chat(0)  # loads the model
        except BadRequestError as error:
            if error.param != "stream":
                raise
            chat = chat_whole(client, name, options.max_tokens)
            title = f"chat: {name}"
            await chat(0)
        fine &= await sweep(title, "tokens", chat, options.concurrency, options.requests)
    if name := models.get("embeddings"):
        embed = embeddings(client, name, options.texts, options.max_words)
        await embed(0)
        title = f"embeddings: {name}, texts a request: {options.texts}"
        fine &= await sweep(title, "texts", embed, options.concurrency, options.requests)
    return fine


def positive(argument: str) -> int:
    number = int(argument)
    if number < 1:
        raise ValueError
    return number


def levels(argument: str) -> list[int]:
    return [positive(part) for part in argument.split(",")]


async def main() -> None:
    parser = argparse.ArgumentParser(description="Puts load on the running service.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the service")
    parser.add_argument("--api-key", default=os.environ.get("INFER_API_KEY", "none"))
    parser.add_argument("--concurrency", type=levels, default="1,4,16", help="such as 1,4,16")
    parser.add_argument("--requests", type=positive, default=32, help="requests for each of them")
    parser.add_argument("--max-tokens", type=positive, default=64, help="length of chat answers")
    parser.add_argument("--texts", type=positive, default=1, help="texts in an embeddings request")
    parser.add_argument("--max-words", type=positive, default=100, help="words in such a text")
    options = parser.parse_args()

    url = options.url.rstrip("/").removesuffix("/v1")
    # A failed request is counted, not tried again: retries would hide that the service is full.
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key=options.api_key, max_retries=0) as client:
        try:
            fine = await measure(client, options)
        except APIError as error:
            raise SystemExit(f"{url}: {error.message}") from None
    raise SystemExit(0 if fine else 1)


if __name__ == "__main__":
    asyncio.run(main())
