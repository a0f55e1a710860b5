"""Each example does what it says, over a veth pair, and what it stored is compared."""

import os
import re
import signal
import sys

import pytest
from conftest import OUT, ROOT, call, must, verify

COUNT = 400


@pytest.mark.parametrize("name", ["minimal", "event-loop", "store.py"])
def test_it_stores_what_was_sent(name, network, device, start):
    command = [sys.executable, ROOT / "c-examples" / name] if name.endswith(".py") else [OUT / "bin" / name]
    program = start(*command, network.near, device, COUNT, env=os.environ | {"UNIFIED_LIB": str(OUT / "lib/libunified.so.0")})
    program.until("^Receiving on")
    assert network.program()
    network.send(COUNT, "1-1472")
    assert program.end() == 0, program.text()
    assert f"Stored {COUNT} of {COUNT}" in program.text()
    verify(device, COUNT, "1-1472", "--sent", COUNT)
    assert not network.program()


def test_a_thread_for_each_queue_stores_what_was_sent(many_queues, device, start):
    network = many_queues
    program = start(OUT / "bin/lanes", network.near, device, COUNT)
    program.until(f"^Receiving on {network.near}, 4 queues")
    network.send(COUNT, "1-1472", flows=64)
    assert program.end() == 0, program.text()
    text = program.text()
    assert f"Stored {COUNT} of {COUNT}" in text
    each = [int(n) for n in re.findall(r"^Queue \d: \d+ received, (\d+) stored", text, re.M)]
    assert len(each) == 4 and all(each) and sum(each) == COUNT
    verify(device, COUNT, "1-1472", "--sent", COUNT, "--unordered")
    assert not network.program()


def test_one_batch_writes_to_several_devices(tmp_path):
    paths = [tmp_path / name for name in ("a", "b", "c")]
    # One that is there already, and keeps its size and what comes after the blocks.
    paths[1].write_bytes(b"x" * (2 << 20))
    text = must(OUT / "bin/devices", *paths, "null:4194304")
    for i, path in enumerate(paths):
        found = path.read_bytes()
        size, block = len(found), int(re.search(rf"^Device {i}: {path} \(file\), \d+ blocks of (\d+) bytes", text, re.M)[1])
        assert size == (2 << 20 if i == 1 else 1 << 20)
        for n in range(4):
            assert found[n * block:][:block] == f"device {i}, block {n}\n".encode().ljust(block, b"\0")
        assert found[4 * block:] == (b"x" if i == 1 else b"\0") * (size - 4 * block)
        assert f"Device {i}: {path} (file), {size // block} blocks of {block} bytes, {4 * block} bytes written, 0 errors\n" in text
    assert "Device 3: null:4194304 (null), 8192 blocks of 512 bytes, 2048 bytes written, 0 errors\n" in text


def test_devices_says_what_is_wrong(tmp_path):
    program = OUT / "bin/devices"
    assert call(program).returncode == 2
    assert call(program, *["null:"] * 17).returncode == 2
    twice = call(program, tmp_path / "a", tmp_path / "a")
    assert twice.returncode == 1 and "is the same as device 0" in twice.stdout
    absent = call(program, tmp_path / "none/a")
    assert absent.returncode == 1 and str(tmp_path / "none/a") in absent.stdout
    # A device without room for the blocks fails them, and the other one's are written all the same.
    short = call(program, "null:512", tmp_path / "b")
    assert short.returncode == 1 and "Device 1: " in short.stdout
    assert (tmp_path / "b").read_bytes().startswith(b"device 1, block 0\n")


@pytest.mark.parametrize("name", ["minimal", "event-loop", "lanes", "unified-full-stack-test"])
def test_bad_arguments_are_told(name, tmp_path):
    program = OUT / "bin" / name
    assert call(program).returncode == 2
    absent = call(program, "nosuchif0", tmp_path / "file", "1" if name != "unified-full-stack-test" else "0")
    assert absent.returncode == 1
    assert "nosuchif0" in absent.stdout
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize("options", [[], ["--engine-thread"], ["--frame-size", "4096"]])
def test_the_full_stack_program(options, network, device, start):
    program = start(OUT / "bin/unified-full-stack-test", "--file-size", 8 << 20, *options, network.near, device, 0)
    program.until("^System ready. Waiting for packets...$")
    network.send(COUNT, "100-1472")
    program.until(rf"^Stats: RX={COUNT} pps=\d+ \| Stored={COUNT} Bps=\d+ \| Errors=0$")
    program.process.send_signal(signal.SIGINT)
    assert program.end() == 0, program.text()
    text = program.text()
    for line in ("BPF program loaded successfully", f"AF_XDP socket created on {network.near} queue 0",
                 "Unified interface registered successfully", "  SQ ring: 0x", "  CQ ring: 0x", "  Data buffers: 0x",
                 "Packet processing thread started", "Storage thread started", "Final stats:",
                 f"  Packets received: {COUNT}\n", f"  Packets stored: {COUNT}\n", "  Errors: 0\n", "  Bounced: 0\n",
                 f"  Events: {COUNT} (read: {COUNT}, lost: 0)\n", "  Books: balanced\n"):
        assert line in text
    verify(device, COUNT, "100-1472", "--sent", COUNT)


def test_the_full_stack_program_fills_several_devices_in_turn(network, tmp_path, start):
    """Chunk i is on device i modulo 3; put together they are what one device would hold."""
    count, chunk = 2500, 1 << 20
    devices = [tmp_path / name for name in ("a", "b", "c")]
    program = start(OUT / "bin/unified-full-stack-test", "--file-size", 4 << 20, network.near,
                    ",".join(map(str, devices)), 0)
    program.until("^System ready")
    network.send(count, "1024")
    program.until(f"^Stats: RX={count} .*Stored={count} ")
    program.process.send_signal(signal.SIGINT)
    assert program.end() == 0, program.text()
    assert "  Books: balanced\n" in program.text()
    images = [device.read_bytes() for device in devices]
    whole = tmp_path / "whole"
    whole.write_bytes(b"".join(images[i % 3][i // 3 * chunk:][:chunk] for i in range(12)))
    verify(whole, count, "1024", "--sent", count)


def test_a_full_device_is_told_and_counted(network, device, start):
    program = start(OUT / "bin/unified-full-stack-test", "--file-size", 128 << 10, network.near, device, 0)
    program.until("^System ready")
    network.send(COUNT)
    program.until(f"^Stats: RX={COUNT} ")
    program.process.send_signal(signal.SIGTERM)
    assert program.end() == 1
    assert "  Packets stored: 128\n" in program.text()
    assert f"  No space: {COUNT - 128}\n" in program.text()
    assert "  Books: balanced\n" in program.text()
    verify(device, 128)


def test_ctrl_c_in_the_middle_loses_nothing(network, device, start):
    program = start(OUT / "bin/unified-full-stack-test", "--file-size", 32 << 20, network.near, device, 0)
    program.until("^System ready")
    sender = start("ip", "netns", "exec", network.ns, OUT / "bin/unified-traffic", "send", "--to",
                   f"{network.address}:9999", "--rate", "3000", "--duration", "3")
    program.until("^Stats: RX=[1-9]")
    program.process.send_signal(signal.SIGINT)
    assert program.end() == 0, program.text()
    assert sender.end() == 0
    assert not network.program()
    assert "  Books: balanced\n" in program.text()
    stored = int(program.text().split("Packets stored: ")[1].split()[0])
    assert stored > 0
    verify(device, stored)
    must("ip", "link", "show", network.near)
