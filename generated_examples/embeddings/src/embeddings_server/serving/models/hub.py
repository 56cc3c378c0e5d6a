"""The files of a model: in a folder of this machine, or from the hub."""

import errno
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from .checkpoint import find_weights, has_weights
from .model_errors import SourceError
from .model_list import LOCAL, expanded, is_path
from .model_list import served_id as served_id  # where models of your own import it from
from .progress_bar import progress_bar_class

logger = logging.getLogger(__name__)

LOADING = threading.Lock()
"""Held while one model is read and made ready; downloads go on beside it. A thread that imports
transformers while another one does finds half of it, and what a load measures it measures alone.
"""
WEIGHTS_AND_CONFIG = ["*.json", "*.safetensors", "*.model", "*.tiktoken", "*.txt", "*.jinja"]
ADAPTER_FILES = [
    "adapter_config.json",
    "adapter_model.*",
    "chat_template.jinja",
    "special_tokens_map.json",
    "tokenizer*.json",
]
OTHER_FORMATS = ["original/*", "metal/*", "onnx/*", "openvino/*", "consolidated*"]
"""The same weights once more, as other programs read them"""


def fetch_model(
    source: str, setting: str, *, revision: str = "", trust_remote_code: bool = False
) -> Path:
    """The folder of the model's files, or its GGUF file, downloaded first if `source` is a hub id.
    Blocks.

    Args:
        setting: the variable that names the model.
        revision: commit, tag or branch on the hub; empty for the newest.
        trust_remote_code: Python code of the model belongs to its files.

    Raises SourceError.
    """
    path = expanded(source)
    if not is_path(source):
        if source.startswith(LOCAL):
            raise SourceError("its folder does not exist", f"set {setting}=<folder that exists>")
        path = download(source, setting, revision, trust_remote_code)
    elif revision:
        raise SourceError(
            "it is a folder, which has no revisions",
            f"unset {setting}_REVISION, or set {setting}=<hub id>",
        )
    if trust_remote_code:
        logger.warning("INFER_TRUST_REMOTE_CODE is on: code that comes with %s may run", source)
    return find_weights(path, setting)


def fetch_adapter(source: str) -> Path:
    """The folder of an adapter, downloaded first if `source` is a hub id. Blocks.

    Raises SourceError.
    """
    setting = "INFER_CHAT_ADAPTERS=<name>"
    path = Path(source).expanduser()
    if not path.exists():
        if source.startswith(LOCAL):
            raise SourceError("its folder does not exist", f"set {setting}=<folder that exists>")
        try:
            path = snapshot(source, "", ADAPTER_FILES)
        except Exception as error:
            raise hub_failure(source, setting, error) from error
        logger.info("the files of %s are those of revision %s", source, path.name)
    if not (path / "adapter_config.json").is_file():
        raise SourceError(
            "it is not an adapter, as it has no adapter_config.json",
            f"look into {path}, or set {setting}=<folder of a LoRA adapter>",
        )
    return path


def download(hub_id: str, setting: str, revision: str, trust_remote_code: bool) -> Path:
    """The folder that holds the files of a model on the hub. Blocks. Raises SourceError."""
    patterns = [*WEIGHTS_AND_CONFIG, *(["*.py"] if trust_remote_code else [])]
    try:
        folder = snapshot(hub_id, revision, patterns)
        if older := [f"{prefix}*.bin" for prefix in without_safetensors(folder)]:
            snapshot(hub_id, folder.name, older)  # of the same commit
    except Exception as error:
        raise hub_failure(hub_id, setting, error) from error
    logger.info("the files of %s are those of revision %s", hub_id, folder.name)
    if not has_weights(folder) and (names := gguf_on_hub(hub_id, folder.name)):
        raise SourceError(
            "its repository holds GGUF files, of which one has to be chosen",
            f"hf download {hub_id} {names[0]}, or another of the {len(names)}, and set "
            f"{setting}=<the path that it prints>",
        )
    return folder


def snapshot(hub_id: str, revision: str, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            hub_id,
            revision=revision or None,
            allow_patterns=list(patterns),
            ignore_patterns=OTHER_FORMATS,
            tqdm_class=progress_bar_class(),
        )
    )


def without_safetensors(folder: Path) -> Iterator[str]:
    """Beginnings of the names of weights that a repository holds as *.bin, if it holds them."""
    if not any(folder.glob("*.safetensors")):
        yield "pytorch_model"
    modules = (*folder.glob("0_*"), *folder.glob("*_Dense"), *folder.glob("*_LayerNorm"))
    for module in sorted(modules):
        if not any(module.glob("*.safetensors")):
            yield f"{module.name}/"


def gguf_on_hub(hub_id: str, revision: str) -> list[str]:
    """The GGUF files of a repository; none where the hub cannot be asked."""
    from huggingface_hub import list_repo_files

    with suppress(Exception):
        files = list_repo_files(hub_id, revision=revision)
        return sorted(file for file in files if file.endswith(".gguf"))
    return []


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
                "the hub has no such revision of it",
                f"set {setting}_REVISION to one of those that {page}/commits/main lists",
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
