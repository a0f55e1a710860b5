# One block of the drive cannot be written: the write that meets it fails with the drive's own status, and no other,
# also where they went to the drive as one command.
. /tests/common

drive=$(drive badblock)
"$UNIFIED_OUT/bin/unified-full-stack-test" eth0 "/dev/${drive}n1" 0 >"$scratch/recorder" 2>&1 &
running=$!
until_said 30 "$scratch/recorder" '^System ready'
# Two blocks each: payload 2048 is on the bad one (sector 4096).
send 4000 1024 4000
until_said 10 "$scratch/recorder" '^Stats: RX=4000 .*Stored=3999 .*Errors=1'
kill -INT $running
wait $running && fail "exit code 0: $(cat "$scratch/recorder")"
running=
cat "$scratch/recorder" >/dev/ttyS0
says "$scratch/recorder" '^Write at block 4096 failed: Write Fault' '^  Books: balanced'
"$UNIFIED_OUT/bin/unified-traffic" verify --scan --stored 3999 --size 1024 "/dev/${drive}n1" ||
    fail "the others are not all there: $(cat "$scratch/recorder")"
