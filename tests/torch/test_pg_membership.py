"""Ranks die in the middle of training, and others take their places."""

import hashlib
import random
import time

import pytest
import torch
import torch.distributed as dist
from crew import doom

from mooncake import pg
from mooncake.pg import MooncakeBackendOptions


def digest(*tensors: torch.Tensor) -> str:
    return hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors)).hexdigest()


def pause(rank: int) -> None:
    dist.barrier()


# ---- death ----


def train_by_hand(rank: int, steps: int, count: int, victim: int, delay_s: float) -> tuple:
    """Gradients of every rank's own data, averaged by those who are there."""
    torch.manual_seed(7)
    model = torch.nn.Sequential(torch.nn.Linear(16, count), torch.nn.Tanh(), torch.nn.Linear(count, 1))
    data = torch.Generator().manual_seed(100 + rank)
    gaps = []
    dist.barrier()
    last = time.monotonic()
    if rank == victim:
        doom(delay_s)
    for _ in range(steps):
        x = torch.randn(8, 16, generator=data)
        model.zero_grad()
        (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
        for p in model.parameters():
            dist.all_reduce(p.grad)
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.01 * p.grad / int(pg.get_active_ranks(dist.group.WORLD).sum())
        now = time.monotonic()
        gaps.append(now - last)
        last = now
    return digest(*model.parameters()), pg.get_active_ranks(None).tolist(), max(gaps)


@pytest.mark.parametrize("turn", range(20))
def test_survivors_of_a_kill_have_the_same_parameters(crew, turn):
    rng = random.Random(turn)
    world = crew(3 + turn % 2)
    victim = turn % world.size
    world.start(train_by_hand, 400, (32, 20_000)[turn % 4 == 3], victim, rng.uniform(0, 0.1))
    world.bury(victim)
    answers = world.wait()
    assert len({a[0] for a in answers}) == 1
    assert len({tuple(a[1]) for a in answers}) == 1
    assert answers[0][1] == [int(r != victim) for r in range(world.size)]


def reduce_once(rank: int) -> tuple:
    t = torch.tensor([10.0**rank])
    work = dist.all_reduce(t, async_op=True)
    work.wait()
    return t.item(), pg.get_local_success(work), pg.get_failed_ranks_hint(work)[:3].tolist()


def test_the_operation_after_a_death_says_who_is_not_in_it(crew):
    world = crew(3)
    world(pause)
    world.kill(1)
    assert world(reduce_once) == [(101.0, False, [0, 1, 0])] * 2
    assert world(reduce_once) == [(101.0, True, [0, 0, 0])] * 2


def make_deferred(rank: int, autos: tuple[bool, bool]) -> None:
    global _deferred
    _deferred = dist.new_group([0, 1, 2], pg_options=MooncakeBackendOptions(3, False, *autos))
    dist.barrier(_deferred)


def reduce_deferred(rank: int) -> tuple:
    t = torch.tensor([10.0**rank])
    work = dist.all_reduce(t, group=_deferred, async_op=True)
    work.wait()
    hint = pg.get_failed_ranks_hint(work)[:3].tolist()
    return t.item(), pg.get_local_success(work), hint, pg.get_active_ranks(_deferred).tolist()


def sync_deferred(rank: int) -> str:
    return pg.sync_after_failure(_deferred).status.name


def drop_deferred(rank: int) -> str:
    return pg.deactivate_ranks(_deferred, [1]).status.name


@pytest.mark.parametrize("autos", [(True, False), (False, False)])
def test_a_program_may_decide_when_the_dead_stop_counting(crew, autos):
    world = crew(3)
    world(make_deferred, autos)
    world.kill(1)
    for _ in range(2):
        assert world(reduce_deferred) == [(101.0, False, [0, 1, 0], [1, 1, 1])] * 2
    assert world(sync_deferred) == (["Reconciled"] * 2 if autos[0] else ["Rejected"] * 2)
    if not autos[0]:
        assert world(drop_deferred) == ["Applied"] * 2
    assert world(reduce_deferred) == [(101.0, True, [0, 0, 0], [1, 0, 1])] * 2
    assert world(sync_deferred)[0] == ("NoPending" if autos[0] else "Rejected")


def need_of_the_dead(rank: int) -> list[str]:
    said = []
    for call in (lambda: dist.broadcast(torch.ones(3), 1), lambda: dist.recv(torch.ones(3), 1),
                 lambda: dist.send(torch.ones(3), 1)):  # fmt: skip
        with pytest.raises((dist.DistBackendError, dist.DistNetworkError)) as caught:
            call()
        said.append(str(caught.value))
    got = [torch.full((2,), 9.0) for _ in range(3)]
    dist.all_gather(got, torch.full((2,), float(rank)))
    said.append([t[0].item() for t in got])
    return said


@pytest.mark.parametrize("hosts", [0, 3])
def test_what_needs_the_dead_is_an_error_for_all_survivors(crew, hosts):
    world = crew(3, hosts=hosts)
    world(pause)
    world.kill(1)
    for said in world(need_of_the_dead):
        assert "rank 1" in said[0]
        assert said[3] == [0.0, 0.0, 2.0]


def ddp_steps(rank: int, steps: int, victim: int) -> tuple:
    torch.manual_seed(3)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(64, 64))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    data = torch.Generator().manual_seed(rank)
    for step in range(steps):
        if rank == victim and step == 5:
            doom(0.02)
        optimizer.zero_grad()
        model(torch.randn(4, 64, generator=data)).square().mean().backward()
        optimizer.step()
    return digest(*model.parameters()), pg.get_active_ranks(None).tolist()


@pytest.mark.parametrize("hosts", [0, 3])
def test_ddp_goes_on_without_the_dead(crew, hosts):
    world = crew(3, hosts=hosts)
    world.start(ddp_steps, 300, 2)
    world.bury(2)
    answers = world.wait()
    assert answers[0] == answers[1]
    assert answers[0][1] == [1, 1, 0]


# ---- replacement, as SGLang calls it ----


def make_groups(rank: int, size: int, is_extension: bool, device_and_cpu: bool) -> None:
    """Each twice, as an engine does: one for tensors of devices, one for the CPU's."""
    global _groups
    _groups = []
    for _ in range(2 if device_and_cpu else 1):
        mirror = torch.ones(size, dtype=torch.int32)
        options = MooncakeBackendOptions(mirror, is_extension)
        _groups.append((dist.new_group(list(range(size)), backend="mooncake-cpu", pg_options=options), mirror))


def sum_of_all(rank: int) -> list[float]:
    sums = []
    for group in [dist.group.WORLD, *(g for g, _ in _groups)]:
        t = torch.tensor([10.0**rank])
        dist.all_reduce(t, group=group)
        sums.append(t.item())
    return sums


def mirrors(rank: int) -> list[list[int]]:
    return [m.tolist() for _, m in _groups]


def recover(rank: int, ranks: list[int]) -> float:
    begin = time.monotonic()
    groups = [dist.group.WORLD, *(g for g, _ in _groups)]
    while not all(all(pg.get_peer_state(g, ranks)) for g in groups):
        assert time.monotonic() < begin + 30
        time.sleep(0.01)
    for group in groups:
        answer = pg.recover_ranks(group, ranks)
        assert answer.status == pg.ProposalStatus.Applied, answer
    return time.monotonic() - begin


def join(rank: int) -> None:
    for group in [dist.group.WORLD, *(g for g, _ in _groups)]:
        pg.join_group(group)


@pytest.mark.parametrize(("hosts", "victims"), [(0, (2, 1)), (3, (0, 2))])
def test_a_replacement_is_taken_into_all_groups(crew, hosts, victims):
    world = crew(3, hosts=hosts)
    world(make_groups, 3, False, True)
    assert world(sum_of_all) == [[111.0] * 3] * 3
    for victim in victims:  # twice, and the second time beside one that was replaced
        world.kill(victim)
        assert world(sum_of_all) == [[111.0 - 10**victim] * 3] * 2
        assert world(mirrors) == [[[int(r != victim) for r in range(3)]] * 2] * 2
        world.replace(victim)
        world(make_groups, 3, True, True, ranks=[victim])
        world.start(join, ranks=[victim])
        world(recover, [victim], ranks=[r for r in range(3) if r != victim])
        world.wait([victim])
        assert world(sum_of_all) == [[111.0] * 3] * 3
        assert world(mirrors) == [[[1, 1, 1]] * 2] * 3


def peer_state(rank: int) -> list[bool]:
    return pg.get_peer_state(dist.group.WORLD, [0, 1, 2])


@pytest.mark.parametrize("hosts", [0, 3])
def test_peer_state_follows_death_and_return(crew, hosts):
    world = crew(3, hosts=hosts)
    assert world(peer_state) == [[True] * 3] * 3
    world.kill(0)
    end = time.monotonic() + 10
    while world(peer_state) != [[False, True, True]] * 2:
        assert time.monotonic() < end
    world.replace(0)
    assert world(peer_state, ranks=[1, 2]) == [[True] * 3] * 2


def grow(rank: int) -> tuple:
    t = torch.tensor([10.0**rank])
    dist.all_reduce(t)
    return t.item(), dist.get_world_size(), pg.get_active_ranks(None).tolist()


def take(rank: int, ranks: list[int]) -> int:
    return int(pg.activate_ranks(None, ranks).status)


def send_away(rank: int, ranks: list[int]) -> int:
    return int(pg.deactivate_ranks(None, ranks).status)


def join_world(rank: int) -> None:
    pg.join_group(None)


def stale(rank: int) -> str:
    with pytest.raises(dist.DistBackendError) as caught:
        dist.all_reduce(torch.ones(1))
    return str(caught.value)


@pytest.mark.parametrize("hosts", [0, 2])
def test_a_group_grows_shrinks_and_takes_back(crew, hosts):
    world = crew(2, slots=4, hosts=hosts)
    assert world(grow) == [(11.0, 2, [1, 1, 0, 0])] * 2
    world.replace(3)  # beyond a hole
    assert world(grow, ranks=[3]) == [(1000.0, 4, [0, 0, 0, 1])]
    world.start(join_world, ranks=[3])
    assert world(take, [3], ranks=[1]) == [1]
    world.wait([3])
    assert world(grow) == [(1011.0, 4, [1, 1, 0, 1])] * 3
    assert world(send_away, [3], ranks=[0]) == [1]
    assert world(grow, ranks=[0, 1]) == [(11.0, 2, [1, 1, 0, 0])] * 2
    assert "join_group" in world(stale, ranks=[3])[0]
    world.start(join_world, ranks=[3])
    assert world(take, [3], ranks=[0]) == [1]
    world.wait([3])
    assert world(grow) == [(1011.0, 4, [1, 1, 0, 1])] * 3


# ---- a replacement joins a training loop that runs ----

STEPS = 60


def batch(rank: int, step: int) -> torch.Tensor:
    return torch.randn(8, 12, generator=torch.Generator().manual_seed(rank * 1000 + step))


def elastic(rank: int, size: int, victim: int | None, is_joiner: bool) -> tuple[str, dict[int, float]]:
    """Steps in which somebody is missing are done again once everybody is back; the joiner gets the parameters and
    the step from rank 0. -> the parameters at the end, and the losses of the steps that count"""
    torch.manual_seed(11)
    model = torch.nn.Sequential(torch.nn.Linear(12, 24), torch.nn.Tanh(), torch.nn.Linear(24, 1))
    step, losses = 0, {}
    if is_joiner:
        pg.join_group(None)
        step = restart(model, 0)
    while step < STEPS:
        if rank == victim and step == 10:
            doom(0.02)
        loss = (model(batch(rank, step)) - 1).square().mean()
        model.zero_grad()
        loss.backward()
        flat = torch.cat([loss.detach().view(1), *(p.grad.view(-1) for p in model.parameters())])
        work = dist.all_reduce(flat, async_op=True)
        work.wait()
        if not pg.get_local_success(work):
            missing = [r for r in range(size) if pg.get_failed_ranks_hint(work)[r]]
            while not all(pg.get_peer_state(None, missing)):
                time.sleep(0.005)
            assert pg.recover_ranks(None, missing).status == pg.ProposalStatus.Applied
            step = restart(model, step)
            continue
        losses[step] = flat[0].item() / size
        at = 1
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.05 / size * flat[at : at + p.numel()].view_as(p)
                at += p.numel()
        step += 1
        time.sleep(0.005)
    return digest(*model.parameters()), losses


def restart(model: torch.nn.Module, step: int) -> int:
    flat = torch.cat([torch.tensor([float(step)]), *(p.detach().view(-1) for p in model.parameters())])
    dist.broadcast(flat, 0)
    at = 1
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(flat[at : at + p.numel()].view_as(p))
            at += p.numel()
    return int(flat[0].item())


@pytest.mark.parametrize("hosts", [0, 3])
def test_a_replacement_joins_a_loop_whose_losses_are_the_undisturbed_ones(crew, hosts):
    calm = crew(3)
    expected = calm(elastic, 3, None, False)
    assert len({e[0] for e in expected}) == 1
    world = crew(3, hosts=hosts)
    world.start(elastic, 3, 1, False)
    world.bury(1)
    world.replace(1)
    world.start(elastic, 3, None, True, ranks=[1])
    answers = world.wait()
    assert [a[0] for a in answers] == [expected[0][0]] * 3
    assert answers[0][1] == expected[0][1] == answers[2][1]
    joined = answers[1][1]
    assert min(joined) >= 10
    assert joined == {s: expected[0][1][s] for s in joined}
    assert max(joined) == STEPS - 1


# ---- options and settings ----


def test_options_in_all_forms():
    t = torch.zeros(4, dtype=torch.int32)
    for args, kwargs, want in (
        ((t,), {}, (True, False, 0)),
        ((t, True), {}, (True, True, 0)),
        ((t, True, 4), {}, (True, True, 4)),
        ((), {"active_ranks": t, "is_extension": True, "max_group_size": 3}, (True, True, 3)),
        ((8,), {}, (False, False, 8)),
        ((8, True), {}, (False, True, 8)),
        ((8, True, True, True), {}, (False, True, 8)),
        ((), {"max_group_size": 8, "is_extension": True}, (False, True, 8)),
    ):
        o = MooncakeBackendOptions(*args, **kwargs)
        assert (o.active_ranks is t, o.is_extension, o.max_group_size) == want
    one = torch.zeros(1, dtype=torch.int32)
    assert MooncakeBackendOptions(one).active_ranks is one
    for args, kwargs, kind, text in (
        (("x",), {}, TypeError, "x"),
        ((t, True, 4, 5), {}, TypeError, "at most"),
        ((t,), {"nonsense": 1}, TypeError, "nonsense"),
        ((8, False, False, True), {}, ValueError, "needs auto_deactivate"),
    ):
        with pytest.raises(kind, match=text):
            MooncakeBackendOptions(*args, **kwargs)


def refused(rank: int) -> list[str]:
    said = []
    for options in (torch.zeros(2, dtype=torch.int64), torch.zeros(1, dtype=torch.int32)):
        with pytest.raises(ValueError, match="int32 tensor of at least 2") as caught:
            dist.new_group([0, 1], backend="mooncake-cpu", pg_options=MooncakeBackendOptions(options))
        said.append(str(caught.value))
    with pytest.raises(TypeError, match="MooncakeBackendOptions"):
        dist.new_group([0, 1], backend="mooncake-cpu", pg_options="options")
    with pytest.raises(ValueError, match="at most 64"):
        dist.new_group([0, 1], backend="mooncake-cpu", pg_options=MooncakeBackendOptions(65))
    with pytest.raises(ValueError, match="rank 5"):
        pg.activate_ranks(None, [5])
    return said


def test_options_that_do_not_fit_are_named(crew):
    crew(2)(refused)


def test_settings_say_what_they_refuse():
    for call in (pg.set_collective_timeout_us, pg.set_p2p_timeout_us, pg.set_fault_reconciliation_window_us):
        with pytest.raises(ValueError, match="not above 0"):
            call(0)
    with pytest.raises(ValueError, match="longer than the collective timeout"):
        pg.set_fault_reconciliation_window_us(1000)
    with pytest.raises(TypeError, match="TransferEngine"):
        pg.set_transfer_engine(object())
