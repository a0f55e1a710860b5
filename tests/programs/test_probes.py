"""USDT probes: that the library has them, and that bpftrace counts with them what the library counts itself."""

import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections import Counter

from conftest import OUT, ROOT, must, need

LIBRARY = OUT / "lib/libunified.so"
NAMES = {"received", "submitted", "completed", "bounced", "dropped"}


def notes() -> list:
    """(name, address of its semaphore, arguments) of each place of a probe."""
    text = must("readelf", "-n", LIBRARY)
    found = re.findall(r"Provider: (\w+)\n\s+Name: (\w+)\n.*?Semaphore: 0x([0-9a-f]+)\n\s+Arguments: (.*)\n", text)
    assert {provider for provider, *_ in found} == {"unified"}
    return [(name, int(semaphore, 16), arguments.split()) for _, name, semaphore, arguments in found]


def test_the_library_has_its_probes():
    places = Counter(name for name, *_ in notes())
    assert set(places) == NAMES
    # Inlined where it must cost nothing, and not in every corner.
    assert max(places.values()) <= 4, places
    told = (ROOT / "docs/monitoring.md").read_text()
    for name, semaphore, arguments in notes():
        assert semaphore, "somebody pays for its arguments all the time"
        row = re.search(rf"^\| `unified:{name}` \| (.*?) \|", told, re.M)
        assert row and row[1].count(",") + 1 == len(arguments), (name, row and row[1], arguments)


# A headroom that puts payloads where a file does not take them: each is bounced.
PROGRAM = """
import dataclasses, json, sys, unified
with unified.Context(interface=sys.argv[1], device=sys.argv[2], file_size=1 << 22, headroom=100) as context, context.pipeline():
    for _ in sys.stdin:
        print(json.dumps(dataclasses.asdict(context.statistics())), flush=True)
"""


def test_bpftrace_counts_what_the_library_counts(network, device, start, tmp_path):
    need("bpftrace", "readelf")
    env = os.environ | {"UNIFIED_LIB": str(LIBRARY.resolve()), "PYTHONPATH": str(ROOT / "bindings/python")}
    program = subprocess.Popen([sys.executable, "-B", "-c", PROGRAM, network.near, device], env=env, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask() -> dict:
        program.stdin.write("?\n")
        program.stdin.flush()
        return json.loads(program.stdout.readline())

    try:
        assert ask()["xdp_attached"] == 1
        script = tmp_path / "count.bt"
        script.write_text("".join(f"usdt:{LIBRARY.resolve()}:unified:{probe} {{ {body} }}\n" for probe, body in {
            "received": "@n[0, arg0 < 4096] = count(); @bytes = sum(arg1);",
            "submitted": "@n[1, 0] = count();",
            "completed": "@n[2, arg4] = count(); @written = sum(arg2); @longest = max(arg5);",
            "bounced": "@n[3, 0] = count(); @copied = sum(arg2);",
            "dropped": "@why[str(arg0)] = sum(arg1);",
        }.items()))
        tracer = start("bpftrace", "-f", "json", "-p", program.pid, script)
        attached(program.pid, tracer)
        network.send(200, 700)
        # Empty payloads have nothing to store: they are let go.
        must("ip", "netns", "exec", network.ns, sys.executable, "-c", f"""
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    for _ in range(7):
        s.sendto(b"", ("{network.address}", 9999))
""")
        end = time.monotonic() + 20
        while (stats := ask())["stored"] + stats["released"] < 207 and time.monotonic() < end:
            time.sleep(0.02)
        tracer.process.send_signal(signal.SIGINT)
        assert tracer.end() == 0, tracer.text()
    finally:
        program.stdin.close()
        program.wait(30)
    maps = {}
    for line in tracer.text().splitlines():
        if line.startswith("{") and (said := json.loads(line))["type"] in ("map", "stat"):
            maps |= said["data"]
    assert (stats["received"], stats["stored"], stats["released"], stats["bounced"]) == (207, 200, 7, 200), stats
    counted = {tuple(map(int, key.split(","))): value for key, value in maps["@n"].items()}
    assert counted == {(0, 1): stats["received"], (1, 0): stats["submitted"], (2, 0): stats["completed"],
                       (3, 0): stats["bounced"]}
    assert (maps["@bytes"], maps["@written"]) == (stats["received_bytes"], stats["bytes_written"])
    assert maps["@copied"] == stats["bounced_bytes"]
    assert maps["@why"] == {"released": 7}
    assert 0 < maps["@longest"] < 20 * 10**9


def attached(pid: int, tracer) -> None:
    """Waits until every place of every probe is listened to: the kernel counts that in the probe's semaphore."""
    name = str(LIBRARY.resolve())
    maps = re.findall(rf"^([0-9a-f]+)-\S+ \S+ ([0-9a-f]+) .*{re.escape(name)}$", open(f"/proc/{pid}/maps").read(), re.M)
    base = next(int(start, 16) for start, offset in maps if int(offset, 16) == 0)
    wanted = Counter(semaphore for _, semaphore, _ in notes())
    end = time.monotonic() + 30
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        while time.monotonic() < end and tracer.process.poll() is None:
            now = {at: struct.unpack("H", os.pread(memory.fileno(), 2, base + at))[0] for at in wanted}
            if now == wanted:
                return
            time.sleep(0.05)
    raise AssertionError(f"{now}, not {wanted}: {tracer.text()}")
