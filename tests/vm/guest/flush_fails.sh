# Every flush of the drive fails: what was stored is not called durable.
. /tests/common

drive=$(drive noflush)
# A log, first, for none is begun over payloads. With a flush every 20 ms: none of its records is ever durable.
begin "$scratch/log" "$UNIFIED_OUT/bin/recorder" record eth0 "/dev/${drive}n1" 500
until_said 30 "$scratch/log" '^Recording from sequence number'
send 500 1024 1000
sleep 1
kill -0 $running || fail "it took them for durable: $(cat "$scratch/log")"
kill -INT $running
wait $running && fail "exit code 0: $(cat "$scratch/log")"
running=
cat "$scratch/log" >/dev/ttyS0
says "$scratch/log" '^500 recorded, 0 failed, 0 durable'

# And payloads.
record "/dev/${drive}n1"
send 500 1024 1000
until_said 10 "$scratch/recorder" '^Stats: RX=500 .*Stored=500 .*Errors=0'
finished failed
says "$scratch/recorder" 'The flush at the end failed: what was stored may not be durable' '^  Books: balanced'
