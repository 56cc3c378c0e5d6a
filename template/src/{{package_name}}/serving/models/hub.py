"""The files of a model: in a folder of this machine, or from the hub."""

import errno
import json
import threading
from collections.abc import Iterator
from pathlib import Path

from .model_errors import SourceError

LOADING = threading.Lock()
"""Held while one model is read and made ready; downloads go on beside it. A thread that imports
transformers while another one does finds half of it, and what a load measures it measures alone.
"""
WEIGHTS_AND_CONFIG = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]

LOCAL = ("/", "./", "../", "~")
"""Beginnings of a path, which no hub id has"""


def served_id(source: str) -> str:
    """The name that clients use: the hub id, or the last part of a local folder's path."""
    folder = Path(source).expanduser()
    return folder.resolve().name if folder.is_dir() or source.startswith(LOCAL) else source


def fetch_model(source: str, setting: str) -> Path:
    """The folder of the model's files, downloaded first if it is a hub id. Blocks.

    `setting` is the variable that names the model. Raises SourceError.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if folder.exists():
            raise SourceError("it is a file and not a folder", f"set {setting}=<folder>")
        if source.startswith(LOCAL):
            raise SourceError("its folder does not exist", f"set {setting}=<folder that exists>")
        folder = download(source, setting)
    if missing := missing_part(folder):
        raise SourceError(
            f"it is not a model that transformers can read, as it has no {missing}",
            f"look into {folder}, or set {setting}=<another model or a folder>",
        )
    return folder


def missing_part(folder: Path) -> str | None:
    """The first necessary part that the folder of a model lacks; None if it is complete."""
    folder = transformer_folder(folder)
    if not (folder / "config.json").is_file():
        return "config.json"
    if not any(file.suffix in (".safetensors", ".bin") for file in folder.iterdir()):
        return "weights (*.safetensors)"
    return None


def transformer_folder(folder: Path) -> Path:
    """The folder of configuration and weights: one below the model's own where sentence-transformers
    has a folder for each module, as its older versions have.
    """
    modules = folder / "modules.json"
    listed = json.loads(modules.read_text("utf-8")) if modules.is_file() else []
    path: str = listed[0]["path"] if listed else ""
    return folder / path


def download(hub_id: str, setting: str) -> Path:
    """The folder that holds the files of a model on the hub. Blocks. Raises SourceError."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=WEIGHTS_AND_CONFIG))
    except Exception as error:
        raise hub_failure(hub_id, setting, error) from error


def hub_failure(hub_id: str, setting: str, error: Exception) -> SourceError:
    """The failure behind an error of huggingface_hub: the innermost known error decides."""
    for each in reversed(list(chain(error))):
        if found := known_failure(hub_id, setting, each):
            return found
    return SourceError(
        "its files could not be downloaded", f"{type(error).__name__}: {error}", permanent=False
    )


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those that led to it, the latest first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def known_failure(hub_id: str, setting: str, error: BaseException) -> SourceError | None:
    """https://huggingface.co/docs/huggingface_hub/package_reference/utilities#errors"""
    from huggingface_hub import errors, get_token

    page = f"https://huggingface.co/{hub_id}"
    other = f"set {setting}=<another model or a folder>"
    match error:
        case errors.GatedRepoError():
            return SourceError(
                "it is gated on the hub",
                f"accept its licence at {page} and set HF_TOKEN to your access token, or {other}",
            )
        case errors.RepositoryNotFoundError():
            return SourceError(
                "the hub has no such model, or it is private",
                f"look for its name at {page}, set HF_TOKEN if it is private, or {other}",
            )
        case errors.DisabledRepoError():
            return SourceError("it is disabled on the hub", f"{page} says why; {other}")
        case errors.RevisionNotFoundError():
            return SourceError(
                "the hub has no such revision of it", f"{page}/commits/main lists them"
            )
        case errors.HFValidationError():
            return SourceError("it is neither a folder nor the id of a model on the hub", other)
        case errors.OfflineModeIsEnabled():
            return SourceError(
                "it is not on this machine, and HF_HUB_OFFLINE forbids a download",
                f"unset HF_HUB_OFFLINE, or {other}",
            )
        case errors.HfHubHTTPError(response=response):
            return refused(response.status_code, other, has_token=bool(get_token()))
        case errors.LocalEntryNotFoundError():
            return SourceError(
                "the hub cannot be reached",
                f"look at the network, the proxy and HF_ENDPOINT, or set {setting}=<folder>",
                permanent=False,
            )
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return SourceError(
                "the disk has no room for its files",
                "make room, or set HF_HOME to a folder on a larger disk",
                permanent=False,
            )
        case OSError(errno=errno.EACCES | errno.EPERM | errno.EROFS, filename=str()):
            return SourceError(
                "its files cannot be written to this machine",
                "set HF_HOME to a folder that can be written",
                permanent=False,
            )
    return None


def refused(status: int, other: str, *, has_token: bool) -> SourceError:
    """The failure behind a status of the hub that has no error of its own."""
    if status in (401, 403):
        whose = "HF_TOKEN is not valid or lacks rights" if has_token else "HF_TOKEN is not set"
        return SourceError(
            "the hub refuses the access of this service", f"{whose}; set it anew, or {other}"
        )
    if status == 429:
        return SourceError(
            "the hub limits the requests of this service",
            "wait, or set HF_TOKEN for a higher limit",
            permanent=False,
        )
    return SourceError(
        f"the hub answered with status {status}",
        f"wait, or {other}",
        permanent=400 <= status < 500 and status != 408,
    )
