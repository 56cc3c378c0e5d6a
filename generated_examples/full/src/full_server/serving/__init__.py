"""The template's part of the service; README.md is its map."""
