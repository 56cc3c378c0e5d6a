"""The exception whose message the command line shows to its user."""

from typing import ClassVar


class UserError(Exception):
    """Something that the user can put right.

    The message says in one sentence what is wrong and what to do. The command line catches it in
    one place, prints it as one line and exits with `exit_code`.
    """

    exit_code: ClassVar[int] = 2
