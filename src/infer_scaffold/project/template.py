"""The place of the template, and the address under which projects remember it."""

import os
import tomllib
from pathlib import Path

import platformdirs

from infer_scaffold.errors import UserError

# Generated projects find their updates here. It must never be a path of one machine.
ADDRESS = "gh:infer-scaffold/infer-scaffold"
VARIABLE = "INFER_SCAFFOLD_TEMPLATE"
# Beside copier.yml: what the template has moved since which version.
MOVES = "moves.toml"


def root() -> Path:
    """Return the folder that holds copier.yml: inside the wheel, or the checkout's root."""
    package = Path(__file__).parents[1]
    packaged = package / "_template"
    return packaged if packaged.is_dir() else package.parents[1]


def address() -> str:
    """Return the address of the template: that of a team's fork or mirror, or the public one.

    The environment variable comes first, then `template` in the config.toml of the person, then
    that of the machine. Raises UserError for a file or an address that cannot be used.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return _checked(chosen, VARIABLE)
    for file in config_files():
        try:
            with file.open("rb") as opened:
                chosen = tomllib.load(opened).get("template")
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read ({error}); put that right.") from error
        if chosen is not None:
            return _checked(chosen, f"template in {file}")
    return ADDRESS


def config_files() -> list[Path]:
    """Return where a config.toml is looked for, first come first served."""
    name = "infer-scaffold"
    folders = (platformdirs.user_config_path(name), platformdirs.site_config_path(name))
    return [folder / "config.toml" for folder in folders]


def _checked(address: object, source: str) -> str:
    known = ("gh:", "gl:", "git@", "git+", "https://", "ssh://", "file:///")
    if (
        not isinstance(address, str)
        or not address.startswith(known)
        or address.split() != [address]
    ):
        raise UserError(
            f"{source}: {address!r} is no address of a git repository; give one like "
            "gh:owner/name or https://host/name.git."
        )
    return address
