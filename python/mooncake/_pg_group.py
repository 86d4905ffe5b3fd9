"""torch.distributed's process group over mooncake/coll.h. Part of mooncake.pg.

Pure Python, no torch headers: one wheel for every torch. torch calls some methods by its older and some by its newer
names, so both are there.
"""

from __future__ import annotations

import collections
import secrets
import threading
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from mooncake import _mooncake
from mooncake import _pg_tensors as pt
from mooncake import _pg_reconfigure as rc
from mooncake._codes import CLOSED, PEER_DEAD, STALE, TIMEDOUT
from mooncake._pg_hooks import Hooks
from mooncake._pg_work import NEVER_NS, Outcome, Work, all_of

RANKS_MAX = 64
ANY = (1 << 32) - 1
DEFAULT_NS = 30 * 60 * 10**9

_hub_lock = threading.Lock()
_hubs: list = []
_host_ip: list[str] = []


def hub():
    """This process's; made at the first group."""
    with _hub_lock:
        if not _hubs:
            _hubs.append(_mooncake.CollHub(*_host_ip))
        return _hubs[0]


def use_ip(ip: str) -> bool:
    """Where ranks of other hosts reach this process. -> False: too late, there is a group"""
    with _hub_lock:
        if _hubs:
            return _host_ip == [ip]
        _host_ip[:] = [ip]
        return True


def bits(mask: int) -> list[int]:
    return [i for i in range(RANKS_MAX) if mask >> i & 1]


def _shim(rank: int, size: int, name: str):
    """torch since 2.15 wants a group to have a backend, for its flight recorder; it is asked for nothing but its name."""
    base = torch._C._distributed_c10d.Backend

    class Shim(base):
        def getBackendName(self) -> str:
            return name

    return Shim(rank, size)


def _tensors(x) -> list[torch.Tensor]:
    return [x] if isinstance(x, torch.Tensor) else list(x)


class MooncakeProcessGroup(Hooks, dist.ProcessGroup):
    """Ranks on one host, through shared memory, or on several, over TCP. Made by torch; see mooncake.pg for what it adds."""

    def __init__(self, store, rank: int, size: int, timeout: timedelta | None, group_id: str, options, devices: str,
                 is_unopened: bool = False):  # fmt: skip
        super().__init__(rank, size)
        self._name, self._desc, self._devices = str(group_id), "undefined", devices
        self._rank, self._founders = rank, size
        self._torch_backend = None
        if hasattr(dist.ProcessGroup, "reconfigure"):
            self._torch_backend, kind = _shim(rank, size, self.name()), dist.ProcessGroup.BackendType.CUSTOM
            super()._register_backend(torch.device(devices), kind, self._torch_backend)
            super()._set_default_backend(kind)
        self.options = options
        slots = max(options.max_group_size or size, size)
        if slots > RANKS_MAX:
            raise ValueError(f"{slots} ranks in a group; at most {RANKS_MAX}")
        self._slots = slots
        self._bound_device = None
        # What runs, with the memory it uses: a caller may drop its Work and tensors at once.
        self._running: collections.deque = collections.deque()
        self._messages: list = []
        self._whole = Outcome(0, 0, None)  # of the last operation that nobody was missing in
        timeout_ns = int(timeout.total_seconds() * 1e9) if timeout else DEFAULT_NS
        self._timeout_ns = timeout_ns
        self._store = store
        self._life = rc.new_life()
        self._past: set[str] = set()  # lives that are over, and numbers that reconfigure() had
        self._used: set[int] = set()
        self._is_shut = False
        if is_unopened:
            self._coll = rc.Unopened(self._name)
        else:
            self._coll = self._meet(store, timeout_ns)
        self._mirror_state = (0, -1)
        self.active_ranks = self._mirror(options.active_ranks, slots)
        self._refresh()

    # ---- life ----

    def _meet(self, store, timeout_ns: int):
        """Addresses by way of torch's store. Founders may meet again under the same keys, so each meeting has a number:
        how often this rank has been a founder; a joiner goes to the last one."""
        joiner = self.options.is_extension
        if joiner:
            meeting = store.get("mooncake/meeting").decode()
        else:
            meeting = str(store.add(f"mooncake/founded/{self._rank}", 1))
        at = f"mooncake/{meeting}/"
        store.set(f"{at}{self._rank}", hub().address())
        if not joiner and self._rank == 0:
            store.set(f"{at}name", f"{self._name}.{secrets.token_hex(8)}")
            store.set("mooncake/meeting", meeting)
        name = store.get(f"{at}name").decode()
        others = [None] * self._slots
        for slot in range(self._slots if joiner else self._founders):
            key = f"{at}{slot}"
            if slot != self._rank and (not joiner or store.check([key])):
                others[slot] = store.get(key).decode()
        founders = 0 if joiner else self._founders
        return _mooncake.Coll(hub(), name, self._rank, founders, self._slots, timeout_ns, 0, others)

    @staticmethod
    def _mirror(tensor: torch.Tensor | None, slots: int) -> torch.Tensor:
        if tensor is None:
            return torch.zeros(slots, dtype=torch.int32)
        if tensor.dtype != torch.int32 or not tensor.is_contiguous() or tensor.numel() < slots:
            raise ValueError(f"active_ranks must be a contiguous int32 tensor of at least {slots} elements, "
                             f"not {tensor.dtype} with {tensor.numel()}")  # fmt: skip
        return tensor

    def _refresh(self, is_asked: bool = False) -> bool:
        """The mirror of who is active, where it changed; deaths alone change it at once, or when that is asked for."""
        active, _, _, epoch = self._coll.state()
        if (active, epoch) == self._mirror_state:
            return False
        if epoch == self._mirror_state[1] and not (is_asked or self.options.auto_sync_on_failure):
            return False
        self._mirror_state = (active, epoch)
        now = torch.tensor([active >> i & 1 for i in range(self._slots)], dtype=torch.int32)
        self.active_ranks[: self._slots].copy_(now)
        return True

    def sync(self) -> bool:
        """Who died since the mirror was last brought up to date is taken out of it. -> whether anybody was"""
        return self._refresh(is_asked=True)

    def shutdown(self) -> None:
        self._is_shut = True
        self._end(self._coll)

    def _end(self, coll) -> None:
        coll.close()
        while self._running:
            self._running.popleft()[0].wait(1_000_000_000)
        self._messages.clear()

    def abort(self) -> None:
        self._fire_abort()
        self._coll.abort()

    # ---- what torch asks of a group ----

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        """Highest active slot + 1: holes count."""
        return max(self._coll.state()[0].bit_length(), 1) if self._slots != self._founders else self._founders

    def name(self) -> str:
        return "mooncake" if self._devices != "cpu" else "mooncake-cpu"

    getRank, getSize, getBackendName = rank, size, name

    def _get_backend_name(self) -> str:
        return self.name()

    def getGroupName(self) -> str:
        return self._name

    def setGroupName(self, name: str) -> None:
        self._name = name
        if self._torch_backend is not None:
            super()._set_group_name(name)

    _set_group_name = setGroupName
    group_name = property(getGroupName)

    def getGroupDesc(self) -> str:
        return self._desc

    def setGroupDesc(self, desc: str) -> None:
        self._desc = desc
        if self._torch_backend is not None:
            super()._set_group_desc(desc)

    _set_group_desc = setGroupDesc
    group_desc = property(getGroupDesc)

    @property
    def _device_types(self):
        return [torch.device(d) for d in self._devices.split(",")]

    def _get_backend(self, device=None):
        return self

    @property
    def bound_device_id(self):
        return self._bound_device

    @bound_device_id.setter
    def bound_device_id(self, device):
        self._bound_device = device

    supports_splitting = False
    supports_coalescing = False
    supports_time_estimate = False

    def _set_default_backend(self, *args) -> None:
        pass

    def _register_backend(self, *args) -> None:
        pass

    def _enable_collectives_timing(self) -> None:
        pass

    def _wait_for_pending_works(self) -> None:
        self._run(pt.BARRIER, None, None, 0, (), (), None, False).wait()

    # ---- running ----

    def _outcome(self, staged, answer) -> Outcome:
        code, _, ranks, failed = answer
        if code == 0:
            if staged is not None:
                staged.finish()
            if not self.options.auto_sync_on_failure:
                # Missing is who counts as active, though the operation has long gone on without.
                failed |= self._mirror_state[0] & ~self._coll.state()[0]
            if not failed and ranks == self._whole.ranks:
                return self._whole
            if failed:
                self._refresh()
            outcome = Outcome(ranks, failed, None)
            if not failed:
                self._whole = outcome
            return outcome
        self._refresh()
        return Outcome(ranks, failed, self._error(code))

    def _error(self, code: int) -> Exception:
        if code == STALE:
            return dist.DistBackendError(f"rank {self._rank} is not active in group {self._name}: call join_group()")
        if code == TIMEDOUT:
            self._fire_abort()
        if code == CLOSED:
            return dist.DistBackendError(f"group {self._name} is closed")
        text = self._coll.error()
        kind = dist.DistBackendError if code != PEER_DEAD else dist.DistNetworkError
        return kind(f"{text or 'operation failed'} (code {code})")

    def _run(self, kind, dtype, op, root, ins, outs, staged, is_async, result=None):
        """ins, outs: flat tuples of addresses and counts. staged: None where the memory is the caller's, who waits."""
        type_number, number, factor = pt.TYPES.get(dtype, pt.BYTE), 0, 0.0
        if op is not None:
            number, factor = pt.reduction(op)
            if type_number == pt.BYTE:
                raise TypeError(f"{dtype} is not reduced")
        if is_async:
            pending = self._coll.start(kind, type_number, number, root, factor, ins, outs)
            if isinstance(pending, int):
                raise self._error(pending)
            while self._running and self._running[0][0].wait(0) is not None:
                self._running.popleft()
            self._running.append((pending, staged))
            return Work(result, None, lambda answer: self._outcome(staged, answer), pending)
        answer = self._coll.run(kind, type_number, number, root, factor, ins, outs)
        return Work(result, self._outcome(staged, answer))

    def _opts(self, opts, name, default=None):
        return getattr(opts, name, default) if opts is not None else default

    def _is_async(self, opts) -> bool:
        return getattr(opts, "asyncOp", True)

    # ---- operations ----

    def allreduce(self, tensors, opts=None):
        tensors, works = _tensors(tensors), []
        op, is_async = dist.ReduceOp.SUM if opts is None else opts.reduceOp, self._is_async(opts)
        for tensor in tensors:
            if tensor.is_contiguous() and tensor.is_cpu and not is_async:
                part = (tensor.data_ptr(), tensor.numel())
                works.append(self._run(pt.ALL_REDUCE, tensor.dtype, op, 0, part, part, None, False, tensors))
                continue
            staged = pt.Staged()
            part = pt.part(staged.output(tensor, is_read=True), as_bytes=False)
            works.append(self._run(pt.ALL_REDUCE, tensor.dtype, op, 0, part, part, staged, is_async, tensors))
        return all_of(tensors, works)

    allreduce_coalesced = allreduce

    def reduce(self, tensors, opts):
        tensor, staged = _tensors(tensors)[0], pt.Staged()
        part = pt.part(staged.output(tensor, is_read=True), as_bytes=False)
        outs = part if opts.rootRank == self._rank else ()
        return self._run(pt.REDUCE, tensor.dtype, opts.reduceOp, opts.rootRank, part, outs, staged, self._is_async(opts),
                         tensors)  # fmt: skip

    def broadcast(self, tensors, opts=None):
        tensor, staged, root = _tensors(tensors)[0], pt.Staged(), self._opts(opts, "rootRank", 0)
        is_root, dtype = root == self._rank, pt.common((tensor,))
        part = pt.part(staged.input(tensor) if is_root else staged.output(tensor), dtype is None)
        ins = part if is_root else ()
        return self._run(pt.BROADCAST, dtype, None, root, ins, part, staged, self._is_async(opts), tensors)

    def barrier(self, opts=None):
        return self._run(pt.BARRIER, None, None, 0, (), (), None, self._is_async(opts))

    def allgather(self, outputs, inputs, opts=None):
        works = []
        for outs, tensor in zip(outputs, _tensors(inputs), strict=True):
            staged, dtype = pt.Staged(), pt.common([tensor, *outs])
            theirs = pt.parts([staged.output(t) for t in outs], self._slots, dtype is None)
            mine = pt.part(staged.input(tensor), dtype is None)
            works.append(self._run(pt.ALL_GATHER, dtype, None, 0, mine, theirs, staged, self._is_async(opts), outputs))
        return all_of(outputs, works)

    def all_gather_single(self, output, tensor, opts=None):
        staged, dtype = pt.Staged(), pt.common((tensor, output))
        theirs = pt.even(staged.output(output), self.size(), self._slots, dtype is None)
        mine = pt.part(staged.input(tensor), dtype is None)
        return self._run(pt.ALL_GATHER, dtype, None, 0, mine, theirs, staged, self._is_async(opts), [output])

    _allgather_base = allgather_base = all_gather_into_tensor = all_gather_single

    def all_gather_single_coalesced(self, outputs, inputs, opts=None):
        return all_of(outputs, [self.all_gather_single(o, i, opts) for o, i in zip(outputs, inputs, strict=True)])

    allgather_into_tensor_coalesced = all_gather_single_coalesced

    def allgather_coalesced(self, outputs, inputs, opts=None):
        # outputs[rank][tensor]
        works = [self.allgather([[row[i] for row in outputs]], [t], opts) for i, t in enumerate(inputs)]
        return all_of(outputs, works)

    def gather(self, outputs, inputs, opts):
        tensor, staged = _tensors(inputs)[0], pt.Staged()
        is_root = opts.rootRank == self._rank
        dtype = pt.common([tensor, *outputs[0]] if is_root else (tensor,))
        outs = pt.parts([staged.output(t) for t in outputs[0]], self._slots, dtype is None) if is_root else ()
        mine = pt.part(staged.input(tensor), dtype is None)
        return self._run(pt.GATHER, dtype, None, opts.rootRank, mine, outs, staged, self._is_async(opts), outputs)

    def scatter(self, outputs, inputs, opts):
        tensor, staged = _tensors(outputs)[0], pt.Staged()
        is_root = opts.rootRank == self._rank
        dtype = pt.common([tensor, *inputs[0]] if is_root else (tensor,))
        ins = self._filled([staged.input(t) for t in inputs[0]], tensor, dtype is None) if is_root else ()
        out = pt.part(staged.output(tensor), dtype is None)
        return self._run(pt.SCATTER, dtype, None, opts.rootRank, ins, out, staged, self._is_async(opts), outputs)

    def _filled(self, tensors, like, as_bytes: bool) -> tuple[int, ...]:
        """Parts of one size for all slots; those of slots beyond the ranks are not read."""
        return pt.parts(tensors, len(tensors), as_bytes) + pt.part(like, as_bytes) * (self._slots - len(tensors))

    def _reduce_scatter(self, output, ins, op, staged, opts):
        """ins: parts of the ranks; those of slots beyond them have the same size."""
        ins += ins[:2] * (self._slots - len(ins) // 2)
        out = pt.part(staged.output(output), as_bytes=False)
        return self._run(pt.REDUCE_SCATTER, output.dtype, op, 0, ins, out, staged, self._is_async(opts), [output])

    def reduce_scatter(self, outputs, inputs, opts=None):
        op = self._opts(opts, "reduceOp", dist.ReduceOp.SUM)
        works = []
        for output, pieces in zip(_tensors(outputs), inputs, strict=True):
            staged = pt.Staged()
            ins = pt.parts([staged.input(t) for t in pieces], len(pieces), as_bytes=False)
            works.append(self._reduce_scatter(output, ins, op, staged, opts))
        return all_of(outputs, works)

    def reduce_scatter_single(self, output, tensor, opts=None):
        staged, n = pt.Staged(), self.size()
        ins = pt.even(staged.input(tensor), n, n, as_bytes=False)
        return self._reduce_scatter(output, ins, self._opts(opts, "reduceOp", dist.ReduceOp.SUM), staged, opts)

    _reduce_scatter_base = reduce_scatter_base = reduce_scatter_tensor = reduce_scatter_single

    def reduce_scatter_single_coalesced(self, outputs, inputs, opts=None):
        return all_of(outputs, [self.reduce_scatter_single(o, i, opts) for o, i in zip(outputs, inputs, strict=True)])

    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    def alltoall(self, outputs, inputs, opts=None):
        staged, dtype = pt.Staged(), pt.common([*inputs, *outputs])
        outs = pt.parts([staged.output(t) for t in outputs], self._slots, dtype is None)
        ins = pt.parts([staged.input(t) for t in inputs], self._slots, dtype is None)
        return self._run(pt.ALL_TO_ALL, dtype, None, 0, ins, outs, staged, self._is_async(opts), outputs)

    def all_to_all_single(self, output, tensor, output_splits=None, input_splits=None, opts=None):
        staged, n, slots, dtype = pt.Staged(), self.size(), self._slots, pt.common((tensor, output))
        outs, ins, by = staged.output(output), staged.input(tensor), dtype is None
        outs = pt.cut(outs, list(output_splits), slots, by) if output_splits else pt.even(outs, n, slots, by)
        ins = pt.cut(ins, list(input_splits), slots, by) if input_splits else pt.even(ins, n, slots, by)
        return self._run(pt.ALL_TO_ALL, dtype, None, 0, ins, outs, staged, self._is_async(opts), [output])

    alltoall_base = all_to_all_single

    # ---- messages ----

    def _message(self, is_send, tensors, peer, tag):
        tensor, staged = _tensors(tensors)[0], pt.Staged()
        addr, size = pt.part(staged.input(tensor) if is_send else staged.output(tensor), as_bytes=True)
        pending = self._coll.start_message(is_send, peer, tag, addr, size)
        if isinstance(pending, int):
            raise self._error(pending)
        self._messages = [m for m in self._messages if m[0].wait(0) is None] + [(pending, staged)]
        return Work(tensors, None, lambda answer: self._outcome(staged, answer), pending)

    def send(self, tensors, dst: int, tag: int = 0):
        return self._message(True, tensors, dst, tag)

    def recv(self, tensors, src: int, tag: int = 0):
        return self._message(False, tensors, src, tag)

    def recv_anysource(self, tensors, tag: int = 0):
        return self._message(False, tensors, ANY, tag)

    # ---- membership ----

    def state(self) -> tuple[int, int, int, int]:
        """(active, alive, gone, epoch); the first three as bits of slots."""
        self._refresh()
        return self._coll.state()

    def activate(self, add: int, drop: int, timeout_ns: int) -> tuple[int, int]:
        code, dropped = self._coll.activate(add, drop, timeout_ns)
        self._refresh(is_asked=True)
        return code, dropped

    def join(self, timeout_ns: int) -> None:
        code = self._coll.join(timeout_ns)
        self._refresh(is_asked=True)
        if code < 0:
            raise dist.DistBackendError(f"rank {self._rank} was not taken into group {self._name} (code {code})")

    def wait_ready(self, slots: int, timeout_ns: int) -> bool:
        end = time.monotonic_ns() + min(timeout_ns, NEVER_NS // 2)
        while self._coll.state()[1] & slots != slots:
            if time.monotonic_ns() > end:
                return False
            time.sleep(0.001)
        return True

    slots = property(lambda self: self._slots)

    # ---- membership, torch 2.15's way ----

    supports_reconfigure = True

    def _handle(self) -> rc.Handle:
        rank = -1 if isinstance(self._coll, rc.Unopened) else self._rank
        return rc.Handle(self._name, self._life, rank, self.options.max_group_size, hub().address())

    def get_reconfigure_handle(self) -> str:
        """For the others' reconfigure() and this one's; until that."""
        return self._handle().text()

    def reconfigure(self, opts):
        """The ranks of opts.handles found the group anew, and it goes on as theirs; all call it. Where it fails this rank
        still has the group that it had, and may try again with new handles, under another uuid. -> ended Work"""
        if self._is_shut:
            raise ValueError(f"group {self._name} is shut down")
        uuid, handles = int(opts.uuid), opts.handles
        plan = rc.plan(self._handle(), self._past, self._used, uuid, handles, RANKS_MAX)
        ranks = len(plan.handles)
        slots = plan.slots
        mirror = self._mirror(self.options.active_ranks, slots)
        open_ns = int(opts.timeout.total_seconds() * 1e9) if opts.timeout else 0  # operations keep the group's own
        addresses = [None if h.life == self._life else h.address for h in plan.handles]
        addresses += [None] * (slots - ranks)
        self._used.add(uuid)
        # Others may succeed where this rank fails: its handle counts no more, whatever comes of it.
        self._past.add(self._life)
        self._life = rc.new_life()
        try:
            coll = _mooncake.Coll(hub(), plan.name, plan.rank, ranks, slots, self._timeout_ns, 0, addresses, open_ns)
        except RuntimeError as exc:
            return Work(None, Outcome(0, 0, dist.DistBackendError(f"reconfigure {uuid} of group {self._name}: {exc}")))
        old, self._coll, self._is_abort_told = self._coll, coll, False
        self._past |= {h.life for h in plan.handles}
        self._rank, self._founders, self._slots = plan.rank, ranks, slots
        self._whole, self._mirror_state, self.active_ranks = Outcome(0, 0, None), (0, -1), mirror
        self._refresh()
        self._end(old)
        self._show(plan.name)
        return Work(None, Outcome((1 << ranks) - 1, 0, None))

    def _show(self, name: str) -> None:
        """Where extensions look for the group. A store that is gone takes only their door with it."""
        at = f"mooncake/{name}/"
        try:
            self._store.set(f"{at}{self._rank}", hub().address())
            if self._rank == 0:
                self._store.set(f"{at}name", name)
                self._store.set("mooncake/meeting", name)
        except RuntimeError:
            self._store = None
