"""Recordings over several devices: the script, the verifier, and what they say of devices that cannot be."""

import os
import re
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import NUMBERS, OUT, ROOT, call, must

os.environ.setdefault("UNIFIED_LIB", str(OUT / "lib/libunified.so.0"))
sys.path.insert(0, str(ROOT / "bindings/python"))
import unified  # noqa: E402

SCRIPT = ROOT / "run-full-stack-test.sh"
PROGRAM = OUT / "bin/unified-full-stack-test"
TRAFFIC = OUT / "bin/unified-traffic"
EXPORT = OUT / "bin/unified-export"
TOP = OUT / "bin/unified-top"
MIB = 1 << 20


@pytest.fixture
def place():
    """A directory on the disk: that of pytest may be tmpfs."""
    path = ROOT / "target" / f"test-devices-{os.getpid()}-{next(NUMBERS)}"
    path.mkdir()
    yield path
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


@pytest.fixture
def loops(place):
    """Makes loop devices of so many bytes."""
    if os.geteuid() != 0:
        assert not os.environ.get("UNIFIED_REQUIRE_ROOT")
        pytest.skip("needs root")
    made = []

    def make(length: int) -> str:
        image = place / f"image{len(made)}"
        with open(image, "wb") as file:
            file.truncate(length)
        made.append(must("losetup", "--find", "--show", image).strip())
        return made[-1]

    yield make
    for node in made:
        must("losetup", "--detach", node)


@pytest.fixture
def env(place, tmp_path):
    return os.environ | {"UNIFIED_OUT": str(OUT), "UNIFIED_STATES": str(tmp_path / "states")}


def joined(*devices) -> str:
    return ",".join(map(str, devices))


def on_each(text: str, *devices) -> list:
    """How many payloads the verifier found on each device."""
    counts = [int(re.search(rf"^  (\d+) on {re.escape(str(one))}$", text, re.M)[1]) for one in devices]
    return counts


@pytest.mark.parametrize("queues", [1, "all"])
def test_the_script_fills_and_verifies_files_and_disks(queues, network, many_queues, loops, place, env):
    net = network if queues == 1 else many_queues
    # One that is soon full, a longer one, and a file that does not exist yet.
    devices = [loops(2 * MIB), loops(64 * MIB), place / "file"]
    result = call(SCRIPT, "--yes", "--duration", 3, "--rate", 2500, "--size", "64-1472", "--queues", queues,
                  "--from-netns", net.ns, net.near, joined(*devices), 0, env=env)
    assert result.returncode == 0, result.stdout
    sent = int(re.search(r"^Sent: (\d+) packets", result.stdout, re.M)[1])
    assert f"[SUCCESS] Every packet sent was stored and verified: {sent} of {sent}" in result.stdout
    assert f"Verified: {sent} of {sent} stored payloads intact, 0 of {sent} sent missing" in result.stdout
    counts = on_each(result.stdout, *devices)
    assert sum(counts) == sent
    # The first is full: two chunks of a mebibyte, with a payload for every three blocks at most and every block at least.
    assert 2 * MIB // 1536 <= counts[0] <= 2 * MIB // 512
    assert min(counts[1:]) > counts[0] / 3
    for one in devices:
        assert f"[INFO] NVMe device: {one}" in result.stdout
    if queues == 1:
        # Another order of the devices, or other chunks, is not what is there.
        swapped = joined(devices[1], devices[0], devices[2])
        for words in ([swapped], [joined(*devices), "--chunk", "65536"]):
            wrong = call(TRAFFIC, "verify", *words, "--stored", sent, "--size", "64-1472")
            assert wrong.returncode == 1 and " 0 out of order" not in wrong.stdout, wrong.stdout
    # A byte that changes is found, whichever device it is on.
    for number, one in enumerate(devices):
        with open(one, "r+b", buffering=0) as file:
            file.seek(20)
            byte = file.read(1)
            file.seek(20)
            file.write(bytes([byte[0] ^ 1]))
        os.sync()
        found = call(TRAFFIC, "verify", joined(*devices), "--stored", sent, "--size", "64-1472", "--unordered")
        assert found.returncode == 1 and f"Verified: {sent - 1 - number} of {sent}" in found.stdout, found.stdout
        assert f" {number + 1} damaged" in found.stdout


def test_each_device_is_checked_before_any_is_written(network, loops, place, env, tmp_path):
    disk, other, used = loops(16 * MIB), loops(16 * MIB), place / "used"
    used.write_bytes(b"old data" * 1000)
    must("mkfs.ext4", "-q", other)
    before = {path: path.read_bytes() for path in place.iterdir()}
    words = ["--duration", "1", "--rate", "500", "--from-netns", network.ns, network.near]

    def refused(devices, *said, options=()):
        result = call(SCRIPT, *options, *words, devices, env=env, stdin=open(os.devnull))
        assert result.returncode == 1, result.stdout
        for part in said:
            assert part in result.stdout, result.stdout
        os.sync()
        assert {path: path.read_bytes() for path in place.iterdir()} == before
        assert not network.program()

    # Each is named, wherever it stands.
    refused(joined(disk, other), "ext4", f"'{other}' holds data; give --yes")
    refused(joined(disk, used), f"'{used}' holds data; give --yes")
    refused(joined(disk, "/dev/nosuchdevice"), "there is no device '/dev/nosuchdevice'", options=["--yes"])
    (tmp_path / "mount").mkdir()
    must("mount", "-o", "ro,noload", other, tmp_path / "mount")
    try:
        refused(joined(disk, other), "is mounted on", options=["--yes"])
    finally:
        must("umount", tmp_path / "mount")
    # The same twice, by whatever names.
    again = tmp_path / "again"
    again.symlink_to(disk)
    refused(joined(disk, used, again), f"'{again}' and '{disk}' are the same device", options=["--yes"])
    fresh = place / "fresh"
    refused(joined(fresh, place / "." / "fresh"), "are the same device", options=["--yes"])
    refused(joined(place / "used", place.parent / place.name / "used"), "are the same device", options=["--yes"])
    # A loop device, and the file that it is of.
    refused(joined(disk, place / "image0"), "image0", options=["--yes"])


@pytest.mark.parametrize("words, said", [
    (["lo", ",".join("abcdefghijklmnopq")], "17 devices: 16 at most"),
    (["lo", "a,,b"], "'a,,b' has an empty name in it"),
    (["lo", "a,b,"], "'a,b,' has an empty name in it"),
    (["--selftest", "/bin/true", "lo", "a,b"], "write to one device, and 2 are named"),
])
def test_wrong_lists(words, said, env):
    result = call(SCRIPT, *words, env=env)
    assert result.returncode == 2 and said in result.stdout, result.stdout


def test_what_a_killed_run_has_changed_on_each_device_is_put_back(network, loops, start, env):
    disks = [loops(64 * MIB), loops(64 * MIB)]
    schedulers = [Path("/sys/block") / Path(disk).name / "queue/scheduler" for disk in disks]
    for scheduler in schedulers:
        scheduler.write_text("mq-deadline")
    running = start(SCRIPT, "--yes", "--duration", "60", "--rate", "500", "--from-netns", network.ns, network.near,
                    joined(*disks), env=env, start_new_session=True)
    running.until("^Stats: RX=[1-9]")
    assert all("[none]" in scheduler.read_text() for scheduler in schedulers)
    os.kill(running.process.pid, signal.SIGKILL)
    running.process.wait(5)
    restored = call(SCRIPT, "--restore", env=env)
    assert restored.returncode == 0 and "Everything is as it was before" in restored.stdout, restored.stdout
    assert all("[mq-deadline]" in scheduler.read_text() for scheduler in schedulers)
    assert not network.program()


@pytest.mark.parametrize("chunk", [0, 65536])
def test_the_verifier_reads_what_a_pipeline_striped(chunk, network, loops, place):
    """The library's own striping, with blocks of several sizes and devices of several lengths."""
    count, size = 3000, "16-1472"
    disk = loops(3 * MIB)
    devices = [unified.Device(disk), unified.Device(place / "a", file_size=8 * MIB, block_size=4096),
               unified.Device(place / "b", file_size=24 * MIB, block_size=512)]
    with unified.Context(interface=network.near, devices=devices, drive=unified.DRIVE_THREAD) as ctx:
        blocks = [ctx.device_info(i).block_size for i in range(3)]
        assert blocks == [512, 4096, 512]
        with ctx.pipeline(chunk_bytes=chunk) as pipeline:
            network.send(count, size, rate=3000)
            while (status := pipeline.status()).stored < count and status.running:
                pass
        stats = ctx.statistics()
        assert stats.received == stats.stored == count and stats.failed == 0
    names = [one.path for one in devices]
    options = ["--stored", count, "--sent", count, "--size", size]
    chunks = ["--chunk", chunk] if chunk else []
    text = must(TRAFFIC, "verify", joined(*names), *options, "--block", joined(*blocks), *chunks)
    assert f"Verified: {count} of {count} stored payloads intact" in text
    counts = on_each(text, *names)
    assert sum(counts) == count and min(counts) > 0
    # 3 MiB in blocks of 4096 bytes, one payload in each: it is full.
    assert counts[0] == 3 * MIB // 4096
    wrong = call(TRAFFIC, "verify", joined(*names), *options, "--block", joined(*blocks), "--chunk", chunk * 2 or 65536)
    assert wrong.returncode == 1


def test_the_verifier_refuses_what_cannot_be(place):
    for name in "ab":
        (place / name).write_bytes(bytes(MIB))
    both = joined(place / "a", place / "b")
    for words, said in [(["--chunk", "1000"], "--chunk 1000: it is no power of two"),
                        (["--chunk", 4 * MIB], "no device has room for a chunk of 4194304 bytes"),
                        (["--block", "512,512,512"], "--block has 3 sizes for 2 devices"),
                        (["--block", "513"], "513 bytes is no block size"),
                        (["--scan"], "--scan searches one device")]:
        result = call(TRAFFIC, "verify", both, "--stored", 0, *words)
        assert result.returncode == 2 and said in result.stdout, result.stdout
    absent = call(TRAFFIC, "verify", joined(place / "a", place / "c"), "--stored", 0)
    assert absent.returncode == 2 and f"reading '{place / 'c'}'" in absent.stdout
    # A name with a comma in it is one device.
    (place / "c,d").write_bytes(bytes(MIB))
    assert "Verified: 0 of 0" in must(TRAFFIC, "verify", place / "c,d", "--stored", 0)


def serve(path: Path, ctx) -> threading.Thread:
    """Answers the metrics of a context at a Unix socket, until the socket is gone."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(8)
    listener.settimeout(0.2)

    def answer():
        while path.exists():
            try:
                peer, _ = listener.accept()
            except TimeoutError:
                continue
            with peer:
                peer.settimeout(5)
                peer.recv(4096)
                text = ctx.openmetrics().encode()
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(text) + text)
        listener.close()

    thread = threading.Thread(target=answer)
    thread.start()
    return thread


def test_a_device_that_fails_is_seen_out_and_the_recording_is_read_from_the_others(network, place, tmp_path):
    """Its disk has no room: a loop device over a file on a small file system, which fails in the middle of the recording."""
    count, small, path = 12000, tmp_path / "small", Path(f"/tmp/unified-devices-{os.getpid()}.sock")
    small.mkdir()
    must("mount", "-t", "tmpfs", "-o", "size=6M", "tmpfs", small)
    node, serving = None, None
    try:
        with open(small / "image", "wb") as file:
            file.truncate(64 * MIB)
        node = must("losetup", "--find", "--show", small / "image").strip()
        devices = [unified.Device(node), unified.Device(place / "a", file_size=64 * MIB),
                   unified.Device(place / "b", file_size=64 * MIB)]
        with unified.Context(interface=network.near, devices=devices, drive=unified.DRIVE_THREAD) as ctx:
            serving = serve(path, ctx)
            with ctx.pipeline(layout=unified.LAYOUT_LOG, flush_interval=0.05) as pipeline:
                network.send(count, "1400", rate=3000)
                end = time.monotonic() + 20
                while pipeline.status().stored + pipeline.status().failed < ctx.statistics().received and time.monotonic() < end:
                    time.sleep(0.05)
                assert ctx.device_info(0).out and not ctx.device_info(1).out and not ctx.device_info(2).out
                line = must(TOP, "-n", "1", path)
                assert re.search(rf"; {node}: written .* errors \d+, in flight \d+, OUT; ", line), line
                assert re.search(rf"; {place / 'a'}: written [^;]* ok", line), line
                text = ctx.openmetrics()
                assert re.search(rf'^unified_device_out{{.*device="{node}"}} 1$', text, re.M), text
                assert re.search(rf'^unified_device_out{{.*device="{place / "a"}"}} 0$', text, re.M), text
            status, stats = pipeline.status(), ctx.statistics()
            assert stats.received == count and status.stored == count and status.failed == 0, (status, stats)
            assert status.rescued > 0
            path.unlink()
            serving.join(10)
        # What was not on the lost device is read from the others, each packet once; the rest is told as missing.
        names = joined(place / "a", place / "b")
        report = call(EXPORT, "report", names)
        assert report.returncode == 1 and re.search("device 0 of the recording .* is not read", report.stdout), report.stdout
        with unified.Log(place / "a", others=[place / "b"]) as log:
            there = [record.sequence for record in log if record.kind == unified.LOG_RECORD]
        assert len(set(there)) == len(there) and count // 4 < len(there) < count
        assert there[-1] == count - 1
        every = call(EXPORT, "report", joined(place / "b", node, place / "a"))
        found = int(re.search(r"(\d+) records", every.stdout)[1])
        assert len(there) < found <= count, every.stdout
    finally:
        path.unlink(missing_ok=True)
        if serving:
            serving.join(10)
        if node:
            must("losetup", "--detach", node)
        call("sh", "-c", f"for i in 1 2 3 4 5; do umount {small} && exit; sleep 0.3; done; exit 1")


def test_what_others_send_is_verified_on_all_devices(network, loops, place, start, env):
    devices, count = [loops(32 * MIB), place / "file", loops(32 * MIB)], 3000
    running = start(SCRIPT, "--yes", "--no-traffic", "--verify", "--duration", "5", "--size", "200-1472", network.near,
                    joined(*devices), env=env)
    running.until("^System ready")
    network.send(count, "200-1472", rate=2000)
    assert running.end(30) == 0, running.text()
    assert f"Verified: {count} of {count} stored payloads intact" in running.text()
    assert f"[SUCCESS] Every packet received was stored: {count} of {count}" in running.text()
    counts = on_each(running.text(), *devices)
    assert sum(counts) == count and all(counts)


@pytest.mark.parametrize("device, node", [("/dev/ng0n1", "/dev/nvme0n1"), ("/dev/ng12n34", "/dev/nvme12n34"),
                                          ("/dev/nvme0n1", "/dev/nvme0n1"), ("/srv/ng0n1", "/srv/ng0n1")])
def test_a_passthrough_node_is_read_by_its_block_node(device, node):
    function = re.search(r"^node_of\(\).*?^}", SCRIPT.read_text(), re.M | re.S)[0]
    assert must("bash", "-c", f"{function}; node_of '{device}'") == f"{node}\n"
