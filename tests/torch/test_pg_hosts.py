"""Groups over several hosts: told apart by name here, with nothing between them but TCP.

Most of what membership does over hosts is asked by test_pg_membership.py, where it is the same as on one host.
"""

import pytest
import torch
import torch.distributed as dist
from test_pg_membership import train_by_hand

from mooncake import pg


def everything(rank: int, size: int) -> None:
    ones = torch.full((1000,), float(rank + 1))
    dist.all_reduce(ones)
    assert bool((ones == size * (size + 1) / 2).all())
    large = torch.full((3_000_000,), rank + 1, dtype=torch.int32)
    dist.all_reduce(large)
    assert bool((large == size * (size + 1) // 2).all())
    got = [torch.zeros(rank_of + 1) for rank_of in range(size)]
    dist.all_gather(got, torch.full((rank + 1,), float(rank)))
    assert [t.tolist() for t in got] == [[float(r)] * (r + 1) for r in range(size)]
    taken = torch.zeros(size * 5)
    dist.all_to_all_single(taken, torch.full((size * 5,), float(rank)))
    assert taken.tolist() == [float(r) for r in range(size) for _ in range(5)]
    part = torch.zeros(4)
    dist.reduce_scatter_tensor(part, torch.arange(4.0 * size))
    assert part.tolist() == [size * (4.0 * rank + i) for i in range(4)]
    for root in range(size):
        sent = torch.full((70_000,), float(rank))
        dist.broadcast(sent, root)
        assert bool((sent == root).all())
    objects = [None] * size
    dist.all_gather_object(objects, {"rank": rank})
    assert objects == [{"rank": r} for r in range(size)]
    word = torch.full((50_000,), float(rank))
    right, left = (rank + 1) % size, (rank - 1) % size
    for work in (dist.isend(word, right), dist.irecv(other := torch.zeros(50_000), left)):
        work.wait()
    assert bool((other == left).all())
    dist.barrier()


@pytest.mark.parametrize(("size", "hosts"), [(2, 2), (3, 3), (4, 2)])
def test_operations_and_messages(crew, size, hosts):
    world = crew(size, hosts=hosts)
    world(everything, size)


@pytest.mark.parametrize("victim", range(3))
def test_survivors_of_a_kill_have_the_same_parameters(crew, victim):
    world = crew(3, hosts=(3, 2)[victim == 1])
    world.start(train_by_hand, 400, (32, 20_000)[victim == 2], victim, 0.05)
    world.bury(victim)
    answers = world.wait()
    assert len({a[0] for a in answers}) == 1
    assert [a[1] for a in answers] == [[int(r != victim) for r in range(3)]] * 2


def own_address(rank: int) -> str:
    pg.set_host_ip("127.0.0.1")
    with pytest.raises(ValueError, match="set_host_ip"):
        pg.set_host_ip("nowhere")
    from mooncake._pg_group import hub

    return hub().address()


def test_the_address_that_was_set_is_the_one_that_others_get():
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(1) as one:
        assert one.apply(own_address, (0,)).rsplit("|", 1)[1].startswith("127.0.0.1:")
