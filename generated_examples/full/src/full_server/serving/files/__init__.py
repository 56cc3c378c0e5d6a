"""Files and the pages of PDFs."""
