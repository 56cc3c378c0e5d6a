"""Metrics of the batches of embeddings and reranking."""

from prometheus_client import CollectorRegistry, Counter, Histogram

LABELS = ("model_name",)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class SchedulerMetrics:
    """The batches of all models of a service."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._texts = Histogram(
            "infer_embeddings_batch_texts",
            "Texts in a batch",
            LABELS,
            buckets=TEXTS,
            registry=registry,
        )
        self._padding = Counter(
            "infer_embeddings_padding_tokens",
            "Tokens that were computed only to make the texts of a batch equally long",
            LABELS,
            registry=registry,
        )

    def of(self, model: str) -> "SchedulerMeter":
        return SchedulerMeter(self._texts.labels(model), self._padding.labels(model))


class SchedulerMeter:
    """The series of one model. The threads of its scheduler count."""

    def __init__(self, texts: Histogram, padding: Counter) -> None:
        self._texts = texts
        self._padding = padding

    def computed(self, lengths: list[int]) -> None:
        """A batch of texts with these lengths has been computed."""
        self._texts.observe(len(lengths))
        self._padding.inc(max(lengths) * len(lengths) - sum(lengths))
