"""`python -m infer_scaffold`: the same as the `infer-scaffold` command."""

from infer_scaffold.cli import main

main()
