"""Logs: recorded by the example, read by it, exported for tcpdump."""

import os
import re
import signal
import struct
import subprocess
import time
from pathlib import Path

import pytest

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


UNREADABLE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

/* Reads that touch the byte BAD fail, as a disk's do at a bad sector. */
ssize_t pread64(int fd, void *to, size_t len, off64_t at)
{
	ssize_t (*real)(int, void *, size_t, off64_t) = dlsym(RTLD_NEXT, "pread64");
	off64_t bad = atoll(getenv("BAD"));

	if (bad >= at && bad < at + (off64_t)len) {
		errno = EIO;
		return -1;
	}
	return real(fd, to, len, at);
}
"""


def test_an_unreadable_sector_costs_its_record(network, device, start, tmp_path):
    record(start, network, device, 300, "500")
    (tmp_path / "bad.c").write_text(UNREADABLE)
    must("cc", "-shared", "-fPIC", "-o", tmp_path / "bad.so", tmp_path / "bad.c", "-ldl")

    def read(byte, *words):
        return call("env", f"LD_PRELOAD={tmp_path / 'bad.so'}", f"BAD={byte}", EXPORT, *words)

    slot = 2048
    report = read((2 + 123) * slot + 700, "report", device)
    assert report.returncode == 1 and "record 123: damaged" in report.stdout, report.stdout
    assert re.search(r"^299 records .* 0 missing, 1 damaged, 0 overwritten$", report.stdout, re.M), report.stdout
    export = read((2 + 123) * slot + 700, "pcapng", device, tmp_path / "out")
    assert "299 packets" in export.stdout
    # In what is searched for the log's end, and in either copy of the superblock.
    for byte in ((2 + 299) * slot, 0, slot):
        report = read(byte, "report", device)
        assert re.search(r"^(299|300) records", report.stdout, re.M), report.stdout
    # Nothing can be read: an error, and no empty log.
    everything = tmp_path / "all.c"
    everything.write_text(UNREADABLE.replace("bad >= at && bad < at + (off64_t)len", "len > 0 && bad >= 0"))
    must("cc", "-shared", "-fPIC", "-o", tmp_path / "bad.so", everything, "-ldl")
    report = read(0, "report", device)
    assert report.returncode == 2 and "Input/output error" in report.stdout, report.stdout


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_a_log_of_a_later_version_is_refused_and_kept(network, device, start):
    record(start, network, device, 20)
    with open(device, "r+b") as file:
        for at in (0, 2048):
            file.seek(at)
            block = bytearray(file.read(128))
            block[8:10] = struct.pack("<H", 3)
            block[124:] = struct.pack("<I", crc32c(block[:124]))
            file.seek(at)
            file.write(block)
    before = device.read_bytes()
    for command in ([EXPORT, "report", device], [RECORDER, "show", device], [RECORDER, "record", network.near, device, 1]):
        refused = call(*command)
        assert refused.returncode != 0 and "a log of version 3" in refused.stdout, refused.stdout
    assert device.read_bytes() == before


def test_a_log_is_never_its_own_output(network, device, start, tmp_path):
    record(start, network, device, 20)
    before = device.read_bytes()
    symbolic, hard = tmp_path / "symbolic", device.with_suffix(".hard")
    symbolic.symlink_to(device)
    hard.hardlink_to(device)
    try:
        for output in (device, symbolic, hard):
            refused = call(EXPORT, "pcapng", device, output)
            assert refused.returncode == 2 and "would be destroyed" in refused.stdout, refused.stdout
        with open(device, "ab") as file:
            appended = subprocess.run([EXPORT, "pcapng", device, "-"], stdout=file, stderr=subprocess.PIPE, timeout=20)
        assert appended.returncode == 2 and b"would be destroyed" in appended.stderr
        other = tmp_path / "other"
        other.write_text("precious")
        assert call(EXPORT, "pcapng", symbolic, other, "--spill", other).returncode == 2
        assert other.read_text() == "precious"
        # A mistyped device is no file in memory.
        mistyped = Path("/dev/unified-nvme9n1")
        refused = call(EXPORT, "pcapng", device, mistyped)
        assert refused.returncode == 2 and "no file is created there" in refused.stdout and not mistyped.exists()
        assert call(EXPORT, "pcapng", device, "/dev/null").returncode == 0
    finally:
        hard.unlink()
    assert device.read_bytes() == before


def blocks(data, growing=False):
    """Types of the whole blocks in a pcapng file, which must end with one unless it is still written."""
    found, at = [], 0
    while at < len(data):
        if growing and len(data) < at + 8:
            break
        kind, length = struct.unpack_from("<II", data, at)
        if growing and len(data) < at + length:
            break
        assert at + length <= len(data) and struct.unpack_from("<I", data, at + length - 4)[0] == length
        found.append(kind)
        at += length
    return found


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_export_streams_and_ends_in_whole_blocks(network, device, start, tmp_path, sent):
    recorder = start(RECORDER, "record", network.near, device, 1000000)
    recorder.until("^Recording")
    output = tmp_path / "stream"
    with open(output, "wb") as file:
        export = subprocess.Popen([EXPORT, "pcapng", device, "-", "--follow"], stdout=file, stderr=subprocess.DEVNULL)
    try:
        for count in (100, 150):
            network.send(count if count == 100 else 50)
            end = time.monotonic() + 5
            while blocks(output.read_bytes(), growing=True).count(6) < count and time.monotonic() < end:
                time.sleep(0.02)
            assert blocks(output.read_bytes(), growing=True).count(6) == count, "not streamed while it runs"
        export.send_signal(sent)
        assert export.wait(5) == 0
    finally:
        export.kill()
        export.wait()
    assert blocks(output.read_bytes()).count(6) == 150
    recorder.process.send_signal(signal.SIGINT)
    assert recorder.end() == 0


def statistics(data):
    """Name of the interface, and the options of the statistics, of a pcapng file."""
    def options(block):
        found = {}
        while block:
            code, length = struct.unpack_from("<HH", block)
            if code == 0:
                break
            found[code] = block[4:4 + length]
            block = block[4 + (length + 3) // 4 * 4:]
        return found

    name, found, at = None, None, 0
    while at < len(data):
        kind, length = struct.unpack_from("<II", data, at)
        if kind == 1:
            name = options(data[at + 16:at + length - 4]).get(2, b"").decode()
        elif kind == 5:
            found = options(data[at + 20:at + length - 4])
            high, low = struct.unpack_from("<II", data, at + 12)
            found["time"] = (high << 32 | low) / 1e9
        at += length
    return name, found


def test_losses_are_reported_and_exported(network, device, start, tmp_path):
    begin = time.time()
    recorder = start(RECORDER, "record", network.near, device, 1000000)
    recorder.until("^Recording")
    network.send(20)
    # Nobody takes packets: the rings of 2048 entries fill, and the rest is dropped.
    recorder.process.send_signal(signal.SIGSTOP)
    network.send(6000)
    recorder.process.send_signal(signal.SIGCONT)
    time.sleep(0.2)
    recorder.process.send_signal(signal.SIGINT)
    assert recorder.end() == 0
    recorded = int(re.search(r"^(\d+) recorded, 0 failed", recorder.text(), re.M)[1])
    lost = 6020 - recorded
    assert lost > 1000 and f"{lost} dropped by the kernel" in recorder.text(), recorder.text()

    report = call(EXPORT, "report", device)
    assert report.returncode == 1
    assert f"interface {network.near}; lost before they could be recorded: {lost} dropped by the kernel, 0 seen" in report.stdout

    capture = tmp_path / "log.pcapng"
    assert f"{lost} dropped by the kernel" in must(EXPORT, "pcapng", device, capture)
    name, found = statistics(capture.read_bytes())
    assert name == network.near
    received, dropped = (int.from_bytes(found[code], "little") for code in (4, 5))
    assert (received, dropped) == (6020, lost)
    high, low = struct.unpack("<II", found[2])
    assert begin - 1 < (high << 32 | low) / 1e9 < found["time"] < time.time() + 1

    # A recorder of an earlier version says nothing of it, and nothing is claimed.
    with open(device, "r+b") as file:
        for at in (0, 2048):
            file.seek(at)
            block = bytearray(file.read(128))
            block[72:124] = bytes(52)
            block[124:] = struct.pack("<I", crc32c(bytes(block[:124])))
            file.seek(at)
            file.write(block)
    report = call(EXPORT, "report", device)
    assert report.returncode == 0 and "losses are not known" in report.stdout, report.stdout
    must(EXPORT, "pcapng", device, capture)
    assert statistics(capture.read_bytes()) == ("", None)


def test_a_reader_may_have_seen_enough(network, device, start):
    record(start, network, device, 50)
    # Without a pipe's buffer that takes all of it: the reader is gone before anything is written.
    for words in ([EXPORT, "report", device], [EXPORT, "pcapng", device, "-"], [OUT / "bin/unified-traffic", "--help"]):
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run([str(w) for w in words], stdout=write, stderr=subprocess.PIPE, text=True, timeout=20)
        os.close(write)
        assert "panicked" not in done.stderr, done.stderr


def test_a_full_disk_is_told_and_nothing_panics(network, device, start, tmp_path):
    record(start, network, device, 300)
    verify = [OUT / "bin/unified-traffic", "verify", "--stored", 1, device]
    for words in ([EXPORT, "report", device], [EXPORT, "pcapng", device, "-"], [EXPORT, "pcapng", device, "/dev/full"],
                  [RECORDER, "show", device], verify, [OUT / "bin/unified-export", "report", "/nonexistent"]):
        for stream in ("stdout", "stderr"):
            with open("/dev/full", "w") as full:
                streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: full}
                done = subprocess.run([str(word) for word in words], timeout=20, **streams)
            said = (done.stderr or b"").decode()
            assert 0 <= done.returncode <= 2 and "panicked" not in said, (words, said)
            if stream == "stdout" and "/nonexistent" not in words:
                assert done.returncode > 0 and "No space left on device" in said, (words, said)


def test_the_library_says_what_it_does_if_asked(network, device, start):
    said = call("env", "UNIFIED_LOG=info", RECORDER, "record", network.near, device, 0)
    assert re.search("^unified: ", said.stdout, re.M), said.stdout
    quiet = call(RECORDER, "record", network.near, device, 0)
    assert quiet.returncode == said.returncode == 0 and "unified: " not in quiet.stdout
    wrong = call("env", "UNIFIED_LOG=loud", RECORDER, "record", network.near, device, 0)
    assert "UNIFIED_LOG is 'loud', which is not a level" in wrong.stdout


def test_an_interface_without_ethernet_headers_is_refused(network, device):
    must("ip", "-n", network.ns, "tuntap", "add", "dev", "plain0", "mode", "tun")
    must("ip", "-n", network.ns, "link", "set", "plain0", "up")
    refused = call("ip", "netns", "exec", network.ns, RECORDER, "record", "plain0", device, 1)
    assert refused.returncode == 1 and "'plain0' has no Ethernet headers" in refused.stdout, refused.stdout
    assert not device.exists()
