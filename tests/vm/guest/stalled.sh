# A drive that does next to nothing for twenty seconds, and then goes on: nothing that was received is lost, what finds no
# room meanwhile is counted, and it recovers by itself.
. /tests/common

drive=$(drive mdts64)
dd if=/dev/zero of="/dev/${drive}n1" bs=1M conv=fsync 2>/dev/null
record "/dev/${drive}n1"
send 1000 1024 2000
until_said 10 "$scratch/recorder" '^Stats: RX=1000 .*Stored=1000 '
ask "throttle mdts64-1 1" throttled
# More than the rings and frames can hold.
ask "send 6000 1024 2000 9999 1000" "sent 6000"
sleep 17
stored=$(sed -n 's/^Stats: .*Stored=\([0-9]*\).*/\1/p' "$scratch/recorder" | tail -n 1)
ask "throttle mdts64-1 0" throttled
[ "$stored" -lt 5000 ] || fail "the drive did not stall: $(cat "$scratch/recorder")"
sleep 3
before=$(sed -n 's/^Stats: RX=\([0-9]*\).*/\1/p' "$scratch/recorder" | tail -n 1)
ask "send 500 1024 1000 9999 7000" "sent 500"
until_said 10 "$scratch/recorder" "^Stats: RX=$((before + 500)) .*Stored=$((before + 500)) "
finished fine
received=$(final "$scratch/recorder" 'Packets received')
stored=$(final "$scratch/recorder" 'Packets stored')
dropped=$(sed -n 's/^  Dropped: \([0-9]*\) .*/\1/p' "$scratch/recorder")
redirected=$(sed -n 's/^  Packets seen .*redirected: \([0-9]*\).*/\1/p' "$scratch/recorder")
says "$scratch/recorder" '^  Errors: 0$' '^  Books: balanced'
# With zero-copy the NIC itself has no buffers left: what it drops no program sees.
[ "$stored" = "$received" ] && [ $((received + dropped)) = "$redirected" ] && [ "$redirected" -le 7500 ] &&
    [ "$received" -gt 3000 ] && [ "$received" -lt 7500 ] ||
    fail "received $received, stored $stored, dropped $dropped, redirected $redirected: $(cat "$scratch/recorder")"
"$UNIFIED_OUT/bin/unified-traffic" verify --scan --stored "$stored" --size 1024 "/dev/${drive}n1" ||
    fail "not all of it is there: $(cat "$scratch/recorder")"
