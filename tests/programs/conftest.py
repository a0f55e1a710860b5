"""What the tests of programs share: the built files, and a network of their own."""

import itertools
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "target" / "full-stack"
NUMBERS = itertools.count()

# A shell has what it starts in the background ignore Ctrl-C, and so would every program that is tested here.
signal.signal(signal.SIGINT, signal.default_int_handler)


def call(*words, timeout=60, **options) -> subprocess.CompletedProcess:
    """Runs a command to its end; its output is text."""
    return subprocess.run([str(w) for w in words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          timeout=timeout, **options)


def must(*words, **options) -> str:
    result = call(*words, **options)
    assert result.returncode == 0, f"{words}: {result.stdout}"
    return result.stdout


def need(*tools: str) -> None:
    """A tool that is not there is a failure where everything must run."""
    for tool in tools:
        if not shutil.which(tool):
            named = must(ROOT / "packaging/deps", "set-of", tool).strip()
            reason = f"{tool} is not installed" + (f": make -f Makefile.full-stack install-deps SETS={named}" if named else "")
            if os.environ.get("UNIFIED_REQUIRE_ROOT"):
                pytest.fail(reason, pytrace=False)
            pytest.skip(reason)


class Network:
    """A veth pair; the far end, which sends, is in a network namespace."""

    def __init__(self, queues=1):
        n, pid = next(NUMBERS), os.getpid()
        self.near, self.far, self.ns = f"ut{pid}n{n}"[:15], f"uf{pid}n{n}"[:15], f"unified-test-{pid}-{n}"
        net = f"198.19.{pid & 255}.{4 * n & 255}"
        base = net.rsplit(".", 1)[0]
        self.address = f"{base}.{4 * n % 256 + 1}"
        must("ip", "netns", "add", self.ns)
        try:
            many = ["numrxqueues", queues, "numtxqueues", queues]
            must("ip", "link", "add", self.near, *many, "type", "veth", "peer", "name", self.far, *many, "netns", self.ns)
            Path(f"/proc/sys/net/ipv6/conf/{self.near}/disable_ipv6").write_text("1")
            must("ip", "netns", "exec", self.ns, "sysctl", "-qw", f"net.ipv6.conf.{self.far}.disable_ipv6=1")
            must("ip", "addr", "add", f"{self.address}/30", "dev", self.near)
            must("ip", "-n", self.ns, "addr", "add", f"{base}.{4 * n % 256 + 2}/30", "dev", self.far)
            must("ip", "link", "set", self.near, "up")
            must("ip", "-n", self.ns, "link", "set", self.far, "up")
            mac = Path(f"/sys/class/net/{self.near}/address").read_text().strip()
            must("ip", "-n", self.ns, "neigh", "replace", self.address, "lladdr", mac, "dev", self.far,
                 "nud", "permanent")
        except BaseException:
            self.close()
            raise

    def send(self, count: int, size="1024", rate=5000, port=9999, flows=1) -> None:
        text = must("ip", "netns", "exec", self.ns, OUT / "bin/unified-traffic", "send", "--to",
                    f"{self.address}:{port}", "--count", count, "--size", size, "--rate", rate,
                    "--flows", flows)
        assert f"Sent: {count} packets" in text

    def program(self) -> bool:
        """Whether an XDP program is on the near end."""
        return "prog/xdp" in must("ip", "link", "show", self.near)

    def close(self):
        call("ip", "link", "del", self.near)
        call("ip", "netns", "del", self.ns)


def of_queues(queues: int):
    if os.geteuid() != 0:
        assert not os.environ.get("UNIFIED_REQUIRE_ROOT")
        pytest.skip("needs root")
    net = Network(queues)
    yield net
    net.close()


@pytest.fixture
def network():
    yield from of_queues(1)


@pytest.fixture
def many_queues():
    """A pair of four queues."""
    yield from of_queues(4)


class Running:
    """A program in the background whose output is looked at."""

    def __init__(self, *words, path: Path, **options):
        self.path = path
        with open(path, "w") as out:
            self.process = subprocess.Popen([str(w) for w in words], stdout=out, stderr=subprocess.STDOUT, **options)

    def text(self) -> str:
        return self.path.read_text()

    def until(self, pattern: str, seconds=20.0) -> str:
        import time
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if re.search(pattern, self.text(), re.M):
                return self.text()
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        assert re.search(pattern, self.text(), re.M), f"no '{pattern}' in: {self.text()}"
        return self.text()

    def end(self, seconds=30) -> int:
        try:
            return self.process.wait(seconds)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()


@pytest.fixture
def start(tmp_path):
    """Starts programs; none outlives its test."""
    running = []

    def begin(*words, **options) -> Running:
        running.append(Running(*words, path=tmp_path / f"output{len(running)}", **options))
        return running[-1]

    yield begin
    for one in running:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


@pytest.fixture
def device():
    """A file on the disk, removed at the end with all whose names go on from it. (Not in tmp_path: that may be tmpfs.)"""
    path = ROOT / "target" / f"test-device-{os.getpid()}-{next(NUMBERS)}"
    yield path
    for one in (path, *path.parent.glob(f"{path.name}-[a-z]*")):
        one.unlink(missing_ok=True)


def verify(path, stored: int, size="1024", *more) -> str:
    text = must(OUT / "bin/unified-traffic", "verify", path, "--stored", stored, "--size", size, *more)
    assert f"Verified: {stored} of {stored} stored payloads intact" in text
    return text
