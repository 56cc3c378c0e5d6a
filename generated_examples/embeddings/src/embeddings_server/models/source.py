"""Where a model's files come from: a folder of this machine, or the hub."""

import threading
from pathlib import Path

LOADING = threading.Lock()
"""Held while one model is read and made ready; downloads go on beside it. A thread that imports
transformers while another one does finds half of it, and what a load measures it measures alone.
"""
WEIGHTS_AND_CONFIG = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def served_id(source: str) -> str:
    """The name that clients use: the hub id, or the last part of a local folder's path."""
    folder = Path(source).expanduser()
    return folder.resolve().name if folder.is_dir() else source


def local_folder(source: str) -> Path:
    """The folder of the model's files, downloaded first if it is a hub id. Blocks."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if source.startswith(("/", "./", "../", "~")):
        raise FileNotFoundError(f"There is no model folder {source}")
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(source, allow_patterns=WEIGHTS_AND_CONFIG))
