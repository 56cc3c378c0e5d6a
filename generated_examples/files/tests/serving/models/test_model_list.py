"""INFER_CHAT_MODEL and its like: entries of a list, their names and revisions."""

from pathlib import Path

import pytest

from files_server.serving.models.device import Device
from files_server.serving.models.model import Model, ModelSpec
from files_server.serving.models.model_errors import ConfigurationError
from files_server.serving.models.model_list import (
    ListedModel,
    check_names,
    listed_models,
    served_id,
)

SETTING = "INFER_X_MODEL"


def read(listed: str, revisions: str = "") -> list[ListedModel]:
    return listed_models(SETTING, listed, revisions)


def test_one_source_is_known_by_its_id_and_its_source(tmp_path: Path) -> None:
    folder = str(tmp_path / "model")
    assert read("owner/model") == [ListedModel("owner/model", "owner/model", ("owner/model",))]
    assert read(folder) == [ListedModel("model", folder, (folder,))]


def test_an_empty_setting_lists_none() -> None:
    assert read("") == []


def test_several_are_known_by_the_names_that_they_are_given() -> None:
    small, large, plain = read("small=owner/a, team/large:7b = ./b ,owner/c")
    assert small == ListedModel("small", "owner/a")
    assert large == ListedModel("team/large:7b", "./b")
    assert plain == ListedModel("owner/c", "owner/c", ("owner/c",))


@pytest.mark.parametrize("name", ["a=b", "a,b", "run=3,lr=0.1", "a, b"])
def test_a_path_that_exists_is_taken_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    for path in (name, f"./{name}", f"{tmp_path}/{name}"):
        assert [(each.id, each.source) for each in read(path)] == [(name, path)]
        assert read(f"alias={path}") == [ListedModel("alias", path)]


def test_an_equals_sign_in_a_path_of_a_list(tmp_path: Path) -> None:
    (tmp_path / "run=1").mkdir()
    listed = f"{tmp_path}/run=1,{tmp_path}/run=2,b={tmp_path}/run=3"
    assert [each.id for each in read(listed)] == ["run=1", "run=2", "b"]


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        (" ", "'' is no model; write source or name=source, separated by commas"),
        (",", "'' is no model"),
        ("owner/a,", "'' is no model"),
        ("owner/a,,owner/b", "'' is no model"),
        ("/", "'/' is no model"),
        ("a=", "'a=' has no source after the ="),
        ("=owner/a", "'' cannot be the name of a model"),
        ("a b=owner/a", "'a b' cannot be the name of a model"),
        ("ü=owner/a", "'ü' cannot be the name of a model"),
        ("a/=owner/a", "'a/' cannot be the name of a model"),
        ("a/../b=owner/a", "'a/../b' cannot be the name of a model"),
        ("a?b=owner/a", "'a?b' cannot be the name of a model"),
        ("C:\\models\\a=b", "'C:\\\\models\\\\a' cannot be the name of a model"),
    ],
)
def test_wrong_entries_are_one_line(listed: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        read(listed)
    assert str(refused.value).startswith(f"{SETTING}: {said}")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "listed", ["~no-such-user/a", "C:\\models\\a", "a;b", "x" * 5000, "/" + "x" * 300]
)
def test_odd_sources_are_left_to_the_load(listed: str) -> None:
    [model] = read(listed)
    assert model.source == listed


@pytest.mark.parametrize(
    ("listed", "revisions", "pinned"),
    [
        ("owner/a", "v1", ["v1"]),
        ("owner/a", "v1,v2", ["v1,v2"]),  # a branch of this name
        ("owner/a", "owner/a=v1", ["v1"]),
        ("a=owner/a", "v1", ["v1"]),
        ("a=owner/a", "a=x=1", ["x=1"]),
        ("owner/a,b=owner/b", " b = v2 , owner/a=v1", ["v1", "v2"]),
        ("old=owner/a,new=owner/a", "old=v1", ["v1", ""]),
        ("owner/a,owner/b", "", ["", ""]),
    ],
)
def test_revisions(listed: str, revisions: str, pinned: list[str]) -> None:
    assert [each.revision for each in read(listed, revisions)] == pinned


@pytest.mark.parametrize(
    ("listed", "revisions", "said"),
    [
        ("owner/a,owner/b", "v1", "'v1' is not name=revision; models are: owner/a, owner/b"),
        ("owner/a,owner/b", "owner/a=v1,v2", "'v2' is not name=revision"),
        ("owner/a,owner/b", "owner/a=", "'owner/a=' is not name=revision"),
        ("owner/a,owner/b", "owner/a=v1,", "'' is not name=revision"),
        ("owner/a,owner/b", "owner/c=v1", "there is no model 'owner/c'"),
        ("a=owner/a,owner/b", "owner/a=v1", "there is no model 'owner/a'; models are: a, owner/b"),
        ("owner/a", "b=v1", "there is no model 'b'"),
        ("owner/a,owner/b", "owner/a=v1,owner/a=v2", "'owner/a' is there twice"),
        ("", "v1", "'v1' is not name=revision; models are: none"),
    ],
)
def test_wrong_revisions_are_one_line(listed: str, revisions: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        read(listed, revisions)
    assert str(refused.value).startswith(f"{SETTING}_REVISION: {said}")
    assert "\n" not in str(refused.value)


def test_a_path_is_no_name_for_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert served_id(str(tmp_path / "gone")) == "gone"
    assert served_id("~/models/gone") == "gone"
    (tmp_path / "model.gguf").touch()
    monkeypatch.chdir(tmp_path)
    assert served_id("model.gguf") == served_id(f"{tmp_path}/model.gguf") == "model.gguf"
    assert served_id("owner/model") == "owner/model"


def load(device: Device) -> Model:
    raise NotImplementedError


@pytest.mark.parametrize(
    "names", [("a", "b", "a"), ("a", "b", "/models/a"), ("/models/a", "other", "a")]
)
def test_no_two_models_share_a_name(names: tuple[str, ...]) -> None:
    specs = [
        ModelSpec(served_id(name), Model, load, aliases=(name,) if "/" in name else ())
        for name in names
    ]
    check_names(specs[:2])
    with pytest.raises(ConfigurationError, match="Two models are called 'a'") as refused:
        check_names(specs)
    assert "name=source" in str(refused.value)


def test_the_entries_of_two_lists(tmp_path: Path) -> None:
    """Two folders of one name, of which one needs another."""
    folders = [tmp_path / part / "model" for part in ("a", "b")]

    def specs(listed: str) -> list[ModelSpec]:
        return [ModelSpec(each.id, Model, load, each.aliases) for each in read(listed)]

    with pytest.raises(ConfigurationError, match="'model'"):
        check_names([*specs(str(folders[0])), *specs(str(folders[1]))])
    check_names([*specs(str(folders[0])), *specs(f"other={folders[1]}")])
