"""A trial: a grammar is first compiled in a child process, which may fail without harm.

llguidance bounds most of what compiling costs, but not all: intersections of regular expressions
take time and memory that double with each of them, and what recurses deeply ends its process.
Native code in a thread can be neither stopped nor survived.

Run as a program, this module compiles the grammar on its standard input and throws it away.
"""

import re
import subprocess
import sys

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

# Schemas are untrusted. These limits bound the cost of one request: seconds of a compiling thread,
# milliseconds of the inference thread at each step.
LIMITS = LLParserLimits(
    initial_lexer_fuel=500_000,
    step_lexer_fuel=50_000,
    max_lexer_states=50_000,
    verbose_errors=False,
)

CPU_SECONDS = 1
MEMORY = 1024**3
SECONDS = 10.0
"""Limits of a trial: seconds of the processor, bytes of address space, seconds on the clock"""

HARMLESS_SIZE = 16 * 1024
HARMFUL = re.compile(
    r'"(?:allOf|format|oneOf|pattern|patternProperties)"\s*:'  # as keywords of a schema
    r"|%(?:lark|regex)|^(?:start|form): /",
    re.MULTILINE,
)
"""Parts of smaller grammars that need a trial: intersections, and rules that clients write"""

SPECIAL_TOKEN = re.compile(r"(?<!\?)(?<!\?P)<\[?[\w|.,/-]*\]?>")
PROGRAM = [sys.executable, "-P", __file__]
FAILED = 3


def compiled(tokenizer: LLTokenizer, rules: str) -> LLMatcher:
    """The start of a grammar. Its errors are the matcher's."""
    # Forcing looks far ahead for text without alternatives, which can take seconds.
    text = f'%llguidance {{"no_forcing": true}}\n{rules}'
    start = LLMatcher(tokenizer, text, log_level=0, limits=LIMITS)
    start.compute_bitmask()  # the first step is the slowest, and shows what has no end
    return start


def survives_trial(rules: str) -> bool:
    """True if a grammar can be compiled within the limits. Blocks for up to SECONDS."""
    if len(rules) <= HARMLESS_SIZE and not HARMFUL.search(rules):
        return True
    try:
        child = subprocess.run(PROGRAM, input=rules.encode(), capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return child.returncode >= 0 and child.returncode != FAILED


def limit_compiling() -> None:
    """Bounds what this process may take, where the system can."""
    try:
        import os
        import resource
    except ImportError:  # Windows
        return
    os.nice(10)  # the model's threads come first
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def main() -> None:
    limit_compiling()
    # The tokenizer of bytes has no special tokens but its own. It takes no time to make.
    rules = SPECIAL_TOKEN.sub("<[256]>", sys.stdin.buffer.read().decode())
    try:
        compiled(LLTokenizer("byte"), rules)
    except BaseException:  # a panic in Rust is none of the others
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
