"""The chat model that each adapter belongs to."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from .checkpoint import read_object
from .model_errors import ConfigurationError

CONFIG = "adapter_config.json"


def adapters_by_model(adapters: Mapping[str, str], models: Sequence[str]) -> list[dict[str, str]]:
    """The adapters of each model: all of them if there is one, else those that name it as their base.

    adapters: hub id or folder, by name. models: hub ids or folders.

    Raises ConfigurationError for an adapter whose base is none of several models, or two of them.
    """
    if len(models) == 1:
        return [dict(adapters)]
    owned: list[dict[str, str]] = [{} for _ in models]
    for name, source in adapters.items():
        base = named_base(source)
        places = places_of(base, models)
        if len(places) != 1:
            which = "none" if not places else "more than one"
            raise ConfigurationError(
                f"INFER_CHAT_ADAPTERS: {which} of the chat models is the base of {name!r}, which "
                f"its {CONFIG} calls {base!r}"
            )
        owned[places[0]][name] = source
    return owned


def places_of(base: str, models: Sequence[str]) -> list[int]:
    """Places of the models that are called so: exactly, or else by the last part of the name."""
    exact = [place for place, model in enumerate(models) if model == base]
    last = Path(base).name
    alike = [place for place, model in enumerate(models) if last and Path(model).name == last]
    return exact or alike


def named_base(source: str) -> str:
    """The base model that an adapter names; empty where it cannot be told. May ask the hub."""
    folder = Path(source).expanduser()
    file = folder / CONFIG
    if not folder.exists():
        from huggingface_hub import hf_hub_download

        try:
            file = Path(hf_hub_download(source, CONFIG))
        except Exception:  # of the hub, the network or the name
            return ""
    return str(read_object(file).get("base_model_name_or_path") or "")
