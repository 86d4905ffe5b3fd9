"""A writer for the two pictures the benches draw: grouped bars on a logarithmic scale, and lines over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

PALETTE = (
    "#0b6e4f",
    "#35a57c",
    "#9bd3bd",
    "#c0392b",
    "#d9822b",
    "#f0c36d",
    "#5b7083",
    "#8698a7",
    "#b3c0ca",
    "#7d5ba6",
    "#b497d6",
)
LINES = ("#0b6e4f", "#d9822b", "#5b7083", "#7d5ba6", "#c0392b", "#35a57c")
INK, GRID = "#222222", "#dddddd"
FONT = "font-family='sans-serif'"


@dataclass
class Canvas:
    width: float
    height: float
    parts: list[str] = field(default_factory=list)

    def rect(self, x: float, y: float, w: float, h: float, fill: str, tip: str = "") -> None:
        title = f"<title>{escape(tip)}</title>" if tip else ""
        self.parts.append(
            f"<rect x='{x:.1f}' y='{y:.1f}' width='{w:.1f}' height='{h:.1f}' fill='{fill}'>{title}</rect>"
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str = GRID, dash: str = "") -> None:
        style = f" stroke-dasharray='{dash}'" if dash else ""
        self.parts.append(f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' stroke='{colour}'{style}/>")

    def text(self, x: float, y: float, text: str, size: int = 11, anchor: str = "start", turn: int = 0) -> None:
        rotate = f" transform='rotate({turn} {x:.1f} {y:.1f})'" if turn else ""
        self.parts.append(
            f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' text-anchor='{anchor}' fill='{INK}' {FONT}{rotate}>"
            f"{escape(text)}</text>"
        )

    def polyline(self, points: Sequence[tuple[float, float]], colour: str) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='1.5'/>")

    def __str__(self) -> str:
        size = f"width='{self.width:.0f}' height='{self.height:.0f}' viewBox='0 0 {self.width:.0f} {self.height:.0f}'"
        body = "\n".join(self.parts)
        paper = "<rect width='100%' height='100%' fill='white'/>"
        return f"<svg xmlns='http://www.w3.org/2000/svg' {size}>\n{paper}\n{body}\n</svg>\n"


@dataclass(frozen=True)
class BarPanel:
    """values[group][series]; None leaves the bar out."""

    title: str
    values: Sequence[Sequence[float | None]]


LEFT, TOP, PANEL_HEIGHT, GAP = 60, 64, 210, 34


def bars(title: str, groups: Sequence[str], series: Sequence[str], panels: Sequence[BarPanel]) -> str:
    """Panels above each other that share the groups; every panel has its own logarithmic axis."""
    bar, pad = 7.0, 12.0
    group_width = bar * len(series) + pad
    width = max(LEFT + group_width * len(groups), sum(map(_legend_width, series))) + 20
    canvas = Canvas(width, TOP + (PANEL_HEIGHT + GAP) * len(panels) + 130)
    canvas.text(10, 20, title, 14)
    _legend(canvas, series, PALETTE)
    for p, panel in enumerate(panels):
        top = TOP + p * (PANEL_HEIGHT + GAP) + 20
        canvas.text(LEFT, top - 6, panel.title, 12)
        known = [v for row in panel.values for v in row if v]
        if not known:
            continue
        low, high = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)))
        high = max(high, low + 1)
        scale = PANEL_HEIGHT / (high - low)
        for decade in range(low, high + 1):
            y = top + (high - decade) * scale
            canvas.line(LEFT, y, canvas.width - 20, y)
            canvas.text(LEFT - 4, y + 4, f"{10.0**decade:g}", 10, "end")
        for g, row in enumerate(panel.values):
            for s, value in enumerate(row):
                if not value:
                    continue
                height = (math.log10(value) - low) * scale
                x = LEFT + g * group_width + s * bar + pad / 2
                tip = f"{groups[g]}, {series[s]}: {value:.4g}"
                canvas.rect(x, top + PANEL_HEIGHT - height, bar - 1, height, PALETTE[s % len(PALETTE)], tip)
    bottom = TOP + len(panels) * (PANEL_HEIGHT + GAP) + 4
    for g, name in enumerate(groups):
        canvas.text(LEFT + (g + 0.5) * group_width, bottom, name, 10, "end", -35)
    return str(canvas)


@dataclass(frozen=True)
class LinePanel:
    title: str
    series: Sequence[tuple[str, Sequence[tuple[float, float]]]]  # name, (seconds, value)
    marks: Sequence[tuple[float, str]] = ()  # vertical lines


def lines(title: str, panels: Sequence[LinePanel], width: float = 760) -> str:
    """Values over time, one panel above the other, linear axes from 0."""
    canvas = Canvas(width, TOP + (PANEL_HEIGHT + GAP + 14) * len(panels))
    canvas.text(10, 20, title, 14)
    names = [name for name, _ in panels[0].series] if panels else []
    _legend(canvas, names, LINES)
    for p, panel in enumerate(panels):
        _line_panel(canvas, panel, TOP + p * (PANEL_HEIGHT + GAP + 14) + 10)
    return str(canvas)


def _line_panel(canvas: Canvas, panel: LinePanel, top: float) -> None:
    canvas.text(LEFT, top - 6, panel.title, 12)
    points = [point for _, line in panel.series for point in line]
    if not points:
        return
    end, peak = max(x for x, _ in points) or 1, max(y for _, y in points) * 1.05 or 1
    span = canvas.width - LEFT - 20

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + x / end * span, top + PANEL_HEIGHT - min(y, peak) / peak * PANEL_HEIGHT

    for i in range(5):
        _, y = place(0, peak * i / 4)
        canvas.line(LEFT, y, canvas.width - 20, y)
        canvas.text(LEFT - 4, y + 4, f"{peak * i / 4:.3g}", 10, "end")
    for second in range(int(end) + 1):
        canvas.text(place(second, 0)[0], top + PANEL_HEIGHT + 14, f"{second} s", 10, "middle")
    for at, name in panel.marks:
        x, _ = place(at, 0)
        canvas.line(x, top, x, top + PANEL_HEIGHT, INK, "4 3")
        canvas.text(x + 3, top + 12, name, 10)
    for s, (_, line) in enumerate(panel.series):
        canvas.polyline([place(x, y) for x, y in line], LINES[s % len(LINES)])


def _legend(canvas: Canvas, series: Sequence[str], colours: Sequence[str]) -> None:
    x, y = 10.0, 40.0
    for s, name in enumerate(series):
        canvas.rect(x, y - 9, 10, 10, colours[s % len(colours)])
        canvas.text(x + 14, y, name, 11)
        x += _legend_width(name)


def _legend_width(name: str) -> float:
    return 26 + 6.5 * len(name)  # no font metrics here: an estimate for 11 px
