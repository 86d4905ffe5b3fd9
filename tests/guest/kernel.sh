#!/usr/bin/env bash
# kernel.sh: see that guest-run has a kernel. Where none is installed, Debian's package is unpacked into the cache:
# installing it would build an initramfs and change what the machine boots. Needs no root.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"

if python3 -B -c 'import machine, sys; sys.exit(machine.find_kernel() is None)'; then
	exit 0
fi
cache=${MC_CACHE_DIR:-$HOME/.cache/mooncake-c}/guest
mkdir -p "$cache"
exec 9>"$cache/.lock"
flock 9
work=$(mktemp -d "$cache/unpack.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
package=$(apt-cache depends linux-image-amd64 | sed -n 's/^ *Depends: //p' | head -n 1)
[ -n "$package" ] || {
	echo "kernel.sh: apt knows no linux-image-amd64; run apt-get update" >&2
	exit 1
}
echo "unpacking $package into $cache/kernel" >&2
apt-get -q download "$package" >&2
mkdir root
# Drivers of real machines' screens, radios, disks: 300 MB that no guest of ours loads.
dpkg-deb --fsys-tarfile ./*.deb | tar -x -C root --exclude='*/drivers/gpu/*' --exclude='*/sound/*' \
	--exclude='*/drivers/media/*' --exclude='*/net/wireless/*' --exclude='*/drivers/staging/*' ./boot ./lib/modules
PATH=$PATH:/usr/sbin:/sbin depmod -b root "$(ls root/lib/modules)"
rm -rf "$cache/kernel"
mv root "$cache/kernel"
