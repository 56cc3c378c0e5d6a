"""The checklist held to a running service: `infer-scaffold probe`."""
