"""A picture (SVG) of where each request's time went: prefill, KV transfer, decode, tokens.

Prefill and decode are what the proxy saw of the two servers. The transfer is what vLLM's connector itself timed
around its one call of the engine (batch_transfer_sync_write) and wrote to the prefill server's log.
"""

import html
import re
from dataclasses import dataclass, field
from pathlib import Path

_SENT = re.compile(r"^(\d+\.\d+) DEBUG .*Sending to \S+ done, took ([0-9.eE+-]+)$")

WIDTH, LEFT, RIGHT = 960, 150, 30
ROW, BAR, HEAD, FOOT = 34, 18, 58, 44
COLORS = {"prefill": "#4c78a8", "KV transfer": "#e45756", "decode": "#72b7b2", "tokens": "#54a24b"}
SPAN_WIDTH_MIN = 2.0


@dataclass
class Timeline:
    """One request. All times are seconds since the epoch."""

    title: str
    start: float
    end: float
    spans: list[tuple[str, float, float]]  # a name of COLORS, from, to
    tokens: list[float] = field(default_factory=list)


def transfers(log: Path, start: float, end: float) -> list[tuple[float, float]]:
    """(from, to) of each transfer that ended between `start` and `end`."""
    out = []
    for line in log.read_text(errors="replace").splitlines():
        match = _SENT.match(line)
        if match:
            done, took = float(match[1]), float(match[2])
            if start <= done <= end:
                out.append((done - took, done))
    return out


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.1f} ms"


def tick_step(span: float) -> float:
    """1, 2 or 5 times a power of ten, so that about eight ticks fit."""
    step = 10.0**-4
    while True:
        for factor in (1, 2, 5):
            if step * factor * 8 >= span:
                return step * factor
        step *= 10


def render(timelines: list[Timeline], caption: str) -> str:
    """All requests below each other, on one scale so that they can be compared."""
    span = max((t.end - t.start for t in timelines), default=0.0) or 1.0
    scale = (WIDTH - LEFT - RIGHT) / span
    block = ROW * len(COLORS) + HEAD
    height = 40 + block * len(timelines) + FOOT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="DejaVu Sans, Helvetica, Arial, sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="16" y="26" font-size="15" font-weight="bold">{html.escape(caption)}</text>',
    ]
    for index, timeline in enumerate(timelines):
        parts += render_one(timeline, 40 + index * block, scale)
    parts += render_axis(span, scale, 40 + block * len(timelines))
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def render_one(timeline: Timeline, top: float, scale: float) -> list[str]:
    rows = {name: top + HEAD - 20 + i * ROW for i, name in enumerate(COLORS)}
    parts = [f'<text x="16" y="{top + 24}" fill="#333333">{html.escape(timeline.title)}</text>']
    for name, y in rows.items():
        parts.append(f'<text x="{LEFT - 12}" y="{y + 14}" text-anchor="end" fill="#555555">{name}</text>')
        parts.append(f'<rect x="{LEFT}" y="{y}" width="{WIDTH - LEFT - RIGHT}" height="{BAR}" fill="#f2f2f2"/>')
    for name, begin, end in timeline.spans:
        x = LEFT + (begin - timeline.start) * scale
        width = max((end - begin) * scale, SPAN_WIDTH_MIN)
        label = seconds(end - begin)
        parts.append(
            f'<rect x="{x:.1f}" y="{rows[name]}" width="{width:.1f}" height="{BAR}" fill="{COLORS[name]}">'
            f"<title>{name}: {label}</title></rect>"
        )
        parts.append(span_label(x, width, rows[name] + 13, label))
    for moment in timeline.tokens:
        x = LEFT + (moment - timeline.start) * scale
        y = rows["tokens"]
        parts.append(
            f'<line x1="{x:.1f}" y1="{y}" x2="{x:.1f}" y2="{y + BAR}" stroke="{COLORS["tokens"]}" stroke-width="1.5"/>'
        )
    return parts


def span_label(x: float, width: float, y: float, label: str) -> str:
    """Inside the bar where it fits, else beside it, on the side with room."""
    if width > 70:
        return f'<text x="{x + 6:.1f}" y="{y}" font-size="11" fill="#ffffff">{label}</text>'
    if x + width + 70 < WIDTH - RIGHT:
        return f'<text x="{x + width + 5:.1f}" y="{y}" font-size="11" fill="#333333">{label}</text>'
    return f'<text x="{x - 5:.1f}" y="{y}" font-size="11" fill="#333333" text-anchor="end">{label}</text>'


def render_axis(span: float, scale: float, top: float) -> list[str]:
    parts = []
    step = tick_step(span)
    for index in range(int(span / step + 1e-9) + 1):
        x = LEFT + index * step * scale
        parts.append(f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{top + 6}" stroke="#555555"/>')
        style = 'text-anchor="middle" font-size="11" fill="#555555"'
        parts.append(f'<text x="{x:.1f}" y="{top + 22}" {style}>{index * step:g} s</text>')
    parts.append(f'<line x1="{LEFT}" y1="{top}" x2="{WIDTH - RIGHT}" y2="{top}" stroke="#555555"/>')
    return parts
