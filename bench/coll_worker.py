"""One rank of `./run bench coll` in Python: torch with our backend or Gloo, or Open MPI through mpi4py.

coll_worker.py LIBRARY SOCKET RANK RANKS FOLDER CORE; commands as coll_bench.c has them. Rank "-": mpirun's.
"""

from __future__ import annotations

import os
import socket
import sys
import time


class Torch:
    def __init__(self, library: str, rank: int, ranks: int, folder: str) -> None:
        import torch
        import torch.distributed as dist

        if library == "mooncake-cpu":
            import mooncake.pg  # noqa: F401  registers the backend
        torch.set_num_threads(1)
        self.torch, self.dist, self.rank, self.ranks = torch, dist, rank, ranks
        store = dist.FileStore(f"{folder}/store-{library}-{ranks}", ranks)
        dist.init_process_group(library, store=store, rank=rank, world_size=ranks)

    def operation(self, kind: str, size: int):
        torch, dist, ranks = self.torch, self.dist, self.ranks
        one = torch.zeros(max(size // 4, 1))
        many = torch.zeros(max(size // 4, 1) * ranks)
        if kind == "p2p":
            return self.there_and_back(torch.zeros(size, dtype=torch.uint8))
        return {
            "all_reduce": lambda: dist.all_reduce(one),
            "all_gather": lambda: dist.all_gather_into_tensor(many, one),
            "reduce_scatter": lambda: dist.reduce_scatter_tensor(one, many),
            "broadcast": lambda: dist.broadcast(one, 0),
            "all_to_all": lambda: dist.all_to_all_single(many, many.clone()),
            "barrier": dist.barrier,
        }[kind]

    def there_and_back(self, tensor):
        dist, other = self.dist, 1 - self.rank

        def ping() -> None:
            dist.send(tensor, other)
            dist.recv(tensor, other)

        def pong() -> None:
            dist.recv(tensor, other)
            dist.send(tensor, other)

        return ping if self.rank == 0 else pong

    def check(self) -> None:
        for size in (1, 1000, 100_000):
            tensor = self.torch.full((size,), float(self.rank + 1))
            self.dist.all_reduce(tensor)
            if not bool((tensor == self.ranks * (self.ranks + 1) / 2).all()):
                raise SystemExit("all_reduce is wrong")


class Mpi:
    def __init__(self) -> None:
        import numpy
        from mpi4py import MPI

        self.numpy, self.mpi, self.comm = numpy, MPI, MPI.COMM_WORLD
        self.rank, self.ranks = self.comm.rank, self.comm.size

    def operation(self, kind: str, size: int):
        comm, mpi = self.comm, self.mpi
        one = self.numpy.zeros(max(size // 4, 1), "float32")
        many = self.numpy.zeros(max(size // 4, 1) * self.ranks, "float32")
        other = 1 - self.rank

        def ping() -> None:
            comm.Send(one, other)
            comm.Recv(one, other)

        def pong() -> None:
            comm.Recv(one, other)
            comm.Send(one, other)

        return {
            "p2p": ping if self.rank == 0 else pong,
            "all_reduce": lambda: comm.Allreduce(mpi.IN_PLACE, one),
            "all_gather": lambda: comm.Allgather(one, many),
            "reduce_scatter": lambda: comm.Reduce_scatter_block(many, one),
            "broadcast": lambda: comm.Bcast(one, 0),
            "all_to_all": lambda: comm.Alltoall(mpi.IN_PLACE, many),
            "barrier": comm.Barrier,
        }[kind]

    def check(self) -> None:
        tensor = self.numpy.full(1000, self.rank + 1, "float32")
        self.comm.Allreduce(self.mpi.IN_PLACE, tensor)
        if not (tensor == self.ranks * (self.ranks + 1) / 2).all():
            raise SystemExit("Allreduce is wrong")


def measure(once, count: int) -> str:
    for _ in range(count // 10 + 2):
        once()
    clock, times = time.perf_counter_ns, [0] * count
    last = clock()
    for i in range(count):
        once()
        now = clock()
        times[i] = now - last
        last = now
    times.sort()
    return f"{times[0]} {times[count // 2]} {times[count * 99 // 100]}"


def main(library: str, path: str, rank: str, ranks: str, folder: str) -> None:
    number = int(os.environ["OMPI_COMM_WORLD_RANK"] if rank == "-" else rank)
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[number % len(os.sched_getaffinity(0))]})
    side = Mpi() if library == "mpi" else Torch(library, number, int(ranks), folder)
    side.check()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        with sock.makefile("rw") as lines:
            lines.write(f"{number} -\n")
            lines.flush()
            for line in lines:
                if line.startswith("run "):
                    _, kind, size, count = line.split()
                    lines.write(measure(side.operation(kind, int(size)), int(count)) + "\n")
                else:  # the addresses, which only the program in C needs
                    lines.write("0\n")
                lines.flush()
    sys.stdout.flush()
    os._exit(0)  # the libraries' ends are not what is measured


if __name__ == "__main__":
    main(*sys.argv[1:])
