"""How one request wants its tokens chosen."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SamplingParams:
    """The sampling of one request; the names are OpenAI's and vLLM's."""

    max_tokens: int
    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    top_k: int = 0
    """0 considers the whole vocabulary."""
    min_p: float = 0.0
    seed: int = 0
    """Decides every choice: same seed, same text, whatever else is in the batch."""
    stop: tuple[str, ...] = ()
