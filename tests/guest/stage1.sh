#!/bin/busybox sh
# stage1.sh: /init of the guest's initramfs. The host's root comes read-only over 9p and gets a tmpfs on top; everything
# else is stage 2's, which runs in there.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev

give_up() {
	echo "guest: $1"
	poweroff -f
}

for module in /mods/*.ko; do
	insmod "$module" || give_up "cannot load $module"
done
mkdir -p /host /top /new
mount -t tmpfs -o size=75% top /top || give_up "no tmpfs"
mkdir /top/upper /top/work
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose root /host || give_up "no root of the host"
mount -t overlay -o lowerdir=/host,upperdir=/top/upper,workdir=/top/work overlay /new || give_up "no overlay"
mount -t tmpfs run /new/run
mkdir -p /new/run/guest/bin /new/run/guest/tools
cp /settings /job /stage2.sh /new/run/guest/
cp /guest-nic /guest-nvme /new/run/guest/tools/
cp /bin/busybox /new/run/guest/bin/
for folder in proc sys dev; do
	mount -o move /$folder /new/$folder
done
exec switch_root /new /run/guest/bin/busybox sh /run/guest/stage2.sh
