"""Tensors in the Store: what is read is what was put, of every type and form; wrong use and damaged objects have answers."""

import ctypes
import logging
import random
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mooncake import _store_tensor_format as form
from mooncake.store import (
    MooncakeDistributedStore,
    ReplicateConfig,
    _deserialize_tensor,
    _serialize_tensor,
    _tensor_metadata_size,
)

INVALID, FILE_NOT_FOUND = -600, -1100
HEAD = 304
TYPES = [getattr(torch, name) for name in form.DTYPES]
NO_TYPES = [torch.complex64, torch.complex128, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]


def random_of(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Any bits, NaNs too; a bool has two."""
    if dtype == torch.bool:
        return torch.rand(shape) > 0.5
    count = dtype.itemsize
    for n in shape:
        count *= n
    return torch.frombuffer(bytearray(random.randbytes(count) or b"\0"), dtype=torch.uint8)[:count].view(dtype).reshape(shape)


def same(got: torch.Tensor | None, want: torch.Tensor) -> bool:
    """Type, shape and every bit."""
    if got is None or (got.dtype, got.shape) != (want.dtype, want.shape):
        return False
    want = want.detach().contiguous()
    if want.numel() == 0:
        return True
    return torch.equal(got.contiguous().reshape(-1).view(torch.uint8), want.reshape(-1).view(torch.uint8))


class Memory:
    """The header and elements of a tensor, at an address, and some room behind."""

    def __init__(self, tensor: torch.Tensor | None = None, room: int = 0) -> None:
        head, address, size, _held = _serialize_tensor(tensor) if tensor is not None else (b"", 0, 0, None)
        self.size = len(head) + size
        self.bytes = bytearray(head + ctypes.string_at(address, size) + bytes(room))
        self.address = ctypes.addressof((ctypes.c_char * len(self.bytes)).from_buffer(self.bytes))


# ---- whole tensors ----


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_tensor_of_every_type_is_read_as_it_was_put(store, dtype: torch.dtype) -> None:
    tensors = [random_of(dtype, *shape) for shape in ((), (1,), (0,), (0, 3), (17,), (5, 7, 3), (1,) * 8, (300, 257))]
    keys = [f"{dtype}/{i}" for i in range(len(tensors))]
    assert store.batch_put_tensor(keys, tensors) == [0] * len(keys)
    for key, tensor in zip(keys, tensors):
        assert same(store.get_tensor(key), tensor)
    assert all(map(same, store.batch_get_tensor(keys), tensors))


@pytest.mark.parametrize("dtype", NO_TYPES, ids=str)
def test_a_type_without_a_number_is_refused(store, dtype: torch.dtype) -> None:
    assert store.put_tensor("k", torch.zeros(3, dtype=dtype)) == INVALID
    assert store.is_exist("k") == 0


def odd_ones() -> dict[str, torch.Tensor]:
    base = torch.randn(6, 8)
    return {
        "transposed": base.t(),
        "narrow": base[1:5, 2:7],
        "step": base[::2, ::3],
        "expanded": torch.randn(1, 5).expand(4, 5),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "gradient": torch.randn(4, 4, requires_grad=True),
        "of a graph": torch.randn(4, 4, requires_grad=True) * 2,
        "parameter": torch.nn.Parameter(torch.randn(3, 3)),
        "behind an offset": torch.randn(100)[37:],
        "imaginary": torch.randn(5, dtype=torch.complex64).conj().imag,
        "negated": torch._neg_view(torch.randn(7)),
        "flipped": base.flip(0),
        "inference": torch.inference_mode()(lambda: torch.randn(3))(),
    }


@pytest.mark.parametrize("name", odd_ones())
def test_a_tensor_of_any_form_is_read_as_one_piece(store, name: str) -> None:
    tensor = odd_ones()[name]
    assert store.put_tensor(name, tensor) == 0
    got = store.get_tensor(name)
    assert same(got, tensor.resolve_neg())
    assert got.is_contiguous() and not got.requires_grad


def test_what_is_read_belongs_to_the_reader(store) -> None:
    assert store.put_tensor("k", torch.arange(5000)) == 0
    first = store.get_tensor("k")
    first += 1
    assert store.remove("k", force=True) == 0
    store.close()
    assert torch.equal(first, torch.arange(5000) + 1)


def no_tensors() -> dict[str, object]:
    pieces = [torch.ones(2), torch.ones(3)]
    with FakeTensorMode():
        fake = torch.ones(3)
    return {
        "None": None, "int": 5, "text": "text", "bytes": b"bytes", "list": [torch.ones(2)], "type": torch.float32,
        "9 dimensions": torch.zeros([1] * 9), "meta": torch.zeros(3, device="meta"), "fake": fake,
        "sparse": torch.eye(3).to_sparse(), "csr": torch.eye(3).to_sparse_csr(), "nested": torch.nested.nested_tensor(pieces),
        "jagged": torch.nested.nested_tensor(pieces, layout=torch.jagged),
        "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    }  # fmt: skip


with warnings.catch_warnings(action="ignore"):  # torch's, about kinds that are new or old
    NO_TENSORS = no_tensors()


@pytest.mark.parametrize("name", NO_TENSORS)
def test_what_is_no_tensor_in_memory_is_refused(store, name: str) -> None:
    what = NO_TENSORS[name]
    assert store.put_tensor("k", what) == INVALID
    assert store.upsert_tensor("k", what) == INVALID
    assert store.put_tensor_with_tp("k", what, 0, 2) == INVALID
    assert store.batch_put_tensor(["a", "k", "b"], [torch.ones(2), what, torch.ones(3)]) == [0, INVALID, 0]
    assert [t if t is None else tuple(t.shape) for t in store.batch_get_tensor(["a", "k", "b"])] == [(2,), None, (3,)]


def test_calls_that_cannot_be_meant_have_upstreams_codes(store) -> None:
    x = torch.ones(2)
    assert store.put_tensor("", x) == INVALID
    assert store.batch_put_tensor(["a", "b"], [x]) == [INVALID, INVALID]
    assert store.batch_put_tensor([], []) == store.batch_get_tensor([]) == []
    assert store.get_tensor("missing") is None
    assert store.batch_get_tensor(["missing"]) == [None]


def test_arguments_of_wrong_types_are_exceptions(store) -> None:
    x = torch.ones(4, 4)
    for call, *args in (
        (store.put_tensor, 5, x), (store.put_tensor_with_tp, 5, x, 0, 2), (store.put_tensor_with_parallelism, 5, x),
        (store.batch_put_tensor, "abc", [x, x, x]), (store.batch_put_tensor_with_tp, "abc", [x, x, x]),
        (store.put_tensor_with_tp, "k", x, 0, "2"), (store.put_tensor_with_tp, "k", x, 0, 2.0),
        (store.put_tensor_with_tp, "k", x, 0, 2, "0"), (store.put_tensor_from, "k", "x", 400), (store.put_tensor_from, "k", 1 << 20, "x"),
        (store.get_tensor, 5), (store.get_tensor_with_tp, 5, 0, 2), (store.get_tensor_with_parallelism, 5),
        (store.batch_get_tensor, "abc"), (store.batch_get_tensor_with_parallelism, "abc"),
        (store.get_tensor_with_tp, "k", "0", 2), (store.get_tensor_with_tp, "k", 1.0, 2), (store.get_tensor_with_tp, "k", 0, 2.0),
        (store.get_tensor_with_tp, "k", 0, 2, "0"), (store.get_tensor_into, "k", "x", 400),
    ):  # fmt: skip
        with pytest.raises(TypeError):
            call(*args)
    assert store.remove_all(force=True) == 0
    assert store.put_tensor_with_tp(b"bytes", x, 0, 2) == 0, "a key may be bytes"
    assert same(store.get_tensor_with_tp("bytes", 1, 2), x[2:])
    assert store.put_tensor_from("k", -5, 400) == INVALID
    assert store.get_tensor_with_tp_into("bytes", -5, 400, 1, 2) is None


def test_put_keeps_the_first_and_upsert_replaces(store) -> None:
    a, b = torch.arange(6).reshape(2, 3), torch.randn(50)
    assert [store.put_tensor("k", a), store.put_tensor("k", b)] == [0, 0]
    assert same(store.get_tensor("k"), a)
    assert store.upsert_tensor("k", b) == 0
    assert same(store.get_tensor("k"), b)
    assert store.batch_upsert_tensor(["k", "new"], [a, b]) == [0, 0]
    assert same(store.get_tensor("k"), a)
    assert store.batch_upsert_pub_tensor(["k"], [b], ReplicateConfig(with_hard_pin=True)) == [0]
    assert same(store.get_tensor("k"), b)


def test_pub_tensor_takes_a_config(store) -> None:
    x = torch.ones(3)
    wrong = ReplicateConfig(replica_num=0)
    assert store.pub_tensor("a", x, ReplicateConfig(with_hard_pin=True)) == store.upsert_pub_tensor("b", x) == 0
    assert store.batch_pub_tensor(["c"], [x], config=ReplicateConfig()) == [0]
    assert store.pub_tensor("k", x, wrong) == INVALID
    assert store.pub_tensor_with_tp("k", torch.ones(4), wrong, 0, 2) == INVALID
    assert store.batch_pub_tensor_with_tp(["t"], [torch.ones(4)], ReplicateConfig(), tp_size=2) == [0]
    assert store.batch_is_exist(["a", "b", "c", "k", "t_tp_1"]) == [1, 1, 1, 0, 1]


def test_a_store_that_is_not_open_answers() -> None:
    store, x = MooncakeDistributedStore(), torch.ones(4, 4)
    held = Memory(x)
    at = ("k", held.address, held.size)
    assert store.put_tensor("k", x) == store.put_tensor_from(*at) == store.put_tensor_with_tp("k", x, 0, 2) == INVALID
    assert store.put_tensor_with_tp_from(*at, 0, 2) == store.put_tensor_with_parallelism("k", x) == INVALID
    assert store.batch_put_tensor(["k"], [x]) == [INVALID]
    assert store.get_tensor("k") is store.get_tensor_with_tp("k", 0, 2) is store.get_tensor_with_parallelism("k") is None
    assert store.get_tensor_into(*at) is store.load_tensor_from_safetensor("k", "file") is None
    assert store.save_tensor_to_safetensor("k", "file") == store.get_tensor_into_cuda("k", x) == INVALID


# ---- headers and elements in the caller's memory ----


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_tensor_goes_from_memory_into_memory(store, dtype: torch.dtype) -> None:
    tensors = [random_of(dtype, *shape) for shape in ((9, 4), (), (0, 2))]
    sources = [Memory(tensor) for tensor in tensors]
    keys, ptrs, sizes = ["a", "b", "c"], [m.address for m in sources], [m.size for m in sources]
    assert store.put_tensor_from("one", ptrs[0], sizes[0]) == 0
    assert store.batch_put_tensor_from(keys, ptrs, sizes) == [0, 0, 0]
    targets = [Memory(room=size) for size in sizes]
    got = store.batch_get_tensor_into(keys, [m.address for m in targets], sizes)
    assert all(map(same, got, tensors))
    assert [bytes(m.bytes) for m in targets] == [bytes(m.bytes) for m in sources], "header and elements as they were"
    assert got[0].data_ptr() == targets[0].address + HEAD, "in place"
    assert same(store.get_tensor("one"), tensors[0])
    assert [store.upsert_tensor_from("one", ptrs[1], sizes[1]), *store.batch_upsert_tensor_from(["a"], ptrs[2:], sizes[2:])] == [0, 0]
    assert same(store.get_tensor("one"), tensors[1]) and same(store.get_tensor("a"), tensors[2])


def test_memory_that_holds_no_such_tensor_is_refused(store) -> None:
    x = torch.ones(6, 4)
    m = Memory(x, room=64)
    for call in (store.put_tensor_from, store.upsert_tensor_from, store.put_tensor_with_tp_from):
        for size in (m.size - 1, m.size + 1, HEAD, 100, 0):
            assert call("k", m.address, size) == INVALID
        assert call("k", 0, m.size) == INVALID
    assert store.batch_put_tensor_from(["a", "b"], [m.address] * 2, [m.size, 10]) == [INVALID, INVALID], "all or none"
    assert store.batch_put_tensor_from(["a", "b"], [m.address], [m.size, m.size]) == [INVALID, INVALID]
    assert store.batch_put_tensor_with_tp_from(["a", "b"], [m.address], [m.size], 0, 2) == [INVALID, INVALID]
    m.bytes[0] ^= 1
    assert store.put_tensor_from("k", m.address, m.size) == INVALID
    assert store.batch_is_exist(["k", "a", "b", "k_tp_0"]) == [0] * 4


def test_memory_that_is_too_small_stays_as_it_is_behind_its_end(store) -> None:
    assert store.put_tensor("k", torch.arange(100)) == 0
    m = Memory(room=4096)
    for size in (0, 10, HEAD, HEAD + 799):
        m.bytes[:] = b"\x55" * 4096
        assert store.get_tensor_into("k", m.address, size) is None
        assert m.bytes[size:] == b"\x55" * (4096 - size)
    assert store.get_tensor_into("k", 0, 4096) is None
    assert store.get_tensor_into("missing", m.address, 4096) is None
    assert store.batch_get_tensor_into(["k", "k"], [m.address], [4096]) == [INVALID, INVALID]


def test_serialized_tensors_are_upstreams() -> None:
    head, address, size, held = _serialize_tensor(torch.arange(6, dtype=torch.int16).reshape(2, 3))
    assert (len(head), size, held.data_ptr()) == (_tensor_metadata_size(), 12, address) and len(head) == HEAD
    assert struct.unpack_from("<IHHiiIIQQ", head) == (0x4D4F4F4E, 1, HEAD, 4, 2, 0, 0, HEAD, 12)
    assert struct.unpack_from("<16q", head, 40) == (2, 3, -1, -1, -1, -1, -1, -1) * 2
    assert same(_deserialize_tensor(head + ctypes.string_at(address, size)), held)
    assert _deserialize_tensor(b"short") is None
    with pytest.raises(ValueError, match="complex64"):
        _serialize_tensor(torch.zeros(1, dtype=torch.complex64))


# ---- objects that lie ----


def forged(**fields: int) -> bytes:
    """An object of a 3 x 4 tensor of float32, but for these fields."""
    given = {
        "magic": 0x4D4F4F4E, "version": 1, "length": HEAD, "dtype": 0, "ndim": 2, "layout": 0, "offset": HEAD, "size": 48,
        "dim0": 3, "dim1": 4, "axes": 0,
    } | fields  # fmt: skip
    shape = [given["dim0"], given["dim1"]] + [-1] * 6
    head = struct.pack(
        "<IHHiiIIQQ8q8qQ", given["magic"], given["version"], given["length"], given["dtype"], given["ndim"], given["layout"], 0,
        given["offset"], given["size"], *shape, *shape, given["axes"],
    )  # fmt: skip
    return head.ljust(HEAD, b"\0") + bytes(48)


LIES = {
    "magic": 1, "version": 2, "length": 0, "dtype": 15, "ndim": 9, "layout": 2, "offset": 0, "size": 1 << 60, "dim0": -3,
    "dim1": 1 << 62, "axes": 5,
}  # fmt: skip


@pytest.mark.parametrize("field", LIES)
def test_a_header_that_lies_is_no_tensor(store, field: str) -> None:
    lies = [LIES[field], -1] if field in ("dtype", "ndim") else [LIES[field]]
    if field == "size":
        lies += [44, 52, 0]
    m = Memory(room=4096)
    for lie in lies:
        assert store.upsert("k", forged(**{field: lie})) == 0
        assert store.get_tensor("k") is store.get_tensor_into("k", m.address, 4096) is None
        assert store.upsert("k_tp_0", forged(**{field: lie})) == 0
        assert store.get_tensor_with_tp("k", 0, 2) is store.get_tensor_with_tp("k", 1, 2) is None
        assert store.save_tensor_to_safetensor("k", "/nowhere") == FILE_NOT_FOUND
    assert store.upsert("k", forged()) == 0
    assert same(store.get_tensor("k"), torch.zeros(3, 4)), "but for the lies it is one"


def test_an_object_cut_short_is_no_tensor(store) -> None:
    whole = forged()
    for size in (1, 50, HEAD - 1, HEAD, len(whole) - 1):
        assert store.upsert("k", whole[:size]) == 0
        assert store.get_tensor("k") is store.get_tensor_with_tp("k", 0, 2) is None
    assert store.upsert("k", random.randbytes(5000)) == 0
    assert store.get_tensor("k") is None


def test_an_empty_tensor_with_dimensions_beyond_memory_is_none(store) -> None:
    huge = forged(dim0=0, dim1=1 << 61, size=0)
    assert store.put("k", huge) == 0
    assert store.get_tensor("k") is None


def test_no_header_breaks_the_reader() -> None:
    """20,000 headers with some bytes changed: a tensor within the object, or none."""
    rng = random.Random(7)
    tensor = torch.arange(60, dtype=torch.int16).reshape(3, 4, 5)
    axes = (form.Axis(form.TP, 1, 2, 1), form.Axis(form.EP, 0, 4, -1, 7))
    head = form.pack_header(form.Header("int16", (3, 8, 5), (3, 4, 5), axes))
    for _ in range(20_000):
        bad = bytearray(head + ctypes.string_at(tensor.data_ptr(), 120))
        for _ in range(rng.randint(1, 4)):
            bad[rng.randrange(HEAD)] = rng.choice((0, 1, 2, 127, 128, 255, rng.randrange(256)))
        length = rng.choice((len(bad), rng.randrange(len(bad))))
        header = form.parse_header(bad[:length], length)
        if header is not None:
            assert 0 <= header.bytes <= length - HEAD
            assert header.cut is None or header.cut.rank < header.cut.size
            _deserialize_tensor(bytes(bad[:length]))
    cut = form.parse_header(head, 1 << 20)
    assert (cut.axes, cut.cut, cut.whole) == (axes, axes[0], (3, 8, 5))


# ---- tensor parallelism ----


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_every_rank_reads_its_shard(store, size: int, dim: int) -> None:
    x = random_of(torch.bfloat16, 24, 48, 72)
    held = Memory(x)
    assert store.put_tensor_with_tp("k", x, 0, size, dim) == store.batch_put_tensor_with_tp(["b"], [x], 3, size, dim)[0] == 0
    assert store.put_tensor_with_tp_from("f", held.address, held.size, 0, size, dim) == 0
    m = Memory(room=HEAD + x.numel() * 2)
    for rank, want in enumerate(x.chunk(size, dim)):
        for key in ("k", "b", "f"):
            assert same(store.get_tensor_with_tp(key, rank, size, dim), want)
        assert all(same(got, want) for got in store.batch_get_tensor_with_tp(["k", "f"], rank, size))
        assert same(store.get_tensor_with_tp_into("k", m.address, HEAD + want.numel() * 2, rank, size, dim), want)
        assert same(store.batch_get_tensor_with_tp_into(["f"], [m.address], [len(m.bytes)], rank, size)[0], want)
        assert store.get_tensor_with_tp_into("k", m.address, HEAD + want.numel() * 2 - 1, rank, size, dim) is None
        assert size == 1 or same(store.get_tensor(f"k_tp_{rank}"), want), "each under a key of its own"


def test_a_split_that_is_not_even_stores_nothing(store) -> None:
    x = torch.randn(6, 8)
    held = Memory(x)
    for size, dim in ((4, 0), (5, 0), (7, 0), (3, 1), (16, 1), (2, 2), (2, -1), (2, -3), (1 << 40, 0)):
        assert store.put_tensor_with_tp("k", x, 0, size, dim) == INVALID
        assert store.put_tensor_with_tp_from("k", held.address, held.size, 0, size, dim) == INVALID
    assert store.put_tensor_with_tp("k", torch.tensor(1.0), 0, 2) == INVALID, "a scalar has no dimension to split"
    assert store.put_tensor_with_tp("k", torch.zeros(4, dtype=torch.complex64), 0, 2) == INVALID
    assert store.batch_put_tensor_with_tp(["k", "ok"], [x[:5], x], 0, 2) == [INVALID, 0]
    assert store.batch_put_tensor_with_tp(["k", "k2"], [x], 0, 2) == [INVALID, INVALID]
    assert store.remove_by_regex("^k", force=True) == 0, "not even some of the shards"


def test_tp_size_below_two_is_a_whole_tensor(store) -> None:
    x = torch.randn(5)
    for size in (1, 0, -1):
        assert store.put_tensor_with_tp(f"k{size}", x, 0, size, 5) == 0, "nothing is split: any dimension will do"
        assert same(store.get_tensor_with_tp(f"k{size}", 0, size, 5), x)
        assert same(store.batch_get_tensor_with_tp([f"k{size}"], 0, size)[0], x)
    assert store.put_tensor_with_tp("s", torch.tensor(2.0)) == 0


def test_a_rank_that_does_not_exist_reads_nothing(store) -> None:
    assert store.put_tensor_with_tp("k", torch.randn(4, 4), 0, 2) == 0
    for rank in (2, 7, -1):
        assert store.get_tensor_with_tp("k", rank, 2) is None
    assert store.put_tensor_with_tp("other", torch.randn(4, 4), 9, 2) == 0, "writing, all ranks are written"


def test_a_shard_asked_for_otherwise_than_stored_is_that_shard_or_none(store) -> None:
    """Upstream gives whatever lies at the key: rank 1 of 2 to who asks for rank 1 of 4."""
    x = torch.randn(8, 12)
    assert store.put_tensor_with_tp("rows", x, 0, 2, 0) == store.put_tensor_with_tp("columns", x, 0, 2, 1) == 0
    assert same(store.get_tensor_with_tp("rows", 1, 4), x.chunk(4)[1])
    assert same(store.get_tensor_with_tp("rows", 1, 2, 1), x.chunk(2, 1)[1])
    assert same(store.get_tensor_with_tp("columns", 1, 2), x.chunk(2, 1)[1]), "the default is the dimension it has"
    assert same(store.batch_get_tensor_with_tp(["columns"], 2, 3)[0], x.chunk(3, 1)[2])
    assert store.get_tensor_with_tp("rows", 1, 3) is None, "8 rows have no third"


# ---- a GPU, files ----


def test_into_cuda_without_a_gpu_says_what_is_missing(store, caplog: pytest.LogCaptureFixture) -> None:
    assert store.put_tensor("k", torch.ones(3)) == 0
    assert store.get_tensor_into_cuda("k", torch.zeros(3)) == INVALID
    assert "CUDA" in caplog.text and "cpu" in caplog.text
    assert store.batch_get_tensor_into_cuda(["k", "l"], [torch.zeros(3), None]) == [INVALID, INVALID]
    assert store.batch_get_tensor_into_cuda(["k", "l"], [torch.zeros(3)]) == [INVALID, INVALID]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_into_cuda_reads_to_the_gpu(store) -> None:
    x = random_of(torch.bfloat16, 300, 500)
    assert store.put_tensor("k", x.cuda()) == 0
    got = torch.zeros(300, 500, dtype=torch.bfloat16, device="cuda")
    assert store.get_tensor_into_cuda("k", got) == 300_000
    assert same(got.cpu(), x)
    assert store.get_tensor_into_cuda("k", got.reshape(500, 300)) == INVALID
    assert store.get_tensor_into_cuda("missing", got) == -704


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., str]:
    """file(name=tensor, …): the path of a file of tensors."""
    save_file = pytest.importorskip("safetensors.torch").save_file

    def make(**tensors: torch.Tensor) -> str:
        path = str(tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors")
        save_file(tensors, path)
        return path

    return make


def test_a_file_is_loaded_into_the_store(store, file, caplog: pytest.LogCaptureFixture) -> None:
    a, b = torch.randn(4, 5), random_of(torch.float8_e4m3fn, 9)
    path = file(a=a, b=b)
    assert same(store.load_tensor_from_safetensor("b", path), b)
    assert same(store.get_tensor("b"), b)
    assert same(store.load_tensor_from_safetensor(file_name=path), a) and same(store.get_tensor(path), a)
    assert not caplog.text
    assert same(store.load_tensor_from_safetensor("other", path), a) and same(store.get_tensor("other"), a)
    assert "'other'" in caplog.text, "another tensor than asked for is said"


def test_a_file_that_cannot_be_loaded_is_none_and_says_why(store, file, tmp_path: Path, caplog) -> None:
    (tmp_path / "bad").write_bytes(b"0123456789" * 10)
    for path, why in ((str(tmp_path / "missing"), "No such file"), (str(tmp_path / "bad"), "header"), (file(), "no tensors")):
        caplog.clear()
        assert store.load_tensor_from_safetensor("k", path) is None
        assert why in caplog.text and path in caplog.text
    assert store.load_tensor_from_safetensor("k", file(k=torch.zeros(2, dtype=torch.complex64))) is None
    for wrong in (("k",), (5, "x"), ("k", 5)):
        with pytest.raises(TypeError):
            store.load_tensor_from_safetensor(*wrong)
    assert store.is_exist("k") == 0


def test_a_tensor_is_saved_to_a_file(store, tmp_path: Path, monkeypatch, caplog: pytest.LogCaptureFixture) -> None:
    load_file = pytest.importorskip("safetensors.torch").load_file
    monkeypatch.chdir(tmp_path)
    x = random_of(torch.bfloat16, 7, 3)
    assert store.put_tensor("k", x) == 0 and store.put("bytes", b"no tensor") == 0
    assert store.save_tensor_to_safetensor("k", "file") == store.save_tensor_to_safetensor("k") == 0
    for name in ("file", "k"):
        assert list(load_file(name)) == ["k"] and same(load_file(name)["k"], x)
    assert store.save_tensor_to_safetensor("missing", "none") == store.save_tensor_to_safetensor("bytes", "none") == FILE_NOT_FOUND
    assert not Path("none").exists()
    with caplog.at_level(logging.WARNING):
        assert store.save_tensor_to_safetensor("k", str(tmp_path / "no" / "file")) == INVALID
    assert "no/file" in caplog.text
    with pytest.raises(TypeError):
        store.save_tensor_to_safetensor("k", 5)
