"""What operators look at, against a Store under load: metrics and their page, the dashboard, alerts, the status page."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import browser
import pytest
from cluster import free_port
from pool import Pool

from mooncake import prom_text
from mooncake.store import MooncakeDistributedStore, ReplicateConfig

ROOT = Path(__file__).resolve().parents[2]
OPS, PAGE = ROOT / "ops", ROOT / "docs" / "metrics.md"
COMMAND = Path(sys.executable).parent / "mooncake"
# Exported when such a thing has happened, or where there is such a device.
SOMETIMES = re.compile(r"mc_transfer_errors_total|mc_rdma_\w+")
QUIET_LOAD = {"MC_TCP_BIND_ADDRESS": "127.0.0.1", "MC_LOG_LEVEL": "ERROR"}


def needed(program: str | None, what: str) -> str:
    if not program:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"needs {what}")
    assert program
    return program


class Busy:
    """A master, a node with a disk and one without, and two clients that put, get and remove more than memory holds."""

    def __init__(self, folder: Path) -> None:
        self.pool = Pool(folder, "--default_kv_lease_ttl=200ms")
        self.nodes, self.clients = [], []
        self.loads: list[subprocess.Popen[bytes]] = []
        for i, more in enumerate((["--enable_offload=true", f"--ssd_offload_path={folder / 'disk'}"], [])):
            port = free_port(25000 + 10 * i)
            self.nodes.append(port)
            at = [f"--http_port={port}", "--enable_http_server=true", "--http_host=127.0.0.1"]
            self.pool.node("24 MB", *at, *more, env={"MOONCAKE_OFFLOAD_TOTAL_SIZE_LIMIT_BYTES": "256MB"})
        for i, words in enumerate((["--batch", "16", "--keys", "1024"], ["--batch", "1", "--keys", "64"])):
            port = free_port(25100 + 10 * i)
            self.clients.append(port)
            with (folder / f"load{i}.log").open("wb") as log:
                self.loads.append(
                    subprocess.Popen(
                        [COMMAND, "bench", "store", "--master", self.pool.address, "--size", "64KB", "--seconds", "1", "--rounds", "100000", *words],
                        stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | QUIET_LOAD | {"MC_METRICS_PORT": str(port)},
                    )
                )  # fmt: skip
        self.pool.wait(lambda: all(scrape(port) for port in (*self.nodes, *self.clients)), "a process has no metrics", *self.pool.nodes)

    def close(self) -> None:
        for load in self.loads:
            load.kill()
            load.wait(30)
        self.pool.close()


def scrape(port: int) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            return answer.read().decode()
    except OSError:
        return ""


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Busy]:
    one = Busy(tmp_path_factory.mktemp("busy"))
    try:
        yield one
    finally:
        one.close()


# ---- the metrics and their page ----


def described(text: str) -> dict[str, tuple[str, str, str]]:
    """{name: (type, labels, help)} of a scrape."""
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
    helps = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.M))
    labels: dict[str, set[str]] = {name: set() for name in kinds}
    for name, rows in prom_text.parse(text).items():
        family = name if name in kinds else re.sub(r"_(bucket|sum|count)$", "", name)
        assert family in kinds, f"{name} has no TYPE line"
        labels[family] |= {key for pairs in rows for key, _ in pairs} - {"le"}
    return {name: (kind, ", ".join(sorted(labels[name])) or "", helps[name].rstrip(".")) for name, kind in kinds.items()}


def page_of(busy: Busy) -> str:
    parts = {
        "Master": described(scrape(busy.pool.http)),
        "Node": described(scrape(busy.nodes[0])),
        "Client, and every other process with an engine": described(scrape(busy.clients[0])),
    }
    engine = {name for name in parts["Node"] if name in parts["Client, and every other process with an engine"]}
    lines = []
    for title, rows in parts.items():
        lines += [f"## {title}", "| metric | type | labels | what |", "|---|---|---|---|"]
        lines += [
            f"| `{name}` | {kind} | {labels} | {text} |"
            for name, (kind, labels, text) in sorted(rows.items())
            if not SOMETIMES.fullmatch(name) and not (title == "Node" and name in engine)
        ]
        lines.append("")
    return "\n".join(lines)


def test_the_page_of_metrics_is_what_is_exported(busy: Busy) -> None:
    """MC_WRITE_DOCS=1 writes the page."""
    head, mark, _ = PAGE.read_text().partition("<!-- metrics: written by tests/py/test_watching.py -->\n")
    assert mark
    busy.pool.wait(lambda: "mooncake_transfer_get_latency_count" in scrape(busy.clients[1]) and "mc_transfer_bytes_total" in scrape(busy.clients[0]), "no load")
    want = head + mark + page_of(busy)
    if os.environ.get("MC_WRITE_DOCS") == "1":
        PAGE.write_text(want)
    assert PAGE.read_text().splitlines() == want.splitlines(), "run this test with MC_WRITE_DOCS=1, and look at the difference"


def test_counters_move_under_load(busy: Busy) -> None:
    def is_moving() -> bool:
        master, node = (prom_text.parse(scrape(port)) for port in (busy.pool.http, busy.nodes[0]))
        many, one = (prom_text.parse(scrape(port)) for port in busy.clients)
        return all(
            (
                prom_text.value(master, "valid_get_nums_"), prom_text.value(master, "master_evicted_key_count"),
                prom_text.value(master, "file_cache_hit_nums_"), prom_text.value(master, "master_rpc_latency_seconds_count", rpc="commit"),
                prom_text.value(node, "mc_owner_rpc_latency_seconds_count", rpc="grant") + prom_text.value(node, "mc_owner_rpc_latency_seconds_count", rpc="put"),
                prom_text.value(many, "mooncake_transfer_batch_get_latency_count"), prom_text.value(one, "mooncake_transfer_get_latency_count"),
                prom_text.value(many, "mooncake_transfer_read_bytes"), prom_text.value(many, "mooncake_transfer_write_bytes"),
                prom_text.value(many, "mooncake_client_rpc_latency_count", rpc="lookup"),
            )
        )  # fmt: skip

    busy.pool.wait(is_moving, "some counter stays 0", *busy.pool.nodes)


# ---- Prometheus: the dashboard and the alerts ----


@pytest.fixture(scope="module")
def prometheus(busy: Busy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A real one, with our configuration but for hosts and pace, that scrapes the Store under load. Its port."""
    program, port, folder = needed(shutil.which("prometheus"), "prometheus"), free_port(26000), tmp_path_factory.mktemp("prometheus")
    text = (OPS / "prometheus" / "prometheus.yml").read_text().replace(": 10s", ": 1s")
    for default, ports in (("9003", [busy.pool.http]), ("9300", busy.nodes), ("9400", busy.clients)):
        before, text = text, text.replace(f'"127.0.0.1:{default}"', ", ".join(f'"127.0.0.1:{p}"' for p in ports))
        assert before != text
    (folder / "prometheus.yml").write_text(text)
    shutil.copy(OPS / "prometheus" / "alerts.yml", folder)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        wait_until(lambda: result(port, "count(up == 1)") == [5.0], f"not all is scraped; see {folder / 'log'}")
        yield port
    finally:
        process.terminate()
        process.wait(30)


def wait_until(is_so, otherwise: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, otherwise
        time.sleep(0.3)


def result(port: int, query: str) -> list[float]:
    """Finite values of a query; a query that Prometheus refuses is an error."""
    url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": query})
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            told = json.load(answer)
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{query}: {error.read().decode()}") from None
    except OSError:
        return []  # it starts
    return [x for row in told["data"]["result"] if math.isfinite(x := float(row["value"][1]))]


def dashboard_queries() -> dict[str, str]:
    panels = json.loads((OPS / "grafana" / "mooncake-store.json").read_text())["panels"]
    return {f"{panel['title']}: {target['legendFormat']}": target["expr"] for panel in panels for target in panel.get("targets", [])}


def test_every_query_of_the_dashboard_has_samples(prometheus: int) -> None:
    missing = {name: expr.replace("$__rate_interval", "15s") for name, expr in dashboard_queries().items()}
    assert len(missing) > 50

    def is_complete() -> bool:
        for name in [name for name, expr in missing.items() if result(prometheus, expr)]:
            del missing[name]
        return not missing

    wait_until(is_complete, f"queries without a sample: {missing}", 90)


def test_alerts_fire_when_they_should_and_name_metrics_that_are_there(prometheus: int, busy: Busy) -> None:
    promtool = needed(shutil.which("promtool"), "promtool")
    for words in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run([promtool, *words], cwd=OPS / "prometheus", capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    text = (OPS / "prometheus" / "alerts.yml").read_text()
    exprs = re.findall(r"^        expr: (.*)$", text, re.M)
    tested = (OPS / "prometheus" / "alerts_test.yml").read_text()
    for name in re.findall(r"- alert: (\w+)", text):
        assert f"- name: {name}\n" in tested, f"{name} is not in alerts_test.yml"
    names = {name for expr in exprs for name in re.findall(r"\b(?:up|master_\w+|mc_\w+|mooncake_transfer\w+)\b(?=[\[{ )])", expr)}
    assert len(names) >= 10
    for name in names:
        assert result(prometheus, f"count({name})"), f"{name} is not exported"
    # A Store under this load is well, but that puts may have to wait for room.
    firing = f'http://127.0.0.1:{prometheus}/api/v1/alerts'
    with urllib.request.urlopen(firing, timeout=10) as answer:
        alerts = {a["labels"]["alertname"] for a in json.load(answer)["data"]["alerts"] if a["state"] == "firing"}
    assert alerts <= {"MooncakePutsWaitForRoom", "MooncakePutsRefused"}, alerts


# ---- the status page ----


@pytest.fixture
def page(busy: Busy, tmp_path: Path) -> Iterator[browser.Browser]:
    one = browser.Browser(needed(browser.find(), "a headless Chromium"), tmp_path)
    try:
        one.size(1100, 900)
        one.go(f"http://127.0.0.1:{busy.pool.http}/")
        yield one
        assert one.errors == []
        assert [url for url in one.requests if not url.startswith((f"http://127.0.0.1:{busy.pool.http}/", "data:"))] == []
    finally:
        one.close()


def test_the_status_page_draws_what_happens(page: browser.Browser, busy: Busy) -> None:
    page.wait("document.querySelector('#state').textContent === '● serving'")
    page.wait("samples.length >= 3")  # one each five seconds
    page.wait("[...document.querySelectorAll('#charts path')].filter((p) => p.getAttribute('d').includes('L')).length >= 10")
    assert page.run("document.querySelectorAll('#nodes tr').length") == 2
    nodes = page.run("document.querySelector('#nodes').innerText")
    assert all(name in nodes for name in busy.pool.segments()) and nodes.count("of 24.0 MiB") == 2
    tiles = page.run("document.querySelector('#tiles').innerText")
    assert re.search(r"memory\s+\d+ % of 48\.0 MiB", tiles) and re.search(r"hits, last minute\s+[\d.]+ %", tiles), tiles
    label = page.run("document.querySelectorAll('#charts svg')[1].getAttribute('aria-label')")
    assert re.match(r"Objects a second, last 5 minutes: looked up [1-9]", label), label


def test_the_status_page_says_where_an_object_is_and_why_not(page: browser.Browser, busy: Busy) -> None:
    store, pinned = MooncakeDistributedStore(), ReplicateConfig()
    pinned.with_hard_pin = True  # else the load may evict them
    assert store.setup("127.0.0.1", "P2PHANDSHAKE", 0, 0, "tcp", "", busy.pool.address) == 0
    try:
        assert [store.put(key, bytes(3000), pinned) for key in ("page/a", "page/b")] == [0, 0]
        assert store.remove("page/b", True) == 0
    finally:
        store.close()
    # By keys alone: "/" goes to the field, Enter asks, Tab goes on.
    page.press("/", "/")
    assert page.run("document.activeElement.id") == "key"
    page.type("page/a")
    page.press("Enter", "\r")
    page.wait("document.querySelector('#answer').textContent.startsWith('Here: 2.93 KiB in ')")
    for key, words in (("page/b", "Removed "), ("page/never", "Not there, and it has not left in the last ")):
        page.run(f"document.querySelector('#key').value = {json.dumps(key)}")
        page.press("Enter", "\r")
        page.wait(f"document.querySelector('#answer').textContent.startsWith({json.dumps(words)})")
    page.press("Tab")
    assert page.run("document.activeElement.name") == "tenant"
    page.wait("samples.length >= 3")
    page.run("document.querySelector('#charts svg').focus()")
    page.press("ArrowLeft")
    assert "ago" in page.run("document.querySelector('#charts .key').innerText")


def test_the_status_page_fits_a_phone_and_follows_light_and_dark(page: browser.Browser) -> None:
    page.wait("samples.length >= 2")
    page.size(360, 740, 2, phone=True)
    assert page.run("document.documentElement.scrollWidth") <= 360
    colours = []
    for name in ("light", "dark"):
        page.scheme(name)
        colours.append(page.run("getComputedStyle(document.body).backgroundColor + getComputedStyle(document.body).color"))
    assert colours[0] != colours[1]


def test_the_status_page_says_that_the_master_is_gone(page: browser.Browser, busy: Busy) -> None:
    """The last test: it ends the master. MC_SCREENSHOT names a picture to make of the page before that."""
    page.wait("samples.length >= 3")
    if os.environ.get("MC_SCREENSHOT"):
        page.run("document.querySelector('#key').value = 'page/b'")
        page.run("document.querySelector('#ask').requestSubmit()")
        page.wait(f"samples.length >= {os.environ.get('MC_SCREENSHOT_SAMPLES', '3')}", 900)
        page.screenshot(Path(os.environ["MC_SCREENSHOT"]))
    busy.pool.master.kill()
    page.wait("document.querySelector('#state').textContent === '● the master does not answer'")
    page.errors = [text for text in page.errors if "ERR_CONNECTION" not in text]
