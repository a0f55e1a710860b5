# A remote namespace: the kernel's NVMe target on loopback, and its host, with the tests of a local drive.
. /tests/common

target=/sys/kernel/config/nvmet
mount -t configfs configfs /sys/kernel/config 2>/dev/null
[ -d $target ] || fail "the kernel's NVMe target is not there"
nqn=unified-test
truncate -s 64M /run/remote.img
loop=$(losetup -f)
losetup "$loop" /run/remote.img || fail "no loop device"

undo() {
    code=$?
    nvme disconnect -n $nqn >/dev/null
    rm -f $target/ports/1/subsystems/$nqn
    rmdir $target/ports/1
    echo 0 >$target/subsystems/$nqn/namespaces/1/enable
    rmdir $target/subsystems/$nqn/namespaces/1
    rmdir $target/subsystems/$nqn
    losetup -d "$loop"
    rm -f /run/remote.img
    [ $code != 0 ] || exit 0
    exit $code
}
trap 'undo; finish' EXIT

mkdir $target/subsystems/$nqn || fail "no subsystem"
echo 1 >$target/subsystems/$nqn/attr_allow_any_host
mkdir $target/subsystems/$nqn/namespaces/1
echo "$loop" >$target/subsystems/$nqn/namespaces/1/device_path
echo 1 >$target/subsystems/$nqn/namespaces/1/enable
mkdir $target/ports/1
echo 127.0.0.1 >$target/ports/1/addr_traddr
echo tcp >$target/ports/1/addr_trtype
echo 4420 >$target/ports/1/addr_trsvcid
echo ipv4 >$target/ports/1/addr_adrfam
ln -s $target/subsystems/$nqn $target/ports/1/subsystems/$nqn || fail "the target does not listen"

before=$(ls /dev/ng*n*)
host=$(cat /proc/sys/kernel/random/uuid)
nvme connect -t tcp -a 127.0.0.1 -s 4420 -n $nqn -q "nqn.2014-08.org.nvmexpress:uuid:$host" -I "$host" || fail "no connection"
left=50
while [ "$(ls /dev/ng*n*)" = "$before" ]; do
    left=$((left - 1))
    [ $left -gt 0 ] || fail "no remote namespace came up"
    sleep 0.1
done
for node in /dev/ng*n*; do
    case "$before" in *"$node"*) ;; *) UNIFIED_TEST_NVME=$node ;; esac
done
export UNIFIED_TEST_NVME
nvme list >/dev/ttyS0
echo "the remote namespace is $UNIFIED_TEST_NVME"
grep -q tcp /sys/class/nvme/*/transport || fail "no controller is reached by TCP"
for test in packets_by_the_callers_thread packets_by_the_engines_thread; do
    /tests/guest_nvme --exact $test --nocapture --test-threads=1 >"$scratch/out" 2>&1 || fail "$test: $(cat "$scratch/out")"
    says "$scratch/out" "$UNIFIED_TEST_NVME frames of 4096" '1 passed'
done
