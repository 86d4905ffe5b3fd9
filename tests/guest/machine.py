"""The virtual machine of guest-run: which kernel, its boot files, QEMU's command line. Standard library only.

The kernel is Debian's own: the newest one that has Soft-RoCE, of this system (/boot, /lib/modules) or as kernel.sh
unpacked it into the cache. Its modules stay where they are; the initramfs holds only those that reach the host's files.
"""

from __future__ import annotations

import gzip
import lzma
import os
import re
import shlex
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("MC_CACHE_DIR") or Path.home() / ".cache/mooncake-c") / "guest"
BOOT_MODULES = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay")
PACKAGES = {  # program -> Debian package
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "modprobe": "kmod",
    "ip": "iproute2",
    "tc": "iproute2",
    "bridge": "iproute2",
    "rdma": "iproute2",
}
NICS_MAX, NODES_MAX = 64, 4
MAC = "52:54:00:77:00"


class MachineError(Exception):
    """The guest cannot be started here; the text says what is missing."""


@dataclass(frozen=True)
class Kernel:
    root: Path  # "/" or a directory that holds boot/ and lib/modules/
    version: str

    @property
    def image(self) -> Path:
        return self.root / "boot" / f"vmlinuz-{self.version}"

    @property
    def modules(self) -> Path:
        return self.root / "lib/modules" / self.version


@dataclass
class Guest:
    """What a run asks for."""

    command: list[str]
    nics: int = 2
    rate: str = ""
    nodes: int = 0
    has_nvme: bool = False
    hugepages: int = 0
    mem_mib: int = 2048
    cpus: int = 2
    accel: str = "auto"
    append: str = ""
    modules: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()


def tool(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def find_kernel(version: str | None = None) -> Kernel | None:
    """The newest kernel that has rdma_rxe; the wanted version of it, if one is given."""

    def order(kernel: Kernel) -> list[int]:
        return [int(part) if part.isdigit() else 0 for part in re.split(r"[.-]", kernel.version)]

    found = []
    for root in (Path("/"), CACHE / "kernel"):
        for image in (root / "boot").glob("vmlinuz-*"):
            kernel = Kernel(root, image.name.removeprefix("vmlinuz-"))
            has_rxe = any(kernel.modules.glob("kernel/drivers/infiniband/sw/rxe/rdma_rxe.ko*"))
            if has_rxe and os.access(image, os.R_OK) and version in (None, kernel.version):
                found.append(kernel)
    return max(found, key=order, default=None)


def missing(version: str | None = None) -> str | None:
    """Why no guest can be started here, with the remedy; None: it can."""
    packages = {package for program, package in PACKAGES.items() if not tool(program)}
    busybox = tool("busybox")
    if busybox and b"/ld-linux" in Path(busybox).read_bytes():
        packages.add("busybox-static")
    if packages:
        return f"missing: apt-get install {' '.join(sorted(packages))}"
    if not find_kernel(version):
        return f"no kernel {version or ''} with rdma_rxe in /boot or {CACHE / 'kernel'}: run tests/guest/kernel.sh"
    return None


def _cpio(entries: list[tuple[str, int, bytes]]) -> bytes:
    """An initramfs archive ("newc", see the kernel's buffer-format.rst) of (path, mode, content)."""
    out = bytearray()
    for number, (path, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        name = path.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
        out += b"070701" + b"".join(b"%08x" % field for field in fields) + name
        out += bytes(-len(out) % 4) + content
        out += bytes(-len(out) % 4)
    return bytes(out)


def _unpacked(image: bytes) -> bytes:
    """The ELF kernel in a bzImage, which QEMU starts by itself (PVH): decompressing it in the guest takes seconds.
    An image packed in another way is returned as it is."""
    start = ((image[0x1F1] or 4) + 1) * 512 + struct.unpack_from("<I", image, 0x248)[0]
    payload = image[start : start + struct.unpack_from("<I", image, 0x24C)[0]]
    try:
        if payload.startswith(b"\xfd7zXZ\0"):
            elf = lzma.LZMADecompressor().decompress(payload)
        elif payload.startswith(b"\x1f\x8b"):
            elf = gzip.decompress(payload[:-4])
        else:
            return image
    except (OSError, lzma.LZMAError):
        return image
    return elf if elf.startswith(b"\x7fELF") else image


def _boot_modules(kernel: Kernel) -> list[Path]:
    """Files of BOOT_MODULES and of what they need, in the order of loading."""
    files: dict[Path, None] = {}
    for name in BOOT_MODULES:
        argv = [str(tool("modprobe")), "-d", str(kernel.root), "-S", kernel.version, "-D", name]
        done = subprocess.run(argv, capture_output=True, text=True)
        if done.returncode != 0:
            raise MachineError(f"kernel {kernel.version} has no module {name}: {done.stderr.strip()}")
        for line in done.stdout.splitlines():
            if line.startswith("insmod "):
                files[Path(line.split()[1])] = None
    return list(files)


def _base_initrd(kernel: Kernel) -> bytes:
    entries = [(folder, 0o40755, b"") for folder in ("bin", "dev", "proc", "sys", "mods")]
    entries.append(("bin/busybox", 0o100755, Path(str(tool("busybox"))).read_bytes()))
    entries.append(("init", 0o100755, (HERE / "stage1.sh").read_bytes()))
    for number, path in enumerate(_boot_modules(kernel)):
        content = path.read_bytes()
        content = lzma.decompress(content) if path.suffix == ".xz" else content
        entries.append((f"mods/{number:02}.ko", 0o100644, content))
    return _cpio(entries)


def boot_files(kernel: Kernel) -> tuple[Path, Path]:
    """Kernel and base initramfs, made once for each state of what they are made from."""
    busybox = Path(str(tool("busybox")))
    sources = (kernel.image, kernel.modules / "modules.dep", busybox, Path(__file__), HERE / "stage1.sh")
    stamp = max(int(path.stat().st_mtime) for path in sources)
    folder = CACHE / "boot"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {name: folder / f"{name}-{kernel.version}-{stamp}" for name in ("kernel", "initrd")}
    if not all(path.exists() for path in wanted.values()):
        for old in folder.glob(f"*-{kernel.version}-*"):
            old.unlink(missing_ok=True)
        content = {"initrd": _base_initrd(kernel), "kernel": _unpacked(kernel.image.read_bytes())}
        for name, path in wanted.items():
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as f:
                f.write(content[name])
            os.replace(f.name, path)
    return wanted["kernel"], wanted["initrd"]


def job_initrd(guest: Guest, kernel: Kernel) -> bytes:
    """The part of the initramfs that differs from run to run: settings, the command, stage 2."""
    settings = {
        "NICS": guest.nics,
        "RATE": guest.rate,
        "NVME": int(guest.has_nvme),
        "NODES": guest.nodes,
        "HUGE": guest.hugepages,
        "WRITABLE": shlex.join(guest.writable),
        "MODULES": " ".join(guest.modules),
        "MODROOT": str(kernel.root),
        **{name.upper(): tool(name) for name in ("ip", "tc", "bridge", "rdma", "modprobe")},
    }
    text = "".join(f"{name}={shlex.quote(str(value))}\n" for name, value in settings.items())
    kept = {k: v for k, v in os.environ.items() if re.fullmatch(r"[A-Za-z_]\w*", k) and k not in ("PWD", "SHLVL", "_")}
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in kept.items())
    job = (
        f"{exports}ulimit -l unlimited\nPATH=/run/guest/tools:$PATH\n"
        f"cd {shlex.quote(os.getcwd())} || exit 125\nexec {shlex.join(guest.command)}\n"
    )
    files = [("settings", 0o100644, os.fsencode(text)), ("job", 0o100755, os.fsencode(job))]
    for name in ("stage2.sh", "guest-nic", "guest-nvme"):
        files.append((name, 0o100755, (HERE / name).read_bytes()))
    return _cpio(files)


def accelerator(wanted: str) -> str:
    """KVM only where the processor itself virtualizes: a para-virtual /dev/kvm takes the guest and then crawls."""
    if wanted != "auto":
        return wanted
    flags = re.search(r"^flags\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.M)
    has_hardware = flags and {"vmx", "svm"} & set(flags.group(1).split())
    return "kvm" if has_hardware and os.access("/dev/kvm", os.R_OK | os.W_OK) else "tcg"


def _shares(guest: Guest) -> list[str]:
    argv = []
    for tag, path, mode in [("root", "/", ",readonly=on"), *((f"rw{i}", p, "") for i, p in enumerate(guest.writable))]:
        where = path.replace(",", ",,")
        argv += ["-fsdev", f"local,security_model=none,multidevs=remap,id={tag},path={where}{mode}"]
        argv += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
    return argv


def _nodes(guest: Guest) -> list[str]:
    """Memory nodes with processors and a PCI host bridge each; the NICs spread over them, on one hub."""
    argv = []
    for n in range(guest.nodes):
        cpus = "".join(f",cpus={c}" for c in range(n, guest.cpus, guest.nodes))
        argv += ["-object", f"memory-backend-ram,id=m{n},size={guest.mem_mib // guest.nodes}M"]
        argv += ["-numa", f"node,nodeid={n},memdev=m{n}{cpus}"]
        argv += ["-device", f"pxb-pcie,id=pxb{n},bus_nr={64 + 32 * n},bus=pcie.0,numa_node={n}"]
    for i in range(guest.nics if guest.nodes else 0):
        node = i * guest.nodes // guest.nics
        argv += ["-device", f"pcie-root-port,id=rp{i},bus=pxb{node},chassis={i + 1},addr={i % 16 + 1}"]
        argv += ["-netdev", f"hubport,id=h{i},hubid=0"]
        argv += ["-device", f"e1000e,netdev=h{i},bus=rp{i},mac={MAC}:{i:02x},romfile="]
    return argv


def qemu_argv(guest: Guest, kernel: Path, initrd: Path, console: Path, ports: dict[str, int]) -> list[str]:
    """`ports`: virtio serial ports by name, each written to a descriptor that QEMU inherits."""
    is_kvm = accelerator(guest.accel) == "kvm"
    argv = [str(tool("qemu-system-x86_64")), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    argv += ["-M", "q35", "-smp", str(guest.cpus), "-m", f"{guest.mem_mib}M"]
    argv += ["-accel", "kvm" if is_kvm else "tcg,thread=multi", "-cpu", "host" if is_kvm else "max,la57=off"]
    argv += ["-kernel", str(kernel), "-initrd", str(initrd), "-serial", f"file:{console}", "-append"]
    argv += [
        "console=ttyS0 loglevel=4 panic=-1 nokaslr mitigations=off audit=0 tsc=reliable no_timer_check "
        f"random.trust_cpu=on rcupdate.rcu_expedited=1 cgroup_disable=memory quiet {guest.append}"
    ]
    argv += ["-device", "virtio-serial-pci"]
    for name, fd in ports.items():
        argv += ["-add-fd", f"fd={fd},set={fd}", "-chardev", f"file,id={name},append=on,path=/dev/fdset/{fd}"]
        argv += ["-device", f"virtserialport,chardev={name},name={name}"]
    return argv + _shares(guest) + _nodes(guest)
