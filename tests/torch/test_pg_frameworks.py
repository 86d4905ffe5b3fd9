"""What torch builds on a process group, on ours."""

import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn


def ddp(rank: int) -> None:
    n = dist.get_world_size()
    torch.manual_seed(1)
    make = lambda: nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))  # noqa: E731
    model = nn.parallel.DistributedDataParallel(make())
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    data = torch.Generator().manual_seed(rank)
    for step in range(20):
        with model.no_sync() if step % 3 == 1 else torch.enable_grad():
            model(torch.randn(16, 8, generator=data)).square().mean().backward()
        if step % 3 != 1:
            optimizer.step()
            optimizer.zero_grad()
    for p in model.parameters():
        rows = [torch.empty_like(p) for _ in range(n)]
        dist.all_gather(rows, p.detach())
        assert all(torch.equal(rows[0], r) for r in rows)


def test_ddp_with_batch_norm(three):
    three(ddp)


def zero(rank: int) -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    def train(make):
        torch.manual_seed(2)
        model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)))
        optimizer = make(model.parameters())
        data = torch.Generator().manual_seed(rank)
        for _ in range(10):
            optimizer.zero_grad()
            model(torch.randn(4, 8, generator=data)).square().mean().backward()
            optimizer.step()
        return list(model.parameters())

    whole = train(lambda p: torch.optim.Adam(p, lr=0.01))
    split = train(lambda p: ZeroRedundancyOptimizer(p, torch.optim.Adam, lr=0.01))
    for a, b in zip(whole, split, strict=True):
        torch.testing.assert_close(a, b)


def test_zero_equals_the_whole_optimizer(three):
    three(zero)


def functional(rank: int) -> None:
    import torch.distributed._functional_collectives as fc

    n, group = dist.get_world_size(), dist.group.WORLD
    x = torch.full((n, 2), rank + 1.0)
    total = n * (n + 1) / 2
    assert fc.wait_tensor(fc.all_reduce(x, "sum", group)).eq(total).all()
    got = fc.wait_tensor(fc.all_gather_tensor(x, 0, group))
    assert got[:, 0].tolist() == [r + 1.0 for r in range(n) for _ in range(n)]
    assert fc.wait_tensor(fc.reduce_scatter_tensor(x, "sum", 0, group)).eq(total).all()
    a, b = fc.all_reduce_coalesced([x, x * 2], "sum", group)
    assert fc.wait_tensor(a).eq(total).all() and fc.wait_tensor(b).eq(2 * total).all()
    got = fc.wait_tensor(fc.all_to_all_single(x, None, None, group))
    assert got[:, 0].tolist() == [r + 1.0 for r in range(n)]
    assert fc.wait_tensor(fc.broadcast(x, 1, group)).eq(2).all()


def test_functional_collectives(three):
    three(functional)


def meshes(rank: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    n = dist.get_world_size()
    mesh = init_device_mesh("cpu", (n,))
    whole = torch.arange(40.0).view(10, 4)  # 10 rows: shards are uneven on 3 ranks
    d = distribute_tensor(whole, mesh, [Shard(0)])
    assert torch.equal(d.full_tensor(), whole)
    assert torch.equal(d.redistribute(mesh, [Shard(1)]).full_tensor(), whole)
    assert torch.equal(d.redistribute(mesh, [Replicate()]).to_local(), whole)
    assert d.sum().full_tensor().item() == whole.sum().item()
    product = distribute_tensor(whole, mesh, [Shard(1)]) @ distribute_tensor(whole.t().contiguous(), mesh, [Shard(0)])
    torch.testing.assert_close(product.full_tensor(), whole @ whole.t())


def test_device_mesh_and_dtensor(three):
    three(meshes)


def plane(rank: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    for name, want in (("dp", {0: 2, 1: 4, 2: 2, 3: 4}), ("tp", {0: 1, 1: 1, 2: 5, 3: 5})):
        t = torch.tensor([float(rank)])
        dist.all_reduce(t, group=mesh.get_group(name))
        assert t.item() == want[rank]


def test_a_mesh_of_two_dimensions(crew):
    crew(4)(plane)


def fsdp(rank: int, folder: str) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    n = dist.get_world_size()

    def make():
        torch.manual_seed(4)
        return nn.Sequential(nn.Linear(10, 30), nn.Tanh(), nn.Linear(30, 5))

    sharded, reference = make(), make()
    mesh = init_device_mesh("cpu", (n,))
    for layer in (sharded[0], sharded[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    a = torch.optim.SGD(sharded.parameters(), 0.1)
    b = torch.optim.SGD(reference.parameters(), 0.1)
    for step in range(5):
        inputs = [torch.randn(6, 10, generator=torch.Generator().manual_seed(step * 10 + r)) for r in range(n)]
        a.zero_grad()
        sharded(inputs[rank]).square().mean().backward()
        a.step()
        b.zero_grad()
        for x in inputs:
            (reference(x).square().mean() / n).backward()
        b.step()
    for p, q in zip(sharded.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.full_tensor(), q)
    state = {"model": sharded.state_dict()}
    dcp.save(state, checkpoint_id=folder)
    kept = [p.full_tensor().clone() for p in sharded.parameters()]
    with torch.no_grad():
        for p in sharded.parameters():
            p.zero_()
    state = {"model": sharded.state_dict()}
    dcp.load(state, checkpoint_id=folder)
    sharded.load_state_dict(state["model"])
    for p, q in zip(sharded.parameters(), kept, strict=True):
        assert torch.equal(p.full_tensor(), q)


def test_fsdp2_and_checkpoints(three, tmp_path):
    three(fsdp, str(tmp_path))


PROGRAM = """
import torch, torch.distributed as dist
from mooncake import pg
dist.init_process_group("mooncake-cpu")
t = torch.tensor([float(dist.get_rank() + 1)])
dist.all_reduce(t)
dist.barrier()
assert t.item() == 6, t
dist.destroy_process_group()
dist.init_process_group("cpu:mooncake-cpu")
dist.all_reduce(t)
assert t.item() == 18, t
print("fine", flush=True)
dist.destroy_process_group()
"""


def test_torchrun(tmp_path: Path):
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3", "program.py"],
        capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("fine") == 3
