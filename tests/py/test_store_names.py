"""mooncake.store and what belongs to it have the names, arguments and defaults of upstream's wheel."""

import inspect
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from test_dropin_names import documented_arguments

import mooncake.store
from mooncake.async_store import MooncakeDistributedStoreAsync
from mooncake.mooncake_config import MooncakeConfig
from mooncake.store import MooncakeDistributedStore, ReplicateConfig

# Absent on purpose: doors for upstream's own modules (docs/store.md).
ABSENT_NAMES = {"EngramStore", "EngramStoreConfig", "MooncakeDistributedNoFRegister"}

LIST_UPSTREAM = """
import json, re, mooncake.store as m
def public(o): return [n for n in dir(o) if not n.startswith("_")]
store = m.MooncakeDistributedStore
docs = {n: getattr(store, n).__doc__ or "" for n in public(store)}
enums = {n: {k: int(v.value) for k, v in getattr(m, n).__members__.items()}
         for n in public(m) if isinstance(getattr(m, n), type) and hasattr(getattr(m, n), "__members__")}
config = m.ReplicateConfig()
fields = {n: repr(getattr(config, n)) for n in public(config)}
classes = {n: public(getattr(m, n)) for n in public(m) if isinstance(getattr(m, n), type)}
places = {n: {k: repr(getattr(getattr(m, n)(), k)) for k in public(getattr(m, n))} for n in ("ParallelAxis", "TensorParallelism", "ReadTarget")}
print(json.dumps([public(m), docs, enums, fields, classes, places]))
"""


@pytest.fixture(scope="module")
def upstream(upstream_python: str) -> tuple[list, dict, dict, dict, dict, dict]:
    out = subprocess.run([upstream_python, "-I", "-c", LIST_UPSTREAM], check=True, capture_output=True, text=True).stdout
    return tuple(json.loads(out.splitlines()[-1]))


def test_every_public_name_is_there(upstream) -> None:
    assert set(upstream[0]) - ABSENT_NAMES <= set(dir(mooncake.store))
    assert not ABSENT_NAMES & set(dir(mooncake.store)), "what is absent is absent, and no stub"


def test_every_method_is_there(upstream) -> None:
    assert set(upstream[1]) <= set(dir(MooncakeDistributedStore))


def test_every_class_has_upstreams_members(upstream) -> None:
    for name in upstream[4].keys() - ABSENT_NAMES:
        ours = getattr(mooncake.store, name)
        mine = set(dir(ours)) | (set(dir(next(iter(ours)))) if name in upstream[2] else set())
        assert set(upstream[4][name]) <= mine, name
    for name, fields in upstream[5].items():
        ours = getattr(mooncake.store, name)()
        assert {n: repr(getattr(ours, n)) for n in dir(ours) if not n.startswith("_")} == fields


def test_arguments_have_upstreams_names_order_and_defaults(upstream) -> None:
    wrong = []
    for name, doc in upstream[1].items():
        ours = getattr(MooncakeDistributedStore, name, None)
        if ours is None or name == "setup" or not doc.startswith(f"{name}("):
            continue
        mine = [p for p in inspect.signature(ours).parameters.values() if p.name not in ("self", "args")]
        theirs = [a for a in documented_arguments(doc.replace("*args, ", "")) if a[0] != "args"]
        if name == "load_tensor_from_safetensor":  # needs an argument behind one with a default: Python has no such signature
            theirs[1] = (theirs[1][0], "None")
        got = [(p.name, None if p.default is p.empty else "config" if p.name == "config" else repr(p.default)) for p in mine]
        want = [(n or got[i][0], d if n != "config" else "config") for i, (n, d) in enumerate(theirs[: len(got)])]
        if len(mine) != len(theirs) or got != want:
            wrong.append(f"{name}: {got} instead of {theirs}")
    assert not wrong


def test_setup_has_upstreams_arguments_and_says_so(upstream) -> None:
    line = next(part for part in upstream[1]["setup"].splitlines() if part.startswith("1. setup"))
    theirs = [name for name, _ in documented_arguments(line.removeprefix("1. "))]
    assert list(inspect.signature(MooncakeDistributedStore.setup).parameters)[1 : len(theirs) + 1] == theirs
    assert "enable_ssd_offload" in MooncakeDistributedStore.setup.__doc__, "clients look for it there"


def test_rest_service_has_upstreams_options_and_names(upstream_python: str) -> None:
    program = """
import sys, mooncake.mooncake_store_service as m
sys.argv = ["mc_store_rest_server"]
print(sorted(vars(m.parse_arguments()).items()), sorted(n for n in ("MooncakeStoreService", "main", "sync_main") if hasattr(m, n)))
print(sorted(n for n in dir(m.MooncakeStoreService) if n in ("start_store_service", "start_http_service", "stop")))
"""
    theirs = subprocess.run([upstream_python, "-I", "-c", program], check=True, capture_output=True, text=True).stdout
    ours = subprocess.run([sys.executable, "-P", "-c", program], check=True, capture_output=True, text=True).stdout
    assert ours.replace("('host', '0.0.0.0'), ", "") == theirs


def test_console_scripts_are_upstreams(upstream_python: str) -> None:
    program = "import importlib.metadata as m; print(*sorted(e.name for e in m.entry_points(group='console_scripts') if 'mooncake.' in e.value))"
    theirs = subprocess.run([upstream_python, "-I", "-c", program], check=True, capture_output=True, text=True).stdout.split()
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    native = {"mooncake_master", "mooncake_client"}  # test_package.py
    assert set(theirs) <= set(project["scripts"]) | native


def test_enums_have_upstreams_members_and_numbers(upstream) -> None:
    for name, members in upstream[2].items():
        ours = getattr(mooncake.store, name)
        assert {k: v.value for k, v in ours.__members__.items()} == {k: int(v) for k, v in ours.__members__.items()} == members
        for member in members:
            assert hasattr(mooncake.store, member)


def test_replicate_config_has_upstreams_fields_and_defaults(upstream) -> None:
    ours, theirs = ReplicateConfig(), upstream[3]
    assert {n for n in dir(ours) if not n.startswith("_")} - {"packed"} == set(theirs)
    for name, value in theirs.items():
        mine = getattr(ours, name)
        assert value in (repr(mine), str(mine)) or value.startswith(f"<{type(mine).__name__}.{getattr(mine, 'name', '?')}")
    assert hasattr(ReplicateConfig, "group_ids"), "clients ask the class for it"
    with pytest.raises(AttributeError):
        ours.no_such_field = 1


def test_a_replicate_config_takes_upstreams_types_alone() -> None:
    config = ReplicateConfig()
    for name, *wrong in (
        ("replica_num", -1, "1", 1.5, None, 1 << 70), ("dfs_replica_num", -1), ("soft_pin_ttl_ms", -1, "1", 1.5),
        ("soft_pin_action", 1, "ENABLE", None), ("data_type", 2, None), ("with_hard_pin", "yes"), ("prefer_alloc_in_same_node", 0.5),
        ("preferred_segment", None, 5), ("preferred_segments", None, "abc", [1]), ("group_ids", "abc", [None]),
    ):  # fmt: skip
        before = getattr(config, name)
        for value in wrong:
            with pytest.raises(TypeError, match=name):
                setattr(config, name, value)
            with pytest.raises(TypeError, match=name):
                ReplicateConfig(**{name: value})
        assert getattr(config, name) == before
    config.with_hard_pin, config.preferred_segments, config.group_ids, config.soft_pin_ttl_ms = 1, ("a", "b"), ("g",), 0
    assert (config.with_hard_pin, config.preferred_segments, config.group_ids, config.soft_pin_ttl_ms) == (True, ["a", "b"], ["g"], 0)


def test_config_reads_what_upstream_reads(upstream_python: str, tmp_path) -> None:
    """The same files give the same fields, or the same text of an error."""
    base = {"local_hostname": "h", "metadata_server": "m", "master_server_address": "a:1"}
    cases = [
        {}, {"local_hostname": "h"}, base, base | {"global_segment_size": "4gb", "local_buffer_size": " 1.5 MB "},
        base | {"global_segment_size": ""}, base | {"local_buffer_size": "GB"}, base | {"protocol": "RDMA", "device_name": "x"},
        base | {"protocol": 5}, base | {"enable_ssd_offload": "true", "ssd_offload_path": "/p", "client_http_port": "12"},
        base | {"tenant_id": "t", "enable_client_http_server": 1, "unknown": 1}, base | {"client_http_port": "x"},
    ]  # fmt: skip
    program = f"""
import json, sys
from mooncake.mooncake_config import MooncakeConfig
for case in json.loads({json.dumps(cases)!r}):
    with open(sys.argv[1], "w") as f: json.dump(case, f)
    try: print(json.dumps(vars(MooncakeConfig.from_file(sys.argv[1])), sort_keys=True))
    except ValueError as e: print("ValueError", e)
"""
    path = tmp_path / "config.json"
    theirs = subprocess.run([upstream_python, "-I", "-c", program, path], check=True, capture_output=True, text=True).stdout
    ours = []
    for case in cases:
        path.write_text(json.dumps(case))
        try:
            ours.append(json.dumps(vars(MooncakeConfig.from_file(path)), sort_keys=True))
        except ValueError as why:
            ours.append(f"ValueError {why}")
    assert ours == theirs.splitlines()


def test_async_methods_are_the_others_beside_the_loop() -> None:
    store = MooncakeDistributedStoreAsync()
    assert inspect.iscoroutinefunction(store.async_get)
    with pytest.raises(AttributeError):
        store.no_such_method
    with pytest.raises(AttributeError):
        store.async_no_such_method
