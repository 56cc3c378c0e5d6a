"""Generate FastAPI + torch inference services and keep them up to date."""

__version__ = "0.5.0.dev0"
