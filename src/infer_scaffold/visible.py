"""Text of unknown origin, as it may go to a terminal."""


def visible(text: str) -> str:
    r"""Return a text in one line, without anything that a terminal obeys.

    Control characters, line breaks, marks that change the direction of writing, and bytes that
    are no text are spelled as Python spells them: an escape is `\x1b`.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def shortened(text: str, width: int) -> str:
    """Return a visible text of at most `width` characters."""
    text = visible(text)
    return text if len(text) <= width else f"{text[: width - 3]}..."
