"""The services of a team: `infer-scaffold status`."""
