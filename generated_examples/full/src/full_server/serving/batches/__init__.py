"""Batches: files of requests, answered when no client waits."""
