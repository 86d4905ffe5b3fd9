"""Messages between ranks: both ways at once, tags, from anyone, in batches."""

import pytest
import torch
import torch.distributed as dist


def ring(rank: int) -> None:
    n = dist.get_world_size()
    for count in (1, 1000, 1_000_000):
        mine, got = torch.full((count,), float(rank)), torch.empty(count)
        work = dist.isend(mine, (rank + 1) % n)
        dist.recv(got, (rank - 1) % n)
        work.wait()
        assert got.eq((rank - 1) % n).all()


def test_a_ring(three):
    three(ring)


def tags(rank: int) -> None:
    if rank == 0:
        for tag in (1, 2, 3):
            dist.send(torch.full((100,), float(tag)), 1, tag=tag)
    elif rank == 1:
        for tag in (3, 1, 2):
            got = torch.empty(100)
            dist.recv(got, 0, tag=tag)
            assert got.eq(tag).all()
    dist.barrier()


def test_tags_in_another_order(three):
    three(tags)


def from_anyone(rank: int) -> list[int]:
    n = dist.get_world_size()
    if rank != 0:
        dist.send(torch.full((10,), float(rank)), 0)
        dist.barrier()
        return []
    seen = []
    for _ in range(n - 1):
        got = torch.empty(10)
        seen.append(dist.recv(got))
        assert got.eq(seen[-1]).all()
    dist.barrier()
    return sorted(seen)


def test_from_anyone_who_sends(three):
    assert three(from_anyone)[0] == [1, 2]


def batch(rank: int) -> None:
    n = dist.get_world_size()
    others = [r for r in range(n) if r != rank]
    gots = {r: torch.empty(70_000) for r in others}
    ops = [dist.P2POp(dist.irecv, gots[r], r) for r in others]
    ops += [dist.P2POp(dist.isend, torch.full((70_000,), rank * 10.0 + r), r) for r in others]
    for work in dist.batch_isend_irecv(ops):
        work.wait()
    for r in others:
        assert gots[r].eq(r * 10 + rank).all()


def test_a_batch_of_everyone_to_everyone(three):
    three(batch)


def length(rank: int) -> str:
    text = ""
    if rank == 0:
        dist.send(torch.ones(4), 1)
    elif rank == 1:
        with pytest.raises(RuntimeError) as caught:
            dist.recv(torch.ones(5), 0)
        text = str(caught.value)
        got = torch.zeros(4)  # the message is there still, for a receive of its length
        dist.recv(got, 0)
        assert got.eq(1).all()
    dist.barrier()
    return text


def test_another_length_is_named(three):
    text = three(length)[1]
    assert "rank 0 sent 16 bytes" in text and "takes 20" in text
