"""The wheel as it is installed: what it holds, what its libraries export and need, and that a C program can use it."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mooncake
from mooncake import _codes

ROOT = Path(mooncake.__file__).parent
TREE = Path(__file__).resolve().parents[2]
LIBRARIES = {"libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1", "libmooncake.so"}


def needed(path: Path) -> set[str]:
    out = subprocess.run(["readelf", "-d", path], check=True, capture_output=True, text=True).stdout
    return set(re.findall(r"NEEDED.*\[(.*)\]", out))


def exported(path: Path) -> set[str]:
    out = subprocess.run(["nm", "-D", "--defined-only", path], check=True, capture_output=True, text=True).stdout
    return {line.split()[2].split("@")[0] for line in out.splitlines() if line.split()[1] != "A"}


def shared_objects() -> list[Path]:
    return sorted(ROOT.rglob("*.so"))


def test_version_is_the_distributions() -> None:
    assert mooncake.__version__ == importlib.metadata.version("mooncake-c")


def test_one_wheel_serves_every_python_from_3_11_on() -> None:
    assert "Tag: cp311-abi3-linux" in importlib.metadata.distribution("mooncake-c").read_text("WHEEL")


def test_codes_are_the_headers() -> None:
    said = {}
    for header, sign in (("err.h", -1), ("store.h", 1)):
        rows = re.findall(r"^\tX\((\w+), (-?\d+)[,)]", (TREE / "include/mooncake" / header).read_text(), re.MULTILINE)
        said |= {name: sign * int(number) for name, number in rows}
    named = {name: number for name, number in vars(_codes).items() if name.isupper()}
    assert named
    assert named == {name: said.get(name) for name in named}


@pytest.mark.parametrize("path", shared_objects(), ids=lambda p: p.name)
def test_library_needs_nothing_but_libc(path: Path) -> None:
    assert needed(path) <= LIBRARIES


@pytest.mark.parametrize("path", shared_objects(), ids=lambda p: p.name)
def test_library_is_the_same_wherever_it_lies(path: Path) -> None:
    out = subprocess.run(["readelf", "-d", path], check=True, capture_output=True, text=True).stdout
    assert all(run.startswith("$ORIGIN") for run in re.findall(r"R(?:UN)?PATH.*\[(.*)\]", out))


def test_library_exports_its_own_names_only() -> None:
    names = exported(ROOT / "lib" / "libmooncake.so")
    assert names and all(name.startswith("mc_") for name in names)


def test_upstream_library_exports_upstreams_names_only() -> None:
    wanted = set(re.findall(r"^\t\t(\w+);", (TREE / "src/lib/transfer_engine.map").read_text(), re.M))
    assert exported(ROOT / "lib" / "libtransfer_engine.so") == wanted


def test_extension_shares_the_packages_library() -> None:
    assert "libmooncake.so" in needed(ROOT / "_mooncake.abi3.so")


@pytest.mark.parametrize("name", ["mooncake_master", "mooncake_client"])
def test_a_service_on_path_is_the_program_itself(name: str) -> None:
    """No interpreter starts before it."""
    found = [f.locate() for f in importlib.metadata.files("mooncake-c") if f.name == name and f.parent.parent.name != "mooncake"]
    assert len(found) == 1
    assert found[0].read_bytes() == (ROOT / "bin" / name).read_bytes()
    wrong = subprocess.run([found[0], "--no_such_option"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 1 and wrong.stderr.startswith(f"{name}: ") and "no_such_option" in wrong.stderr


def test_c_program_builds_against_the_installed_package(tmp_path: Path) -> None:
    source = tmp_path / "app.c"
    source.write_text('#include <mooncake/engine.h>\n#include <stdio.h>\nint main(void) { puts(mc_err_text(0)); }\n')
    flags = subprocess.run([sys.executable, "-m", "mooncake.config", "--cflags", "--libs"], check=True,
                           capture_output=True, text=True).stdout.split()
    subprocess.run(["cc", "-std=c11", "-Wall", "-Werror", source, "-o", tmp_path / "app", *flags], check=True)
    assert subprocess.run([tmp_path / "app"], check=True, capture_output=True, text=True).stdout == "success\n"


def test_pkg_config_finds_the_installed_package() -> None:
    out = subprocess.run(["pkg-config", "--modversion", ROOT / "lib" / "pkgconfig" / "mooncake.pc"], check=True,
                         capture_output=True, text=True).stdout
    assert out.strip() == mooncake.__version__
