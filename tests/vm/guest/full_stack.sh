# run-full-stack-test.sh eth0 /dev/nvme0n1 0: the documented job, through passthrough.
. /tests/common

node=/dev/$(drive plain)n1
for size in 1472 1024 100; do
    begin "$scratch/out" bash "$SCRIPT" --yes --no-traffic --verify --duration 6 --size $size eth0 "$node" 0
    until_said 30 "$scratch/out" '^System ready'
    send 1500 $size 2000
    wait $running || fail "size $size: exit code $?: $(cat "$scratch/out")"
    running=
    says "$scratch/out" '^\[INFO\] Interface: eth0 (queue 0)' "^\[INFO\] NVMe device: $node" \
        '^\[INFO\] Listening port: 9999' '^System ready. Waiting for packets' '^Stats: RX=[1-9]' 'Final' \
        'nvme passthrough' 'Packets received: *1500$' 'Packets stored: *1500$' \
        'Verified: 1500 of 1500 stored payloads intact' \
        '^\[SUCCESS\] Every packet received was stored: 1500 of 1500'
done
cat "$scratch/out" >/dev/ttyS0
