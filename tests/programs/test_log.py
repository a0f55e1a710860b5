"""Logs: recorded by the example, read by it, exported for tcpdump."""

import re
import signal
import struct
import time

from conftest import OUT, call, must

EXPORT = OUT / "bin/unified-export"
RECORDER = OUT / "bin/recorder"


def record(start, network, device, count, size="100-1400"):
    recorder = start(RECORDER, "record", network.near, device, count)
    recorder.until("^Recording from sequence number")
    network.send(count, size)
    assert recorder.end() == 0, recorder.text()
    assert f"{count} recorded, 0 failed, {count} durable" in recorder.text()
    return recorder.text()


def test_recorded_shown_and_exported(network, device, start, tmp_path):
    before = time.time()
    assert "from sequence number 0 on" in record(start, network, device, 300)
    assert "from sequence number 300 on" in record(start, network, device, 200)
    after = time.time()

    lines = must(RECORDER, "show", device).splitlines()
    assert [int(line.split()[0]) for line in lines] == list(range(500))
    assert all(re.fullmatch(r"\d+ \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z port 9999: \d+ bytes", line) for line in lines)

    report = must(EXPORT, "report", device)
    assert "oldest 0, end 500" in report
    assert re.search(r"^500 records of \d+ bytes over .* s; 0 missing, 0 damaged, 0 overwritten$", report, re.M)

    capture = tmp_path / "log.pcapng"
    must(EXPORT, "pcapng", device, capture)
    packets = must("tcpdump", "-n", "-tt", "--nano", "-r", capture).splitlines()
    packets = [line for line in packets if "UDP" in line]
    assert len(packets) == 500
    times = [float(line.split()[0]) for line in packets]
    assert times == sorted(times) and before - 1 < times[0] <= times[-1] < after + 1
    assert all(f"> {network.address}.9999: UDP, length" in line for line in packets)
    # The second run sent the same payloads again: number 0 to 199.
    shown = [int(line.rsplit(" ", 1)[1]) for line in packets]
    assert shown[300:] == shown[:200]

    part = must(EXPORT, "pcapng", device, tmp_path / "part", "--from", 450, "--count", 10)
    assert "10 packets" in part
    since = must(EXPORT, "pcapng", device, tmp_path / "since", "--since", times[490])
    # Seconds as a decimal number hold no nanoseconds: one packet more or less.
    assert 9 <= int(since.split()[0]) <= 11


def test_a_damaged_record_is_told_and_left_out(network, device, start, tmp_path):
    record(start, network, device, 50, "500")
    with open(device, "r+b") as file:
        file.seek((2 + 20) * 2048 + 600)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
        # And one that is gone: its magic overwritten.
        file.seek((2 + 30) * 2048)
        file.write(bytes(4))
    report = call(EXPORT, "report", device)
    assert report.returncode == 1
    assert "record 20: damaged" in report.stdout and "record 30: never completed" in report.stdout
    assert "48 records" in report.stdout
    assert "20 and 0 more: damaged" in must(RECORDER, "show", device)


def test_followed_while_it_grows(network, device, start):
    recorder = start(RECORDER, "record", network.near, device, 1000000)
    recorder.until("^Recording")
    shower = start("stdbuf", "-oL", RECORDER, "show", device, 3)
    network.send(100)
    shower.until("^99 .*bytes$", 3)
    network.send(50)
    shower.until("^149 .*bytes$", 3)
    recorder.process.send_signal(signal.SIGINT)
    assert recorder.end() == 0
    assert shower.end(10) == 0
    assert len(shower.text().splitlines()) == 150


def test_what_is_no_log_is_refused(device):
    device.write_bytes(struct.pack("<Q", 1) * 100000)
    for command in ([EXPORT, "report", device], [RECORDER, "show", device]):
        result = call(*command)
        assert result.returncode in (1, 2) and "there is no log" in result.stdout
