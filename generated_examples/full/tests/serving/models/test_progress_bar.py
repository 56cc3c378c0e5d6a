"""The progress of a download or a load: a line of the log for each tenth, and what health tells."""

import logging

import pytest

from full_server.serving.models.device import Device
from full_server.serving.models.model import Model, ModelSpec
from full_server.serving.models.progress import progress_told_to
from full_server.serving.models.progress_bar import progress_bar_class
from full_server.serving.models.registry import ModelRegistry

pytestmark = pytest.mark.anyio


class Nothing(Model):
    type = "nothing"

    def unload(self) -> None:
        pass


def run_bar(updates: list[float], **options: object) -> list[str]:
    told: list[str] = []
    with progress_told_to(told.append):
        bar = progress_bar_class()(**options)
    for each in updates:  # outside, as the threads of a download do
        bar.update(each)
        bar.refresh()
    bar.close()
    return told


def test_each_tenth_of_a_download_is_told_once() -> None:
    told = run_bar([5e7, 5e7, 1e6, 4e8, 5e8], total=1e9, unit="B", desc="Downloading bytes")
    assert told == ["downloaded 10 % of 1.0 GB", "downloaded 50 % of 1.0 GB"]


def test_weights_that_are_read() -> None:
    assert run_bar([30, 70], total=100, desc="Loading weights") == ["read 30 % of the weights"]


def test_other_bars_say_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_bar([2, 2], total=4, desc="Fetching 4 files") == []
    assert run_bar([2, 2], total=None, unit="B", desc="Downloading bytes") == []
    assert capfd.readouterr() == ("", "")


async def test_the_registry_tells_how_far_a_load_is(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[dict[str, str]] = []

    def load(device: Device) -> Nothing:
        bar = progress_bar_class()(total=10, desc="Loading weights")
        seen.append(registry.loading)
        bar.update(4)
        bar.refresh()
        seen.append(registry.loading)
        return Nothing()

    registry = ModelRegistry([ModelSpec("slow", Nothing, load)], Device("cpu"))
    with caplog.at_level(logging.INFO):
        async with registry.use("slow", Nothing):
            assert registry.loading == {}
    assert seen == [{"slow": "started"}, {"slow": "read 40 % of the weights"}]
    assert "loading slow: read 40 % of the weights" in caplog.text
    await registry.close()
