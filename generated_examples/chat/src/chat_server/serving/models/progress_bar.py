"""The progress bars of huggingface_hub and transformers, told to the listener instead of drawn."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .progress import LISTENER

SECONDS = 1.0
"""Between two looks at how far it is: what is quicker says nothing"""


def progress_text(description: str, unit: str, done: float, total: float) -> str | None:
    """A text for a bar of huggingface_hub or transformers; None for one that says too little."""
    percent = f"{100 * done / total:.0f} %"
    if unit == "B":
        return f"downloaded {percent} of {total / 1e9:.1f} GB"
    if description == "Loading weights":
        return f"read {percent} of the weights"
    return None


def progress_bar_class() -> type:
    """A class to use in the place of tqdm's: it tells the listener instead of drawing a bar."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    class ProgressBar(tqdm):
        monitor_interval = 0  # no thread of its own

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.tell = LISTENER.get()  # here, as other threads update it
            self.tenths = 0
            silent = {"file": io.StringIO(), "disable": False, "leave": False}
            super().__init__(*args, **kwargs | silent | {"mininterval": SECONDS})

        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            if not self.total or not 0 < self.n < self.total:
                return
            tenths = int(10 * self.n / self.total)
            text = progress_text(self.desc.removesuffix(": "), self.unit, self.n, self.total)
            if text and tenths > self.tenths:
                self.tenths = tenths
                self.tell(text)

    return ProgressBar


@contextmanager
def weights_progress() -> Iterator[None]:
    """The listener is told how far transformers is with the weights that it reads meanwhile."""
    from transformers.utils.logging import set_tqdm_hook

    bar = progress_bar_class()
    previous = set_tqdm_hook(lambda factory, args, kwargs: bar(*args, **kwargs))
    try:
        yield
    finally:
        set_tqdm_hook(previous)
