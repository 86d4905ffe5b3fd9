"""bench rdma's part on the host: what becomes of guests that end early. The guest is a program that plays its steps."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench import rdma  # noqa: E402
from bench.context import Context  # noqa: E402
from bench.pairs import BenchError  # noqa: E402

# guest-run's arguments, then what rdma_inside.py gets: OUT and the settings. PLAN has a line for each guest: steps, status.
GUEST = """\
import json, sys
from pathlib import Path
out, settings, plan = Path(sys.argv[-2]), json.loads(sys.argv[-1]), Path(__file__).with_name("plan")
first, *rest = plan.read_text().splitlines()
plan.write_text("\\n".join(rest))
steps, status = map(int, first.split())
found = json.loads(out.read_text())
for step in [s for s in settings["steps"] if s not in found["done"]][:steps]:
    if step == "one NIC":
        found["rows"] += [
            {"what": f"{op} {size}", "column": column, "rep": rep, "value": value}
            for op in ("write", "read")
            for size, value in (("1 MiB", 0.02), ("4 KiB", 400.0))
            for column in ("perftest", "ours", "perftest again")
            for rep in range(2)
        ]
    elif step == "four NICs":
        found["rows"] += [
            {"what": f"{op} 16 MiB, 4 NICs", "column": "ours", "rep": 0, "value": 0.0099} for op in ("write", "read")
        ]
    else:
        samples = [(i / 10, [i * 61] * 4) for i in range(200)]
        found["faults"].append({"column": "ours", "kind": step.split(", ")[1], "errors": 0, "ops": 9, "is_equal": True, "samples": samples})
    found["done"].append(step)
out.write_text(json.dumps(found))
sys.exit(status)
"""


@pytest.fixture
def ctx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    guest = tmp_path / "guest.py"
    guest.write_text(GUEST)
    monkeypatch.setattr(rdma, "GUEST_RUN", guest)
    results = tmp_path / "results"
    return Context(sys.executable, None, None, [], reps=7, secs=0.4, is_quick=False, results=results)


def plan(tmp_path: Path, *guests: str) -> None:
    (tmp_path / "plan").write_text("\n".join(guests))


def test_a_whole_run_is_judged_by_every_target(ctx: Context, tmp_path: Path) -> None:
    plan(tmp_path, "9 0")
    report = rdma.run(ctx)
    assert len(report.verdicts) == 6 + 2 * 4
    assert {v.outcome for v in report.verdicts} == {"pass"}
    assert report.svg and "link down" in report.svg
    assert not any("Not whole" in note for note in report.notes)


def test_a_guest_that_dies_is_followed_by_one_that_does_the_rest(ctx: Context, tmp_path: Path) -> None:
    plan(tmp_path, "1 125", "9 0")
    report = rdma.run(ctx)
    assert len(report.verdicts) == 6 + 2 * 4
    assert any("ended early (code 125) after: one NIC" in note for note in report.notes)


def test_what_there_is_is_shown_and_the_next_run_goes_on(ctx: Context, tmp_path: Path) -> None:
    plan(tmp_path, "2 124", "0 124")
    report = rdma.run(ctx)
    assert any("Not whole: ours, silent loss, four NICs" in note for note in report.notes)
    assert report.tables[0].rows[0][1:] == ["0.0200"] * 3
    done = json.loads((ctx.results / "rdma-guest.json").read_text())["done"]
    assert done == ["one NIC", "ours, link down"]
    plan(tmp_path, "9 0")
    report = rdma.run(ctx)
    assert any("Goes on with a run that was cut short" in note for note in report.notes)
    assert len(report.raw) == 12 * 2 + 2 + 2, "nothing was measured twice"
    plan(tmp_path, "1 0", "9 0")
    assert not any("Goes on" in note for note in rdma.run(ctx).notes), "a whole run is not gone on with"


def test_nothing_at_all_is_an_error_that_says_how_it_ended(ctx: Context, tmp_path: Path) -> None:
    plan(tmp_path, "0 127")
    with pytest.raises(BenchError, match="code 127"):
        rdma.run(ctx)
