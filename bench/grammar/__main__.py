"""Which library masks the logits? Run it as `python -m bench.grammar`; it takes half an hour.

Measures llguidance, xgrammar and outlines-core one after the other and writes
bench/results/grammar.md. `make demo` has to have run: it makes Gemma's tokenizer. What was measured
is kept in .bench/grammar, so that a run that was cut short goes on where it ended.
"""

import json
import os
import platform
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.grammar.cases import Case, cases, download
from bench.grammar.libraries import LIBRARIES, Compile, Matcher, RefusedError
from bench.serving.environments import FOLDER, install, python_of, version_of
from bench.serving.processes import ROOT

RESULTS = ROOT / "bench" / "results" / "grammar.md"
MEASURED = FOLDER / "grammar"
MODEL = Path("~/.cache/infer-scaffold/models/gemma-3-270m").expanduser()

LONGEST, LARGEST = 10, 4 << 30
"""Seconds of processor time and bytes that one schema with its answers may take"""
ANSWERS, TOKENS = 3, 150
"""Random answers to each schema, and the length at which an answer is given up"""
ENDINGS = '"}],:'
"""What the random model writes half of the time where it may, or it would never come to an end"""


def write(matcher: Matcher, tokenizer: Any, draw: random.Random, times: list[float]) -> str | None:
    """An answer of a random model, None if it has no end. Adds the seconds of its steps."""
    import numpy as np

    eos = tokenizer.eos_token_id
    endings = [*tokenizer.convert_tokens_to_ids(list(ENDINGS)), eos]
    tokens: list[int] = []
    while len(tokens) < TOKENS:
        started = time.perf_counter()
        bits = np.frombuffer(matcher.mask(), np.uint8)
        times.append(time.perf_counter() - started)
        allowed = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
        favoured = np.intersect1d(allowed, endings)
        choice = favoured if favoured.size and draw.random() < 0.5 else allowed
        if not choice.size:
            return None
        token = int(choice[draw.randrange(choice.size)])
        if token == eos:
            return str(tokenizer.decode(tokens))
        started = time.perf_counter()
        matcher.accept(token)
        times[-1] += time.perf_counter() - started
        tokens.append(token)
    return None


def lets_through(matcher: Matcher, tokenizer: Any, value: Any) -> bool:
    """Whether a model could answer with this value."""
    text = json.dumps(value, ensure_ascii=False)
    for token in tokenizer.encode(text, add_special_tokens=False):
        if not allows(matcher, token):
            return False
        matcher.accept(token)
    return allows(matcher, tokenizer.eos_token_id)


def allows(matcher: Matcher, token: int) -> bool:
    try:
        bits = bytes(matcher.mask())
    except RefusedError:
        return False
    return bool(bits[token >> 3] >> (token & 7) & 1)


def judge(schema: dict[str, Any], text: str | None) -> str:
    from jsonschema import Draft202012Validator

    if text is None:
        return "without end"
    try:
        return "valid" if Draft202012Validator(schema).is_valid(json.loads(text)) else "wrong"
    except ValueError:
        return "wrong"
    except Exception:  # such as a pattern that Python cannot read
        return "not judged"


def memory() -> float:
    """MB of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def measure_case(compile_schema: Compile, tokenizer: Any, case: Case) -> dict[str, Any]:
    before, started = memory(), time.perf_counter()
    try:
        new = compile_schema(case.schema)
        new().mask()  # some do their work here
    except RefusedError as error:
        return {"fate": "refused", "why": str(error)[:300]}
    taken, times, texts = time.perf_counter() - started, list[float](), list[str | None]()
    for seed in range(ANSWERS):
        try:
            texts.append(write(new(), tokenizer, random.Random(seed), times))
        except RefusedError:
            texts.append(None)
    verdicts = [judge(case.schema, text) for text in texts]
    return {
        "fate": "compiled",
        "compile": taken,
        "steps": times,
        "answers": verdicts,
        "wrong": [t for t, verdict in zip(texts, verdicts, strict=True) if verdict == "wrong"],
        "let through": [x for x in case.forbidden if lets_through(new(), tokenizer, x)],
        "memory": memory() - before,
    }


def in_child(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Runs it in a fork with limits: native code that hangs or crashes ends nothing else."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (in_use + LARGEST, in_use + LARGEST))
            resource.setrlimit(resource.RLIMIT_CPU, (LONGEST, LONGEST + 1))
            signal.alarm(3 * LONGEST)  # what waits uses no processor
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            with os.fdopen(writer, "w") as pipe:
                pipe.write(json.dumps(work()))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if answer:
        return dict(json.loads(answer))
    timed_out = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGALRM)
    return {"fate": "out of time" if timed_out else "crashed"}


def measure(name: str) -> None:
    """Appends one line for the set-up and one for every case to a file."""
    import jsonschema  # noqa: F401 (before the memory of the first case is taken)
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    before, started = memory(), time.perf_counter()
    compile_schema = LIBRARIES[name](tokenizer, len(tokenizer))
    setup = {"seconds": time.perf_counter() - started, "memory": memory() - before}
    with (MEASURED / f"{name}.jsonl").open("a+") as file:
        file.seek(0)
        done = len(file.readlines())
        if not done:
            print(json.dumps(setup), file=file, flush=True)
        for case in list(cases(MEASURED))[max(done - 1, 0) :]:
            result = in_child(lambda case=case: measure_case(compile_schema, tokenizer, case))
            print(json.dumps({"group": case.group, **result}), file=file, flush=True)


def spread(values: list[float], *shares: float, unit: float = 1.0, digits: int = 1) -> str:
    ordered = sorted(values)
    shown = [ordered[min(int(len(ordered) * share), len(ordered) - 1)] for share in shares]
    return " / ".join(f"{value * unit:,.{digits}f}" for value in shown)


def column(setup: dict[str, Any], results: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """The rows of one library."""
    yield "tokenizer's set-up", f"{setup['seconds']:.1f} s, {setup['memory']:.0f} MB"
    for group in dict.fromkeys(result["group"] for result in results):
        tried = [result for result in results if result["group"] == group]
        taken = [result for result in tried if result["fate"] == "compiled"]
        fates = Counter(result["fate"] for result in tried)
        answers = Counter(answer for result in taken for answer in result["answers"])
        judged = answers["valid"] + answers["wrong"]
        yield f"**{group}: schemas**", str(len(tried))
        for fate in ("compiled", "refused", "out of time", "crashed"):
            yield fate, str(fates[fate])
        share = f" ({answers['valid'] / judged:.1%})" if judged else ""
        yield "answers that came to an end", str(judged)
        yield "valid answers", f"{answers['valid']}{share}"
        yield "**wrong answers**", str(answers["wrong"])
        if group == "test suite":
            yield "**forbidden values let through**", str(sum(len(x["let through"]) for x in taken))
        yield (
            "compile and first mask, median / p95 / max, ms",
            spread([x["compile"] for x in taken], 0.5, 0.95, 1, unit=1e3),
        )
        steps = [step for x in taken for step in x["steps"]]
        yield "step, median / p99, ms", spread(steps, 0.5, 0.99, unit=1e3, digits=2)
        yield "memory, median / max, MB", spread([x["memory"] for x in taken], 0.5, 1)


def main() -> None:
    if sys.argv[1:]:
        measure(sys.argv[1])
        return
    install("grammar")
    MEASURED.mkdir(exist_ok=True)
    download(MEASURED)
    columns = {}
    for name in LIBRARIES:
        subprocess.run([python_of("grammar"), "-m", "bench.grammar", name], cwd=ROOT, check=True)
        setup, *results = map(json.loads, (MEASURED / f"{name}.jsonl").read_text().splitlines())
        title = f"{name} {version_of('grammar', name)}"
        columns[title] = list(column(setup, results))
    rows = [
        [cells[0][0], *(value for _, value in cells)]
        for cells in zip(*columns.values(), strict=True)
    ]
    lines = ["| " + " | ".join(cells) + " |" for cells in [["", *columns], *rows]]
    lines.insert(1, "|---" * (len(columns) + 1) + "|")
    # Below the table is what people made of it.
    kept = RESULTS.read_text().partition("\n## ") if RESULTS.exists() else ("", "", "")
    head = f"# Grammars\n\nPython {platform.python_version()}, {os.cpu_count()} cores."
    RESULTS.write_text(f"{head}\n\n" + "\n".join(lines) + "\n" + "".join(kept[1:]))
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
