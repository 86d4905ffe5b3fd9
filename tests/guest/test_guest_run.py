"""guest-run itself: what it hands back, what stays, whether its devices do what README.md says."""

import os
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
BOOT_S = 240  # a guest on a busy machine; 5 to 20 s on a quiet one
RDMA_CHECK = Path(os.environ.get("MC_BUILD_DIR") or HERE.parents[1] / "build-test") / "tests/guest/rdma_check"

pytestmark = pytest.mark.timeout(BOOT_S + 60)


def guest(work: Path, *args: object, timeout_s: float = BOOT_S) -> subprocess.CompletedProcess:
    argv = [HERE / "guest-run", "--timeout", timeout_s, *args]
    return subprocess.run(list(map(str, argv)), cwd=work, capture_output=True, text=True, timeout=timeout_s + 30)


def test_a_job_has_the_hosts_files_and_hands_back_what_it_said(tmp_path: Path) -> None:
    script = """
        pwd; echo oops >&2; echo lost >/etc/guest-run-test; echo lost >outside; echo kept >kept/file
        echo "$GUEST_RUN $SOME_VALUE"; exit 7"""
    (tmp_path / "kept").mkdir()
    os.environ["SOME_VALUE"] = "it's  one"
    done = guest(tmp_path, "--nics", 0, "--rw", "kept", "--", "sh", "-c", script)
    assert done.returncode == 7, done.stderr
    assert done.stdout == f"{tmp_path}\n1 it's  one\n"
    assert done.stderr == "oops\n"
    assert (tmp_path / "kept/file").read_text() == "kept\n"
    assert not (tmp_path / "outside").exists() and not Path("/etc/guest-run-test").exists()


def test_a_command_that_is_not_there_ends_with_127(tmp_path: Path) -> None:
    done = guest(tmp_path, "--nics", 0, "--", "no-such-command")
    assert done.returncode == 127, done.stderr
    assert "no-such-command" in done.stderr


def test_a_job_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    done = guest(tmp_path, "--nics", 0, "--", "sleep", 1000, timeout_s=20)
    assert done.returncode == 124
    assert "timed out after 20 s" in done.stderr


def test_arguments_that_make_no_guest_are_refused(tmp_path: Path) -> None:
    for args in (["--nics", 65, "--", "true"], ["--rw", "nowhere", "--", "true"], ["--nics", 2]):
        done = guest(tmp_path, *args)
        assert done.returncode == 2 and done.stderr.startswith("usage:"), (args, done)


def test_nodes_have_their_nics(tmp_path: Path) -> None:
    script = f"cat /sys/class/net/nic?/device/numa_node; {RDMA_CHECK} 1 2"
    done = guest(tmp_path, "--nics", 2, "--numa", 2, "--", "sh", "-c", script)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("0\n1\n") and "sum of 1" in done.stdout


def test_four_nics_are_shaped_pulled_plugged_and_lose(tmp_path: Path) -> None:
    """One guest: two pairs at 40 Mbit/s each; then NIC 0 is pulled, plugged, and loses everything silently."""
    script = f"""
        set -e
        {RDMA_CHECK} 2 4
        {RDMA_CHECK} 2 6 down
        cat /sys/class/infiniband/rxe0/ports/1/state
        guest-nic 0 up
        for i in $(seq 100); do grep -q ACTIVE /sys/class/infiniband/rxe0/ports/1/state && break; sleep 0.1; done
        {RDMA_CHECK} 2 6 drop
        cat /sys/class/infiniband/rxe0/ports/1/state
        guest-nic 0 pass
        {RDMA_CHECK} 2 2"""
    done = guest(tmp_path, "--nics", 4, "--rate", "40mbit", "--", "sh", "-c", script)
    assert done.returncode == 0, done.stdout + done.stderr
    rates = [float(line.split()[-2]) for line in done.stdout.splitlines() if line.startswith("sum of 2")]
    assert len(rates) == 4 and rates[0] < 2 * 40e6 / 8 / 2**20 * 1.1, done.stdout
    assert done.stdout.count("pair 0: transport retry counter exceeded") == 2
    states = [line for line in done.stdout.splitlines() if line[1:2] == ":"]
    assert states == ["1: DOWN", "4: ACTIVE"]
