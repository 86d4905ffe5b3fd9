"""A layer of experts with random weights, served by four processes: the story of ./run demo ep."""

import argparse
import asyncio
import sys
from pathlib import Path

import pytest

import mooncake

pytest.importorskip("aiohttp", reason="the demos' own code needs it")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "demo"))


def test_a_layer_of_experts_outlives_its_ranks(tmp_path, monkeypatch) -> None:
    from ep_demo import KILLED, RANKS, STEPS, STOPPED, EpDemo
    from story import run

    told: list[dict] = []
    args = argparse.Namespace(json=True, svg=None, transport="shm", verbose=False, keep=False)
    demo = EpDemo(args, tmp_path, told.append)
    # The package that is tested, wherever it lies; whether it is installed is what the demo itself asks.
    monkeypatch.setattr(demo, "check_setup", lambda: None)
    demo.python_path = [str(Path(mooncake.__file__).parents[1])]
    assert asyncio.run(run(demo)) == 0, told
    phases = told[0]["phases"]
    assert all(phase["equal"] and phase["steps"] >= STEPS for phase in phases)
    assert [(p["ranks"], p["missing"]) for p in phases] == [
        (RANKS, None), (RANKS - 1, KILLED), (RANKS - 1, KILLED), (RANKS - 1, KILLED), (RANKS, None), (RANKS - 1, STOPPED),
        (RANKS, None)]  # fmt: skip
    assert demo.svg.read_text().startswith("<svg")
