"""The command line on hostile input: a process of its own, with little memory and little time."""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import Outcome

MEMORY = 2 << 30  # bytes of address space
SECONDS = 60
# root may read everything; tests of unreadable files need a process without that privilege.
_NO_PRIVILEGE = (
    ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
    if os.geteuid() == 0 and shutil.which("setpriv")
    else []
)


def run_bounded(
    *arguments: str, cwd: Path, script: str = 'exec "$@"', seconds: int = SECONDS
) -> Outcome:
    """Run the command line, as "$@" of a script. Raises TimeoutExpired where it hangs."""
    program = [*_NO_PRIVILEGE, sys.executable, "-m", "infer_scaffold"]
    result = subprocess.run(
        ["sh", "-c", script, "sh", *program, *arguments],
        cwd=cwd,
        capture_output=True,
        timeout=seconds,
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
        check=False,
    )
    out, err = (each.decode(errors="surrogateescape") for each in (result.stdout, result.stderr))
    assert "Traceback" not in out + err
    return Outcome(result.returncode, out, err)
