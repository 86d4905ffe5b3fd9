"""What the tests with torch share: worlds of processes for mooncake.pg, a pool with memory for mooncake.store."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed here")
sys.path.append(str(Path(__file__).resolve().parents[1] / "py"))

from crew import Crew  # noqa: E402 - torch is there
from pool import Pool, connect  # noqa: E402

from mooncake.store import MooncakeDistributedStore  # noqa: E402


class CountingStore(MooncakeDistributedStore):
    """Counts the bytes that reads of pieces ask for."""

    read = 0

    def ranges(self, is_put, keys, ptrs, sizes, offsets):
        self.read += sum(map(sum, sizes))
        return super().ranges(is_put, keys, ptrs, sizes, offsets)


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """A master with short leases and one node of 512 MB."""
    one = Pool(tmp_path_factory.mktemp("pool"), "--default_kv_lease_ttl=200")
    try:
        one.node("512 MB")
        yield one
    finally:
        one.close()


@pytest.fixture
def store(pool: Pool) -> Iterator[CountingStore]:
    """A client of an empty pool."""
    store = connect(pool, kind=CountingStore)
    store.remove_all(force=True)
    yield store
    store.close()


@pytest.fixture(scope="session")
def three() -> Iterator[Crew]:
    """Three ranks that no test harms."""
    crew = Crew(3)
    yield crew
    crew.close()


@pytest.fixture(scope="session")
def two() -> Iterator[Crew]:
    crew = Crew(2)
    yield crew
    crew.close()


@pytest.fixture
def crew() -> Iterator[Callable[..., Crew]]:
    """crew(size, slots): ranks that may die; they end with the test."""
    crews: list[Crew] = []

    def make(*args, **kwargs) -> Crew:
        crews.append(Crew(*args, **kwargs))
        return crews[-1]

    yield make
    for one in crews:
        one.close()
