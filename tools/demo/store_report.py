"""What each instance of the store demo found in the pool, the checks on it, and the closing table."""

import re
from dataclasses import dataclass, field, fields
from typing import Any

from client import Answer
from process import DemoError
from report import align, shorten
from timeline import seconds

_LOAD = re.compile(
    r"Mooncake load tier summary: .*memory_keys=(\d+) disk_keys=(\d+) unknown_keys=(\d+) "
    r"success_keys=\d+ failed_keys=(\d+) bytes_by_tier=\{'memory': (\d+), 'disk': (\d+), 'unknown': (\d+)\}"
)


@dataclass
class Load:
    """What the connector took from the pool: one line of its log, or a sum of them. Keys are blocks of KV."""

    memory_keys: int = 0
    disk_keys: int = 0
    unknown_keys: int = 0
    failed_keys: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    unknown_bytes: int = 0

    @staticmethod
    def sum(loads: list["Load"]) -> "Load":
        return Load(*(sum(getattr(load, f.name) for load in loads) for f in fields(Load)))

    @property
    def bytes(self) -> int:
        """What our store returned, by its own return codes."""
        return self.memory_bytes + self.disk_bytes + self.unknown_bytes

    @property
    def tiers(self) -> str:
        named = (("memory", self.memory_keys), ("SSD", self.disk_keys), ("unknown", self.unknown_keys))
        return " + ".join(name for name, keys in named if keys) or "-"


def parse_loads(log: str) -> list[Load]:
    return [Load(*map(int, match.groups())) for match in map(_LOAD.search, log.splitlines()) if match]


@dataclass
class Reading:
    """One prompt's answer by one instance, and what of the prompt came from the pool."""

    prompt: str = field(repr=False)
    answer: Answer = field(repr=False)
    block_tokens: int
    external_tokens: int  # vLLM's count of prompt tokens that it did not compute
    load: Load
    load_s: float  # vLLM's time around our store's calls
    # Instance A's, to the same prompt once more: all full blocks were in its own cache, as they come from the pool later.
    cached: Answer | None = field(default=None, repr=False)

    @property
    def full_blocks(self) -> int:
        return self.answer.prompt_tokens // self.block_tokens

    @property
    def due_tokens(self) -> int:
        """All full blocks; but vLLM always computes the last token itself, for its logits."""
        return (self.answer.prompt_tokens - 1) // self.block_tokens * self.block_tokens

    @property
    def is_complete(self) -> bool:
        return self.external_tokens >= self.due_tokens and self.load.bytes > 0 and self.load_s > 0

    @property
    def expected(self) -> Answer:
        """What an instance that does not compute the full blocks has to answer."""
        return self.cached or self.answer

    def in_words(self) -> str:
        if self.external_tokens == 0:
            return f"{self.answer.prompt_tokens} tokens computed, first token after {seconds(self.answer.ttft_s)}"
        return (
            f"{self.external_tokens} of {self.answer.prompt_tokens} tokens from the pool's {self.load.tiers}, "
            f"first token after {seconds(self.answer.ttft_s)}"
        )


@dataclass
class Phase:
    """One instance of vLLM, and what had been done to the pool before it started."""

    name: str
    title: str
    again_s: float | None = None  # from the restart of master or node until all blocks were served again
    only_disk: bool = False  # the blocks can be nowhere but on the SSD
    readings: list[Reading] = field(default_factory=list)

    @property
    def is_first(self) -> bool:
        return self.name == "A"

    def check(self, number: int, first: Reading, kv_bytes_per_token: int) -> None:
        """Raise DemoError with the reason when prompt `number` did not get what was due; `first` is instance A's."""
        reading = self.readings[number]
        if self.is_first:
            check_computed(reading)
            return
        where = f"instance {self.name} ({self.title})"
        if reading.answer.token_ids != first.expected.token_ids:
            raise DemoError(f"{where} answered with other tokens, {difference(reading.answer, first.expected)}")
        if reading.external_tokens < reading.due_tokens:
            raise DemoError(
                f"{where} took only {reading.external_tokens} of {reading.answer.prompt_tokens} prompt tokens from the "
                f"pool; all full blocks of {reading.block_tokens} were due, {reading.due_tokens} tokens"
            )
        load = reading.load
        if load.failed_keys:
            raise DemoError(f"{where} could not read {load.failed_keys} of its blocks: {load}")
        due_bytes = reading.due_tokens * kv_bytes_per_token
        if load.bytes < due_bytes:
            raise DemoError(f"{where} was given {load.bytes} bytes by the store, its blocks have {due_bytes}: {load}")
        if self.only_disk and (load.memory_keys or load.unknown_keys):
            raise DemoError(f"{where} took blocks from elsewhere than the SSD, the only place they can be: {load}")

    def as_json(self, first: "Phase") -> dict[str, Any]:
        return {
            "instance": self.name,
            "before": self.title,
            "served_again_s": None if self.again_s is None else round(self.again_s, 4),
            "readings": [
                {
                    "prompt": reading.prompt,
                    "prompt_tokens": reading.answer.prompt_tokens,
                    "tokens_from_pool": reading.external_tokens,
                    "blocks": {"memory": reading.load.memory_keys, "disk": reading.load.disk_keys},
                    "bytes": reading.load.bytes,
                    "load_s": round(reading.load_s, 6),
                    "ttft_s": round(reading.answer.ttft_s, 4),
                    "ttft_without_s": round(computed.answer.ttft_s, 4),
                    "tokens_equal": self.is_first or reading.answer.token_ids == computed.expected.token_ids,
                    "text": reading.answer.text,
                }
                for reading, computed in zip(self.readings, first.readings, strict=False)
            ],
        }


def check_computed(reading: Reading) -> None:
    """The first instance's, with nothing in the pool."""
    if reading.due_tokens == 0:
        raise DemoError(
            f"the prompt {shorten(reading.prompt)!r} has {reading.answer.prompt_tokens} tokens, less than a block of "
            f"{reading.block_tokens} and one more: there is nothing to share. Give a longer --prompt"
        )
    if reading.external_tokens or reading.load.bytes:
        raise DemoError(f"instance A found {reading.external_tokens} tokens in a pool that was empty: {reading.load}")
    if not reading.answer.token_ids:
        raise DemoError("instance A answered without token ids, so nothing can be compared")


def difference(here: Answer, there: Answer) -> str:
    pairs = enumerate(zip(here.token_ids, there.token_ids, strict=False))
    shorter = min(len(here.token_ids), len(there.token_ids))
    at = next((i for i, (a, b) in pairs if a != b), shorter)
    return f"from token {at} on: {here.token_ids[at : at + 6]} here, {there.token_ids[at : at + 6]} in instance A"


def megabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.1f} MB"


def table(phases: list[Phase]) -> str:
    rows = [["", "instance", "tokens", "from the pool", "bytes", "out of", "load", "TTFT", "without", "answer"]]
    for phase in phases:
        for reading, computed in zip(phase.readings, phases[0].readings, strict=False):
            rows.append(row_of(phase, reading, computed))
    return align(rows, left=2)


def row_of(phase: Phase, reading: Reading, computed: Reading) -> list[str]:
    here, there = reading.answer, computed.answer
    row = [phase.name, phase.title, f"{here.prompt_tokens}", f"{reading.external_tokens}"]
    if phase.is_first:
        return [*row, "-", "-", "-", seconds(here.ttft_s), "", "computed"]
    equal = "equal" if here.token_ids == computed.expected.token_ids else "DIFFERS"
    row += [megabytes(reading.load.bytes), reading.load.tiers, seconds(reading.load_s)]
    return [*row, seconds(here.ttft_s), seconds(there.ttft_s), equal]
