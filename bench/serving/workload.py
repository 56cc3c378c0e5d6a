"""What is asked of everybody: the same texts in the same order, seeded by round and case."""

import random
from dataclasses import dataclass

VOCABULARY = (
    "the quick brown fox jumps over lazy dog river mountain silver engine winter garden copper "
    "letter night harbour question music stone bridge market window paper forest signal captain "
    "morning island teacher doctor orange thunder village machine number story distance purple "
    "kitchen glass shadow history ocean valley ticket candle station reason monday summer bottle"
)
WORDS = VOCABULARY.split()


@dataclass(frozen=True)
class EmbeddingsCase:
    clients: int
    texts: int
    """Texts in one request"""
    requests: int

    @property
    def key(self) -> str:
        return f"embeddings {self.texts}x{self.clients}"

    @property
    def label(self) -> str:
        return (
            f"{self.texts} text{'s' if self.texts > 1 else ''} a request, {self.clients} at a time"
        )


@dataclass(frozen=True)
class Workload:
    """How much is asked in one round."""

    tokens: int
    """Length of every chat answer"""
    chat: dict[int, int]
    """Clients → requests"""
    embeddings: list[EmbeddingsCase]
    soak_requests: int
    streamed_tokens: tuple[int, int]
    """Lengths of the streams whose difference gives the cost of a token"""

    @property
    def ceiling_case(self) -> EmbeddingsCase:
        """The encoder alone computes the texts of most clients."""
        return max(self.embeddings, key=lambda case: case.clients)


FULL = Workload(
    tokens=64,
    chat={1: 4, 4: 8, 16: 48},
    embeddings=[
        EmbeddingsCase(clients=1, texts=1, requests=100),
        EmbeddingsCase(clients=16, texts=1, requests=320),
        EmbeddingsCase(clients=64, texts=1, requests=512),
        EmbeddingsCase(clients=8, texts=32, requests=16),
    ],
    soak_requests=10_000,
    streamed_tokens=(64, 576),
)
QUICK = Workload(
    tokens=8,
    chat={1: 1, 4: 4, 16: 16},
    embeddings=[
        EmbeddingsCase(clients=1, texts=1, requests=8),
        EmbeddingsCase(clients=16, texts=1, requests=32),
        EmbeddingsCase(clients=64, texts=1, requests=64),
        EmbeddingsCase(clients=8, texts=32, requests=8),
    ],
    soak_requests=200,
    streamed_tokens=(16, 144),
)


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(WORDS, k=count))


def seeded(*key: object) -> random.Random:
    return random.Random(repr(key))


def prompts(key: tuple[object, ...], count: int) -> list[str]:
    """Prompts of about 20 to 60 tokens that differ from their first words on."""
    rng = seeded("chat", *key)
    return [
        f"{words(rng, 2)} {number}: tell a long story about {words(rng, rng.randint(6, 38))}"
        for number in range(count)
    ]


def texts(key: tuple[object, ...], count: int) -> list[str]:
    """Texts of 5 to 160 words."""
    rng = seeded("embeddings", *key)
    return [words(rng, rng.randint(5, 160)) for _ in range(count)]


def short_texts(key: tuple[object, ...], count: int) -> list[str]:
    """Texts of 5 to 15 words that differ from their first words on."""
    rng = seeded("short", *key)
    return [f"{words(rng, 4)} {number} {words(rng, rng.randint(0, 10))}" for number in range(count)]
