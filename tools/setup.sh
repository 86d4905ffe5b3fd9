# setup.sh: what ./run needs before it can start; sourced by it, from the root of the tree.
#
# System packages come from apt (tools/packages/*.txt, one list for each purpose), Python tools and the built package go
# to .venv. What is there already is found by dpkg and by stamps that hold a hash of what was installed from.

setup_say() {
	echo "setup: $*" >&2
}

setup_as_root() {
	if [ "$(id -u)" -eq 0 ]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		setup_say "needs root or sudo for: $*"
		return 1
	fi
}

# setup_packages LIST...: install the packages of tools/packages/LIST.txt that are missing.
setup_packages() {
	local wanted missing name
	wanted=$(for name in "$@"; do sed 's/#.*//' "tools/packages/$name.txt"; done | xargs)
	if ! command -v dpkg-query >/dev/null; then
		setup_say "this is no Debian; see that these are installed under their names here: $wanted"
		return 0
	fi
	missing=$(for name in $wanted; do
		[ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null)" = installed ] || echo "$name"
	done | xargs)
	[ -n "$missing" ] || return 0
	setup_say "installing system packages: $missing"
	setup_apt_install $missing
}

# Debian starts a service when its package is installed. A policy-rc.d that says no, for the time of this call, keeps
# Redis and etcd from taking their ports; tests start their own with ports of their own.
setup_apt_install() (
	policy=/usr/sbin/policy-rc.d
	if [ ! -e $policy ]; then
		trap 'setup_as_root rm -f $policy' EXIT
		printf '#!/bin/sh\nexit 101\n' | setup_as_root tee $policy >/dev/null
		setup_as_root chmod 755 $policy
	fi
	mkdir -p build-setup
	export DEBIAN_FRONTEND=noninteractive
	if ! {
		setup_as_root apt-get -q update &&
			setup_as_root apt-get -q install -y --no-install-recommends -o Dpkg::Use-Pty=0 "$@"
	} >build-setup/apt.log 2>&1; then
		tail -n 20 build-setup/apt.log
		setup_say "apt-get failed; all of its output is in build-setup/apt.log"
		exit 1
	fi
	if [ -d /run/systemd/system ]; then
		for name in "$@"; do
			case $name in
			memcached) setup_as_root systemctl -q disable memcached.service || true ;;
			redis-server) setup_as_root systemctl -q disable redis-server.service || true ;;
			etcd-server) setup_as_root systemctl -q disable etcd.service || true ;;
			prometheus) setup_as_root systemctl -q disable prometheus.service || true ;;
			esac
		done
	fi
) >&2

# One setup at a time: two commands started together must not build in one folder.
setup_lock() {
	mkdir -p build-setup
	exec 9>build-setup/lock
	flock -n 9 || { setup_say "waiting for another ./run in this tree"; flock 9; }
}

setup_hash() {
	find "$@" -type f ! -path '*/__pycache__/*' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c 1-32
}

setup_wheel_path() {
	ls "$PWD"/dist/mooncake_c-*.whl
}

# .venv with the tools of tools/requirements.txt and this tree's package; built through a wheel, as users get it.
setup_venv() {
	local tools source
	setup_lock
	tools="$(python3 --version) $(setup_hash tools/requirements.txt tools/requirements-cuda.txt)"
	if [ "$(cat .venv/stamp-tools 2>/dev/null)" != "$tools" ]; then
		setup_say "making .venv"
		rm -rf .venv
		python3 -m venv .venv
		.venv/bin/pip install -q --disable-pip-version-check -r tools/requirements.txt
		# An nvcc in PATH is taken first. Without any the package is built, but for its kernels.
		command -v nvcc >/dev/null ||
			.venv/bin/pip install -q --disable-pip-version-check -r tools/requirements-cuda.txt ||
			setup_say "no nvcc: kernels for GPUs are not built"
		echo "$tools" >.venv/stamp-tools
	fi
	source=$(setup_hash src include python meson.build meson.options pyproject.toml README.md tools/nvcc.py tools/embed.py)
	if [ "$(cat .venv/stamp-package 2>/dev/null)" != "$source" ] || ! setup_wheel_path >/dev/null 2>&1; then
		setup_say "building the wheel"
		rm -rf dist
		PATH=$PWD/.venv/bin:$PATH .venv/bin/pip wheel -q --disable-pip-version-check --no-build-isolation --no-deps \
			--config-settings=build-dir=build-wheel -w dist .
		.venv/bin/pip install -q --disable-pip-version-check --force-reinstall --no-deps "$(setup_wheel_path)"
		.venv/bin/pip install -q --disable-pip-version-check "$(setup_wheel_path)"
		echo "$source" >.venv/stamp-package
	fi
	exec 9>&-
}
