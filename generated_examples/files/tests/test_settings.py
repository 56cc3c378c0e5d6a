"""Settings come from the environment, and a wrong one is said in one line."""

import os
import subprocess
import sys
from collections.abc import Callable
from inspect import get_annotations
from pathlib import Path

import pytest
from pydantic import ValidationError

from files_server.settings import DEVICES, Settings, misspelt

from .conftest import Server


def test_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFER_PORT", "9000")
    monkeypatch.setenv("INFER_API_KEYS", " first-key ,two,, ")
    settings = Settings(_env_file=None)
    assert settings.port == 9000
    assert [key.get_secret_value() for key in settings.api_keys] == ["first-key", "two"]
    assert "first-key" not in repr(settings)


@pytest.mark.parametrize("device", ["auto", "cpu", *DEVICES, f"{DEVICES[0]}:1"])
def test_devices_of_this_service(device: str) -> None:
    assert Settings(_env_file=None, device=device).device == device


@pytest.mark.parametrize("device", ["tpu", f"{DEVICES[0]}:", f"{DEVICES[0]}:x", ""])
def test_other_devices_are_refused(device: str) -> None:
    with pytest.raises(ValidationError, match="must be auto, cpu or one of"):
        Settings(_env_file=None, device=device)


def test_every_setting_of_the_template_is_described() -> None:
    fields = {name: Settings.model_fields[name] for name in get_annotations(Settings)}
    assert [name for name, field in fields.items() if not field.description] == []


def test_wrong_setting_is_one_line() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "files_server"],
        env=os.environ | {"INFER_PORT": "99999"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 2
    assert run.stderr == "INFER_PORT: Input should be less than or equal to 65535\n"


def test_a_misspelt_variable_is_told_with_the_nearest_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("INFER_PROT", "INFR_HOST", "INFER_XYZZY", "INFER_SCAFFOLD_TEMPLATE", "HOST"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("infer_log_level", "info")
    (tmp_path / ".env").write_text("INFER_LOG_LEVLE=debug\nINFER_PORT=9000\nOTHER=1\n")
    told = [line for line in misspelt() if "INFER_XYZZY" not in line]
    assert told == [
        "there is no setting INFER_LOG_LEVLE; did you mean INFER_LOG_LEVEL?",
        "there is no setting INFER_PROT; did you mean INFER_PORT?",
        "there is no setting INFR_HOST; did you mean INFER_HOST?",
    ]
    assert any("INFER_XYZZY" in line for line in misspelt())


def test_a_misspelt_variable_is_a_warning_at_start(make_server: Callable[..., Server]) -> None:
    log = make_server(prot=9000).log.read_text()
    assert "WARNING" in log
    assert "there is no setting INFER_PROT; did you mean INFER_PORT?" in log


@pytest.mark.parametrize("device", [device for device in DEVICES if device != "cpu"])
def test_a_device_that_the_machine_lacks_ends_the_start(device: str) -> None:
    device += ":99" if device == "cuda" else ":9"
    run = subprocess.run(
        [sys.executable, "-m", "files_server"],
        env=os.environ | {"INFER_DEVICE": device, "INFER_PORT": "0"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 2
    assert run.stderr == (
        f"INFER_DEVICE is {device}, which this machine does not have; "
        "auto takes the best that it has.\n"
    )


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("API_KEYS", ",", "has no entries"),
        ("API_KEYS", " , ,", "has no entries"),
        ("API_KEYS", " ", "has no entries"),
        ("CORS_ORIGINS", ",", "has no entries"),
        ("CORS_ORIGINS", "https://a.example/path", "is not an origin"),
        ("CORS_ORIGINS", "a.example", "is not an origin"),
        ("CORS_ORIGINS", "https://*.example", "is not an origin"),
        ("TRUSTED_HOSTS", "https://a.example", "is not a host name"),
        ("TRUSTED_HOSTS", "a.*", "is not a host name"),
        ("FORWARDED_ALLOW_IPS", ",", "has no entries"),
        ("FORWARDED_ALLOW_IPS", "proxy.example", "is not an address"),
        ("FORWARDED_ALLOW_IPS", "10.0.0.1/8", "is not an address"),
        ("FORWARDED_ALLOW_IPS", "10.0.0.1:80", "is not an address"),
        ("FORWARDED_ALLOW_IPS", "*,10.0.0.1", "stands for all"),
        ("RATE_LIMIT_REQUESTS", "-1", "greater than or equal to 0"),
        ("KEEP_ALIVE_SECONDS", "0", "greater than or equal to 1"),
    ],
)
def test_wrong_lists_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(f"INFER_{name}", value)
    with pytest.raises(ValidationError, match=said):
        Settings(_env_file=None)


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_KEYS", "CORS_ORIGINS", "TRUSTED_HOSTS"):
        monkeypatch.setenv(f"INFER_{name}", "")
    settings = Settings(_env_file=None)
    assert settings.api_keys == settings.cors_origins == settings.trusted_hosts == ()
