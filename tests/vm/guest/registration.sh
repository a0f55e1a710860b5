# An unchanged program of the registration interface, through passthrough. It brings an XDP program of its own,
# which it compiles here. virtio_net of kernel 7.2 with zero-copy gives it no packets (docs/kernel-features.md), so
# they come over a veth pair.
. /tests/common

node=/dev/$(drive plain)n1
for size in 100 1024 1472; do
    bash "$SCRIPT" --selftest /opt/unified/bin/uapi-full-stack --yes --duration 2 --rate 1000 --size $size \
        "" "$node" >"$scratch/out" 2>&1 || fail "size $size: exit code $?: $(cat "$scratch/out")"
    stored=$(sed -n 's/.*The program says: received \([0-9]*\), stored \([0-9]*\), errors 0$/\2/p' "$scratch/out")
    [ "${stored:-0}" -ge 1500 ] || fail "'$stored' payloads were stored: $(cat "$scratch/out")"
    says "$scratch/out" "Verified: $stored of $stored stored payloads intact" \
        "^\[SUCCESS\] Everything that the program says it stored is on the device: $stored of $stored"
done
cat "$scratch/out" >/dev/ttyS0
