"""What one prompt's run gave, the checks on it, and the closing table."""

from dataclasses import dataclass, field
from typing import Any

from client import Answer
from process import DemoError
from timeline import Timeline, seconds

TITLE_CHARS = 60


@dataclass
class Run:
    """One prompt through the proxy, and the same prompt at the prefill server alone."""

    prompt: str
    split: Answer
    single: Answer
    external_tokens: int  # prompt tokens whose KV the decode server took from the prefill server, by its own count
    block_tokens: int
    kv_bytes_expected: int
    engine_bytes: dict[str, int] | None  # by transport, counted by our engine; None: not checked
    marks: dict[str, float]  # what the proxy saw, seconds since the epoch
    transfers: list[tuple[float, float]] = field(default_factory=list)

    @property
    def moved_bytes(self) -> int | None:
        return None if self.engine_bytes is None else sum(self.engine_bytes.values())

    @property
    def transfer_s(self) -> float:
        return sum(end - begin for begin, end in self.transfers)

    @property
    def gb_per_s(self) -> float | None:
        moved = self.moved_bytes
        return None if moved is None or self.transfer_s <= 0 else moved / self.transfer_s / 1e9

    def check(self, transport: str) -> None:
        """Raise DemoError with the reason when the KV did not come from the other side through our engine."""
        if self.split.text != self.single.text:
            raise DemoError(
                f"the text differs from the single engine's, {difference(self.split.text, self.single.text)}"
            )
        tokens = self.split.prompt_tokens
        if self.external_tokens < max(1, tokens - self.block_tokens):
            raise DemoError(
                f"only {self.external_tokens} of {tokens} prompt tokens came from the prefill server "
                f"(at least all but one block of {self.block_tokens} were due)"
            )
        if not self.transfers:
            raise DemoError("vLLM's connector logged no finished transfer for this request")
        if self.engine_bytes is None:
            return
        moved = self.engine_bytes.get(transport, 0)
        if moved < self.kv_bytes_expected:
            raise DemoError(
                f"our engine counted {moved} bytes over {transport} for this request "
                f"(by transport: {self.engine_bytes}), but the KV of {tokens} tokens has {self.kv_bytes_expected}"
            )

    def timeline(self) -> Timeline:
        marks = self.marks
        spans = [
            ("prefill", marks["prefill_sent"], marks["prefill_done"]),
            ("decode", marks["decode_sent"], marks["done"]),
        ]
        spans += [("KV transfer", begin, end) for begin, end in self.transfers]
        note = f"{self.split.prompt_tokens} tokens, first token after {seconds(self.split.ttft_s)}"
        title = f"{shorten(self.prompt)}  ({note})"
        return Timeline(title, self.split.sent, self.split.ended, spans, self.split.token_times)

    def as_json(self) -> dict[str, Any]:
        return {
            "prompt": self.prompt,
            "prompt_tokens": self.split.prompt_tokens,
            "external_tokens": self.external_tokens,
            "kv_bytes": self.kv_bytes_expected,
            "moved_bytes": self.moved_bytes,
            "moved_bytes_by_transport": self.engine_bytes,
            "transfer_s": round(self.transfer_s, 6),
            "gb_per_s": None if self.gb_per_s is None else round(self.gb_per_s, 3),
            "ttft_s": round(self.split.ttft_s, 4),
            "ttft_single_s": round(self.single.ttft_s, 4),
            "prefill_s": round(self.marks["prefill_done"] - self.marks["prefill_sent"], 4),
            "decode_s": round(self.marks["done"] - self.marks["decode_sent"], 4),
            "text_equal": self.split.text == self.single.text,
            "text": self.split.text,
        }


def shorten(text: str) -> str:
    line = text.strip().splitlines()[-1]
    return line if len(line) <= TITLE_CHARS else line[: TITLE_CHARS - 1] + "…"


def difference(split: str, single: str) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(split, single, strict=False)) if a != b), min(len(split), len(single))
    )
    return f"from character {at} on: {split[at : at + 60]!r} here, {single[at : at + 60]!r} there"


def table(runs: list[Run]) -> str:
    head = ["prompt", "tokens", "from prefill", "KV moved", "transfer", "GB/s", "TTFT", "TTFT single", "text"]
    rows = [head]
    for number, run in enumerate(runs, 1):
        moved = run.moved_bytes
        rows.append(
            [
                f"{number}",
                f"{run.split.prompt_tokens}",
                f"{run.external_tokens}",
                "not counted" if moved is None else f"{moved / 1e6:.1f} MB",
                seconds(run.transfer_s),
                "-" if run.gb_per_s is None else f"{run.gb_per_s:.2f}",
                seconds(run.split.ttft_s),
                seconds(run.single.ttft_s),
                "equal" if run.split.text == run.single.text else "DIFFERS",
            ]
        )
    return align(rows)


def align(rows: list[list[str]], left: int = 0) -> str:
    """A table, its head underlined; the first `left` columns begin on the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: list[str]) -> str:
        cells = (c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        return "  ".join(cells).rstrip()

    return "\n".join([line(rows[0]), "  ".join("-" * width for width in widths), *map(line, rows[1:])])
