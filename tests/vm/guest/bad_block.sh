# One block of the drive cannot be written: the write that meets it fails with the drive's own status, and no other,
# also if they went to the drive as one command.
. /tests/common

drive=$(drive badblock)
record "/dev/${drive}n1"
# Two blocks each: payload 2048 is on the bad one (sector 4096).
send 4000 1024 4000
until_said 10 "$scratch/recorder" '^Stats: RX=4000 .*Stored=3999 .*Errors=1'
finished failed
says "$scratch/recorder" '^Write at block 4096 failed: Write Fault' '^  Books: balanced'
"$UNIFIED_OUT/bin/unified-traffic" verify --scan --stored 3999 --size 1024 "/dev/${drive}n1" ||
    fail "the others are not all there: $(cat "$scratch/recorder")"
