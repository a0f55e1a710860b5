# A drive that is pulled out while it is written to: what was on its way fails, the recorder lives and says what it
# lost, and the same drive can be recorded to when it is back.
. /tests/common

drive=$(drive mdts64)
function=$(readlink -f "/sys/class/nvme/$drive/device")

record "/dev/${drive}n1"
send 20000 1024 4000 &
sending=$!
until_said 10 "$scratch/recorder" '^Stats: RX=[1-9].*Stored=[1-9]'
echo 1 >"$function/remove"
wait $sending
kill -0 $running || fail "it did not live: $(cat "$scratch/recorder")"
until_said 10 "$scratch/recorder" 'Errors=[1-9]'
finished failed
received=$(final "$scratch/recorder" 'Packets received')
stored=$(final "$scratch/recorder" 'Packets stored')
errors=$(final "$scratch/recorder" Errors)
[ "$stored" -gt 0 ] && [ "$errors" -gt 0 ] && [ $((stored + errors)) = "$received" ] ||
    fail "received $received, stored $stored, errors $errors: $(cat "$scratch/recorder")"

echo 1 >/sys/bus/pci/rescan
left=100
until [ -n "$(drive mdts64 2>/dev/null)" ] && [ -e "/dev/$(drive mdts64)n1" ]; do
    left=$((left - 1))
    [ $left -gt 0 ] || fail "the drive did not come back"
    sleep 0.1
done
record "/dev/$(drive mdts64)n1"
send 500 1024 1000
until_said 10 "$scratch/recorder" '^Stats: RX=500 .*Stored=500 .*Errors=0'
finished fine
