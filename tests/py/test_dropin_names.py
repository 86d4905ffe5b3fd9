"""mooncake.engine has the names, arguments and defaults of upstream's wheel."""

import inspect
import json
import re
import subprocess

import pytest

import mooncake.engine
from mooncake.engine import TransferEngine, TransferNotify, TransferOpcode

# Absent on purpose: what moves GPU memory, upstream's RPC helper, and memory shared between ranks.
ABSENT = {
    "CoroRPCInterface", "ReceivedData", "ReceivedTensor", "RpcInterface", "SharedSegment", "create_rpc_client",
    "create_rpc_server", "batch_transfer_read_on_cuda", "batch_transfer_write_on_cuda", "transfer_read_on_cuda",
    "transfer_write_on_cuda",
}  # fmt: skip

LIST_UPSTREAM = """
import json, mooncake.engine as m
names = [n for n in dir(m) if not n.startswith("_")]
methods = {n: getattr(m.TransferEngine, n).__doc__ or "" for n in dir(m.TransferEngine) if not n.startswith("_")}
flags = {n: getattr(m, n) for n in names if n.startswith("SUPPORT_")}
opcodes = {n: int(o) for n, o in m.TransferOpcode.__members__.items()}
print(json.dumps([names, methods, flags, opcodes]))
"""


@pytest.fixture(scope="module")
def upstream(upstream_python: str) -> tuple[list[str], dict[str, str], dict[str, bool], dict[str, int]]:
    out = subprocess.run([upstream_python, "-I", "-c", LIST_UPSTREAM], check=True, capture_output=True, text=True).stdout
    return tuple(json.loads(out.splitlines()[-1]))


def documented_arguments(doc: str) -> list[tuple[str | None, str | None]]:
    """(name, default) of each argument behind self, as pybind11 writes them; a name is None when only its place counts."""
    inside = re.match(r"\w+\((.*)\) -> ", doc.splitlines()[0]).group(1)
    arguments = []
    for part in re.split(r", (?=\w+:)", inside)[1:]:
        name, rest = part.split(":", 1)
        default = rest.rpartition(" = ")[2] if " = " in rest else None
        arguments.append((None if re.fullmatch(r"arg\d+", name) else name, default))
    return arguments


def test_every_public_name_is_there(upstream) -> None:
    assert set(upstream[0]) - ABSENT <= set(dir(mooncake.engine))
    assert not ABSENT & set(dir(mooncake.engine)), "what is absent is absent, and no stub"


def test_every_method_is_there(upstream) -> None:
    assert set(upstream[1]) - ABSENT <= set(dir(TransferEngine))


def test_arguments_have_upstreams_names_order_and_defaults(upstream) -> None:
    wrong = []
    for name, doc in upstream[1].items():
        if name in ABSENT or not re.match(r"\w+\(", doc):
            continue
        ours = list(inspect.signature(getattr(TransferEngine, name)).parameters.values())[1:]
        theirs = documented_arguments(doc)
        if len(ours) != len(theirs):
            wrong.append(f"{name}: {len(ours)} arguments instead of {len(theirs)}")
            continue
        for mine, (their_name, their_default) in zip(ours, theirs):
            default = None if mine.default is inspect.Parameter.empty else repr(mine.default)
            if their_name not in (None, mine.name) or default != their_default:
                wrong.append(f"{name}: {mine} instead of {their_name} = {their_default}")
    assert not wrong


def test_flags_say_what_this_build_has(upstream) -> None:
    for name, value in upstream[2].items():
        assert type(getattr(mooncake.engine, name)) is type(value)
        assert getattr(mooncake.engine, name) is False


def test_opcodes_have_upstreams_numbers_and_both_spellings(upstream) -> None:
    assert {name: int(TransferOpcode.__members__[name]) for name in upstream[3]} == upstream[3]
    assert TransferOpcode.Read is TransferOpcode.READ is mooncake.engine.Read is TransferEngine.TransferOpcode.Read
    assert TransferOpcode.Write is TransferOpcode.WRITE is mooncake.engine.Write
    assert int(TransferOpcode.Write) == 1 and TransferOpcode(0) is TransferOpcode.Read


def test_notify_is_made_empty_or_with_both_parts() -> None:
    empty, full = TransferNotify(), TransferNotify("a", "b")
    assert (empty.name, empty.msg, full.name, full.msg) == ("", "", "a", "b")
    full.name, full.msg = "c", "d"
    assert (full.name, full.msg) == ("c", "d")
