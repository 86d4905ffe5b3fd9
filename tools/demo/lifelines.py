"""Pictures (SVG) of the demos of the store and of expert parallelism: who lived when; and how long the first token took in
each instance of vLLM."""

import html
import time
from collections.abc import Sequence

from process import Process
from store_report import Phase, Reading, megabytes
from timeline import BAR, LEFT, RIGHT, ROW, SPAN_WIDTH_MIN, WIDTH, render_axis, seconds

HEAD, GAP = 72, 64
POOL, ENGINE, STARTING, REQUEST, KILL = "#54a24b", "#4c78a8", "#cfd8e3", "#e45756", "#b00020"
LEGEND = {STARTING: "starting", POOL: "the pool serves", ENGINE: "vLLM serves", REQUEST: "the request"}
BAR_COLORS = {"-": "#bab0ac", "memory": "#72b7b2", "SSD": "#f2a65a"}
BARS_RIGHT = 230  # room for what stands beside a bar


def picture(phases: list[Phase], processes: Sequence[Process]) -> str:
    first = min(process.lives[0].start for process in processes)
    last = max(life.end or life.ready or life.start for process in processes for life in process.lives)
    last = max([last, *(reading.answer.ended for phase in phases for reading in phase.readings)])
    scale = (WIDTH - LEFT - RIGHT) / max(last - first, 1e-3)
    bars_top = HEAD + ROW * len(processes) + GAP
    readings = [(phase, reading) for phase in phases for reading in phase.readings]
    height = bars_top + 30 + ROW * len(readings) + 20
    parts = [*head(height, "A pool of KV blocks that outlives the engines, its master and its node"), *legend()]
    for index, process in enumerate(processes):
        is_pool = process.name in ("master", "node")
        parts += lifeline(process, HEAD + index * ROW, first, last, scale, POOL if is_pool else ENGINE)
    for phase, reading in readings:
        index = [p.name for p in processes].index(f"instance {phase.name}")
        parts.append(request_mark(reading, HEAD + index * ROW, first, scale))
    parts += render_axis(last - first, scale, HEAD + ROW * len(processes))
    parts.append(heading(bars_top, "Time to the first token"))
    parts += bars(readings, bars_top + 16)
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def rank_picture(processes: Sequence[Process]) -> str:
    """Who served when, in the demo of expert parallelism."""
    first = min(process.lives[0].start for process in processes)
    last = max(life.end or time.time() for process in processes for life in process.lives)
    scale = (WIDTH - LEFT - RIGHT) / max(last - first, 1e-3)
    height = HEAD + ROW * len(processes) + GAP
    parts = head(height, "A layer of experts that outlives its ranks")
    for index, process in enumerate(processes):
        parts += lifeline(process, HEAD + index * ROW, first, last, scale, ENGINE)
    parts += render_axis(last - first, scale, HEAD + ROW * len(processes))
    return "\n".join([*parts, "</svg>"]) + "\n"


def head(height: float, title: str) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="DejaVu Sans, Helvetica, Arial, sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        heading(26, title),
    ]


def legend() -> list[str]:
    parts = []
    for index, (color, text) in enumerate(LEGEND.items()):
        x = LEFT + index * 160
        parts.append(f'<rect x="{x}" y="39" width="12" height="12" fill="{color}"/>')
        parts.append(f'<text x="{x + 18}" y="50" font-size="12" fill="#555555">{text}</text>')
    return parts


def heading(y: float, text: str) -> str:
    return f'<text x="16" y="{y}" font-size="15" font-weight="bold">{html.escape(text)}</text>'


def label(y: float, text: str) -> str:
    return f'<text x="{LEFT - 12}" y="{y + 14}" text-anchor="end" fill="#555555">{html.escape(text)}</text>'


def box(x: float, y: float, width: float, color: str, title: str) -> str:
    width = max(width, SPAN_WIDTH_MIN)
    return (
        f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{color}">'
        f"<title>{html.escape(title)}</title></rect>"
    )


def lifeline(process: Process, y: float, first: float, last: float, scale: float, color: str) -> list[str]:
    parts = [label(y, process.name)]
    for life in process.lives:
        x, ready, end = (LEFT + (t - first) * scale for t in (life.start, life.ready or life.start, life.end or last))
        parts.append(box(x, y, ready - x, STARTING, f"{process.name} starts"))
        parts.append(box(ready, y, end - ready, color, f"{process.name} serves"))
        if life.killed or life is not process.lives[-1]:
            mark = "kill -9" if life.killed else "restart"
            style = f'text-anchor="middle" font-size="11" fill="{KILL}"'
            parts.append(f'<text x="{end:.1f}" y="{y - 3}" {style}>{mark}</text>')
    return parts


def request_mark(reading: Reading, y: float, first: float, scale: float) -> str:
    x = LEFT + (reading.answer.sent - first) * scale
    width = (reading.answer.ended - reading.answer.sent) * scale
    return box(x, y, width, REQUEST, f"the request, {seconds(reading.answer.ended - reading.answer.sent)}")


def bars(readings: list[tuple[Phase, Reading]], top: float) -> list[str]:
    longest = max(reading.answer.ttft_s for _, reading in readings)
    scale = (WIDTH - LEFT - RIGHT - BARS_RIGHT) / longest
    parts = []
    for index, (phase, reading) in enumerate(readings):
        y = top + index * ROW
        ttft_s = reading.answer.ttft_s
        color = BAR_COLORS.get(reading.load.tiers, BAR_COLORS["memory"])
        parts += [label(y, f"instance {phase.name}"), box(LEFT, y, ttft_s * scale, color, phase.title)]
        note = "computed" if phase.is_first else f"{megabytes(reading.load.bytes)} from {reading.load.tiers}"
        x = LEFT + max(ttft_s * scale, SPAN_WIDTH_MIN) + 6
        parts.append(f'<text x="{x:.1f}" y="{y + 13}" font-size="12" fill="#333333">{seconds(ttft_s)}, {note}</text>')
    return parts
