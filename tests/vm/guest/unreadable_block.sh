# A log is continued although a block after its end cannot be read, and one inside it is damaged and no more.
. /tests/common

drive=$(drive unreadable)
node=/dev/${drive}n1
dd if=/dev/zero of="$node" bs=1M count=32 conv=fsync 2>/dev/null
recorder() { # COUNT FIRST
    begin "$scratch/log" "$UNIFIED_OUT/bin/recorder" record eth0 "$node" "$1"
    until_said 30 "$scratch/log" "^Recording from sequence number $2 on"
    send "$1" 100 2000
    wait $running || fail "the recorder: $(cat "$scratch/log")"
    running=
    says "$scratch/log" "^$1 recorded, 0 failed, $1 durable"
}
# The bad sector is 4096: slots of four sectors, two of which hold the superblock, so it is record 1022's.
recorder 1000 0
# The search for the end reads past record 999, and reaches it.
recorder 10 1000
recorder 20 1010
"$UNIFIED_OUT/bin/unified-export" report "$node" >"$scratch/report" && fail "nothing was damaged: $(cat "$scratch/report")"
says "$scratch/report" '^record 1022: damaged' '^1029 records .* 0 missing, 1 damaged, 0 overwritten'
