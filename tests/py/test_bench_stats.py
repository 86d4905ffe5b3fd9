"""The arithmetic and the writing of the benchmarks: no engine, no processes."""

from __future__ import annotations

import sys
import xml.dom.minidom
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench import rails, rdma, svg, targets, trace, trace_gen  # noqa: E402
from bench.report import Machine, Report, Table, prepare_page, update_page  # noqa: E402
from bench.stats import number_text, quieter_half, size_text, spread, summarize  # noqa: E402
from bench.targets import Bound, Case, at_least, at_most, judge, judge_transfer  # noqa: E402

MACHINE = Machine("2026-01-01 00:00 UTC", "abc", "cpu", 2, "6.1", 0.1, "./run bench")


def row(gbps: float, others: float = 0.0) -> dict[str, float]:
    return {"GBps": gbps, "p50_us": 1 / gbps, "p99_us": 2 / gbps, "cpu_s_per_GB": 0.5, "others": others}


def test_quieter_half_looks_at_others_only() -> None:
    rows = [row(1, others=0.9), row(9, others=0.1), row(2, others=0.2), row(8, others=0.8), row(3, others=0.3)]
    assert [r["GBps"] for r in quieter_half(rows)] == [9, 2, 3]


def test_quieter_half_keeps_everything_of_two() -> None:
    assert len(quieter_half([row(1), row(2, others=5)])) == 2


def test_summary_is_median_of_the_quiet_and_range_of_all() -> None:
    s = summarize([row(1, 0.9), row(9, 0.1), row(2, 0.2)])
    assert (s.count, s["GBps"], s.low["GBps"], s.high["GBps"]) == (3, 5.5, 1, 9)


def test_summary_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no repetition"):
        summarize([])


def test_spread_is_geometric_and_ignores_what_is_no_ratio() -> None:
    found = spread([0.5, 2.0, float("inf"), 0.0])
    assert found and (found.geomean, found.low, found.high, found.count) == (pytest.approx(1.0), 0.5, 2.0, 2)
    assert spread([]) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.012345, "0.0123"),
        (1.234, "1.23"),
        (12.34, "12.3"),
        (4152.4, "4152"),
        (-1.5, "-1.50"),
        (float("nan"), "-"),
        (1e-9, "0.00000"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number_text(value) == text


@pytest.mark.parametrize(
    ("size", "text"), [(100, "100 B"), (4096, "4 KiB"), (1 << 20, "1 MiB"), ((1 << 20) + 1024, "1025 KiB")]
)
def test_sizes_use_the_largest_whole_unit(size: int, text: str) -> None:
    assert size_text(size) == text


def test_case_names_what_differs_from_one() -> None:
    assert str(Case("read", 65536, 128, 1)) == "read 64 KiB x 128"
    assert str(Case("write", 65536, 1, 4)) == "write 64 KiB, 4 threads"


def test_the_best_reference_is_the_hardest() -> None:
    faster = at_least("ours tcp", 0.95, "raw tcp", "raw tcp x2")
    cheaper = at_most("ours tcp", "cpu_s_per_GB", 1.1, "raw tcp", "raw tcp x2")
    assert targets.limit_of(faster, [2.0, 4.0]) == pytest.approx(3.8)
    assert targets.limit_of(cheaper, [2.0, None, 4.0]) == pytest.approx(2.2)
    assert targets.limit_of(faster, [None, None]) is None


def test_verdicts_at_the_limit_pass_and_gaps_are_no_verdict() -> None:
    bound = at_most("ours tcp", "p50_us", 1.3, "memfd nt", offset=10)
    assert judge("x", bound, 23.0, 10.0).outcome == "pass"
    assert judge("x", bound, 23.1, 10.0).outcome == "miss"
    assert judge("x", bound, None, 10.0).outcome == "not measured"
    assert judge("x", bound, 1.0, None).outcome == "not measured"
    assert judge("x", bound, 1.0, 10.0, failure="FAIL wrong bytes").outcome == "FAIL"
    assert str(bound) == "<= 1.3 x memfd nt + 10"
    assert str(Bound("ours", "ms", "<=", offset=0)) == "<= 0"


def test_every_shape_of_the_table_has_targets() -> None:
    from bench.transfer import SHAPES

    assert set(SHAPES) == set(targets.TRANSFER)
    cases = [Case("read", *shape) for shape in SHAPES]
    verdicts = judge_transfer(cases, lambda case, column, metric: 1.0, lambda case, column: None)
    assert len(verdicts) == sum(map(len, targets.TRANSFER.values()))
    assert {v.outcome for v in verdicts} == {"pass", "miss"}


def test_a_page_section_is_replaced_and_the_rest_kept(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- bench idle -->\nold\n<!-- end idle -->\nafter\n")
    report = Report("idle", "Idle", tables=[Table("T", ["a", "b"], [["1", "2"]])], notes=["a note"])
    for _ in range(2):
        update_page(page, MACHINE, report, "img/x.svg")
    text = page.read_text()
    assert text.startswith("before\n<!-- bench idle -->\nMeasured 2026-01-01") and text.endswith(
        "<!-- end idle -->\nafter\n"
    )
    assert text.count("| 1 | 2 |") == 1 and "old" not in text and "![Idle](img/x.svg)" in text and "commit abc" in text


def test_a_page_without_the_section_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing here\n")
    with pytest.raises(ValueError, match="has no section"):
        update_page(page, MACHINE, Report("idle", "Idle"), None)


def test_a_page_that_is_not_there_is_made(tmp_path: Path) -> None:
    page = tmp_path / "new" / "page.md"
    prepare_page(page, ["idle", "rpc"])
    for what in ("rpc", "idle"):
        update_page(page, MACHINE, Report(what, what.upper(), tables=[Table(what, ["a"], [["1"]])]), None)
    text = page.read_text()
    assert text.index("<!-- bench idle -->") < text.index("<!-- bench rpc -->") and text.count("Measured 2026") == 2


def test_pictures_are_well_formed_and_leave_out_what_is_missing() -> None:
    picture = svg.bars("a < b", ["g1", "g2"], ["s1", "s2"], [svg.BarPanel("GB/s", [[1.0, None], [0.01, 20.0]])])
    document = xml.dom.minidom.parseString(picture)
    assert len([r for r in document.getElementsByTagName("rect") if r.getElementsByTagName("title")]) == 3
    empty = svg.lines("t", [svg.LinePanel("p", [("rail 0", [])])])
    assert xml.dom.minidom.parseString(empty).getElementsByTagName("polyline").length == 0


def stream(begin: float, end: float, step: float) -> list[float]:
    return [begin + i * step for i in range(int((end - begin) / step))]


def test_a_lost_rail_is_judged_by_its_gap_its_rate_and_its_return() -> None:
    step = rails.FAULT_CASE.block * rails.FAULT_CASE.batch / 1e9 / rails.SUM_GBPS
    ends = stream(0, 2, step) + stream(2.15, 6, step * 4 / 3) + stream(6, 9, step)
    rates = [(6.1 + i * 0.1, [0.01 if i < 4 else rails.RATE_GBPS] * rails.RAILS) for i in range(10)]
    moments = {"lost": 2.0, "repaired": 6.0}
    fault = rails._judge_fault({"ends_s": ends, "err": 0}, moments, rates, allowed_s=0.2)
    assert fault.stall_ms == pytest.approx(150, abs=20)
    assert fault.meanwhile == pytest.approx(1.0, abs=0.02)
    assert fault.recovery_ms == pytest.approx(500, abs=1)
    never = rails._judge_fault({"ends_s": ends, "err": 2}, moments, rates[:3], allowed_s=0.2)
    assert never.recovery_ms is None and never.errors == 2


def test_a_generated_trace_is_the_same_for_the_same_seed_and_grows_by_turns() -> None:
    first, again = (list(trace_gen.requests(300, seed=3)) for _ in range(2))
    assert first == again != list(trace_gen.requests(300, seed=4))
    times = [r["timestamp"] for r in first]
    assert times == sorted(times)
    seen: set[int] = set()
    shared = 0
    for r in first:
        blocks = r["hash_ids"]
        assert (len(blocks) - 1) * trace_gen.BLOCK < r["input_length"] < len(blocks) * trace_gen.BLOCK
        assert len(set(blocks)) == len(blocks)
        shared += blocks[0] in seen
        seen.update(blocks)
    assert shared > 250  # system prompts, and histories of earlier turns


def test_policies_are_judged_against_the_best_textbook_one() -> None:
    shares = {p: [0.2] for p in ("upstream", *trace.TEXTBOOK)} | {"ours": [0.25], "ARC": [0.26]}
    found = {"capacities": [10_000], "blocks": 20_000, "hit_share": shares}
    best, near = trace.verdicts("conversation", found)
    assert (best.outcome, near.outcome) == ("miss", "pass")
    assert trace.verdicts("synthetic", found)[0].limit == 0.97 * 0.26


def test_the_loss_of_a_nic_is_read_from_its_packets() -> None:
    """Four NICs at their rate; the first loses 8 s, and for 1.5 of them all stand still."""
    per_s = rdma.RATE_GBPS * 1e9 / rdma.PACKET
    counts, samples = [0.0] * rdma.RAILS, []
    for tick in range(400):
        at = tick * 0.05
        samples.append((at, [int(c) for c in counts]))
        is_still = rdma.LOST_AT_S <= at < rdma.LOST_AT_S + 1.5
        is_lost = rdma.LOST_AT_S <= at < rdma.REPAIRED_AT_S + 1
        for rail in range(rdma.RAILS):
            counts[rail] += 0 if is_still or (is_lost and rail == 0) else per_s * 0.05
    fault = rdma._fault({"samples": samples, "errors": 2})
    assert fault.stall_s == pytest.approx(1.5, abs=0.1)
    assert fault.meanwhile == pytest.approx(0.75, abs=0.02)
    assert fault.back_s == pytest.approx(1.5, abs=0.6)
    assert fault.errors == 2
