"""Embeddings behind LitServe's spec: `litserve_embeddings.py MODEL PORT`."""

import sys

import litserve
import numpy as np
from sentence_transformers import SentenceTransformer

TIMEOUT = 300.0
"""Seconds. The default of 30 is for short queues."""


class EmbeddingsAPI(litserve.LitAPI):
    def setup(self, device: str) -> None:
        options = {"dtype": "bfloat16"}
        self.model = SentenceTransformer(sys.argv[1], device=device, model_kwargs=options)

    def predict(self, texts: str | list[str]) -> np.ndarray:
        texts = [texts] if isinstance(texts, str) else texts
        return self.model.encode(texts, normalize_embeddings=True, show_progress_bar=False)


if __name__ == "__main__":
    # LitServe's batching (max_batch_size above 1) refuses requests of more than one text.
    api = EmbeddingsAPI(spec=litserve.OpenAIEmbeddingSpec())
    server = litserve.LitServer(api, accelerator="cpu", timeout=TIMEOUT)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False)
