"""Requests. What goes out is built with the types of the openai package."""
