"""Pictures of the docs as SVG, which needs no font or script from elsewhere."""

import re
from collections.abc import Sequence
from html import escape

_LINE, _CHARACTER, _MARGIN = 19, 8.0, 16  # pixels
_FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
_SANS = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
# Beginnings of lines of a transcript, and the colours of these lines.
_COLOURS = (
    (r"==> ", "#7dcfff"),
    (r"you: ", "#e0af68"),
    (r"model: ", "#9ece6a"),
    (r"done$", "#7dcfff"),
)


def terminal(text: str, title: str) -> str:
    """A transcript in the window of a terminal."""
    lines = text.rstrip("\n").split("\n")
    width = round(max(map(len, lines)) * _CHARACTER + 2 * _MARGIN)
    top = 46
    height = top + len(lines) * _LINE + 6
    rows = "\n".join(
        f'<text x="{_MARGIN}" y="{top + number * _LINE + 8}" fill="{_colour(line)}" '
        f'xml:space="preserve">{escape(line, quote=False)}</text>'
        for number, line in enumerate(lines)
        if line
    )
    lights = "".join(
        f'<circle cx="{20 + 18 * place}" cy="16" r="5.5" fill="{colour}"/>'
        for place, colour in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    )
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" \
viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">
<rect width="{width}" height="{height}" rx="8" fill="#1a1b26"/>
{lights}
<g font-family="{_FONT}" font-size="13.3">
{rows}
</g>
</svg>
"""


def _colour(line: str) -> str:
    return next((colour for start, colour in _COLOURS if re.match(start, line)), "#c0caf5")


def bars(title: str, rows: Sequence[tuple[str, float]], ours: str) -> str:
    """Bars from the largest to the smallest, ours in another colour."""
    label, space, row = 290, 360, 30
    width, height = label + space + 70, 40 + row * len(rows)
    largest = max(value for _, value in rows)
    drawn = []
    for number, (name, value) in enumerate(sorted(rows, key=lambda each: -each[1])):
        y = 36 + number * row
        length = round(value / largest * space)
        fill = "#009688" if name == ours else "#90a4ae"
        drawn += [
            f'<text x="{label - 10}" y="{y + 15}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{label}" y="{y}" width="{length}" height="20" fill="{fill}"/>',
            f'<text x="{label + length + 6}" y="{y + 15}">{value:.3g}</text>',
        ]
    inner = "\n".join(drawn)
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" \
viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">
<rect width="{width}" height="{height}" fill="#ffffff"/>
<g font-family="{_SANS}" font-size="13" fill="#263238">
<text x="{label}" y="20" font-weight="bold">{escape(title)}</text>
{inner}
</g>
</svg>
"""
