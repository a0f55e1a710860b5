# Random writes through passthrough to one namespace, by this library and by fio in turn; a line for each on the console.
# A comparison, and no test: nothing depends on how fast either is.
. /tests/common

drive=$(drive plain)
node=/dev/ng${drive#nvme}n1

ours() { # DRIVE DEPTH
    said=$(/opt/unified/bin/write-only --random --drive "$1" "$node" 4096 "$2" 2) || fail "write-only: $said"
    echo "peers who=unified-$1 depth=$2 $said" >/dev/ttyS0
}

fio_writes() { # DEPTH
    said=$(fio --name=write --filename="$node" --ioengine=io_uring_cmd --cmd_type=nvme --rw=randwrite --bs=4096 \
        --iodepth="$1" --fixedbufs --registerfiles --norandommap --randrepeat=0 --time_based --runtime=2 \
        --gtod_reduce=1 --minimal 2>&1) || fail "fio: $said"
    rate=$(echo "$said" | grep '^3;' | cut -d';' -f49)
    [ "${rate:-0}" -gt 0 ] || fail "fio wrote nothing: $said"
    echo "peers who=fio depth=$1 rate=$rate" >/dev/ttyS0
}

for round in 1 2 3 4 5; do
    for depth in 8 32 128; do
        ours inline $depth
        fio_writes $depth
        ours thread $depth
    done
done
