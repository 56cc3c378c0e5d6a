"""Talks to a running service through the official client: a streamed chat, embeddings, a file."""

import argparse
import time
from itertools import combinations
from typing import Any

from openai import OpenAI

# Gemma 3 270M is a base model: it goes on in the manner of what it has seen. So it sees two turns
# first, and its answers end with the sentence, because nobody has taught it to end its turn.
HISTORY = [
    ("What is the capital of Italy?", "The capital of Italy is Rome."),
    ("What is the capital of Spain?", "The capital of Spain is Madrid."),
]
QUESTIONS = ["What is the capital of France?", "What is the capital of Japan?"]

SENTENCES = [
    "A cat sleeps on the sofa.",
    "The kitten is napping on the couch.",
    "The central bank raised interest rates.",
]


def model_of(api: OpenAI, type_: str) -> str:
    return next(model.id for model in api.models.list() if getattr(model, "type", "") == type_)


def chat(api: OpenAI) -> None:
    model = model_of(api, "chat")
    messages: list[Any] = []
    for question, answer in HISTORY:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        print(f"\nyou:   {question}\nmodel: ", end="", flush=True)
        started, first, answer = time.perf_counter(), 0.0, ""
        stream = api.chat.completions.create(
            model=model,
            messages=messages,
            temperature=0,
            max_tokens=40,
            stop=["."],
            stream=True,
            stream_options={"include_usage": True},
        )
        for chunk in stream:
            for choice in chunk.choices:
                if text := choice.delta.content:
                    first = first or time.perf_counter() - started
                    answer += text
                    print(text, end="", flush=True)
            if chunk.usage:
                seconds = time.perf_counter() - started
                print(
                    f".   [first token {first:.2f} s, {chunk.usage.completion_tokens} tokens"
                    f" in {seconds:.2f} s]"
                )
        if not answer:
            raise SystemExit("The model said nothing.")
        messages.append({"role": "assistant", "content": answer + "."})


def similarity(api: OpenAI) -> None:
    answer = api.embeddings.create(model=model_of(api, "embeddings"), input=SENTENCES)
    vectors = [item.embedding for item in answer.data]
    print()
    for left, right in combinations(range(len(SENTENCES)), 2):
        cosine = sum(a * b for a, b in zip(vectors[left], vectors[right], strict=True))
        print(f"{cosine:5.2f}  {SENTENCES[left]}  ~  {SENTENCES[right]}")


def file_round_trip(api: OpenAI) -> None:
    content = "\n".join(SENTENCES).encode()
    file = api.files.create(file=("sentences.txt", content), purpose="user_data")
    print(f"\nuploaded {file.filename} ({file.bytes} bytes) as {file.id}")
    if api.files.content(file.id).read() != content:
        raise SystemExit("The file came back changed.")
    api.files.delete(file.id)
    if any(other.id == file.id for other in api.files.list()):
        raise SystemExit("The file is still there.")
    print("read it back unchanged, deleted it")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    url: str = parser.parse_args().url
    api = OpenAI(base_url=f"{url}/v1", api_key="unused", timeout=300)
    chat(api)
    similarity(api)
    file_round_trip(api)


if __name__ == "__main__":
    main()
