"""Membership through torch 2.15's door: handles and reconfigure(). Under an older torch, which has no caller of it, the
methods are called as torch 2.15's own functions call them."""

import inspect
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from mooncake import pg
from mooncake.pg import MooncakeBackendOptions

IS_TORCHS = hasattr(dist, "_reconfigure")


def enter_empty(rank: int, port: int, slots: int = 0) -> None:
    """Make the default group without ranks."""
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=60))
    options = MooncakeBackendOptions(slots)
    flag = {"enable_reconfigure": True} if IS_TORCHS else {}
    options.enable_reconfigure = not IS_TORCHS
    dist.init_process_group("mooncake-cpu", store=store, rank=rank, world_size=rank + 1, pg_options=options,
                            timeout=timedelta(seconds=60), **flag)  # fmt: skip


def handle(rank: int) -> str:
    assert dist._supports_reconfigure() if IS_TORCHS else dist.group.WORLD.supports_reconfigure
    return dist._get_reconfigure_handle() if IS_TORCHS else dist.group.WORLD.get_reconfigure_handle()


def call(uuid, handles, timeout_s=60.0):
    timeout = timedelta(seconds=timeout_s)
    if IS_TORCHS:
        return dist._reconfigure(uuid=uuid, handles=handles, timeout=timeout, hints={"any": "thing"})
    opts = SimpleNamespace(uuid=uuid, handles=handles, timeout=timeout, hints={"any": "thing"})
    return dist.group.WORLD.reconfigure(opts)


def reconfigure(rank: int, uuid: int, handles) -> tuple[int, int]:
    assert call(uuid, handles).wait()
    return dist.get_rank(), dist.get_world_size()


def sums(rank: int) -> tuple:
    """Small and large, and a broadcast of the last rank's; with who is active."""
    small, large = torch.tensor([10.0**rank]), torch.full((50_000,), 10.0**rank)
    dist.all_reduce(small)
    dist.all_reduce(large)
    assert bool((large == small).all())
    sent = torch.tensor([rank])
    dist.broadcast(sent, dist.get_world_size() - 1)
    return small.item(), sent.item(), pg.get_active_ranks(None)[: dist.get_world_size()].tolist()


@pytest.mark.parametrize("kind", [list, set])
@pytest.mark.parametrize("hosts", [0, 3])
def test_survivors_of_a_kill_shrink(crew, hosts, kind):
    world = crew(3, hosts=hosts)
    assert world(sums) == [(111.0, 2, [1, 1, 1])] * 3
    world.kill(1)
    handles = kind(world(handle))
    assert world(reconfigure, 1, handles) == [(0, 2), (1, 2)]
    assert world(sums) == [(101.0, 2, [1, 1])] * 2


@pytest.mark.parametrize("hosts", [0, 2])
def test_a_killed_rank_is_replaced_in_its_place(crew, hosts):
    world = crew(3, hosts=hosts)
    for uuid in (7, 8):
        world.kill(1)
        world.spawn(1)
        world(enter_empty, world._store.port, ranks=[1])
        assert world(reconfigure, uuid, world(handle)) == [(0, 3), (1, 3), (2, 3)]
        assert world(sums) == [(111.0, 2, [1, 1, 1])] * 3


@pytest.mark.parametrize("hosts", [0, 3])
def test_a_group_grows_and_its_ranks_may_move(crew, hosts):
    world = crew(2, slots=4, hosts=hosts)
    world.spawn(2)
    world(enter_empty, world._store.port, ranks=[2])
    first, second, third = world(handle)
    assert world(reconfigure, 1, [third, first, second]) == [(1, 3), (2, 3), (0, 3)]
    assert world(sums) == [(111.0, 1, [1, 1, 1])] * 3
    world.spawn(3)
    world(enter_empty, world._store.port, ranks=[3])
    # A set: who was in keeps its order, the new one comes last.
    assert world(reconfigure, 2, set(world(handle))) == [(1, 4), (2, 4), (0, 4), (3, 4)]
    assert world(sums) == [(1111.0, 3, [1, 1, 1, 1])] * 4


def test_a_group_begins_without_ranks(crew):
    world = crew(0)
    for rank in range(2):
        world.spawn(rank)
    world(enter_empty, world._store.port)
    assert all("before reconfigure" in text for text in world(refusal_of_all_reduce))
    assert world(reconfigure, 1, world(handle)) == [(0, 2), (1, 2)]
    assert world(sums) == [(11.0, 1, [1, 1])] * 2


def refusal_of_all_reduce(rank: int) -> str:
    with pytest.raises(dist.DistBackendError) as caught:
        dist.all_reduce(torch.ones(1))
    return str(caught.value)


def refusals(rank: int, own: str, past: str, gone: str) -> None:
    other = own.replace('"127.', '"128.') if '"127.' in own else own[:-3] + 'x"]'
    for uuid, handles, text in (
        (1, [own], "uuid 1 was used"),
        (2, [own, past], "handle 1 is from before the last reconfigure"),
        (2, [past], "handle 0 is from before"),
        (2, [gone], "handle 0 is from before"),
        (2, [own, own], "handle 1 is of a process that is in the list already"),
        (2, [other], "own handle is not among the 1"),
        (2, [], "own handle is not among the 0"),
        (2, ["nonsense", own], "not a handle of get_reconfigure_handle.*nonsense"),
        (2, ["[9]"], "not a handle"),
        (2, [own.replace(f'"{dist.group.WORLD.getGroupName()}"', '"another"', 1)], "is of group another"),
    ):
        with pytest.raises(ValueError, match=text):
            call(uuid, handles)
    with pytest.raises((ValueError, TypeError)):
        call(2, own)


@pytest.mark.parametrize("hosts", [0, 2])
def test_handles_of_another_epoch_and_other_wrong_use_are_named(crew, hosts):
    world = crew(2, hosts=hosts)
    founding = world(handle)
    world(reconfigure, 1, founding)
    current = world(handle)
    assert not set(current) & set(founding)
    for rank in range(2):
        world(refusals, current[rank], founding[rank], founding[1 - rank], ranks=[rank])
    # Nothing of that has changed the group, or kept it from changing.
    assert world(sums) == [(11.0, 1, [1, 1])] * 2
    assert world(reconfigure, 2, current) == [(0, 2), (1, 2)]
    assert world(sums) == [(11.0, 1, [1, 1])] * 2


def fail(rank: int, uuid: int, handles, timeout_s: float) -> str:
    begin = time.monotonic()
    work = call(uuid, handles, timeout_s)
    with pytest.raises(dist.DistBackendError) as caught:
        work.wait()
    assert time.monotonic() - begin < 20
    return str(caught.value)


@pytest.mark.parametrize("hosts", [0, 3])
def test_one_that_fails_leaves_the_group_as_it_was(crew, hosts):
    world = crew(3, hosts=hosts)
    handles = world(handle)
    world.kill(1)
    for text in world(fail, 1, handles, 10.0):
        assert "rank 1" in text, text
    # One of three did not call.
    assert "rank 1" in world(fail, 2, world(handle), 0.5, ranks=[0])[0]
    assert world(sums) == [(101.0, 2, [1, 0, 1])] * 2
    assert world(reconfigure, 3, world(handle)) == [(0, 2), (1, 2)]
    assert world(sums) == [(101.0, 2, [1, 1])] * 2


@pytest.mark.parametrize("hosts", [0, 3])
def test_a_rank_that_was_left_alone_is_taken_back(crew, hosts):
    world = crew(3, hosts=hosts)
    handles = world(handle)
    assert world(reconfigure, 1, handles[:2], ranks=[0, 1]) == [(0, 2), (1, 2)]
    # It has not reconfigured: its handle still counts.
    handles = [*world(handle, ranks=[0, 1]), handles[2]]
    assert world(reconfigure, 2, handles) == [(0, 3), (1, 3), (2, 3)]
    assert world(sums) == [(111.0, 2, [1, 1, 1])] * 3


def come_late(rank: int) -> None:
    if rank == 1:
        time.sleep(1.5)
    dist.barrier()


def reconfigure_within(rank: int, uuid: int, handles, timeout_s: float) -> bool:
    return call(uuid, handles, timeout_s).wait()


def test_its_time_out_is_not_that_of_operations(crew):
    world = crew(2)
    assert world(reconfigure_within, 1, world(handle), 1.0) == [True] * 2
    world(come_late)


def recover(rank: int, slot: int) -> str:
    end = time.monotonic() + 30
    while not all(pg.get_peer_state(None, [slot])):
        assert time.monotonic() < end
        time.sleep(0.01)
    return pg.recover_ranks(None, [slot]).status.name


def join(rank: int) -> None:
    pg.join_group(None)


@pytest.mark.parametrize("hosts", [0, 3])
def test_the_first_door_stays_open(crew, hosts):
    world = crew(3, hosts=hosts)
    assert world(reconfigure, 1, world(handle)) == [(0, 3), (1, 3), (2, 3)]
    world.kill(2)
    world.replace(2)
    world.start(join, ranks=[2])
    assert world(recover, 2, ranks=[0]) == ["Applied"]
    world.wait([2])
    assert world(sums) == [(111.0, 2, [1, 1, 1])] * 3
    assert world(reconfigure, 2, world(handle)) == [(0, 3), (1, 3), (2, 3)]
    assert world(sums) == [(111.0, 2, [1, 1, 1])] * 3


def wait_for_nobody(rank: int) -> None:
    global _pending
    _pending = dist.irecv(torch.ones(1), 1 - rank)


def say_how_it_ended(rank: int) -> str:
    with pytest.raises((dist.DistBackendError, dist.DistNetworkError)) as caught:
        _pending.wait()
    return str(caught.value)


def test_what_waits_in_the_old_group_ends(crew):
    world = crew(2)
    world(wait_for_nobody)
    world(reconfigure, 1, world(handle))
    assert len(world(say_how_it_ended)) == 2
    assert world(sums) == [(11.0, 1, [1, 1])] * 2


# ---- hooks ----


def hooked(rank: int) -> list:
    group, said = dist.group.WORLD, []
    plain = group.allreduce
    assert group.supports_abort_hooks
    group.register_pre_hook(2, lambda a: said.append(("pre", a.name.name, a.op_id, a.root, len(a.input_tensors))))
    group.register_pre_hook(1, lambda a: said.append(("first", a.name.name, a.async_op)))
    group.register_post_hook(1, lambda a: said.append(("post", a.name.name, a.op_id, a.work.is_completed())))
    dist.all_reduce(torch.ones(1))
    dist.broadcast(torch.ones(1), 1)
    dist.all_gather_into_tensor(torch.ones(2), torch.ones(1))
    dist.barrier()
    with dist._coalescing_manager():  # one call of several
        for _ in range(2):
            dist.all_reduce(torch.ones(1))
    group.unregister_pre_hook(1)
    group.unregister_pre_hook(2)
    group.unregister_post_hook(1)
    assert group.allreduce == plain
    dist.all_reduce(torch.ones(1))
    return said


def test_hooks_see_operations_in_their_order(two):
    for said in two(hooked):
        names = [(kind, name) for kind, name, *_ in said]
        wanted = ["ALLREDUCE", "BROADCAST", "ALLGATHER_BASE", "BARRIER"]
        assert names[:12] == [(kind, name) for name in wanted for kind in ("first", "pre", "post")]
        assert names[12:15] == [(kind, "ALLREDUCE_COALESCED") for kind in ("first", "pre", "post")]
        assert len(said) == 15
        assert [s[3] for s in said if s[0] == "pre"][:4] == [-1, 1, -1, -1]
        assert [s[4] for s in said if s[0] == "pre"] == [1, 1, 1, 0, 2]
        ids = [s[2] for s in said if s[0] == "pre"]
        assert ids == [s[2] for s in said if s[0] == "post"] == sorted(set(ids))
        assert [s[3] for s in said if s[0] == "post"][0] is True


def refuse_by_hook(rank: int) -> bool:
    def refuse(args):
        raise FloatingPointError("not this one")

    dist.group.WORLD.register_pre_hook(5, refuse)
    with pytest.raises(FloatingPointError):
        dist.all_reduce(torch.ones(1))
    dist.group.WORLD.unregister_pre_hook(5)
    t = torch.ones(1)
    dist.all_reduce(t)
    return t.item()


def test_what_a_pre_hook_raises_stops_the_call_before_anybody_is_told(two):
    assert two(refuse_by_hook) == [2.0] * 2


def abort_with_hooks(rank: int) -> list[str]:
    said = []
    group = dist.group.WORLD
    group.register_abort_hook(2, lambda: said.append("second"))
    group.register_abort_hook(1, lambda: said.append("first"))
    group.register_abort_hook(3, lambda: said.append("never"))
    group.unregister_abort_hook(3)
    group.register_abort_hook(4, lambda: 1 / 0)
    with pytest.warns(RuntimeWarning, match="division"):
        group.abort()
    with pytest.raises(dist.DistBackendError):
        dist.barrier()
    return said


def test_abort_hooks_come_before_an_abort_that_reconfigure_mends(crew):
    world = crew(2)
    assert world(abort_with_hooks) == [["first", "second"]] * 2
    assert world(reconfigure, 1, world(handle)) == [(0, 2), (1, 2)]
    assert world(sums) == [(11.0, 1, [1, 1])] * 2


def late(rank: int) -> list[str]:
    said = []
    dist.group.WORLD.register_abort_hook(1, lambda: said.append("late"))
    if rank == 0:
        for _ in range(2):  # the second fails because of the first
            with pytest.raises(dist.DistBackendError, match="rank 1"):
                dist.barrier()
        dist.group.WORLD.abort()
    return said


def test_an_operation_that_times_out_calls_the_abort_hooks(crew):
    world = crew(2, timeout_s=1)
    assert world(late) == [["late"], []]


# ---- torch's own signatures ----


@pytest.mark.skipif(not IS_TORCHS, reason="torch before 2.15 has no reconfigure")
def test_signatures_are_torchs():
    for name in ("reconfigure", "get_reconfigure_handle", "register_abort_hook", "register_pre_hook",
                 "register_post_hook", "unregister_abort_hook", "unregister_pre_hook", "unregister_post_hook"):  # fmt: skip
        assert hasattr(dist.ProcessGroup, name), name
    options = dist.distributed_c10d.ReconfigureOptions()
    assert {n for n, _ in inspect.getmembers(options) if not n.startswith("_")} >= {"uuid", "handles", "timeout", "hints"}
