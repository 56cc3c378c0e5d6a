"""docs/models.md, from what the tests of this folder measured: `make models`.

Reads the reports that the tests write with `--families-json` and TEMPLATES_JSON.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.template import test_reference

PAGE = Path(__file__).parents[2] / "docs" / "models.md"

HEAD = """\
# Models

What the tests of this project measure, on tiny models with random weights.
`make models` measures it again and writes this page.

## Chat: families

Text, token counts and logprobs of each equal those of transformers' `generate()`, alone and beside
others, whole and streamed. The engine `continuous` serves many requests in one batch; `sequential`
serves one after the other, for the reason that `/health` says.

"""

TEMPLATES = """
## Chat: tools and thoughts

How the chat templates of the packages trl and axolotl write tool calls and thoughts. Each format is
forced, read while it streams, and rendered back. A model without a format of its own gets tools
with `INFER_TOOL_PROMPT=true` only.

"""

QUANTISATION = """
## Chat: quantisation

On processors; nothing of this was tested on a GPU.

| weights | |
|---|---|
| plain, `INFER_QUANTIZATION=int8` or `int4` | as `generate()` of the same quantised model |
| plain, `INFER_QUANTIZATION=fp8` | refused: for GPUs only |
| fp8, bitsandbytes, torchao, compressed-tensors, GGUF | loaded, with a package that the log names |
| GPTQ, AWQ, mxfp4, Quanto | loaded where their package works: it was not tested |
| HQQ, NVFP4, ModelOpt | refused |

"""

EMBEDDINGS = """\
## Embeddings and reranking

Vectors differ from those of sentence-transformers by less than 1e-5, and so do scores from those of
its CrossEncoder.

"""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    return "".join(f"{line.replace('| --- |', '|---|').replace(' ---', '---')}\n" for line in lines)


def families(facts: Iterable[dict[str, Any]]) -> str:
    rows = [
        (each["family"], each["class"], each["engine"], each["reason"] or "")
        for each in sorted(facts, key=lambda each: (each["engine"], each["family"]))
    ]
    return table(("family", "class", "engine", "reason"), rows)


def templates(facts: dict[str, dict[str, Any]]) -> str:
    rows = [(name, each["calls"] or "", each["thoughts"] or "") for name, each in facts.items()]
    return table(("template", "tool calls", "thoughts"), sorted(rows))


def embeddings() -> str:
    rows = [
        ("embeddings", ", ".join(test_reference.FAMILIES)),
        ("modules after the transformer", ", ".join(test_reference.HEADS)),
        ("reranking", ", ".join(test_reference.CROSS_ENCODERS)),
    ]
    return table(("", "tested"), rows)


def main(families_report: Path, templates_report: Path) -> None:
    page = HEAD + families(json.loads(families_report.read_text()))
    page += TEMPLATES + templates(json.loads(templates_report.read_text()))
    page += QUANTISATION + EMBEDDINGS + embeddings()
    PAGE.write_text(page)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
