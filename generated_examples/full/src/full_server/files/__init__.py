"""Uploaded files: where they are kept, and the pages of PDFs. Knows nothing of HTTP."""
