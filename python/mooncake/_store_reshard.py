"""Reads of tensors in another cut than they are stored in: only what is asked for is read, to where it belongs.

The very shard that is asked for is read whole when it is small. Else small reads of headers and manifests tell how a tensor is
cut: of that shard first, then, if it is not there, of all that may tell. Then one call reads from each shard that has a part
of it the header and the runs of bytes that are together in both. Where many short runs would cost more than what is between
them, all of it is read, and put in place here.
A header that is not the one expected (another cut was written meanwhile) makes the read fail: pieces are never mixed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from mooncake import _store_layout as layout
from mooncake._store_layout import Box, refuse
from mooncake._store_tensor_format import (
    DTYPES,
    HEADER_LEN,
    MANIFEST_LEN,
    TP,
    Axis,
    Header,
    Manifest,
    pack_header,
    parse_header,
    parse_manifest,
    shard_shape,
)

if TYPE_CHECKING:
    import torch

CALL_MAX = 1 << 15  # objects of one call
RUNS_MAX = 1 << 15  # pieces of one of them
SMALL = 1 << 20  # bytes of an object that may be read for nothing
RUN_COST = 1024  # bytes that take as long to read as one more run does (0.5 to 1 us on loopback)


class Want(NamedTuple):
    """A tensor, or the shard of one, and how the caller is placed along the axes beside its cut."""

    key: str
    cut: Axis | None = None  # None: the whole
    others: tuple[Axis, ...] = ()
    has_any_dim: bool = False  # cut.dim is not known: the one it is stored with
    is_bare: bool = False  # the whole, and nothing is said about who asks


class _Piece(NamedTuple):
    """A stored object with a part of what is wanted."""

    key: str
    cut: Axis | None
    box: Box


class _Source(NamedTuple):
    """A way in which a tensor is stored."""

    dtype: str
    whole: tuple[int, ...]
    pieces: list[_Piece]
    dim: int


class _Probe(NamedTuple):
    """A small object to read, and what it says about the want."""

    key: str
    length: int
    source: Callable[[ctypes.Array], _Source | None]


def tensor_at(address: int, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    """A tensor over memory that somebody else keeps."""
    import torch

    kind = getattr(torch, dtype)
    size = kind.itemsize
    for n in shape:
        size *= n
    if size == 0:
        return torch.empty(shape, dtype=kind)
    memory = (ctypes.c_char * size).from_address(address)
    return torch.frombuffer(memory, dtype=torch.uint8).view(kind).reshape(shape)


def tensor_of(buffer: object, length: int) -> torch.Tensor | None:
    """The tensor whose header and elements these bytes are, in place; None when they are none."""
    import torch

    header = parse_header(buffer, length)
    kind = getattr(torch, header.dtype, None) if header else None
    if kind is None:
        return None
    if header.bytes == 0:
        return torch.empty(header.shape, dtype=kind)
    elements = torch.frombuffer(buffer, dtype=torch.uint8, offset=HEADER_LEN, count=header.bytes)
    return elements.view(kind).reshape(header.shape)


# ---- how it is stored ----


def _from_header(buffer, key: str, want: Want) -> _Source | None:
    """The very shard."""
    header = parse_header(buffer, 1 << 62)
    cut = header.cut if header else None
    if cut is None or (cut.rank, cut.size) != (want.cut.rank, want.cut.size) or not (want.has_any_dim or cut.dim == want.cut.dim):
        return None
    return _Source(header.dtype, header.whole, [_Piece(key, cut, layout.box_of(header.whole, header.shape, cut))], cut.dim)


def _from_whole(buffer, key: str) -> _Source | None:
    header = parse_header(buffer, 1 << 62)
    if header is None or header.cut is not None:
        return None
    return _Source(header.dtype, header.shape, [_Piece(key, None, layout.box_of(header.shape, header.shape, None))], 0)


def _from_shards(manifest: Manifest | None, name: Callable[[Axis], str]) -> _Source | None:
    if manifest is None:
        return None
    dtype, whole, dim, size = manifest
    cuts = (Axis(TP, rank, size, dim) for rank in range(size))
    return _Source(dtype, whole, [_Piece(name(c), c, layout.box_of(whole, shard_shape(whole, c), c)) for c in cuts], dim)


def _from_first(buffer, name: Callable[[Axis], str]) -> _Source | None:
    """Shards without a manifest, of which this is the first."""
    header = parse_header(buffer, 1 << 62)
    cut = header.cut if header else None
    if cut is None:
        return None
    return _from_shards(Manifest(header.dtype, header.whole, cut.dim, cut.size), name)


def _exact(want: Want) -> Iterator[_Probe]:
    if want.cut is None:
        return
    names = [layout.shard_key(want.key, (*want.others, want.cut))]
    if not want.others and not want.has_any_dim:
        names.append(layout.writer_key(want.key, want.cut))
    for name in names:
        yield _Probe(name, HEADER_LEN, lambda b, name=name: _from_header(b, name, want))


def _any(want: Want) -> list[_Probe]:
    """All that may tell, the best first."""
    key = want.key

    def shard(cut: Axis) -> str:
        return layout.shard_key(key, (*want.others, cut))

    def written(cut: Axis) -> str:
        return layout.writer_key(key, cut)

    cut = [_Probe(layout.manifest_key(key), MANIFEST_LEN, lambda b: _from_shards(parse_manifest(b), shard))]
    if want.others:
        alone = layout.shard_key(key, want.others)
        return [*cut, _Probe(alone, HEADER_LEN, lambda b: _from_whole(b, alone))]
    cut.append(_Probe(layout.tp_key(key, 0), HEADER_LEN, lambda b: _from_first(b, shard)))
    more = [
        _Probe(layout.writer_manifest_key(key), MANIFEST_LEN, lambda b: _from_shards(parse_manifest(b), written)),
        _Probe(key, HEADER_LEN, lambda b: _from_whole(b, key)),
    ]
    return more + cut if want.is_bare else cut + more


def _in_calls(call: Callable[..., list[int]], *columns: list) -> list[int]:
    """As many calls as it takes."""
    got = []
    for i in range(0, len(columns[0]), CALL_MAX):
        got += call(*(column[i : i + CALL_MAX] for column in columns))
    return got


def _probe(store, probes: list[_Probe]) -> list[_Source | None]:
    memory = [ctypes.create_string_buffer(probe.length) for probe in probes]
    got = _in_calls(
        lambda *args: store.ranges(False, *args), [probe.key for probe in probes], [[ctypes.addressof(m)] for m in memory],
        [[probe.length] for probe in probes], [[0] for _ in probes],
    )  # fmt: skip
    return [p.source(m) if n == p.length else None for p, m, n in zip(probes, memory, got)]


# ---- what is read ----


class _Moves:
    """Pieces of one call."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.ptrs: list[list[int]] = []
        self.sizes: list[list[int]] = []
        self.offsets: list[list[int]] = []

    def add(self, key: str, head: int, sizes: list[int], ptrs: list[int], offsets: list[int]) -> None:
        """The object's header to `head`, and these pieces of its elements."""
        sizes, ptrs, offsets = [HEADER_LEN, *sizes], [head, *ptrs], [0, *offsets]
        for i in range(0, len(sizes), RUNS_MAX):
            self.keys.append(key)
            self.sizes.append(sizes[i : i + RUNS_MAX])
            self.ptrs.append(ptrs[i : i + RUNS_MAX])
            self.offsets.append(offsets[i : i + RUNS_MAX])

    def run(self, store) -> list[bool]:
        got = _in_calls(lambda *args: store.ranges(False, *args), self.keys, self.ptrs, self.sizes, self.offsets)
        return [n == sum(sizes) for n, sizes in zip(got, self.sizes)]


class _Job:
    """One want, from one source."""

    def __init__(self, want: Want, source: _Source, into: tuple[int, int] | None) -> None:
        cut = want.cut._replace(dim=source.dim) if want.has_any_dim else want.cut
        shape = shard_shape(source.whole, cut) if cut else source.whole
        self.source, self.into, self.why = source, into, ""
        if shape is None:
            self.why = f"{want.key!r} of shape {source.whole} has no equal shards of {cut.size} along dimension {cut.dim}"
            return
        self.header = Header(source.dtype, source.whole, shape, (*want.others, cut) if cut else want.others)
        self.box = layout.box_of(source.whole, shape, cut)
        parts = ((piece, layout.overlap(piece.box, self.box)) for piece in source.pieces)
        # Of an empty tensor no piece has a part; its first one still has to be there.
        self.parts = [(piece, part) for piece, part in parts if part] or [(source.pieces[0], None)]
        self.scratch: list[Callable[[], None]] = []

    def expected(self) -> Iterator[tuple[str, int]]:
        for piece, _ in self.parts:
            yield piece.key, HEADER_LEN + Header(self.source.dtype, (), piece.box.shape).bytes

    def make_room(self) -> bool:
        import torch

        if self.into is None:
            self.tensor = torch.empty(self.header.shape, dtype=getattr(torch, self.header.dtype))
        elif self.into[1] >= HEADER_LEN + self.header.bytes:
            self.tensor = tensor_at(self.into[0] + HEADER_LEN, self.header.shape, self.header.dtype)
        else:
            return False
        return True

    def plan(self, moves: _Moves) -> None:
        self.heads = ctypes.create_string_buffer(HEADER_LEN * len(self.parts))
        self.first = len(moves.keys)
        for i, (piece, part) in enumerate(self.parts):
            head = ctypes.addressof(self.heads) + i * HEADER_LEN
            moves.add(piece.key, head, *(self._pieces(piece, part) if part else ([], [], [])))
        self.last = len(moves.keys)

    def _pieces(self, piece: _Piece, part: Box) -> tuple[list[int], list[int], list[int]]:
        """Sizes, addresses and places in the object of what is read of it."""
        item, base = DTYPES[self.header.dtype], self.tensor.data_ptr()
        runs = layout.runs_of(part, piece.box, self.box)
        wanted = runs.count * runs.length * item
        if runs.count > 1 and runs.count * RUN_COST > runs.span * item - wanted // 2:  # to copy a byte is half as dear
            return self._span(piece, part, runs.span)
        starts = layout.run_starts(part, piece.box, self.box, runs.dims)
        return (
            [runs.length * item] * len(starts), [base + to * item for _, to in starts],
            [HEADER_LEN + fro * item for fro, _ in starts],
        )  # fmt: skip

    def _span(self, piece: _Piece, part: Box, span: int) -> tuple[list[int], list[int], list[int]]:
        """All from the first run to the last, from where it is put in place when it has come."""
        import torch

        item = DTYPES[self.header.dtype]
        there = torch.empty(span, dtype=self.tensor.dtype)
        place = tuple(slice(s - b, s - b + n) for s, b, n in zip(part.start, self.box.start, part.shape))
        self.scratch.append(lambda: self.tensor[place].copy_(there.as_strided(part.shape, piece.box.strides)))
        first = sum((s - b) * step for s, b, step in zip(part.start, piece.box.start, piece.box.strides))
        return [span * item], [there.data_ptr()], [HEADER_LEN + first * item]

    def finish(self, came: list[bool]) -> torch.Tensor | None:
        for i, (piece, _) in enumerate(self.parts):
            head = (ctypes.c_char * HEADER_LEN).from_buffer(self.heads, i * HEADER_LEN)
            header = parse_header(head, 1 << 62)
            if header is None or (header.dtype, header.shape, header.cut) != (self.source.dtype, piece.box.shape, piece.cut):
                return None
        if not all(came[self.first : self.last]):
            return None
        for put_in_place in self.scratch:
            put_in_place()
        if self.into is not None:
            ctypes.memmove(self.into[0], pack_header(self.header), HEADER_LEN)
        return self.tensor


def _run(store, jobs: list[_Job]) -> list[torch.Tensor | None]:
    """How long the objects are is asked first: no size is taken on trust."""
    expected = [pair for job in jobs for pair in job.expected()]
    sizes = iter(_in_calls(store.sizes, [key for key, _ in expected]))
    wanted = iter(expected)
    is_there = [
        all([n == size for n, (_, size) in zip(islice(sizes, len(job.parts)), islice(wanted, len(job.parts)))]) for job in jobs
    ]
    ready = [there and job.make_room() for there, job in zip(is_there, jobs)]
    moves = _Moves()
    for job, is_ready in zip(jobs, ready):
        if is_ready:
            job.plan(moves)
    came = moves.run(store)
    return [job.finish(came) if is_ready else None for job, is_ready in zip(jobs, ready)]


def _read_small(
    store, asked: list[tuple[int, _Probe]], into: list[tuple[int, int]] | None, found: list
) -> list[tuple[int, _Probe]]:
    """Put those of these shards that are small into `found`; the probes that are left are of larger ones."""
    sizes = _in_calls(store.sizes, [probe.key for _, probe in asked])
    small = {}  # one of each want: they share its memory
    for (i, probe), size in zip(asked, sizes):
        if HEADER_LEN <= size <= SMALL and i not in small:
            small[i] = probe
    keys = [probe.key for probe in small.values()]
    if into is None:
        got = [(handle, len(handle) if handle is not None else 0) for handle in store.get_handles(keys)]
    else:
        lengths = store.get_memory(keys, [into[i][0] for i in small], [into[i][1] for i in small])
        got = [((ctypes.c_char * max(n, 0)).from_address(into[i][0]), n) for i, n in zip(small, lengths)]
    for (i, probe), (buffer, length) in zip(small.items(), got):
        if length >= HEADER_LEN and probe.source(buffer):
            found[i] = tensor_of(buffer, length)
    return [(i, probe) for (i, probe), size in zip(asked, sizes) if size > SMALL or (size > 0 and small.get(i) is not probe)]


def read(store, what: str, wants: Iterable[Want | None], into: list[tuple[int, int]] | None = None) -> list[torch.Tensor | None]:
    """The tensors, or None where there is none; `into` has address and bytes of memory for header and elements of each."""
    wants = list(wants)
    if into is not None:
        wants = [want if 0 < ptr < 1 << 64 and size >= HEADER_LEN else None for want, (ptr, size) in zip(wants, into)]
    found: list[torch.Tensor | None] = [None] * len(wants)
    for stage in (_exact, _any):
        probes = [(i, probe) for i, want in enumerate(wants) if want and found[i] is None for probe in stage(want)]
        if stage is _exact:
            probes = [(i, probe) for i, probe in _read_small(store, probes, into, found) if found[i] is None]
        sources = _probe(store, [probe for _, probe in probes])
        choices: dict[int, list[_Job]] = {}
        for (i, _), source in zip(probes, sources):
            if source is not None:
                choices.setdefault(i, []).append(_Job(wants[i], source, into[i] if into else None))
        for jobs in choices.values():
            if all(job.why for job in jobs):
                refuse(f"{what}: {jobs[0].why}")
        while choices := {i: rest for i, jobs in choices.items() if (rest := [job for job in jobs if not job.why])}:
            firsts = {i: jobs.pop(0) for i, jobs in choices.items()}
            for i, tensor in zip(firsts, _run(store, list(firsts.values()))):
                found[i] = tensor
                if tensor is not None:
                    choices[i].clear()
    return found
