"""A setup() that cannot work: its code, the cause and the cure in the log, and an end within its own deadline of seconds."""

import json
import logging
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import free_port
from pool import MIB, Pool

from mooncake.engine import TransferEngine
from mooncake.mooncake_config import MooncakeConfig
from mooncake.store import MooncakeDistributedStore

HOST, P2P = "127.0.0.1", "P2PHANDSHAKE"
INTERNAL, INVALID, RPC_FAIL = -1, -600, -900
DEADLINE_S = 3  # of a master or service that does not answer
SLACK_S = 12  # a busy machine; upstream takes 90 s


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    pool = Pool(tmp_path_factory.mktemp("setup"))
    yield pool
    pool.close()


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.create_server((HOST, 0), backlog=64) as server:
        yield server.getsockname()[1]


def refused(caplog: pytest.LogCaptureFixture, code: int, *words: str, **wrong) -> None:
    """setup() with these arguments gives this code, and one warning that has these words; the object can be used after that."""
    store = MooncakeDistributedStore()
    good = {"local_hostname": HOST, "metadata_server": P2P, "global_segment_size": 0, "local_buffer_size": 0}
    caplog.clear()
    start = time.monotonic()
    with caplog.at_level(logging.WARNING, logger="mooncake"):
        got = store.setup(**wrong) if "config" in wrong else store.setup(**good | wrong)
    assert time.monotonic() - start < DEADLINE_S + SLACK_S
    assert got == code, caplog.text
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert any(all(word in one for word in words) for one in said), f"{words} in {said}"
    assert (store.health_check(), store.put("a", b"b"), store.close()) == (1, -1, 0)


# ---- the master ----


def test_master_that_is_down(caplog) -> None:
    port = free_port(31_000, 32_000)
    refused(caplog, RPC_FAIL, f"master {HOST}:{port}", "refused", "Is mooncake_master running there", master_server_addr=f"{HOST}:{port}")


def test_port_where_somebody_else_listens(caplog, silent: int) -> None:
    refused(caplog, RPC_FAIL, f"master {HOST}:{silent}", "no mooncake_master answers", master_server_addr=f"{HOST}:{silent}")


def test_http_port_in_place_of_the_rpc_port(caplog, pool: Pool) -> None:
    address = f"{HOST}:{pool.http}"
    refused(caplog, RPC_FAIL, f"master {address}", "An HTTP server listens there", "--rpc_port", master_server_addr=address)


@pytest.mark.parametrize(("address", "words"), [
    ("nohost.invalid:50051", ("nohost.invalid", "not known")),
    ("127.0.0.1:99999", ("127.0.0.1:99999", "expected host")),
    ("127.0.0.1:port", ("127.0.0.1:port", "expected host")),
    ("etcd://127.0.0.1:2379", ("etcd://127.0.0.1:2379", "give host:port")),
    ("redis://127.0.0.1:6379", ("redis://127.0.0.1:6379", "give host:port")),
])  # fmt: skip
def test_master_that_is_no_address(caplog, address: str, words: tuple) -> None:
    refused(caplog, INVALID, *words, master_server_addr=address)


def test_a_master_that_just_starts_is_waited_for(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    pool.master.stop()
    store = MooncakeDistributedStore()
    program = textwrap.dedent(f"""
        from mooncake.store import MooncakeDistributedStore
        print("go", flush=True)
        raise SystemExit(MooncakeDistributedStore().setup("{HOST}", "{P2P}", 0, 0, "tcp", "", "{pool.address}") != 0)
    """)
    with subprocess.Popen([sys.executable, "-P", "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "go\n"
        pool.master.start()
        assert process.wait(60) == 0, pool.master.tail()
    assert store.close() == 0
    pool.close()


# ---- the metadata service ----


@pytest.mark.parametrize("form", ["http://{}/metadata", "etcd://{}", "redis://{}", "{}"])
def test_metadata_service_that_is_down_or_silent(caplog, pool: Pool, silent: int, form: str) -> None:
    down = form.format(f"{HOST}:{free_port(31_000, 32_000)}")
    refused(caplog, INVALID, f'"{down}"', "does it run there", "P2PHANDSHAKE needs none", "refused",
            metadata_server=down, master_server_addr=pool.address)  # fmt: skip
    mute = form.format(f"{HOST}:{silent}")
    refused(caplog, INVALID, f'"{mute}"', "deadline passed", metadata_server=mute, master_server_addr=pool.address)


@pytest.mark.parametrize(("service", "words"), [
    ("zookeeper://127.0.0.1:1", ("zookeeper://127.0.0.1:1", "P2PHANDSHAKE", "etcd://")),
    ("P2PHANDSHAK", ('"P2PHANDSHAK"', "does not resolve", "P2PHANDSHAKE needs none")),
])  # fmt: skip
def test_metadata_service_of_an_unknown_kind(caplog, pool: Pool, service: str, words: tuple) -> None:
    refused(caplog, INVALID, *words, metadata_server=service, master_server_addr=pool.address)


def test_masters_http_port_in_place_of_a_metadata_server(caplog, pool: Pool) -> None:
    url = f"http://{HOST}:{pool.http}/metadata"
    refused(caplog, INVALID, url, "405", metadata_server=url, master_server_addr=pool.address)


# ---- protocol and devices ----


def test_protocol_that_this_build_has_not(caplog, pool: Pool) -> None:
    for protocol in ("ascend", "cxl", "TCP"):
        refused(caplog, INVALID, f'protocol "{protocol}" is not supported', '"tcp"', '"rdma"', protocol=protocol, master_server_addr=pool.address)


@pytest.mark.parametrize("device", ["", "mlx5_9"])
def test_rdma_without_hardware_goes_over_tcp_and_says_so(pool: Pool, device: str) -> None:
    program = textwrap.dedent(f"""
        from mooncake.store import MooncakeDistributedStore
        store = MooncakeDistributedStore()
        assert store.setup("{HOST}", "{P2P}", {4 * MIB}, 0, "rdma", "{device}", "{pool.address}") == 0
        assert store.put("over tcp {device}", b"value") == 0 and store.get("over tcp {device}") == b"value"
        store.close()
    """)
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "no RDMA: using TCP" in done.stderr and "fix=" in done.stderr


# ---- this process's name ----


def test_name_of_another_machine(caplog, pool: Pool) -> None:
    refused(caplog, INVALID, "203.0.113.7", "no address of this machine", "MC_TCP_BIND_ADDRESS",
            local_hostname="203.0.113.7", master_server_addr=pool.address)  # fmt: skip
    refused(caplog, INVALID, "nohost.invalid", "no address of this machine", local_hostname="nohost.invalid", master_server_addr=pool.address)
    refused(caplog, INVALID, '"a b:c"', "host:port", local_hostname="a b:c", master_server_addr=pool.address)
    refused(caplog, INVALID, "local_hostname", "zero character", local_hostname="127.0.0.1\0x", master_server_addr=pool.address)


def test_port_of_the_name_that_is_taken_is_another(pool: Pool, silent: int) -> None:
    """Upstream's clients ask for no port of theirs either; the store finds one."""
    store = MooncakeDistributedStore()
    assert store.setup(f"{HOST}:{silent}", P2P, 0, 0, "tcp", "", pool.address) == 0
    host, port = store.get_hostname().split(":")
    assert host == HOST and int(port) != silent
    store.close()


def test_engine_that_is_none(caplog, pool: Pool) -> None:
    refused(caplog, INVALID, "not initialized", engine=TransferEngine(), master_server_addr=pool.address)
    with pytest.raises(TypeError, match="'engine' must be a TransferEngine"):
        MooncakeDistributedStore().setup(HOST, P2P, 0, 0, "tcp", "", pool.address, "engine")


# ---- sizes ----


def test_segment_that_is_too_big(caplog, pool: Pool) -> None:
    refused(caplog, INTERNAL, "global_segment_size of 1125899906842624 bytes", "no memory", global_segment_size=1 << 50,
            master_server_addr=pool.address)  # fmt: skip
    assert pool.segments() == [], "nothing of it stays"


@pytest.mark.parametrize("name", ["global_segment_size", "local_buffer_size"])
@pytest.mark.parametrize("value", [-1, 1 << 63, 1 << 64, "50%", "", "GB", "-5", "nan", "1e400"])
def test_sizes_that_are_none(caplog, name: str, value) -> None:
    refused(caplog, INVALID, name, repr(value), **{name: value})
    refused(caplog, INVALID, name, repr(value), config={"local_hostname": HOST, "metadata_server": P2P, name: value})


def test_segment_that_is_too_small(caplog, pool: Pool) -> None:
    refused(caplog, INVALID, "global_segment_size of 100 bytes", "4096", global_segment_size=100, master_server_addr=pool.address)


@pytest.mark.parametrize("value", [None, [], b"64MB"])
def test_size_of_a_wrong_type_is_an_exception_that_names_it(value) -> None:
    with pytest.raises(TypeError, match="'global_segment_size' must be an int"):
        MooncakeDistributedStore().setup(HOST, P2P, value, 0, "tcp", "", f"{HOST}:1")


def test_without_a_buffer_everything_works(pool: Pool) -> None:
    store = MooncakeDistributedStore()
    assert store.setup(HOST, P2P, 8 * MIB, 0, "tcp", "", pool.address) == 0
    value = bytes(range(256)) * 8192
    assert (store.put("no buffer", value), store.get("no buffer")) == (0, value)
    assert store.alloc_from_mem_pool(4096) == 0, "but memory out of it"
    store.close()


# ---- dicts ----


def test_dict_with_unknown_missing_and_contradicting_keys(caplog, pool: Pool) -> None:
    good = {"local_hostname": HOST, "metadata_server": P2P, "global_segment_size": "0", "master_server_addr": pool.address}
    store = MooncakeDistributedStore()
    with caplog.at_level(logging.WARNING, logger="mooncake"):
        assert store.setup(good | {"bogus": "1", "protocol": None, "rdma_devices": None, 5: 5}) == 0, "as upstream: it is not looked at"
    assert "'bogus' is not an option" in caplog.text and "master_server_address" in caplog.text
    store.close()
    for name in ("local_hostname", "metadata_server"):
        refused(caplog, INVALID, f"'{name}' is missing", config={key: value for key, value in good.items() if key != name})
        refused(caplog, INVALID, f"'{name}' is missing", config=good | {name: ""})
    refused(caplog, INVALID, "'master_server_addr'", "'master_server_address'", "10.0.0.1:1", config=good | {"master_server_address": "10.0.0.1:1"})
    refused(caplog, INVALID, "client_http_port 'x'", "65535", config=good | {"client_http_port": "x"})
    refused(caplog, INVALID, 'protocol "5"', config=good | {"protocol": 5})
    refused(caplog, INVALID, "ipc_socket_path", "1 to 106 bytes", config=good | {"ipc_socket_path": "@" + "x" * 107})
    refused(caplog, INVALID, "ipc_socket_path", "1 to 106 bytes", config=good | {"ipc_socket_path": "@"})


def test_both_spellings_with_one_value(pool: Pool) -> None:
    store = MooncakeDistributedStore()
    config = {"local_hostname": HOST, "metadata_server": P2P, "master_server_addr": pool.address, "global_segment_size": "0",
              "master_server_address": pool.address, "device_name": "", "rdma_devices": "", "local_buffer_size": "1 MB"}  # fmt: skip
    assert store.setup(config=config) == 0
    assert store.close() == 0


def test_no_arguments_at_all() -> None:
    with pytest.raises(TypeError, match="local_hostname and metadata_server"):
        MooncakeDistributedStore().setup()
    with pytest.raises(TypeError, match="'protocol' must be a str, not int"):
        MooncakeDistributedStore().setup(HOST, P2P, 0, 0, 5, "", f"{HOST}:1")


def test_tenant_whose_name_is_too_long(caplog, pool: Pool) -> None:
    refused(caplog, INVALID, "tenant", "300 bytes", tenant_id="x" * 300, master_server_addr=pool.address)


# ---- files and environment ----


@pytest.mark.parametrize(("text", "said"), [
    ("{", "is not JSON"), ("", "is not JSON"), ("[]", "holds no JSON object"), ('"x"', "holds no JSON object"),
    ("{}", "Missing required config field: local_hostname"),
])  # fmt: skip
def test_configuration_file_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str) -> None:
    path = tmp_path / "mooncake.json"
    path.write_text(text)
    monkeypatch.setenv("MOONCAKE_CONFIG_PATH", str(path))
    with pytest.raises(ValueError, match=said) as why:
        MooncakeConfig.load_from_env()
    assert str(path) in str(why.value) or "field" in said
    monkeypatch.setenv("MOONCAKE_CONFIG_PATH", str(tmp_path / "none.json"))
    with pytest.raises(FileNotFoundError, match="none.json"):
        MooncakeConfig.load_from_env()


def test_configuration_with_a_size_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mooncake.json"
    path.write_text(json.dumps({"local_hostname": HOST, "metadata_server": P2P, "master_server_address": "m:1", "global_segment_size": "50%"}))
    with pytest.raises(ValueError, match="'50%' is no number with a unit"):
        MooncakeConfig.from_file(path)
    monkeypatch.delenv("MOONCAKE_CONFIG_PATH", raising=False)
    monkeypatch.delenv("MOONCAKE_MASTER", raising=False)
    with pytest.raises(ValueError, match="MOONCAKE_CONFIG_PATH.*MOONCAKE_MASTER"):
        MooncakeConfig.load_from_env()


@pytest.mark.parametrize("value", ["abc", "-5", "0"])
def test_timeout_of_the_environment_that_is_none_is_not_taken(pool: Pool, value: str) -> None:
    program = textwrap.dedent(f"""
        from mooncake.store import MooncakeDistributedStore
        raise SystemExit(MooncakeDistributedStore().setup("{HOST}", "{P2P}", 0, 0, "tcp", "", "{pool.address}"))
    """)
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], env={"MC_RPC_TIMEOUT_MS": value, "PYTHONPATH": ":".join(filter(None, sys.path))},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "MC_RPC_TIMEOUT_MS" in done.stderr and value in done.stderr


# ---- dummy clients ----


def test_setup_dummy_where_no_node_is(caplog, silent: int) -> None:
    for address, code, words in (
        (f"{HOST}:{free_port(31_000, 32_000)}", RPC_FAIL, "mooncake_client"), (f"{HOST}:{silent}", RPC_FAIL, "mooncake_client"),
        ("nowhere", INVALID, "nowhere"),
    ):  # fmt: skip
        caplog.clear()
        start = time.monotonic()
        assert MooncakeDistributedStore().setup_dummy(MIB, 0, address) == code, caplog.text
        assert time.monotonic() - start < DEADLINE_S + SLACK_S
        assert words in caplog.text
    assert MooncakeDistributedStore().setup_dummy(-1, 0, f"{HOST}:1") == INVALID
    assert "mem_pool_size" in caplog.text
