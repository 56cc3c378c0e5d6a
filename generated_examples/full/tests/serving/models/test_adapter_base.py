"""Adapters find the model that they belong to."""

import json
from pathlib import Path

import pytest

from full_server.serving.models.adapter_base import adapters_by_model


def adapter(folder: Path, base: str | None) -> str:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    return str(folder)


def test_one_model_has_them_all(tmp_path: Path) -> None:
    adapters = {"a": adapter(tmp_path / "a", "trained/elsewhere"), "b": "owner/b"}
    assert adapters_by_model(adapters, ["owner/model"]) == [adapters]


def test_several_models_have_those_that_name_them(tmp_path: Path) -> None:
    models = ["owner/small", "/models/large", "other/small"]
    bases = {"a": "owner/small", "b": "owner/large", "c": "other/small", "d": "owner/small"}
    adapters = {name: adapter(tmp_path / name, base) for name, base in bases.items()}
    owned = adapters_by_model(adapters, models)
    assert [sorted(each) for each in owned] == [["a", "d"], ["b"], ["c"]]
    assert owned[1]["b"] == adapters["b"]


@pytest.mark.parametrize(
    ("base", "which"),
    [("third/small", "more than one"), ("owner/huge", "none"), (None, "none"), ("", "none")],
)
def test_an_adapter_of_no_model_is_an_error(base: str | None, which: str, tmp_path: Path) -> None:
    adapters = {"a": adapter(tmp_path / "a", base)}
    with pytest.raises(ValueError, match=f"{which} of the chat models is the base of 'a'"):
        adapters_by_model(adapters, ["owner/small", "other/small"])
    with pytest.raises(ValueError, match="none of the chat models"):
        adapters_by_model({"b": "no/such"}, ["owner/small", "other/small"])
