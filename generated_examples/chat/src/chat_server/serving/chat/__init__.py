"""Chat: text in, text out."""
