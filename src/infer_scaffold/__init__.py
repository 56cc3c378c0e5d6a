"""Generate FastAPI + torch inference services and keep them up to date."""

__version__ = "0.4.0"
