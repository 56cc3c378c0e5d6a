"""The errors of files. `..routers.files` gives each its HTTP status."""


class FileNotFound(Exception):
    """No such file, or no such page of it."""


class InvalidPdf(Exception):
    """The PDF cannot be rendered at all, or `at_this_dpi`."""

    def __init__(self, message: str, *, at_this_dpi: bool = False) -> None:
        super().__init__(message)
        self.at_this_dpi = at_this_dpi


class PdfTimeout(Exception):
    """Rendering the PDF takes too long."""


class TooManyPdfs(Exception):
    """Too many PDFs wait to be rendered. Worth another try."""
