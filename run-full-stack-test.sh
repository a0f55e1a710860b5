#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Runs the full stack for real: packets from an interface, stored on a device, read back and compared.
set -u

here=$(cd "$(dirname "$0")" && pwd)
out=${UNIFIED_OUT:-$here/target/full-stack}
program=$out/bin/unified-full-stack-test
traffic=$out/bin/unified-traffic

duration=5 rate=5000 size=1024 port=9999 queues=1 flows=1
make_traffic=yes verify=auto assume_yes=no from_netns= selftest=
iface= device= queue=0 restore=no
# Each of DEVICE, and whether it is one of several, which the test program fills in chunks, in turn.
devices=()
chunk=$((1 << 20))
states=${UNIFIED_STATES:-/run/unified}

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
	blue=$'\e[34m' green=$'\e[32m' yellow=$'\e[33m' red=$'\e[31m' plain=$'\e[0m'
else
	blue= green= yellow= red= plain=
fi
info() { echo "${blue}[INFO]${plain} $*"; }
success() { echo "${green}[SUCCESS]${plain} $*"; }
warn() { echo "${yellow}[WARN]${plain} $*"; }
error() { echo "${red}[ERROR]${plain} $*" >&2; }
die() {
	error "$@"
	exit 1
}

usage() {
	cat <<-TEXT
		usage: $(basename "$0") [OPTIONS] [IFACE [DEVICE[,DEVICE...] [QUEUE]]]

		Stores UDP packets that IFACE receives on QUEUE (default 0) to DEVICE, and shows the statistics. Several
		devices, with commas between them, are filled in turn, $((chunk >> 20)) MiB at a time.
		Without IFACE it creates a veth pair and a network namespace, without DEVICE a file, and removes
		them at the end. Then it reads the stored data back and compares it with what was sent.

		  --duration SECONDS   send traffic, or wait for it, this long (default $duration)
		  --rate PACKETS       packets per second, 0: as fast as possible (default $rate)
		  --size BYTES         payload size, or a range such as 64-1472 (default $size)
		  --port PORT          UDP port (default $port)
		  --queues N|all       receive on N queues from QUEUE on, or on all of them: each with threads of its own.
		                       Packets are spread over them by their addresses and ports
		  --no-traffic         send nothing: traffic comes from elsewhere
		  --from-netns NAME    send from this network namespace, which reaches IFACE
		  --verify             compare the stored bytes even if the traffic came from elsewhere
		                       (from unified-traffic send, with the same --size)
		  --selftest PROGRAM   run this program of the registration interface instead (docs/uapi.md), as
		                       PROGRAM IFACE DEVICE QUEUE, and find on the device what it says it stored
		  --yes                do not ask before writing to a DEVICE that holds data
		  --restore            put back what runs that were killed have changed (interfaces, huge pages), and end
		  --help

		Needs root. Exit code: 0 every packet is accounted for, and what was compared is right;
		1 something failed; 2 wrong usage; 130 interrupted.
	TEXT
}

number() { # NAME VALUE MIN MAX
	if ! [[ $2 =~ ^[0-9]{1,9}$ ]] || ((10#$2 < $3 || 10#$2 > $4)); then
		error "$1: '$2' is not a number from $3 to $4"
		exit 2
	fi
}

parse() {
	local words=()
	while [ $# -gt 0 ]; do
		case $1 in
		--duration | --rate | --size | --port | --queues | --from-netns | --selftest)
			if [ $# -lt 2 ]; then
				error "$1 needs a value"
				exit 2
			fi
			case $1 in
			--duration) duration=$2 ;;
			--rate) rate=$2 ;;
			--size) size=$2 ;;
			--port) port=$2 ;;
			--queues) queues=$2 ;;
			--from-netns) from_netns=$2 ;;
			--selftest) selftest=$2 ;;
			esac
			shift
			;;
		--no-traffic) make_traffic=no ;;
		--verify) verify=yes ;;
		--restore) restore=yes ;;
		--yes | -y) assume_yes=yes ;;
		--help | -h)
			usage
			exit 0
			;;
		-*)
			error "unknown option $1"
			usage >&2
			exit 2
			;;
		*) words+=("$1") ;;
		esac
		shift
	done
	if [ ${#words[@]} -gt 3 ]; then
		usage >&2
		exit 2
	fi
	iface=${words[0]:-} device=${words[1]:-} queue=${words[2]:-0}
	split_devices
	number --duration "$duration" 1 86400
	number --rate "$rate" 0 100000000
	number --port "$port" 1 65535
	number QUEUE "$queue" 0 65535
	if [ "$queues" != all ]; then
		number --queues "$queues" 1 64
	fi
	if [ "$queues" != 1 ]; then
		flows=64
		if [ -n "$selftest" ]; then
			error "--queues: programs of the registration interface have one queue"
			exit 2
		fi
	fi
	if [ -n "$selftest" ]; then
		if [ ${#devices[@]} -gt 1 ]; then
			error "--selftest: programs of the registration interface write to one device, and ${#devices[@]} are named"
			exit 2
		fi
		[ -f "$selftest" ] && [ -x "$selftest" ] || die "--selftest: '$selftest' is no program; make -f Makefile.full-stack selftest SRC=... builds one"
		selftest=$(realpath "$selftest")
		if ((${size%-*} < 16)); then
			error "--size: with --selftest payloads are found by what they hold, which takes 16 bytes"
			exit 2
		fi
	fi
	if ! [[ $size =~ ^[0-9]{1,5}(-[0-9]{1,5})?$ ]] || ((${size%-*} < 1 || ${size#*-} > 1472 || ${size%-*} > ${size#*-})); then
		error "--size: '$size' is not a payload size from 1 to 1472, or a range of them"
		exit 2
	fi
}

# One device, or several with commas between them, unless that is a name itself.
split_devices() {
	local one
	devices=()
	if [ -z "$device" ]; then
		return
	elif [[ $device != *,* || -e $device ]]; then
		devices=("$device")
		return
	fi
	IFS=, read -ra devices <<<"$device,"
	if [ ${#devices[@]} -gt 16 ]; then
		error "${#devices[@]} devices: 16 at most"
		exit 2
	fi
	for one in "${devices[@]}"; do
		if [ -z "$one" ]; then
			error "DEVICE: '$device' has an empty name in it"
			exit 2
		fi
	done
}

# The block node of a device: the data of a character node cannot be read like a file.
node_of() { # DEVICE
	if [[ $1 =~ ^/dev/ng([0-9]+n[0-9]+)$ ]]; then
		echo "/dev/nvme${BASH_REMATCH[1]}"
	else
		echo "$1"
	fi
}

# The same for whatever names the same device has.
identity_of() { # DEVICE
	local node
	node=$(node_of "$1")
	if [ -b "$node" ] || [ -c "$node" ]; then
		stat -Lc 'node %t:%T' "$node"
	elif [ -e "$node" ]; then
		stat -Lc 'file %d:%i' "$node"
	else
		echo "path $(realpath -m "$node")"
	fi
}

check_devices() {
	local one known
	local -A seen=()
	for one in "${devices[@]}"; do
		if [ ! -e "$one" ] && [[ $one == /dev/* ]]; then
			die "there is no device '$one'"
		fi
		known=$(identity_of "$one")
		if [ -n "${seen[$known]:-}" ]; then
			die "'$one' and '${seen[$known]}' are the same device: name each device once"
		fi
		seen[$known]=$one
	done
}

# What must be undone, newest last. The same is in a file, for --restore after this script was killed: its first line is the
# number of the process and when it was started.
undo=()
undo_file=
child=
sender=
scratch=

# Ends a program by Ctrl-C, after 5 seconds (a shell has what it starts in the background ignore Ctrl-C) by
# SIGTERM, and after 10 by force; its exit code.
end() { # PID
	local i
	kill -INT "$1" 2>/dev/null
	for ((i = 0; i < 100; i++)); do
		kill -0 "$1" 2>/dev/null || break
		((i != 50)) || kill -TERM "$1" 2>/dev/null
		sleep 0.1
	done
	kill -KILL "$1" 2>/dev/null
	wait "$1" 2>/dev/null
}

finish() {
	local code=$? i
	trap '' INT TERM
	trap - EXIT
	for pid in $sender $child; do
		end "$pid"
	done
	for ((i = ${#undo[@]} - 1; i >= 0; i--)); do
		eval "${undo[i]}" >/dev/null 2>&1 || warn "could not undo: ${undo[i]}"
	done
	[ -n "$undo_file" ] && rm -f "$undo_file" && rmdir "$states" 2>/dev/null
	[ -n "$scratch" ] && rm -rf "$scratch"
	exit "$code"
}

later() {
	undo+=("$(printf '%q ' "$@")")
	if [ -z "$undo_file" ] && mkdir -p "$states" 2>/dev/null; then
		undo_file=$states/full-stack-$$
		(umask 077 && echo "$$ $(started "$$")" >"$undo_file") || undo_file=
	fi
	[ -z "$undo_file" ] || printf '%s\n' "${undo[-1]}" >>"$undo_file"
}

# When a process was started, in ticks since the system was: its number alone may be another's by now.
started() { # PID
	sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | awk '{ print $20 }'
}

# Ends a program that is still the one that was started then.
end_program() { # PID STARTED
	[ "$(started "$1")" != "$2" ] || end "$1"
	return 0
}

# The states of runs that were killed.
left_behind() {
	local file pid when
	for file in "$states"/full-stack-*; do
		[ -f "$file" ] && [ -O "$file" ] || continue
		read -r pid when <"$file"
		[ "$(started "$pid")" = "$when" ] || echo "$file"
	done
}

restore_all() {
	[ "$(id -u)" = 0 ] || die "root is needed to put interfaces back"
	local file i lines failed=0 files
	mapfile -t files < <(left_behind)
	if [ ${#files[@]} = 0 ]; then
		success "No run was killed: there is nothing to put back"
		exit 0
	fi
	for file in "${files[@]}"; do
		mapfile -t lines < <(tail -n +2 "$file")
		for ((i = ${#lines[@]} - 1; i >= 0; i--)); do
			if eval "${lines[i]}" >/dev/null 2>&1; then
				info "Undone: ${lines[i]}"
			else
				warn "could not undo: ${lines[i]}"
				failed=1
			fi
		done
		rm -f "$file"
	done
	rmdir "$states" 2>/dev/null
	[ "$failed" = 0 ] || die "not everything could be put back; what is named above may be gone already"
	success "Everything is as it was before"
	exit 0
}

check_system() {
	info "Checking system requirements..."
	[ "$(id -u)" = 0 ] || die "root is needed: for the XDP program, the AF_XDP socket and the network namespace"
	local tool missing= tools="ip ethtool"
	[ -n "${UNIFIED_OUT:-}" ] || tools+=" make"
	for tool in $tools; do
		command -v "$tool" >/dev/null || missing+=" $tool"
	done
	[ -z "$missing" ] || die "missing:$missing; run: make -f Makefile.full-stack install-deps"
	if [ "$(cat /proc/sys/kernel/io_uring_disabled 2>/dev/null || echo 0)" = 2 ]; then
		die "io_uring is forbidden here: sysctl kernel.io_uring_disabled=0"
	fi
	# The dispatcher of libxdp pins its programs there.
	if ! grep -q ' /sys/fs/bpf bpf ' /proc/mounts; then
		if mount -t bpf bpf /sys/fs/bpf 2>/dev/null; then
			later umount /sys/fs/bpf
		else
			warn "/sys/fs/bpf is not mounted: only one XDP program can be on the interface"
		fi
	fi
	if [ -n "$iface" ] && [ ! -e "/sys/class/net/$iface" ]; then
		die "there is no interface '$iface'; ip link shows those that are"
	fi
	check_devices
	local left
	left=$(left_behind | wc -l)
	((left == 0)) || warn "$left earlier runs were killed and have left their changes: --restore undoes them"
	success "System requirements check passed"
}

build() {
	info "Building test program..."
	if [ -n "${UNIFIED_OUT:-}" ]; then
		[ -x "$program" ] && [ -x "$traffic" ] || die "UNIFIED_OUT=$out has no built programs"
	elif ! make -C "$here" -s -f Makefile.full-stack all >"$scratch/build.log" 2>&1; then
		tail -n 30 "$scratch/build.log" >&2
		die "the build failed; make -f Makefile.full-stack check-deps says what is missing"
	fi
	success "Test program built successfully"
}

# A veth pair whose far end, the sender's, is in a network namespace.
make_network() {
	iface=ufs$$h from_netns=ufs$$
	local many far=ufs$$p a=$(($$ >> 6 & 255)) b=$((($$ & 63) << 2))
	near_addr=198.18.$a.$((b + 1))
	ip netns add "$from_netns" || die "a network namespace could not be made"
	later ip netns del "$from_netns"
	many=$queues
	[ "$queues" != all ] || many=4
	many=$((queue + many))
	ip link add "$iface" numrxqueues "$many" numtxqueues "$many" type veth peer name "$far" \
		numrxqueues "$many" numtxqueues "$many" netns "$from_netns" || die "a veth pair could not be made"
	later ip link del "$iface"
	# Nothing but the test's packets: no neighbour or router discovery.
	sysctl -q -w "net.ipv6.conf.$iface.disable_ipv6=1" 2>/dev/null
	ip netns exec "$from_netns" sysctl -q -w "net.ipv6.conf.$far.disable_ipv6=1" 2>/dev/null
	ip addr add "$near_addr/30" dev "$iface" &&
		ip -n "$from_netns" addr add "198.18.$a.$((b + 2))/30" dev "$far" &&
		ip link set "$iface" up &&
		ip -n "$from_netns" link set "$far" up &&
		ip -n "$from_netns" neigh replace "$near_addr" lladdr "$(cat "/sys/class/net/$iface/address")" dev "$far" nud permanent ||
		die "the veth pair could not be set up"
	info "Made veth pair '$iface' with its far end in network namespace '$from_netns'"
}

# Switched off, and on again at the end. WORDS stand before ethtool. Fails if it is on and stays on.
ethtool_feature() { # INTERFACE FEATURE NAME [WORDS]
	local dev=$1 feature=$2 name=$3 state
	shift 3
	state=$("$@" ethtool -k "$dev" 2>/dev/null | awk -v f="$name:" '$1 == f { print $2, $3 }')
	[[ $state == on* ]] || return 0
	[ "$state" = "on " ] && "$@" ethtool -K "$dev" "$feature" off >/dev/null 2>&1 || return 1
	later "$@" ethtool -K "$dev" "$feature" on
}

# The other end of a veth pair, and the words before a command that is to see it.
peer= in_peer=()
find_peer() {
	local index about namespace=
	[ "$(ethtool -i "$iface" 2>/dev/null | awk '$1 == "driver:" { print $2 }')" = veth ] || return 0
	index=$(cat "/sys/class/net/$iface/iflink")
	about=$(ip -o link show dev "$iface")
	if [[ $about =~ link-netns\ ([^\ ]+) ]]; then
		namespace=${BASH_REMATCH[1]}
	elif [[ $about == *link-netnsid* ]]; then
		namespace=$from_netns
	else
		peer=$(ip -o link | awk -F ': ' -v i="$index" '$1 == i { sub("@.*", "", $2); print $2 }')
	fi
	if [ -n "$namespace" ]; then
		# Numbers are a namespace's own: the other end must name this one.
		peer=$(ip -n "$namespace" -o link 2>/dev/null |
			awk -F ': ' -v i="$index" -v far="@if$(cat "/sys/class/net/$iface/ifindex")" '$1 == i && sub(far "$", "", $2) { print $2 }')
		in_peer=(ip netns exec "$namespace")
	fi
	[ -n "$peer" ] || warn "the other end of '$iface' is in a network namespace that is not known here: if it sends VLAN tags, turn off there: ethtool -K PEER txvlan off tx-vlan-stag-hw-insert off"
}

# VLAN tags must be in the bytes of packets: beside them the XDP program does not see them, and they are not stored.
keep_tags() {
	local lost=
	ethtool_feature "$iface" rxvlan rx-vlan-offload || lost=1
	ethtool_feature "$iface" rx-vlan-stag-hw-parse rx-vlan-stag-hw-parse || lost=1
	[ -z "$lost" ] || warn "the driver of '$iface' takes VLAN tags out of packets and cannot be told not to: packets are stored without them"
	find_peer
	[ -n "$peer" ] || return 0
	lost=
	ethtool_feature "$peer" txvlan tx-vlan-offload "${in_peer[@]}" || lost=1
	ethtool_feature "$peer" tx-vlan-stag-hw-insert tx-vlan-stag-hw-insert "${in_peer[@]}" || lost=1
	[ -z "$lost" ] || warn "'$peer', the other end of '$iface', leaves VLAN tags out of the bytes of packets: they are stored without them"
	# And datagrams must come one by one.
	ethtool_feature "$peer" tx-udp-segmentation tx-udp-segmentation "${in_peer[@]}"
}

# A rule that sends the port's packets to WORDS: "action QUEUE" or "context NUMBER". Removed at the end.
add_rule() { # WORDS
	local had rule
	had=$(ethtool -k "$iface" 2>/dev/null | awk '$1 == "ntuple-filters:" { print $2 }')
	ethtool -K "$iface" ntuple on >/dev/null 2>&1
	if rule=$(ethtool -N "$iface" flow-type udp4 dst-port "$port" "$@" 2>/dev/null); then
		[ "$had" = off ] && later ethtool -K "$iface" ntuple off
		rule=$(grep -o '[0-9]*$' <<<"$rule")
		[ -n "$rule" ] && later ethtool -N "$iface" delete "$rule"
		return 0
	fi
	[ "$had" = off ] && ethtool -K "$iface" ntuple off >/dev/null 2>&1
	return 1
}

# Packets are spread over queues by addresses and ports. Many drivers take only the addresses for UDP until told, so that all
# packets of one sender come to one queue.
hash_ports() {
	local now letters=
	now=$(ethtool -n "$iface" rx-flow-hash udp4 2>/dev/null) || return 0
	grep -q 'L4 bytes 0' <<<"$now" && return 0
	grep -q 'IP SA' <<<"$now" && letters+=s
	grep -q 'IP DA' <<<"$now" && letters+=d
	if [ -n "$letters" ] && ethtool -N "$iface" rx-flow-hash udp4 sdfn >/dev/null 2>&1; then
		later ethtool -N "$iface" rx-flow-hash udp4 "$letters"
		info "UDP packets are spread over the queues by addresses and ports (rx-flow-hash udp4 sdfn)"
	else
		warn "the driver of '$iface' does not spread UDP packets by their ports: those of one sender come to one queue"
	fi
}

# Packets of the port must come to the queues that have a socket, and nowhere else. The queues of other services stay as
# they are.
steer() {
	local there wanted=$queues
	there=$(find "/sys/class/net/$iface/queues" -name 'rx-*' | wc -l)
	if ((queue >= there)); then
		die "'$iface' has $there receive queues; there is no queue $queue"
	fi
	[ "$queues" != all ] || wanted=$((there - queue))
	if ((queue + wanted > there)); then
		die "'$iface' has $there receive queues, and --queues $wanted from queue $queue on are more"
	fi
	((there > 1)) || return 0
	if ((wanted == there)); then
		hash_ports
		info "All $there queues of '$iface' are received"
		return 0
	fi
	if ((wanted > 1)); then
		local context
		if context=$(ethtool -X "$iface" context new start "$queue" equal "$wanted" 2>/dev/null | grep -o '[0-9]*$') && [ -n "$context" ]; then
			later ethtool -X "$iface" context "$context" delete
			hash_ports
			if add_rule context "$context"; then
				info "UDP port $port is steered to queues $queue to $((queue + wanted - 1)) of $there (RSS context $context)"
				return 0
			fi
		fi
		warn "'$iface' has $there receive queues, and its driver takes no RSS context with a rule: packets that come to other queues than $queue to $((queue + wanted - 1)) go to the kernel's stack (counted)"
		return 0
	fi
	if add_rule action "$queue"; then
		info "UDP port $port is steered to queue $queue of $there"
		return 0
	fi
	local combined
	combined=$(ethtool -l "$iface" 2>/dev/null | awk '/Current/ { now = 1 } now && $1 == "Combined:" { print $2 }')
	if [ "$queue" = 0 ] && [[ $combined =~ ^[0-9]+$ ]] && ethtool -L "$iface" combined 1 >/dev/null 2>&1; then
		later ethtool -L "$iface" combined "$combined"
		info "One receive queue instead of $combined, so that all packets come to queue 0"
	else
		warn "'$iface' has $there receive queues, and its driver takes no steering rule: packets that come to other queues than $queue go to the kernel's stack (counted)"
	fi
}

tune_interface() {
	info "Setting up network interface '$iface'..."
	if [ "$(cat "/sys/class/net/$iface/operstate")" = down ]; then
		ip link set "$iface" up || die "'$iface' is down and could not be set up"
		later ip link set "$iface" down
	fi
	ethtool_feature "$iface" gro generic-receive-offload
	ethtool_feature "$iface" lro large-receive-offload
	ethtool_feature "$iface" tso tcp-segmentation-offload
	keep_tags
	local sizes max now
	sizes=$(ethtool -g "$iface" 2>/dev/null | awk '$1 == "RX:" { print $2 }')
	max=$(sed -n 1p <<<"$sizes") now=$(sed -n 2p <<<"$sizes")
	if [[ $max =~ ^[0-9]+$ && $now =~ ^[0-9]+$ ]] && ((now < max && now < 4096)); then
		((max > 4096)) && max=4096
		ethtool -G "$iface" rx "$max" >/dev/null 2>&1 && later ethtool -G "$iface" rx "$now"
	fi
	steer
	success "Interface setup complete"
}

# The longest block of the devices, which is that of the space that the payloads go to.
longest_block() {
	local one size longest=512
	for one in "${devices[@]}"; do
		size=$(blockdev --getss "$(node_of "$one")" 2>/dev/null)
		((${size:-0} <= longest)) || longest=$size
	done
	echo "$longest"
}

# Room for what will be sent, and a little more.
all_bytes() {
	local block per_packet packets=$((rate * duration))
	block=$(longest_block)
	per_packet=$(((${size#*-} + block - 1) / block * block))
	# Such programs store a little more than the payload.
	[ -z "$selftest" ] || per_packet=$((per_packet + 512))
	((rate > 0)) || packets=$((600000 * duration))
	echo $(((packets + 1000) * per_packet + chunk))
}

# Bytes of a device or file; nothing if it does not exist.
bytes_of() { # DEVICE
	local node
	node=$(node_of "$1")
	blockdev --getsize64 "$node" 2>/dev/null || stat -Lc %s "$node" 2>/dev/null
}

# The part of that on each device, in whole chunks: an equal one, unless a device is too short for it.
file_bytes() {
	local all one part count=${#devices[@]}
	all=$(all_bytes)
	if ((count < 2)); then
		echo "$all"
		return
	fi
	part=$(((all / count / chunk + 2) * chunk))
	for one in "${devices[@]}"; do
		# A file grows.
		[ ! -e "$one" ] || [ -f "$one" ] || (($(bytes_of "$one") >= part)) || part=$(((all / chunk + 2) * chunk))
	done
	echo "$part"
}

has_data() { # DEVICE
	[ -s "$1" ] || [ -b "$1" ] || [ -c "$1" ] || return 1
	[ -n "$(head -c 1048576 "$1" 2>/dev/null | tr -d '\0' | head -c 1)" ]
}

# Payloads of an earlier run are like those of this one: what is found afterwards must be from now.
clear_device() { # DEVICE
	local bytes
	bytes=$(bytes_of "$1")
	((${bytes:-0} <= need)) || bytes=$need
	((${bytes:-0} >= 4096)) || return 0
	dd if=/dev/zero of="$(node_of "$1")" bs=4096 count=$((bytes / 4096)) conv=notrunc,fsync 2>"$scratch/dd" ||
		die "'$1' could not be cleared: $(tail -n 1 "$scratch/dd")"
	info "The first $bytes bytes of '$1' are zeroes now"
}

# The library's own check. Its exit code: 3 means that a device holds a file system or the like.
checked() { # DEVICE[,DEVICE...]
	"$program" --check "$iface" "$1" "$queue" 2>&1
}

# Whether the library can check it. A shorter file, which cannot hold a file system, is made longer first.
checkable() { # DEVICE
	[ -e "$1" ] && { [ ! -f "$1" ] || (($(stat -Lc %s "$1") >= 4096)); }
}

# What is in use is refused, and what holds data is written over only if somebody says so.
may_be_written() { # DEVICE
	local said= code=0 node answer
	node=$(node_of "$1")
	if checkable "$1"; then
		said=$(checked "$1")
		code=$?
	fi
	case $code in
	0) ;;
	3) force=(--force) ;;
	*) die "$said" ;;
	esac
	if { [ "$code" = 3 ] || has_data "$node"; } && [ "$assume_yes" = no ]; then
		[ "$code" != 3 ] || warn "$said"
		[ -t 0 ] || die "'$1' holds data; give --yes to overwrite it"
		read -r -p "'$1' holds data, which will be overwritten. Go on? [y/N] " answer
		[[ $answer == [yY]* ]] || die "'$1' was left as it is"
	fi
	# Programs of the registration interface cannot insist.
	if [ "$code" = 3 ] && [ -n "$selftest" ]; then
		wipefs -q -a "$node" || die "what '$1' holds could not be erased"
	fi
}

set_scheduler() { # DEVICE
	local name scheduler before
	name=$(basename "$(node_of "$1")")
	scheduler=/sys/block/$name/queue/scheduler
	if [ -w "$scheduler" ] && ! grep -q '\[none\]' "$scheduler"; then
		before=$(grep -o '\[[^]]*\]' "$scheduler" | tr -d '[]')
		if echo none >"$scheduler" 2>/dev/null; then
			later eval "echo $before >$scheduler"
			info "I/O scheduler of $name: none (was $before)"
		fi
	fi
}

prepare_devices() {
	need=$(file_bytes)
	if [ -z "$device" ]; then
		device=$scratch/packets
		devices=("$device")
		local free
		free=$(($(stat -f -c '%a * %S' "$scratch")))
		((free > need)) || die "the backing file needs $need bytes and $scratch has $free free: lower --rate or --duration"
		return
	fi
	local one said code=0 there=
	# All are asked about before anything is written to one of them.
	for one in "${devices[@]}"; do
		may_be_written "$one"
		! checkable "$one" || there+=,$one
	done
	# Together: a loop device and the file that it is of, say, are one device.
	if [[ ${there#,} == *,* ]]; then
		said=$(checked "${there#,}")
		code=$?
		((code == 0 || code == 3)) || die "$said"
	fi
	for one in "${devices[@]}"; do
		[ "$make_traffic$verify" = noauto ] || clear_device "$one"
		set_scheduler "$one"
	done
}

# Where the NIC and the drive are, and what lies between them and the memory: both cost a part of the rate if they are not
# as they should be. Reported and not changed: that takes another slot, or a restart.
check_placement() {
	local sys=${UNIFIED_SYS:-/sys} one name near far file kind
	near=$(cat "$sys/class/net/$iface/device/numa_node" 2>/dev/null)
	for one in "${devices[@]}"; do
		name=$(basename "$(node_of "$one")") far=
		for file in "$sys/block/$name/device/numa_node" "$sys/block/$name/device/device/numa_node"; do
			[ -n "$far" ] || far=$(cat "$file" 2>/dev/null)
		done
		# -1: the machine has one node.
		[[ $near =~ ^[0-9]+$ && $far =~ ^[0-9]+$ ]] || continue
		if [ "$near" = "$far" ]; then
			info "'$iface' and '$one' are on NUMA node $near"
		else
			warn "'$iface' is on NUMA node $near and '$one' on node $far: every packet crosses from one to the other; take a drive of node $near"
		fi
	done
	kind=$(cat "$sys/class/net/$iface/device/iommu_group/type" 2>/dev/null)
	case $kind in
	identity) info "IOMMU: '$iface' reaches the memory directly (identity)" ;;
	DMA-FQ) info "IOMMU: '$iface' reaches the memory by translation, which is undone in batches (DMA-FQ, lazy)" ;;
	DMA) warn "IOMMU: every buffer of '$iface' is unmapped at once after its use (DMA, strict), which costs a part of the rate: docs/tuning.md, 'The IOMMU'" ;;
	esac
}

huge=()
force=()
tune_memory() {
	# The region of the defaults: 4096 frames of 2048 bytes for each queue and its rings, in 2 MiB pages.
	local lanes=$queues free total pages
	[ "$queues" != all ] || lanes=$(($(find "/sys/class/net/$iface/queues" -name 'rx-*' | wc -l) - queue))
	pages=$((4 * lanes + 1))
	free=$(awk '/HugePages_Free/ { print $2 }' /proc/meminfo)
	total=$(cat /proc/sys/vm/nr_hugepages 2>/dev/null || echo 0)
	if ((${free:-0} < pages)); then
		echo $((total + pages - free)) 2>/dev/null >/proc/sys/vm/nr_hugepages &&
			later eval "echo $total >/proc/sys/vm/nr_hugepages"
		free=$(awk '/HugePages_Free/ { print $2 }' /proc/meminfo)
	fi
	if ((${free:-0} >= pages)); then
		huge=(--huge-pages)
	else
		info "No 2 MiB pages are to be had; the region takes ordinary ones"
	fi
}

value() { # of a line of the final statistics
	awk -v name="$1:" 'index($0, "  " name) == 1 { print $(split(name, w, " ") + 1); exit }' "$scratch/output"
}

# Waits until the child prints a line that matches, ends, or so many tenths of a second have passed.
wait_until_ready() {
	local i
	for ((i = 0; i < $2; i++)); do
		grep -qi "$1" "$scratch/output" 2>/dev/null && return
		kill -0 "$child" 2>/dev/null || return 1
		sleep 0.1
	done
	return 1
}

# Such programs compile their own XDP program when they start, without debug information and without the
# architecture's include path: clang's own variable puts that right.
start_selftest() {
	[ -e "$device" ] || fallocate -l "$need" "$device" || die "'$device' could not be made"
	(
		cd "$scratch" || exit 1
		export CCC_OVERRIDE_OPTIONS="# +-g +-DIPPROTO_UDP=17 +-I/usr/include/$(uname -m)-linux-gnu"
		export UNIFIED_LOG=${UNIFIED_LOG:-warn}
		exec stdbuf -oL "$selftest" "$iface" "$device" "$queue"
	) > >(tee "$scratch/output") 2>&1 &
	child=$!
	later end_program "$child" "$(started "$child")"
	# A program may be silent about it: one that runs after that time is ready.
	wait_until_ready 'ready\|waiting' 300 && return
	kill -0 "$child" 2>/dev/null && return
	wait "$child"
	child=
	die "the program did not start; what it said is above"
}

# The last number that the program gave for one of these words.
said() {
	grep -oiE "($1)[^0-9]{0,20}[0-9]+" "$scratch/output" | tail -n 1 | grep -oE '[0-9]+$'
}

# Such programs are judged by what they say and by the device; some end with 0 whatever happened.
judge_selftest() {
	local received stored errors failed=0
	received=$(said 'RX|Received|RX packets') stored=$(said 'Stored|Stored packets') errors=$(said 'Errors|Storage errors')
	if [ -z "$received" ] || [ -z "$stored" ]; then
		die "the program did not say what it received and stored"
	fi
	[ -n "$sent" ] && cat "$scratch/sent"
	info "The program says: received $received, stored $stored, errors ${errors:-not told}"
	if [ "${errors:-0}" != 0 ]; then
		error "$errors errors"
		failed=1
	fi
	if [ "$stored" = 0 ] || [ "$stored" != "$received" ]; then
		error "$stored of $received received packets were stored"
		failed=1
	fi
	if [ -n "$sent" ] && [ "$received" != "$sent" ]; then
		if [ "$received" = 4097 ]; then
			# 2048 frames at first, and 2049 more until the addresses have left a UMEM of 4096 frames.
			warn "$sent packets were sent, and exactly 4097 received: this is no question of the rate. Programs that post fill ring addresses which grow without wrapping receive so many and then none (docs/uapi.md, 'A limit of the documented program'); send less (--duration, --rate)"
		else
			warn "$sent packets were sent, $received received: the rate is too high for this machine or program"
		fi
	fi
	if [ -n "$sent" ] || [ "$verify" = yes ]; then
		"$traffic" verify --scan --stored "$stored" --size "$size" "$(node_of "$device")" || failed=1
	fi
	if [ "$failed" != 0 ]; then
		error "Full-stack test failed"
		return 1
	fi
	success "Everything that the program says it stored is on the device: $stored of $received"
}

start_program() {
	info "Starting full-stack test..."
	case $queues in
	1) info "Interface: $iface (queue $queue)" ;;
	*) info "Interface: $iface (queues from $queue on: $queues)" ;;
	esac
	local one make_longer=no
	for one in "${devices[@]}"; do
		info "NVMe device: $one"
		if [ ! -e "$one" ] || [ -f "$one" ]; then
			make_longer=yes
		fi
	done
	info "Listening port: $port"
	echo
	if [ -n "$selftest" ]; then
		start_selftest
		return
	fi
	local options=(--port "$port" --queues "$queues" "${huge[@]}" "${force[@]}")
	[ "$make_longer" = no ] || options+=(--file-size "$need")
	"$program" "${options[@]}" "$iface" "$device" "$queue" > >(tee "$scratch/output") 2>&1 &
	child=$!
	later end_program "$child" "$(started "$child")"
	wait_until_ready '^System ready' 200 && return
	wait "$child"
	child=
	die "the test program did not start; what it said is above"
}

sent=
generate() {
	if [ "$make_traffic" = no ] || [ -z "$from_netns" ]; then
		if [ "$make_traffic" = yes ]; then
			info "Traffic must come from another host: unified-traffic send --to ADDRESS:$port --duration $duration"
		fi
		sleep "$duration" &
		sender=$!
		wait "$sender"
		sender=
		return
	fi
	local to=${near_addr:-}
	if [ -z "$to" ]; then
		to=$(ip -4 -o addr show dev "$iface" | awk '{ sub("/.*", "", $4); print $4; exit }')
		[ -n "$to" ] || die "'$iface' has no IPv4 address to send to"
	fi
	ip netns exec "$from_netns" "$traffic" send --to "$to:$port" --flows "$flows" --size "$size" --rate "$rate" --duration "$duration" >"$scratch/sent" 2>&1 &
	sender=$!
	if ! wait "$sender"; then
		sender=
		die "sending failed: $(cat "$scratch/sent")"
	fi
	sender=
	sent=$(awk '/^Sent:/ { print $2 }' "$scratch/sent")
}

stop_program() {
	# What is still on its way arrives within a moment.
	sleep 1.2
	if ! kill -0 "$child" 2>/dev/null; then
		wait "$child"
		child=
		die "the test program ended by itself"
	fi
	end "$child"
	program_code=$?
	child=
	((program_code != 137)) || die "the test program did not end within 10 seconds and was killed"
	# tee may still be writing.
	local i
	for ((i = 0; i < 20; i++)); do
		grep -q '^  Books:' "$scratch/output" && break
		[ -n "$selftest" ] && ((i == 3)) && break
		sleep 0.1
	done
	echo
}

judge() {
	local received stored dropped redirected errors failed=0
	received=$(value "Packets received") stored=$(value "Packets stored")
	dropped=$(value Dropped) errors=$(value Errors)
	redirected=$(awk '/Packets seen by XDP/ { gsub("[),]", ""); print $NF }' "$scratch/output")
	if [ -z "$received" ] || [ -z "$stored" ] || [ -z "$dropped" ]; then
		die "the test program gave no final statistics"
	fi
	[ -n "$sent" ] && cat "$scratch/sent"
	if [ "$program_code" != 0 ]; then
		error "the test program says that not everything went well (exit code $program_code, errors: $errors, no space: $(value "No space")); what it said is above"
		failed=1
	fi
	if [ -n "$sent" ] && [ "$redirected" != "$sent" ]; then
		error "$sent packets were sent, the XDP program redirected $redirected"
		failed=1
	fi
	if [ -n "$sent" ] && [ "$sent" = 0 ]; then
		error "nothing was sent"
		failed=1
	fi
	if [ -n "$sent" ] || [ "$verify" = yes ]; then
		local block one nodes= all=()
		# Of each device.
		block=$(sed -n 's/.* blocks of \([0-9]*\) bytes)$/\1/p' "$scratch/output" | paste -s -d , -)
		[ "$dropped" = 0 ] && [ -n "$sent" ] && all=(--sent "$sent")
		[ "$queues" = 1 ] || all+=(--unordered)
		for one in "${devices[@]}"; do
			nodes+=,$(node_of "$one")
		done
		"$traffic" verify --stored "$stored" --size "$size" --block "$block" --chunk "$chunk" "${all[@]}" "${nodes#,}" || failed=1
	fi
	if [ "$failed" != 0 ]; then
		error "Full-stack test failed"
		return 1
	fi
	if [ "$dropped" != 0 ]; then
		warn "$dropped packets were dropped by the kernel, and counted: the rate is too high for this machine"
		success "Every packet is accounted for: $stored stored and verified, $dropped dropped"
	elif [ -n "$sent" ]; then
		success "Every packet sent was stored and verified: $stored of $sent"
	else
		success "Every packet received was stored: $stored of $received"
	fi
}

parse "$@"
[ "$restore" = no ] || restore_all
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
scratch=$(mktemp -d "${UNIFIED_SCRATCH:-/var/tmp}/unified-full-stack.XXXXXX") || exit 1

info "Full-Stack Unified Interface Test"
check_system
build
if [ -n "$selftest" ] && [ "$port" != 9999 ]; then
	die "programs of the registration interface listen on port 9999"
fi
[ -n "$iface" ] || make_network
tune_interface
prepare_devices
check_placement
tune_memory
start_program
generate
stop_program
if [ -n "$selftest" ]; then judge_selftest; else judge; fi
