"""HTTP: what every request passes."""
