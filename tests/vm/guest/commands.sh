# What docs/operations.md shows: the usual commands, on a recorder that runs. What they print is on the console.
. /tests/common

drive=$(drive plain)
# Since 6.13 the block layer counts passthrough if that is enabled.
account=/sys/block/${drive}n1/queue/iostats_passthrough
[ ! -e "$account" ] || echo 1 >"$account"
written=$(awk '{ print $5 }' "/sys/block/${drive}n1/stat")
record "/dev/${drive}n1"
send 500 1024 1000
until_said 10 "$scratch/recorder" '^Stats: RX=500 '

try() { # NAME COMMAND: what it prints is in $scratch/NAME
    name=$1
    shift
    echo "\$ $*" >/dev/ttyS0
    "$@" >"$scratch/$name" 2>&1 || fail "$*: exit code $?: $(cat "$scratch/$name")"
    cat "$scratch/$name" >/dev/ttyS0
}

try net bpftool net show dev eth0
says "$scratch/net" 'eth0([0-9]*) driver id [0-9]'
try progs bpftool prog show
says "$scratch/progs" 'name unified_xdp' 'name xdp_dispatcher'
try status xdp-loader status eth0
says "$scratch/status" 'xdp_dispatcher' '50 *unified_xdp'
try maps bpftool map show
says "$scratch/maps" 'name unified_xsks' 'name unified_ports' 'name unified_stats' 'name unified_events'
try ports bpftool map lookup name unified_ports key hex 0f 27 00 00
says "$scratch/ports" '"value": 1'
try counters bpftool map dump name unified_stats
# Per-CPU counters: the 500 packets are among them.
grep -Eq '"?redirected"?:? *[0-9]' "$scratch/counters" || fail "no counter has a name: $(cat "$scratch/counters")"
sum=$(grep -Eo '"redirected": [0-9]+' "$scratch/counters" | awk '{ n += $2 } END { print n + 0 }')
[ "$sum" = 500 ] || fail "bpftool counts $sum redirected packets: $(cat "$scratch/counters")"
try sockets ss -a -A xdp -p -e
# Kernel 6.1 is built without CONFIG_XDP_SOCKETS_DIAG.
case $(uname -r) in
6.1.*) ;;
*) says "$scratch/sockets" 'eth0:q0' 'unified-full-st' ;;
esac
try link ip -s link show dev eth0
says "$scratch/link" 'prog/xdp id [0-9]' 'RX: *bytes *packets'
try list nvme list
says "$scratch/list" "/dev/${drive}n1" 'plain'
try identify nvme id-ctrl "/dev/$drive"
says "$scratch/identify" '^mdts *: 7' '^sn *: plain'
try io iostat -x "${drive}n1" 1 2
says "$scratch/io" "^${drive}n1 " 'w/s'
written=$(($(awk '{ print $5 }' "/sys/block/${drive}n1/stat") - written))
if [ -e "$account" ]; then
    echo 0 >"$account"
    [ $written -gt 0 ] || fail "iostat's counters show no write"
else
    [ $written = 0 ] || fail "iostat's counters show $written writes, which docs/operations.md denies"
fi

finished fine
