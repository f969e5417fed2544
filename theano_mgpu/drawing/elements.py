"""The elements of a picture: text that fits its place, boxes, lines. Plain SVG, nothing fetched."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

__all__ = ["Picture", "fitted", "text_width", "wrapped"]

# In em, at least as wide as DejaVu Sans and Verdana, the widest fonts that "sans-serif" stands for.
_NARROW, _NORMAL, _WIDE, _MONOSPACE, _BOLD = 0.46, 0.66, 1.0, 0.62, 1.12
_NARROW_LETTERS = frozenset("fijlrtI.,:;'|!()[]/ -")
_WIDE_LETTERS = frozenset("mwMW%@+=<>~#")

_STYLE = """
text { font-family: ui-sans-serif, system-ui, "Helvetica Neue", Arial, sans-serif; fill: #1b2733; }
text.mono { font-family: ui-monospace, Menlo, Consolas, monospace; }
text.strong { font-weight: 600; }
text.muted { fill: #566573; }
text.on { fill: #ffffff; font-weight: 600; }
.page { fill: #ffffff; }
.device { fill: #eef5fc; stroke: #2f6fae; }
.lane { fill: #ffffff; stroke: #2f6fae; }
.shard { fill: #d3e5f6; stroke: #2f6fae; }
.host { fill: #fdf3e7; stroke: #b8621b; }
.inner { fill: #ffffff; stroke: #b8621b; }
.memory { fill: #f3f5f7; stroke: #6b7885; }
.line { fill: none; stroke: #6b7885; }
.line.batch { stroke: #2f6fae; }
.line.update { stroke: #b8621b; }
.halo { fill: none; stroke: #ffffff; }
.tip { fill: #6b7885; }
.tip.batch { fill: #2f6fae; }
.tip.update, .node { fill: #b8621b; }
.kind0 { fill: #2f6fae; } .kind1 { fill: #3f9c78; } .kind2 { fill: #d58a1d; } .kind3 { fill: #b8548c; }
.kind4 { fill: #7a68b8; } .kind5 { fill: #c4523b; } .other { fill: #98a4af; }
@media (prefers-color-scheme: dark) {
  text { fill: #e4ebf2; }
  text.muted { fill: #9fb0bf; }
  text.on { fill: #14191f; }
  .page { fill: #14191f; }
  .device { fill: #16263a; stroke: #6ba6e0; }
  .lane { fill: #14191f; stroke: #6ba6e0; }
  .shard { fill: #23456a; stroke: #6ba6e0; }
  .host { fill: #33240f; stroke: #e9a05c; }
  .inner { fill: #14191f; stroke: #e9a05c; }
  .memory { fill: #20272e; stroke: #8b9aa8; }
  .line { stroke: #8b9aa8; }
  .line.batch { stroke: #6ba6e0; }
  .line.update { stroke: #e9a05c; }
  .halo { stroke: #14191f; }
  .tip { fill: #8b9aa8; }
  .tip.batch { fill: #6ba6e0; }
  .tip.update, .node { fill: #e9a05c; }
  .kind0 { fill: #6ba6e0; } .kind1 { fill: #62c79e; } .kind2 { fill: #f0b352; } .kind3 { fill: #e28abb; }
  .kind4 { fill: #ab9ae6; } .kind5 { fill: #ee8a74; } .other { fill: #7d8a96; }
}
"""


def text_width(text: str, size: float, kind: str = "") -> float:
    """An upper bound of a line's width, whatever the font; ``kind`` may say "mono" and "strong"."""
    letters = sum(_letter_width(letter, "mono" in kind) for letter in text)
    return size * letters * (_BOLD if "strong" in kind and "mono" not in kind else 1)


def _letter_width(letter: str, mono: bool) -> float:
    if not letter.isascii():  # it may come from any font
        return _WIDE
    if mono:
        return _MONOSPACE
    if letter in _NARROW_LETTERS:
        return _NARROW
    return _WIDE if letter in _WIDE_LETTERS else 0.82 if letter.isupper() else _NORMAL


def fitted(text: str, width: float, size: float, kind: str = "") -> str:
    """The text, or its beginning and an ellipsis."""
    if text_width(text, size, kind) <= width:
        return text
    while text and text_width(text + "…", size, kind) > width:
        text = text[:-1]
    return text.rstrip(" ,") + "…"


def wrapped(text: str, width: float, size: float, most: int, kind: str = "") -> list[str]:
    """The text in at most ``most`` lines, broken between words; the last one ends in an ellipsis if there is more."""
    lines: list[str] = []
    words = text.split()
    while words and len(lines) < most:
        count = len(words)
        while count > 1 and text_width(" ".join(words[:count]), size, kind) > width:
            count -= 1
        if len(lines) == most - 1:
            count = len(words)
        lines.append(fitted(" ".join(words[:count]), width, size, kind))
        words = words[count:]
    return lines


class Picture:
    """An SVG that is put together from the back to the front."""

    def __init__(self, width: int, height: int, title: str, description: str) -> None:
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img">',
            f"<title>{_clean(title)}</title>",
            f"<desc>{_clean(description)}</desc>",
            f"<style>{_STYLE}</style>",
        ]
        self.rectangle(0, 0, width, height, "page", radius=0)

    def rectangle(self, x: float, y: float, width: float, height: float, kind: str, radius: float = 8) -> None:
        self._parts.append(
            f'<rect class={quoteattr(kind)} x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}"/>'
        )

    def bar(self, x: float, y: float, width: float, height: float, kind: str, opacity: float = 1) -> None:
        self._parts.append(
            f'<rect class={quoteattr(kind)} x="{x:.2f}" y="{y:g}" width="{width:.2f}" height="{height:g}" '
            f'opacity="{opacity:g}"/>'
        )

    def text(
        self, x: float, y: float, text: str, width: float, size: float = 14, kind: str = "", anchor: str = "start"
    ) -> None:
        """One line on the baseline ``y``, cut to ``width``."""
        shown = _clean(fitted(text, width, size, kind))
        self._parts.append(
            f'<text class={quoteattr(kind)} x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}">'
            f"{shown}</text>"
        )

    def paragraph(
        self, x: float, y: float, texts: Sequence[str], width: float, size: float = 13, kind: str = "", most: int = 2
    ) -> float:
        """Texts below each other, each in at most ``most`` lines; the next free baseline."""
        for text in texts:
            for line in wrapped(text, width, size, most, kind):
                self.text(x, y, line, width, size, kind)
                y += round(1.42 * size)
        return y

    def circle(self, x: float, y: float, radius: float, kind: str) -> None:
        self._parts.append(f'<circle class={quoteattr(kind)} cx="{x:g}" cy="{y:g}" r="{radius:g}"/>')

    def path(self, drawn: str, kind: str = "", width: float = 2, *, crossing: bool = False) -> None:
        """A line; one that may cross others has a border of the page's colour, so that they can be told apart."""
        if crossing:
            self._parts.append(f'<path class="halo" d="{drawn}" stroke-width="{width + 5:g}"/>')
        self._parts.append(f'<path class="line {kind}" d="{drawn}" stroke-width="{width:g}"/>')

    def curve(self, x: float, y: float, to_x: float, to_y: float, kind: str = "", width: float = 1.6) -> None:
        middle = (x + to_x) / 2
        self._parts.append(
            f'<path class="line {kind}" d="M{x:g} {y:g}C{middle:g} {y:g} {middle:g} {to_y:g} {to_x:g} {to_y:g}" '
            f'stroke-width="{width:g}"/>'
        )

    def tip(self, x: float, y: float, toward: str, kind: str = "", size: float = 8) -> None:
        """An arrow's head with its point at x, y."""
        along, across = {"right": (-1, 0), "left": (1, 0), "down": (0, -1), "up": (0, 1)}[toward], size * 0.6
        back = (x + along[0] * size * 1.3, y + along[1] * size * 1.3)
        side = (across * abs(along[1]), across * abs(along[0]))
        corners = (x, y), (back[0] + side[0], back[1] + side[1]), (back[0] - side[0], back[1] - side[1])
        points = " ".join(f"{a:g},{b:g}" for a, b in corners)
        self._parts.append(f'<polygon class="tip {kind}" points="{points}"/>')

    def begin_group(self, name: str) -> None:
        self._parts.append(f'<defs><g id="{name}">')

    def end_group(self) -> None:
        self._parts.append("</g></defs>")

    def use(self, name: str, y: float, height: float) -> None:
        """The group again, moved down and stretched from height 1."""
        self._parts.append(f'<use href="#{name}" transform="translate(0 {y:g}) scale(1 {height:g})"/>')

    def __str__(self) -> str:
        return "\n".join([*self._parts, "</svg>", ""])


def _clean(text: str) -> str:
    """Text as XML may hold it: names are the user's."""
    return escape("".join(letter if letter.isprintable() else " " for letter in text))
