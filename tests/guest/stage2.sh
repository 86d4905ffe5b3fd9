#!/bin/sh
# stage2.sh: make the guest's devices, run the job, hand its status to the host. Runs in the overlay root, where the
# host's own tools are; busybox serves for the simple ones.
bin=/run/guest/bin
for applet in cat cp cut hostname ln ls mkdir mkfifo mount rm sed sleep sync; do
	$bin/busybox ln -s busybox $bin/$applet
done
export PATH=$bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
. /run/guest/settings
cd /run/guest || exit
export GUEST_RUN=1 GUEST_NICS="$NICS" GUEST_NODES="$NODES"

# The host ends the machine as soon as it has read the status.
finish() {
	sync
	echo "$1" >"$statusport"
	while :; do sleep 60; done
}

fail() {
	echo "guest: $*" >"$errport"
	finish 125
}

# wait_until SECONDS/10 COMMAND...
wait_until() {
	left=$1
	shift
	until "$@"; do
		[ "$left" -gt 0 ] || return 1
		left=$((left - 1))
		sleep 0.1
	done
}

load() {
	"$MODPROBE" -d "$MODROOT" -a "$@" || fail "cannot load the modules $*"
}

for port in /sys/class/virtio-ports/*; do
	read -r name <"$port/name"
	eval "${name}port=/dev/${port##*/}"
done

mount_all() {
	mkdir -p /dev/shm /dev/pts /dev/hugepages
	mount -t tmpfs -o mode=1777 shm /dev/shm
	mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
	ln -sf /proc/self/fd /dev/fd
	for n in 0:stdin 1:stdout 2:stderr; do ln -sf "fd/${n%:*}" "/dev/${n#*:}"; done
	i=0
	eval "set -- $WRITABLE"
	for folder; do
		mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=mmap "rw$i" "$folder" || fail "cannot mount $folder"
		i=$((i + 1))
	done
	[ "$HUGE" -gt 0 ] || return 0
	echo "$HUGE" >/proc/sys/vm/nr_hugepages
	mount -t hugetlbfs hugetlbfs /dev/hugepages
}

# NICs are veths on a bridge; with nodes they are QEMU's PCI devices, on its hub.
nics_make() {
	if [ "$NODES" -gt 0 ]; then
		load e1000e
		for n in /sys/class/net/*; do
			mac=$(cat "$n/address")
			case $mac in 52:54:00:77:00:*) "$IP" link set "${n##*/}" name "nic$((0x${mac##*:}))" ;; esac
		done
		return
	fi
	load veth bridge
	{
		echo "link add switch up type bridge forward_delay 0 mcast_snooping 0"
		i=0
		while [ $i -lt "$NICS" ]; do
			echo "link add nic$i address 52:54:00:77:00:$(printf %02x $i) type veth peer name port$i"
			echo "link set port$i mtu 4200 master switch up"
			i=$((i + 1))
		done
	} >veths
	"$IP" -batch veths || fail "cannot make the NICs"
}

# Linux delivers between two addresses of its own through lo, where no rxe listens. So the table "local" steps behind one
# rule for each NIC: what leaves by that NIC, or from its address, goes to the wire.
nics_route() {
	echo "rule add pref 1000 lookup local" >rules
	echo "rule del pref 0" >>rules
	i=0
	while [ $i -lt "$NICS" ]; do
		table=$((100 + i))
		address=10.77.0.$((i + 1))
		echo "link set nic$i mtu 4200 up"
		echo "addr add $address/24 dev nic$i"
		echo "route add local $address dev nic$i table $table"
		echo "route add 10.77.0.0/24 dev nic$i src $address table $table"
		echo "rule add pref $((10 + i)) oif nic$i lookup $table" >>rules
		echo "rule add pref $((300 + i)) iif lo from $address lookup $table" >>rules
		i=$((i + 1))
	done >links
	"$IP" -batch links && "$IP" -batch rules || fail "cannot configure the NICs"
}

nics_sysctl() {
	for n in all $(cd /sys/class/net && ls -d nic* port* switch 2>/dev/null); do
		v4=/proc/sys/net/ipv4/conf/$n
		v6=/proc/sys/net/ipv6/conf/$n
		echo 1 >$v4/accept_local
		echo 0 >$v4/rp_filter
		echo 1 >$v4/arp_ignore
		echo 2 >$v4/arp_announce
		[ -d $v6 ] || continue
		echo 0 >$v6/accept_dad
		case $n in port* | switch) echo 1 >$v6/disable_ipv6 ;; esac
	done
}

have_carrier() {
	! cat /sys/class/net/nic*/carrier | grep -q 0
}

nics_rdma() {
	wait_until 100 have_carrier || fail "a NIC has no carrier"
	i=0
	while [ $i -lt "$NICS" ]; do
		"$RDMA" link add "rxe$i" type rxe netdev "nic$i" || fail "cannot make rxe$i"
		[ -z "$RATE" ] || tools/guest-nic $i pass || fail "bad --rate $RATE"
		i=$((i + 1))
	done
}

hostname guest
"$IP" link set lo up
mount_all
# rdma_rxe asks the kernel for crc32, and that for a module, which modprobe looks for there.
[ "$MODROOT" -ef / ] || { mkdir -p /lib/modules && mount --bind "$MODROOT/lib/modules" /lib/modules; } ||
	fail "cannot show the kernel's modules at /lib/modules"
load ib_uverbs rdma_ucm rdma_rxe sch_tbf sch_netem $MODULES
if [ "$NICS" -gt 0 ]; then
	nics_make
	nics_sysctl
	nics_route
	nics_rdma
fi
if [ "$NVME" = 1 ]; then
	load nvmet-tcp nvme-tcp
	"$MODPROBE" -d "$MODROOT" brd rd_nr=1 rd_size=262144 || fail "cannot load the module brd"
	tools/guest-nvme make || fail "no NVMe/TCP namespace"
	export GUEST_NVME=/dev/nvme0n1
	wait_until 100 test -b $GUEST_NVME || fail "the NVMe/TCP namespace does not come up"
fi

mkfifo out err
cat out >"$outport" &
cat1=$!
cat err >"$errport" &
cat2=$!
echo "guest: the job starts after $(cut -d' ' -f1 /proc/uptime) s" >/dev/ttyS0
/bin/sh ./job </dev/null >out 2>err
status=$?
for process in /proc/[0-9]*; do # what the job left running would keep the pipes open
	case ${process#/proc/} in 1 | $cat1 | $cat2) ;; *) kill -9 "${process#/proc/}" 2>/dev/null ;; esac
done
wait $cat1 $cat2
finish $status
