"""Settings come from the environment, and a wrong one is said in one line."""

import os
import subprocess
import sys

import pytest
from pydantic import ValidationError

from full_server.settings import DEVICES, Settings


def test_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFER_PORT", "9000")
    monkeypatch.setenv("INFER_API_KEYS", " one ,two,, ")
    settings = Settings(_env_file=None)
    assert settings.port == 9000
    assert [key.get_secret_value() for key in settings.api_keys] == ["one", "two"]
    assert "one" not in repr(settings)


@pytest.mark.parametrize("device", ["auto", "cpu", *DEVICES, f"{DEVICES[0]}:1"])
def test_devices_of_this_service(device: str) -> None:
    assert Settings(_env_file=None, device=device).device == device


@pytest.mark.parametrize("device", ["tpu", f"{DEVICES[0]}:", f"{DEVICES[0]}:x", ""])
def test_other_devices_are_refused(device: str) -> None:
    with pytest.raises(ValidationError, match="must be auto, cpu or one of"):
        Settings(_env_file=None, device=device)


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_wrong_setting_is_one_line() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "full_server"],
        env=os.environ | {"INFER_PORT": "99999"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 2
    assert run.stderr == "INFER_PORT: Input should be less than or equal to 65535\n"
