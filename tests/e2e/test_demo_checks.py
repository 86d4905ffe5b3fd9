"""What must make the demo fail does: each of its checks on a run that is wrong in one way only; and its picture."""

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "demo"))

import engine_package
import metrics
from client import Answer, read_event
from process import DemoError
from report import Run, table
from timeline import Timeline, render, tick_step, transfers

KV_BYTES = 1000 * 23040


def answer(text: str = "the same") -> Answer:
    return Answer(sent=100.0, text=text, prompt_tokens=1000, token_times=[101.0, 101.5], ended=102.0)


def run_of(**changes) -> Run:
    good = {
        "prompt": "x",
        "split": answer(),
        "single": answer(),
        "external_tokens": 1000,
        "block_tokens": 128,
        "kv_bytes_expected": KV_BYTES,
        "engine_bytes": {"tcp": KV_BYTES},
        "marks": {"prefill_sent": 100.0, "prefill_done": 100.8, "decode_sent": 100.8, "done": 102.0},
        "transfers": [(100.85, 100.9)],
    }
    return Run(**{**good, **changes})


def found(**changes) -> dict:
    good = {"dists": {"mooncake-c": "0.4.0"}, "version": "0.4.0", "file": "f", "engine": "e", "error": None}
    return {**good, **changes}


def test_a_good_run_passes_and_fills_the_table():
    run = run_of()
    run.check("tcp")
    row = table([run]).splitlines()[-1].split()
    assert row == ["1", "1000", "1000", "23.0", "MB", "50.0", "ms", "0.46", "1.00", "s", "1.00", "s", "equal"]


def test_all_but_one_block_is_enough():
    run_of(external_tokens=872).check("tcp")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"single": answer("the other")}, "from character 4 on: 'same' here, 'other' there"),
        ({"external_tokens": 871}, "only 871 of 1000 prompt tokens"),
        ({"engine_bytes": {"tcp": KV_BYTES - 1}}, f"counted {KV_BYTES - 1} bytes over tcp"),
        ({"engine_bytes": {"shm": KV_BYTES}}, "counted 0 bytes over tcp"),
        ({"engine_bytes": {}}, "counted 0 bytes"),
        ({"transfers": []}, "no finished transfer"),
    ],
)
def test_a_run_that_is_wrong_in_one_way_fails_with_its_reason(changes, named):
    with pytest.raises(DemoError) as caught:
        run_of(**changes).check("tcp")
    assert named in str(caught.value)


def test_a_short_prompt_needs_at_least_one_token_from_the_other_side():
    short = {"split": answer(), "single": answer(), "block_tokens": 2000}
    with pytest.raises(DemoError):
        run_of(**short, external_tokens=0).check("tcp")
    run_of(**short, external_tokens=1).check("tcp")


def test_our_package_passes():
    engine_package.check(found())
    engine_package.check(found(version="0.10.0.dev3"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"dists": {}, "error": "ModuleNotFoundError: No module named 'mooncake'"}, "is missing"),
        ({"dists": {}}, "comes from no installed package"),
        ({"error": "ImportError: libx.so"}, "mooncake-c 0.4.0 cannot be used by this demo: ImportError: libx.so"),
        ({"dists": {"mooncake-c": "0.4.0", "mooncake-transfer-engine": "0.3.13"}}, "mooncake-transfer-engine 0.3.13"),
        ({"dists": {"mooncake-transfer-engine": "0.3.13"}}, "another package"),
        ({"version": "0.3.13.post1"}, "0.3.13.post1"),
        ({"version": None}, "None"),
    ],
)
def test_another_package_or_none_fails_by_name(changes, named):
    with pytest.raises(DemoError) as caught:
        engine_package.check(found(**changes))
    assert named in str(caught.value)


def test_counters_are_summed_over_the_labels_that_match():
    samples = metrics.parse(
        "# TYPE mc_transfer_bytes_total counter\n"
        'mc_transfer_bytes_total{transport="tcp",op="write",peer="a:1"} 10\n'
        'mc_transfer_bytes_total{transport="tcp",op="read",peer="b \\" {x}:2"} 5\n'
        'mc_transfer_bytes_total{transport="shm",op="write",peer="a:1"} 1.0e3\n'
        "plain 7 1700000000\n"
        "not a sample\n"
    )
    assert metrics.total(samples, "mc_transfer_bytes_total") == 1015
    assert metrics.total(samples, "mc_transfer_bytes_total", transport="tcp") == 15
    assert metrics.total(samples, "plain") == 7
    assert metrics.total(samples, "absent") == 0


def test_transfers_of_another_time_do_not_count(tmp_path):
    log = tmp_path / "prefill.log"
    log.write_text(
        "99.900000 DEBUG [x] Sending to 127.0.0.1:1 done, took 0.05\n"
        "100.900000 DEBUG [x] Sending to 127.0.0.1:1 done, took 5e-02\n"
        "101.000000 WARNING [x] Sending to 127.0.0.1:1 failed (ret=-1) after 0.1 (1 descriptors, 2 bytes)\n"
    )
    assert transfers(log, 100.0, 102.0) == [(pytest.approx(100.85), 100.9)]


def test_the_picture_is_well_formed_and_shows_each_part():
    runs = [run_of().timeline(), Timeline("a <b> & c", 5.0, 5.0, [], [])]
    text = render(runs, "caption <&>")
    root = ET.fromstring(text)
    assert root.tag.endswith("svg")
    titles = [t.text for t in root.iter("{http://www.w3.org/2000/svg}title")]
    assert titles == ["prefill: 800.0 ms", "decode: 1.20 s", "KV transfer: 50.0 ms"]
    assert tick_step(7.9) == pytest.approx(1.0)


def test_an_error_event_in_a_stream_is_a_failure():
    with pytest.raises(DemoError, match="prefill died"):
        read_event(b'data: {"error": {"message": "prefill died"}}\n', answer(), print)
    assert read_event(b"data: [DONE]\n", answer(), print)
    assert not read_event(b"\n", answer(), print)
