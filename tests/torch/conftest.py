"""What the tests of mooncake.pg share: worlds of processes."""

from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("torch", reason="torch is not installed here")

from crew import Crew  # noqa: E402 - torch is there


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
