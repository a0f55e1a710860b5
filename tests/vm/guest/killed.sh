# A recorder that is killed under libxdp's dispatcher, with another program beside it: the next one takes its
# place, and neither the other program nor the pins suffer.
. /tests/common

node=/dev/$(drive plain)n1
ours() { xdp-loader status eth0 | grep -c unified_xdp; }
others() { xdp-loader status eth0 | grep -c other_pass; }

xdp-loader load -m native eth0 /tests/other.bpf.o || fail "the other program cannot be loaded"
record "$node"
[ "$(ours) $(others)" = "1 1" ] || fail "both together: $(xdp-loader status eth0)"
send 5000 1024 5000 &
sending=$!
until_said 10 "$scratch/recorder" '^Stats: RX=[1-9]'
kill -KILL $running
wait $running
wait $sending
[ "$(ours) $(others)" = "1 1" ] || fail "what the killed one left: $(xdp-loader status eth0)"
record "$node"
[ "$(ours) $(others)" = "1 1" ] || fail "taken over: $(xdp-loader status eth0)"
send 300 1024 1000
until_said 10 "$scratch/recorder" '^Stats: RX=300 .*Stored=300 '
finished fine
[ "$(ours) $(others)" = "0 1" ] || fail "after its end: $(xdp-loader status eth0)"
xdp-loader unload eth0 --all || fail "the other program cannot be unloaded"
