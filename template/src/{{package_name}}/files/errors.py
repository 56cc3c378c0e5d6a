"""The errors of files. `..routers.files` gives each its HTTP status."""


class FileNotFound(Exception):
    """No such file, or no such page of it."""


class InvalidPdf(Exception):
    """The PDF cannot be rendered; `param` is the field of the upload that is to blame."""

    def __init__(self, message: str, param: str = "file") -> None:
        super().__init__(message)
        self.param = param


class PdfTimeout(Exception):
    """Rendering the PDF takes too long."""


class TooManyPdfs(Exception):
    """Too many PDFs wait to be rendered. Worth another try."""
