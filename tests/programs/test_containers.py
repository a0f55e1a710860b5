"""Recording without privileges, as in a container: descriptors come from hand-over over a Unix socket."""

import array
import contextlib
import fnmatch
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import debian
import pytest
from conftest import OUT, ROOT, Running, call, must, verify

# A user that is nobody, and nobody else's: locked memory is counted by user.
NOBODY = 61184 + os.getpid() % 4000
COUNT = 300
# What the kernel gives everybody, and so what a container has unless its runtime is told otherwise.
MEMLOCK = 8 << 20
XSKMAP, AF_XDP, SO_DOMAIN = 17, 44, 39


@pytest.fixture
def place():
    """A directory that nobody may look into, with the program and the library: those above the tree's may be closed."""
    with tempfile.TemporaryDirectory(prefix="unified-test.", dir="/var/tmp") as name:
        path = Path(name)
        path.chmod(0o755)
        shutil.copy(OUT / "bin/unprivileged", path)
        shutil.copy(OUT / "lib/libunified.so.0", path)
        with open(path / "device", "wb") as file:
            file.truncate(1 << 20)
        (path / "device").chmod(0o600)
        yield path


def bare(place, *words, memlock=MEMLOCK, keep=()):
    """The command of the recorder as nobody: no capability that it could have, but for those to keep."""
    kept = ",".join(["-all", *(f"+{name}" for name in keep)])
    caps = [f"--bounding-set={kept}", f"--inh-caps={kept}", f"--ambient-caps={kept}"]
    return ["prlimit", f"--memlock={memlock}:{memlock}", "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
            "--no-new-privs", *caps, "env", f"LD_LIBRARY_PATH={place}", place / "unprivileged", *words]


@pytest.fixture
def giver(network, place, start):
    path = place / "socket"
    program = start(OUT / "bin/hand-over", OUT / "lib/unified_xdp.bpf.o", path, NOBODY, network.near, place / "device")
    program.until("^Handing over")
    yield path
    program.process.send_signal(signal.SIGTERM)
    assert program.end() == 0, program.text()
    assert not network.program() and not path.exists()


def status(running: Running, what: str) -> str:
    text = Path(f"/proc/{running.process.pid}/status").read_text()
    return re.search(rf"^{what}:\s+(.*)$", text, re.M)[1]


def test_a_process_without_any_capability_records(giver, network, place, start):
    for _ in range(2):
        # Its own ways are closed: it is the descriptors that serve.
        assert stat.S_IMODE((place / "device").stat().st_mode) == 0o600
        recorder = start(*bare(place, giver, network.near, COUNT))
        recorder.until(f"^Receiving on {network.near} as user {NOBODY}$")
        for caps in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status(recorder, caps), 16) == 0, caps
        assert status(recorder, "Uid").split() == [str(NOBODY)] * 4
        network.send(COUNT, "1-1400")
        assert recorder.end() == 0, recorder.text()
        assert f"Stored {COUNT} of {COUNT}" in recorder.text()
        verify(place / "device", COUNT, "1-1400", "--sent", COUNT)
        # The next one finds nothing of this one's; the program serves it as well.
        assert network.program()
        (place / "device").write_bytes(bytes(1 << 20))
    recorder = start(*bare(place, giver, network.near, COUNT, memlock=64 << 10))
    assert recorder.end() == 1
    assert re.search("locked memory|RLIMIT_MEMLOCK", recorder.text()), recorder.text()


def test_all_queues_and_devices_are_handed_over(many_queues, place, start):
    """Four queues and three devices, to a recorder without any capability; every payload is where the devices say."""
    network, count, length = many_queues, 1200, 8 << 20
    devices = [place / name for name in ("one", "two", "three")]
    for device in devices:
        with open(device, "wb") as file:
            file.truncate(length)
        device.chmod(0o600)
    names = ",".join(map(str, devices))
    giver = start(OUT / "bin/hand-over", OUT / "lib/unified_xdp.bpf.o", place / "socket", NOBODY, network.near, names)
    giver.until(rf"^Handing over {network.near} \(queues: 4\) and {names} at")
    peer = Peer(place / "socket")
    assert peer.ask("/queues, " + network.near) == ("/error", [])
    assert peer.ask("/connect, test") == ("/host_ok", [])
    assert peer.ask("/queues, " + network.near) == ("4", []) and peer.ask("/queues, other0") == ("/error", [])
    assert peer.ask("/devices") == ("3", [])
    for words, device in [("/device_fd", 0), ("/device_fd, 0", 0), ("/device_fd, 2", 2)]:
        text, (fd,) = peer.ask(words)
        assert text == "/fd_ack" and os.path.samestat(os.fstat(fd), devices[device].stat())
        os.close(fd)
    for words in ("/device_fd, 3", "/device_fd, x", "/device_fd, -1"):
        assert peer.ask(words) == ("/fd_nak", [])
    peer.socket.close()
    # Memory that is registered counts for each queue, by the UMEM and by io_uring.
    recorder = start(*bare(place, place / "socket", network.near, count, memlock=1 << 20))
    assert recorder.end() == 1 and re.search("locked memory|RLIMIT_MEMLOCK", recorder.text()), recorder.text()
    recorder = start(*bare(place, place / "socket", network.near, count))
    recorder.until(f"^Receiving on {network.near} as user {NOBODY}\nQueues: 4, devices: 3$")
    assert int(status(recorder, "CapEff"), 16) == 0
    network.send(count, "100-1400", rate=200, flows=64)
    assert recorder.end() == 0, recorder.text()
    assert f"Stored {count} of {count}" in recorder.text()
    # Each queue has a quarter of the space, which goes over all devices in turn.
    blocks, found, on_devices = 3 * length // 512, [], [0, 0, 0]
    for queue in range(4):
        text = call(OUT / "bin/unified-traffic", "verify", names, "--stored", 0, "--size", "100-1400", "--start",
                    queue * blocks // 4, "--unordered").stdout
        assert "; 0 damaged, 0 doubled," in text and " 0 foreign, 0 with dirty padding" in text, text
        found.append(int(re.match(r"Verified: (\d+) of 0", text)[1]))
        for number, device in enumerate(devices):
            on_devices[number] += int(re.search(rf"^  (\d+) on {device}$", text, re.M)[1])
    assert sum(found) == sum(on_devices) == count and min(found) > 0, (found, on_devices)
    giver.process.send_signal(signal.SIGTERM)
    assert giver.end() == 0 and not network.program(), giver.text()
    assert giver.text().count("socket: handed over\n") == 8 and giver.text().count("device: handed over\n") == 9
    twice = call(OUT / "bin/hand-over", OUT / "lib/unified_xdp.bpf.o", place / "socket", NOBODY, network.near,
                 f"{devices[0]},{devices[0]}")
    assert twice.returncode == 1 and "a second time" in twice.stdout, twice.stdout


def test_without_the_descriptors_there_is_no_way(network, place, start):
    shutil.copy(OUT / "bin/minimal", place)
    command = bare(place, network.near, place / "device", 1)
    command[command.index(place / "unprivileged")] = place / "minimal"
    refused = call(*command)
    assert refused.returncode == 1 and re.search("[Pp]ermission denied|not permitted", refused.stdout), refused.stdout


class Peer:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(10)
        self.socket.connect(str(path))

    def ask(self, words: str):
        self.socket.send(words.encode())
        text, control, _, _ = self.socket.recvmsg(256, socket.CMSG_SPACE(4))
        fds = array.array("i")
        for level, kind, data in control:
            assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            fds.frombytes(data)
        return text.decode(), list(fds)


def kind_of(fd: int) -> int:
    return int(re.search(r"^map_type:\s+(\d+)$", Path(f"/proc/self/fdinfo/{fd}").read_text(), re.M)[1])


def test_requests_are_answered_as_the_device_plugin_does(giver, network):
    peer = Peer(giver)
    assert peer.ask(f"/xsk_map_fd, {network.near}") == ("/error", [])
    assert peer.ask("/connect, somebody") == ("/host_ok", [])
    assert peer.ask("/version") == ("0.1", [])
    assert peer.ask("/nonsense") == ("/error", [])
    assert peer.ask("/xsk_map_fd, another0") == ("/fd_nak", [])
    # With the space after the comma, and without.
    for words in (f"/xsk_map_fd, {network.near}", f"/xsk_map_fd,{network.near}"):
        text, (fd,) = peer.ask(words)
        assert text == "/fd_ack" and kind_of(fd) == XSKMAP
        os.close(fd)
    text, (fd,) = peer.ask(f"/xsk_fd, {network.near}")
    with socket.socket(AF_XDP, socket.SOCK_RAW, 0, fileno=fd) as xsk:
        assert text == "/fd_ack" and xsk.getsockopt(socket.SOL_SOCKET, SO_DOMAIN) == AF_XDP
    text, (fd,) = peer.ask("/device_fd")
    assert text == "/fd_ack" and os.fstat(fd).st_size == 1 << 20
    os.close(fd)
    # Somebody who is silent costs the others no more than a moment.
    silent, other = Peer(giver), Peer(giver)
    assert peer.ask("/fin") == ("/fin_ack", [])
    assert other.ask("/connect, another") == ("/host_ok", [])
    assert silent.socket.recv(10) == b""


def test_only_its_user_may_ask(giver, network, place):
    assert stat.S_IMODE(giver.stat().st_mode) == 0o600 and giver.stat().st_uid == NOBODY
    command = [f"--reuid={NOBODY - 1}" if word == f"--reuid={NOBODY}" else word for word in bare(place, giver, network.near, 1)]
    refused = call(*command)
    assert refused.returncode == 1 and "Permission denied" in refused.stdout, refused.stdout


def served(path, network, seconds=1.0) -> None:
    """A client that behaves gets all that a recorder needs, soon."""
    begun = time.monotonic()
    peer = Peer(path)
    assert peer.ask("/connect, well-behaved") == ("/host_ok", [])
    for words in (f"/xsk_map_fd, {network.near}", f"/xsk_fd, {network.near}", "/device_fd"):
        text, (fd,) = peer.ask(words)
        assert text == "/fd_ack"
        os.close(fd)
    assert peer.ask("/fin") == ("/fin_ack", []) and peer.socket.recv(10) == b""
    assert time.monotonic() - begun < seconds


def ended(peer, seconds: float) -> None:
    """The other side ends this connection within that time; what it sent before is read and thrown away."""
    peer.socket.settimeout(seconds)
    with contextlib.suppress(ConnectionResetError):
        while peer.socket.recv(256):
            pass


def deaf(path, words: str) -> Peer:
    """Asks until there is no room, and reads no answer."""
    peer = Peer(path)
    peer.socket.send(b"/connect, deaf")
    peer.socket.settimeout(0.3)
    with contextlib.suppress(TimeoutError, BrokenPipeError, ConnectionResetError):
        for _ in range(5000):
            peer.socket.send(words.encode())
    return peer


def test_no_client_keeps_others_waiting(giver, network):
    clients = [deaf(giver, words) for words in ("/version", f"/xsk_map_fd, {network.near}", f"/xsk_fd, {network.near}", "/device_fd")]
    served(giver, network)
    # Silent, as many as there are places and many more; and gone again, with and without a word, read or not.
    silent = [Peer(giver) for _ in range(200)]
    served(giver, network)
    for words in (b"", b"/connect, brief", b"/xsk_fd, " + network.near.encode(), b"x" * 255, b"/" * 4000, b"\0"):
        for _ in range(30):
            peer = Peer(giver)
            if words:
                peer.socket.send(words)
            peer.socket.close()
    served(giver, network)
    for peer in clients + silent:
        ended(peer, 5)
    # One that always has something to say ends too, before the number of its requests would end it.
    talker, begun = Peer(giver), time.monotonic()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while time.monotonic() - begun < 9:
            talker.socket.send(b"/version")
            if not talker.socket.recv(10):
                break
            time.sleep(0.2)
    assert 4 < time.monotonic() - begun < 6
    served(giver, network)
    chatty = Peer(giver)
    answers = 0
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while answers < 1000 and chatty.ask("/version")[0]:
            answers += 1
    assert 10 < answers < 1000


@pytest.mark.parametrize("clients", ["deaf", "silent", "many"])
def test_a_signal_ends_it_at_once_whatever_clients_do(clients, network, place, start):
    path = place / "socket"
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        program = start(OUT / "bin/hand-over", OUT / "lib/unified_xdp.bpf.o", path, NOBODY, network.near, place / "device")
        program.until("^Handing over")
        kept = {"deaf": lambda: [deaf(path, f"/xsk_map_fd, {network.near}")], "silent": lambda: [Peer(path)],
                "many": lambda: [Peer(path) for _ in range(100)]}[clients]()
        begun = time.monotonic()
        program.process.send_signal(number)
        assert program.end(5) == 0, program.text()
        assert time.monotonic() - begun < 1.5
        assert not network.program() and not path.exists()
        del kept


def test_output_that_nobody_reads_does_not_hold_it(network, place):
    path = place / "socket"
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(writing, bytes(4096)):
            pass
    os.set_blocking(writing, True)
    program = subprocess.Popen([OUT / "bin/hand-over", OUT / "lib/unified_xdp.bpf.o", path, str(NOBODY), network.near, place / "device"],
                               stdout=writing, stderr=subprocess.DEVNULL)
    try:
        os.close(writing)
        deadline = time.monotonic() + 10
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        served(path, network)
        # Nor does one who went away.
        os.close(reading)
        served(path, network)
        program.send_signal(signal.SIGTERM)
        assert program.wait(5) == 0
        assert not network.program() and not path.exists()
    finally:
        program.kill()
        program.wait()


def test_a_plugin_that_has_only_the_map(giver, network, place, start):
    """The plugin's own words, and a pod with CAP_NET_RAW and its own volume."""
    path = place / "plugin"
    heard = []
    peer = Peer(giver)
    assert peer.ask("/connect, relay")[0] == "/host_ok"
    _, (fd,) = peer.ask(f"/xsk_map_fd, {network.near}")

    def plugin(listener):
        conversation, _ = listener.accept()
        with conversation:
            while words := conversation.recv(256).decode():
                heard.append(words)
                if words.startswith("/connect, "):
                    conversation.send(b"/host_ok")
                elif words == f"/xsk_map_fd, {network.near}":
                    conversation.sendmsg([b"/fd_ack"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
                elif words == "/fin":
                    conversation.send(b"/fin_ack")
                else:
                    conversation.send(b"/error")

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.settimeout(20)
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen(1)
        thread = threading.Thread(target=plugin, args=(listener,))
        thread.start()
        own = place / "own"
        own.write_bytes(bytes(1 << 20))
        os.chown(own, NOBODY, NOBODY)
        recorder = start(*bare(place, path, network.near, COUNT, own, keep=["net_raw"]))
        recorder.until("^Receiving on")
        assert int(status(recorder, "CapEff"), 16) == 1 << 13
        network.send(COUNT)
        assert recorder.end() == 0, recorder.text()
        thread.join(20)
    os.close(fd)
    assert [words.split(",")[0] for words in heard] == ["/connect", "/xsk_map_fd", "/fin"]
    verify(own, COUNT, "1024", "--sent", COUNT)


def test_bad_arguments_are_told(network, place):
    usage = call(OUT / "bin/hand-over")
    assert usage.returncode == 2 and "usage" in usage.stdout
    absent = call(OUT / "bin/hand-over", OUT / "lib/unified_xdp.bpf.o", place / "socket", NOBODY, "nosuchif0", place / "device")
    assert absent.returncode == 2 and "nosuchif0" in absent.stdout
    absent = call(OUT / "bin/hand-over", OUT / "lib/unified_xdp.bpf.o", place / "socket", NOBODY, network.near, place / "nothing")
    assert absent.returncode == 1 and str(place / "nothing") in absent.stdout
    assert not network.program()
    taken = place / "taken"
    taken.write_text("")
    refused = call(OUT / "bin/hand-over", OUT / "lib/unified_xdp.bpf.o", taken, NOBODY, network.near, place / "device")
    assert refused.returncode == 1 and str(taken) in refused.stdout
    assert not network.program() and taken.exists()


def instructions() -> list:
    """The Dockerfile's, each with its words; lines that go on are one."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "packaging/Dockerfile").read_text(), flags=re.M)
    return [tuple(line.split(None, 1)) for line in re.sub(r"\\\n\s*", " ", text).splitlines() if line.strip()]


def copy_tree(to: Path) -> None:
    """What docker would send: all but .dockerignore's. Nothing of a build may come along."""
    ignored = [line.removeprefix("**/") for line in (ROOT / ".dockerignore").read_text().split()]
    shutil.copytree(ROOT, to, symlinks=True, dirs_exist_ok=True,
                    ignore=lambda _, names: [name for name in names if any(fnmatch.fnmatch(name, one) for one in ignored)])
    assert not (to / "target").exists()


def lend_rust(root: Path, stack: contextlib.ExitStack) -> None:
    """The compiler of this machine: the Dockerfile's own step takes one that is there."""
    home = Path.home()
    if not (home / ".rustup").exists():
        pytest.skip("Rust is not rustup's here, and cannot be lent")
    shutil.copytree(home / ".cargo", root / "root/.cargo", symlinks=True)
    (root / "root/.rustup").mkdir()
    must("mount", "--bind", "-o", "ro", home / ".rustup", root / "root/.rustup")
    stack.callback(must, "umount", "-l", root / "root/.rustup")


def test_the_dockerfile_makes_an_image_that_records_as_nobody(network, start):
    debian.only_full()
    packed, stages, user, entry = debian.base("minbase"), {}, None, None
    with contextlib.ExitStack() as stack:
        for verb, rest in instructions():
            if verb == "FROM":
                image, _, name = rest.partition(" AS ")
                assert image == "debian:12"
                root, where, env, user = stack.enter_context(debian.unpacked(packed)), "/", {}, None
                stages[name or "last"] = root
                if name == "build":
                    lend_rust(root, stack)
            elif verb == "RUN":
                debian.inside(root, "sh", "-ec", f"cd {where}; {rest}", env=env, timeout=1200)
            elif verb == "ENV":
                name, _, value = rest.partition("=")
                env[name] = value
            elif verb == "WORKDIR":
                where = rest
                (root / where.lstrip("/")).mkdir(parents=True, exist_ok=True)
            elif verb == "COPY" and rest.startswith("--from="):
                source, pattern, to = rest.removeprefix("--from=").split()
                found = list(stages[source].glob(pattern.lstrip("/")))
                assert found, pattern
                for path in found:
                    shutil.copy(path, root / to.lstrip("/"))
            elif verb == "COPY" and rest.split()[0] == ".":
                copy_tree(root / rest.split()[1].lstrip("/"))
            elif verb == "COPY":
                source, to = ROOT / rest.split()[0], root / rest.split()[1].lstrip("/")
                if source.is_dir():
                    shutil.copytree(source, to)
                else:
                    shutil.copy(source, to)
            elif verb == "USER":
                user = rest.split(":")
            else:
                assert verb == "ENTRYPOINT", f"the test does not know {verb}"
                entry = json.loads(rest)
        assert user == ["65534"] * 2 and entry
        # As docker starts it, and with less: not even the capabilities that it would leave.
        with open(root / "srv/device", "wb") as file:
            file.truncate(1 << 20)
        path = root / "run/unified.sock"
        giver = start(OUT / "bin/hand-over", OUT / "lib/unified_xdp.bpf.o", path, user[0], network.near, root / "srv/device")
        giver.until("^Handing over")
        recorder = start("chroot", root, "prlimit", f"--memlock={MEMLOCK}:{MEMLOCK}", "setpriv", f"--reuid={user[0]}",
                         f"--regid={user[1]}", "--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", *entry,
                         "/run/unified.sock", network.near, COUNT)
        recorder.until(f"^Receiving on {network.near} as user {user[0]}$")
        assert str(root) in os.readlink(f"/proc/{recorder.process.pid}/root")
        network.send(COUNT)
        assert recorder.end() == 0, recorder.text()
        giver.process.send_signal(signal.SIGTERM)
        assert giver.end() == 0, giver.text()
        verify(root / "srv/device", COUNT, "1024", "--sent", COUNT)
        assert not network.program()


@pytest.mark.parametrize("forbidden, words", [("bpf", "allow bpf(2) in its seccomp profile"), ("io_uring_setup", "io_uring is forbidden here")])
def test_what_a_seccomp_profile_forbids_is_named(forbidden, words, giver, network, place):
    """What docs/containers.md tells to allow is what is needed: each without the other ends here."""
    command = ["strace", "-f", "-o", "/dev/null", "-e", f"inject={forbidden}:error=EPERM", place / "unprivileged", giver, network.near, 1]
    refused = call(*command, env=os.environ | {"LD_LIBRARY_PATH": str(place)})
    assert refused.returncode == 1 and words in refused.stdout, refused.stdout
