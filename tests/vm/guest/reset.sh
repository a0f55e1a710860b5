# A controller that is reset again and again while it is written to: each write is stored or fails, once, and what is
# said to be stored is there, at its own place.
. /tests/common

drive=$(drive mdts64)
# Payloads of an earlier test are like those of this one.
dd if=/dev/zero of="/dev/${drive}n1" bs=1M conv=fsync 2>/dev/null
begin "$scratch/out" bash "$SCRIPT" --yes --no-traffic --duration 12 --size 1024 eth0 "/dev/${drive}n1" 0
until_said 30 "$scratch/out" '^System ready'
send 20000 1024 4000 &
sending=$!
until_said 10 "$scratch/out" '^Stats: RX=[1-9].*Stored=[1-9]'
for _ in 1 2 3; do
    nvme reset "/dev/$drive" || fail "no reset"
    sleep 0.3
done
wait $sending
wait $running
code=$?
running=
cat "$scratch/out" >/dev/ttyS0
received=$(final "$scratch/out" 'Packets received')
stored=$(final "$scratch/out" 'Packets stored')
errors=$(final "$scratch/out" Errors)
[ "$stored" -gt 1000 ] && [ $((stored + errors)) = "$received" ] ||
    fail "received $received, stored $stored, errors $errors: $(cat "$scratch/out")"
# A write that failed is an error of the program; none failed: everything is fine.
[ $((errors > 0)) = $((code != 0)) ] || fail "exit code $code with $errors errors: $(cat "$scratch/out")"
"$UNIFIED_OUT/bin/unified-traffic" verify --scan --stored "$stored" --size 1024 "/dev/${drive}n1" >"$scratch/verified" 2>&1
grep -Eq "^Verified: $stored of $stored stored payloads intact; 0 damaged, 0 doubled" "$scratch/verified" ||
    fail "stored $stored, errors $errors: $(cat "$scratch/verified")"
