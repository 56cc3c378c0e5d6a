"""The checklist applied to a running service: `infer-scaffold probe`."""
