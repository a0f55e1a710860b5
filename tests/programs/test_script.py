"""run-full-stack-test.sh as a user runs it."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
from conftest import OUT, ROOT, call, must

SCRIPT = ROOT / "run-full-stack-test.sh"
ENV = os.environ | {"UNIFIED_OUT": str(OUT)}


def traces() -> dict:
    """Whatever a run of the script could leave on the machine."""
    return {
        "namespaces": set(re.findall(r"^ufs\d+", must("ip", "netns"), re.M)),
        "links": set(re.findall(r"\bufs\d\w+", must("ip", "-br", "link"))),
        "scratch": set(Path("/var/tmp").glob("unified-full-stack.*")),
        "huge pages": Path("/proc/sys/vm/nr_hugepages").read_text(),
    }


@pytest.fixture(autouse=True)
def nothing_is_left():
    if os.geteuid() != 0:
        assert not os.environ.get("UNIFIED_REQUIRE_ROOT")
        pytest.skip("needs root")
    before = traces()
    yield
    assert traces() == before


def features(network) -> dict:
    """What both ends of a veth pair do to packets, as ethtool says."""
    far = must("ip", "netns", "exec", network.ns, "ethtool", "-k", network.far)
    return {"near": must("ethtool", "-k", network.near), "far": far}


def test_alone_it_stores_and_verifies_everything():
    result = call(SCRIPT, "--duration", "2", "--rate", "1500", "--size", "64-1472", env=ENV)
    assert result.returncode == 0, result.stdout
    sent = int(re.search(r"^Sent: (\d+) packets", result.stdout, re.M)[1])
    assert sent >= 2000
    assert f"[SUCCESS] Every packet sent was stored and verified: {sent} of {sent}" in result.stdout
    for line in ("[INFO] Full-Stack Unified Interface Test", "[SUCCESS] System requirements check passed",
                 "[SUCCESS] Interface setup complete", "[SUCCESS] Test program built successfully",
                 "[INFO] Starting full-stack test...", "[INFO] Listening port: 9999"):
        assert line in result.stdout
    assert "\x1b" not in result.stdout


def test_an_interface_and_a_device_of_the_users(network, device):
    device.write_bytes(b"old data" * 100)
    refused = call(SCRIPT, network.near, device, env=ENV, stdin=open(os.devnull))
    assert refused.returncode == 1
    assert "holds data" in refused.stdout and device.read_bytes() == b"old data" * 100
    before = features(network)
    result = call(SCRIPT, "--yes", "--duration", "2", "--rate", "500", "--port", "4711", "--from-netns", network.ns,
                  network.near, device, 0, env=ENV)
    assert result.returncode == 0, result.stdout
    assert "[INFO] Listening port: 4711" in result.stdout
    assert "[SUCCESS] Every packet sent was stored and verified" in result.stdout
    assert features(network) == before
    assert device.exists() and not network.program()
    # Smaller payloads on the same device: what the first run left is not taken for theirs.
    result = call(SCRIPT, "--yes", "--duration", "1", "--rate", "500", "--size", "100", "--port", "4711",
                  "--from-netns", network.ns, network.near, device, 0, env=ENV)
    assert result.returncode == 0 and "0 damaged" in result.stdout, result.stdout


@pytest.fixture
def disk(tmp_path):
    """A loop device that holds a file system."""
    image = tmp_path / "disk"
    with open(image, "wb") as file:
        file.truncate(16 << 20)
    node = must("losetup", "--find", "--show", image).strip()
    must("mkfs.ext4", "-q", node)
    yield node, image
    must("losetup", "--detach", node)


def test_a_disk_that_holds_a_file_system(network, disk, tmp_path):
    node, image = disk
    before = image.read_bytes()
    words = ["--duration", "1", "--rate", "500", "--from-netns", network.ns, network.near, node]
    refused = call(SCRIPT, *words, env=ENV, stdin=open(os.devnull))
    assert refused.returncode == 1 and "ext4" in refused.stdout and "give --yes" in refused.stdout, refused.stdout
    # In use: nobody can say yes to that, and nothing is cleared first.
    (tmp_path / "mount").mkdir()
    must("mount", "-o", "ro,noload", node, tmp_path / "mount")
    try:
        refused = call(SCRIPT, "--yes", *words, env=ENV)
    finally:
        must("umount", tmp_path / "mount")
    assert refused.returncode == 1 and "is mounted on" in refused.stdout, refused.stdout
    assert image.read_bytes() == before
    program = OUT / "bin/unified-full-stack-test"
    check = call(program, "--check", network.near, node, 0)
    assert check.returncode == 3 and "--force" in check.stdout, check.stdout
    assert call(program, "--check", "--force", network.near, node, 0).returncode == 0
    assert image.read_bytes() == before
    result = call(SCRIPT, "--yes", *words, env=ENV)
    assert result.returncode == 0 and "[SUCCESS] Every packet sent was stored" in result.stdout, result.stdout


def test_a_device_that_is_too_small_is_told_as_such(network, device, start):
    program = start(OUT / "bin/unified-full-stack-test", "--file-size", "65536", "--count", "400", network.near, device, 0)
    program.until("^System ready")
    network.send(400)
    assert program.end() == 1
    assert re.search(r"^  No space: [1-9]", program.text(), re.M)
    assert re.search(r"^\d+ packets were not stored: the \d+ blocks of \d+ bytes .* are full; .*--file-size", program.text(), re.M), program.text()


VLAN_OFF = {"near": {"rx-vlan-offload", "rx-vlan-stag-hw-parse"},
            "far": {"tx-vlan-offload", "tx-vlan-stag-hw-insert", "tx-udp-segmentation"}}


def test_vlan_tags_and_datagrams_come_as_they_were_sent(network, device, start):
    before = features(network)
    for end, names in VLAN_OFF.items():
        for name in names:
            assert re.search(rf"^\s*{name}: on$", before[end], re.M), name
    running = start(SCRIPT, "--duration", "60", "--from-netns", network.ns, network.near, device, env=ENV,
                    start_new_session=True)
    running.until("^Stats: RX=[1-9]")
    meanwhile = features(network)
    for end, names in VLAN_OFF.items():
        for name in names:
            assert re.search(rf"^\s*{name}: off", meanwhile[end], re.M), name
    os.kill(running.process.pid, signal.SIGTERM)
    assert running.end(15) == 143
    assert features(network) == before
    # The library was satisfied.
    assert "VLAN" not in running.text(), running.text()


def test_without_traffic_of_its_own(network, device):
    result = call(SCRIPT, "--no-traffic", "--duration", "1", network.near, device, env=ENV)
    assert result.returncode == 0, result.stdout
    assert "[SUCCESS] Every packet received was stored: 0 of 0" in result.stdout


def test_ctrl_c_takes_everything_down(start):
    running = start(SCRIPT, "--duration", "60", env=ENV, start_new_session=True)
    running.until("^Stats: RX=[1-9]")
    os.killpg(running.process.pid, signal.SIGINT)
    assert running.end(15) == 130
    time.sleep(0.2)


def test_a_program_that_does_not_end_is_killed(tmp_path):
    program = tmp_path / "deaf"
    program.write_text("#!/bin/sh\ntrap '' INT TERM\necho System ready\nexec sleep 100\n")
    program.chmod(0o755)
    result = call(SCRIPT, "--selftest", program, "--duration", "1", env=ENV)
    assert result.returncode == 1
    assert "did not end within 10 seconds and was killed" in result.stdout


@pytest.mark.parametrize("size, rate", [("100", 4000), ("1024", 10000), ("1472", 2000)])
def test_an_unchanged_program_of_the_registration_interface(size, rate, tmp_path):
    program = tmp_path / "program"
    must("make", "-s", "-f", "Makefile.full-stack", "selftest", "SRC=tests/capi/uapi-full-stack.c", f"OUT={program}",
         cwd=ROOT)
    result = call(SCRIPT, "--selftest", program, "--duration", "2", "--rate", rate, "--size", size, env=ENV)
    assert result.returncode == 0, result.stdout
    found = re.search(r"\[SUCCESS\] Everything that the program says it stored is on the device: (\d+) of (\d+)",
                      result.stdout)
    assert found and found[1] == found[2] and int(found[1]) > rate
    assert f"Verified: {found[1]} of {found[1]} stored payloads intact" in result.stdout


def test_a_program_whose_fill_addresses_do_not_wrap_is_told_so(tmp_path):
    source, program = tmp_path / "unwrapped.c", tmp_path / "unwrapped"
    source.write_text(f'#define UNWRAPPED\n#include "{ROOT}/tests/capi/uapi-full-stack.c"\n')
    must("make", "-s", "-f", "Makefile.full-stack", "selftest", f"SRC={source}", f"OUT={program}", cwd=ROOT)
    result = call(SCRIPT, "--selftest", program, "--duration", "2", "--rate", 4000, "--size", 100, env=ENV)
    assert "exactly 4097 received: this is no question of the rate" in result.stdout, result.stdout
    assert "rate is too high" not in result.stdout


def test_a_selftest_that_does_not_store_fails(tmp_path):
    program = tmp_path / "liar"
    program.write_text("#!/bin/sh\necho System ready\ntrap 'echo RX=5 Stored=5 Errors=0; exit 0' INT TERM\n"
                       "while :; do sleep 0.1; done\n")
    program.chmod(0o755)
    result = call(SCRIPT, "--selftest", program, "--duration", "1", env=ENV)
    assert result.returncode == 1 and "Full-stack test failed" in result.stdout
    assert "Verified: 0 of 5" in result.stdout


@pytest.mark.parametrize("words, said", [
    (["nosuchif0"], "there is no interface 'nosuchif0'"),
    (["lo", "/dev/nosuchdevice"], "there is no device '/dev/nosuchdevice'"),
])
def test_what_is_not_there_is_named(words, said):
    result = call(SCRIPT, *words, env=ENV)
    assert result.returncode == 1 and said in result.stdout


@pytest.mark.parametrize("words", [["--rate", "x"], ["--duration", "0"], ["--port", "65536"], ["--size", "0"],
                                   ["--size", "2000"], ["--nonsense"], ["a", "b", "0", "d"], ["--rate"],
                                   ["lo", "x", "-1"], ["--queues", "0"], ["--queues", "some"]])
def test_wrong_usage(words):
    assert call(SCRIPT, *words, env=ENV).returncode == 2


def test_help():
    result = call(SCRIPT, "--help")
    assert result.returncode == 0
    for option in ("--duration", "--rate", "--size", "--port", "--no-traffic", "--yes", "--queues", "--restore"):
        assert option in result.stdout



@pytest.mark.parametrize("near, far, kind, said", [
    ("0", "1", "DMA", ["[WARN] '{near}' is on NUMA node 0 and '{device}' on node 1", "[WARN] IOMMU: every buffer of '{near}'"]),
    ("1", "1", "DMA-FQ", ["[INFO] '{near}' and '{device}' are on NUMA node 1", "undone in batches (DMA-FQ, lazy)"]),
    ("-1", "-1", "identity", ["[INFO] IOMMU: '{near}' reaches the memory directly"]),
    ("-1", None, None, []),
])
def test_where_the_nic_and_the_drive_are_is_told(near, far, kind, said, network, device, tmp_path):
    """With a sysfs as such a machine has it."""
    nic, drive = tmp_path / f"class/net/{network.near}/device", tmp_path / f"block/{device.name}/device/device"
    (nic / "iommu_group").mkdir(parents=True)
    (nic / "numa_node").write_text(near)
    if kind:
        (nic / "iommu_group/type").write_text(kind)
    if far:
        drive.mkdir(parents=True)
        (drive / "numa_node").write_text(far)
    result = call(SCRIPT, "--yes", "--no-traffic", "--duration", "1", network.near, device,
                  env=ENV | {"UNIFIED_SYS": str(tmp_path)})
    assert result.returncode == 0, result.stdout
    for words in said:
        assert words.format(near=network.near, device=device) in result.stdout, result.stdout
    if len(said) < 2:
        assert "NUMA" not in result.stdout
    if not kind:
        assert "IOMMU" not in result.stdout


def lanes_of(text: str) -> dict:
    """What the program says that each queue received."""
    return {int(queue): int(count) for queue, count in re.findall(r"^  Queue (\d+): received (\d+),", text, re.M)}


def test_all_queues():
    result = call(SCRIPT, "--duration", "2", "--rate", "1500", "--queues", "all", env=ENV)
    assert result.returncode == 0, result.stdout
    sent = int(re.search(r"^Sent: (\d+) packets", result.stdout, re.M)[1])
    assert f"[SUCCESS] Every packet sent was stored and verified: {sent} of {sent}" in result.stdout
    assert re.search(r"^\[INFO\] All 4 queues of 'ufs\w+' are received", result.stdout, re.M)
    received = lanes_of(result.stdout)
    assert sorted(received) == [0, 1, 2, 3] and all(received.values()) and sum(received.values()) == sent


def test_some_queues_of_a_users_interface(many_queues, device):
    """veth takes no rule: what comes to other queues is told, and every packet is accounted for."""
    network = many_queues
    result = call(SCRIPT, "--duration", "2", "--rate", "1000", "--queues", 2, "--from-netns", network.ns, network.near,
                  device, 1, env=ENV)
    # The script sends to all queues, and not all of it is redirected.
    assert result.returncode == 1 and "packets were sent, the XDP program redirected" in result.stdout, result.stdout
    assert "packets that come to other queues than 1 to 2 go to the kernel's stack" in result.stdout
    received = lanes_of(result.stdout)
    assert sorted(received) == [1, 2] and all(received.values())
    assert "Books: balanced" in result.stdout and re.search(r"^  On other queues: [1-9]", result.stdout, re.M)
    for words, said in [(["--queues", "4", network.near, device, 1], "--queues 4 from queue 1 on are more"),
                        ([network.near, device, 4], "has 4 receive queues; there is no queue 4")]:
        refused = call(SCRIPT, "--yes", *words, env=ENV)
        assert refused.returncode == 1 and said in refused.stdout, refused.stdout
    assert not network.program()


def test_what_a_killed_run_has_left_is_put_back(start, tmp_path):
    states = tmp_path / "states"
    env = ENV | {"UNIFIED_STATES": str(states), "UNIFIED_SCRATCH": str(tmp_path)}
    before = traces()
    running = start(SCRIPT, "--duration", "60", "--queues", "all", env=env, start_new_session=True)
    running.until("^Stats: RX=[1-9]")
    nothing = call(SCRIPT, "--restore", env=env)
    assert nothing.returncode == 0 and "there is nothing to put back" in nothing.stdout
    os.kill(running.process.pid, signal.SIGKILL)
    running.process.wait(5)
    assert traces()["links"] != before["links"]
    (state,) = states.iterdir()
    for change in ("ip netns del", "ip link del", "ethtool -K ufs", "end_program"):
        assert change in state.read_text()
    restored = call(SCRIPT, "--restore", env=env)
    assert restored.returncode == 0 and "Everything is as it was before" in restored.stdout, restored.stdout
    assert traces() == before and not states.exists()
    # The program that it had started has ended, too.
    mine = f"{tmp_path}/unified-full-stack."
    assert not [pid for pid in Path("/proc").glob("[0-9]*") if mine in commandline(pid)]
    again = call(SCRIPT, "--restore", env=env)
    assert again.returncode == 0 and "there is nothing to put back" in again.stdout


def commandline(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""
