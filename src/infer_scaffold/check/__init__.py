"""The checklist applied to source code: `infer-scaffold check`."""
