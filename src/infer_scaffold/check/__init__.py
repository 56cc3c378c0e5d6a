"""The checklist held to source code: `infer-scaffold check`."""
