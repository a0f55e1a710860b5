"""unified-top: what it shows of a recorder, in a terminal (tmux's) and without one."""

import os
import re
import signal
import socket
import subprocess
import time

import pytest
from conftest import NUMBERS, OUT, call, must, need

TOP = OUT / "bin/unified-top"


class Terminal:
    """A shell in a terminal of its own that says how its command ended, and waits."""

    def __init__(self, command: str, env="", width=100, height=34):
        need("tmux")
        self.server = ["tmux", "-L", f"unified-test-{os.getpid()}-{next(NUMBERS)}", "-f", "/dev/null"]
        shell = f"{env} {command}; echo ended with $?; stty -a | grep -ow -e '-\\?icanon' -e '-\\?echo'; cat"
        must(*self.server, "new-session", "-d", "-x", width, "-y", height, shell)

    def text(self) -> str:
        return must(*self.server, "capture-pane", "-p")

    def until(self, pattern: str, seconds=15.0) -> str:
        end = time.monotonic() + seconds
        while not re.search(pattern, text := self.text(), re.M) and time.monotonic() < end:
            time.sleep(0.05)
        assert re.search(pattern, text, re.M), f"no '{pattern}' in:\n{text}"
        return text

    def key(self, key: str):
        must(*self.server, "send-keys", key)

    def size(self, width: int, height: int):
        must(*self.server, "resize-window", "-x", width, "-y", height)

    def child(self) -> int:
        shell = must(*self.server, "display", "-p", "#{pane_pid}").strip()
        return int(must("pgrep", "-P", shell, "unified-top"))

    def ended(self, code: int):
        """The program has ended, and the terminal is as it was."""
        text = self.until(rf"^ended with {code}\nicanon\necho$")
        assert "PACKETS" not in text, "still the other screen"
        assert must(*self.server, "display", "-p", "#{alternate_on} #{cursor_flag}") == "0 1\n"

    def close(self):
        call(*self.server, "kill-server")


@pytest.fixture
def terminal():
    made = []

    def begin(*words, **options) -> Terminal:
        made.append(Terminal(*words, **options))
        return made[-1]

    yield begin
    for one in made:
        one.close()


@pytest.fixture
def recorder(network, device, start, tmp_path):
    """The path of its socket. A short one: such a path has 107 bytes."""
    path = f"/tmp/unified-top-{os.getpid()}.sock"
    start(OUT / "bin/metrics", network.near, device, path).until("^Recording")
    yield path
    if os.path.exists(path):
        os.unlink(path)


def total(text: str, label: str) -> int:
    """The last column of a row."""
    row = re.search(rf"^{label}  .*?((?:\d{{1,3}} )*\d{{1,3}})$", text, re.M)
    assert row, f"no row {label} in:\n{text}"
    return int(row[1].replace(" ", ""))


def test_it_shows_what_was_counted(network, device, recorder, terminal):
    screen = terminal(f"{TOP} -i 0.2 {recorder}", env="LC_ALL=C.UTF-8")
    screen.until("^received .* 0/s .* 0$")
    network.send(1234, 1024, rate=2000)
    text = screen.until(r"^stored .* 1 234$")
    for label in ("to our ports", "received", "stored"):
        assert total(text, label) == 1234
    # Its own history: some of the rates of the last second are not nothing.
    assert re.search(r"^received .*[▂▃▄▅▆▇█]", text, re.M), text
    assert f"{network.near} queue 0" in text and "link up  XDP attached" in text
    assert "LOST  nothing" in text and "FRAMES  4 096" in text
    assert re.search(r"^packets( +\d\S* (µs|ms|s)){7}$", text, re.M), text
    assert re.search(r"no frame +0 +RX ring full +0 ", text)
    # Every size is drawn, also one that is too small, and the first one again.
    for width, height, seen in ((60, 20, "^PACKETS"), (20, 4, "^20x4 is too small"), (140, 50, "^FRAMES"), (80, 24, "^PACKETS")):
        screen.size(width, height)
        text = screen.until(seen)
        assert max(map(len, text.splitlines())) <= width
    screen.key("q")
    screen.ended(0)


def test_signals_and_keys_leave_the_terminal_as_it_was(recorder, terminal):
    for leave in ("C-c", "q", signal.SIGTERM, signal.SIGINT):
        screen = terminal(f"{TOP} {recorder}", env="LC_ALL=C")
        text = screen.until("^PACKETS")
        assert text.isascii(), "the locale is not UTF-8"
        if isinstance(leave, str):
            screen.key(leave)
        else:
            os.kill(screen.child(), leave)
        screen.ended(0)
        screen.close()


def test_it_ends_with_its_terminal(recorder, terminal):
    screen = terminal(f"{TOP} {recorder}")
    screen.until("^PACKETS")
    child = screen.child()
    screen.close()
    end = time.monotonic() + 10
    while alive(child) and time.monotonic() < end:
        time.sleep(0.05)
    if alive(child):
        os.kill(child, signal.SIGKILL)
        pytest.fail("it goes on without a terminal")


def alive(pid: int) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/exe") == str(TOP)
    except FileNotFoundError:
        return False


def test_colours_are_used_unless_they_are_not_wanted(recorder, terminal):
    for env, colours in (("", True), ("NO_COLOR=1", False)):
        screen = terminal(f"{TOP} {recorder}", env=f"LC_ALL=C.UTF-8 {env}")
        screen.until("^FRAMES")
        escaped = must(*screen.server, "capture-pane", "-p", "-e")
        assert bool(re.search(r"\x1b\[(\d+;)*38;5;\d", escaped)) == colours, escaped
        screen.key("q")
        screen.ended(0)
        screen.close()


def test_what_is_lost_stands_out_and_a_recorder_that_ends_is_told(network, device, start, terminal):
    path = f"/tmp/unified-top-{os.getpid()}.sock"
    recorder = start(OUT / "bin/metrics", network.near, device, path)
    recorder.until("^Recording")
    screen = terminal(f"{TOP} -i 0.2 {path}", env="LC_ALL=C.UTF-8")
    screen.until("link up")
    must("ip", "-n", network.ns, "link", "set", network.far, "down")
    screen.until("LINK DOWN")
    escaped = must(*screen.server, "capture-pane", "-p", "-e")
    assert re.search(r"\x1b\[(\d+;)*38;5;1m[^\n]*LINK DOWN", escaped), escaped
    # Killed: its socket is there, and what was shown is not how things are.
    recorder.process.kill()
    recorder.end(10)
    text = screen.until("^no answer for ")
    assert "NO ANSWER" in text and not re.search("XDP attached|LINK DOWN", text), text
    must("ip", "-n", network.ns, "link", "set", network.far, "up")
    # The next one takes the interface and the socket over, and is shown; it ends in order.
    recorder = start(OUT / "bin/metrics", network.near, device, path)
    recorder.until("^Recording")
    screen.until("XDP attached")
    recorder.process.send_signal(signal.SIGINT)
    assert recorder.end(10) == 0
    screen.until("^no answer for .*there is no such socket")
    screen.key("q")
    screen.ended(0)


def test_without_a_terminal_it_prints_lines(network, recorder):
    network.send(100)
    top = subprocess.Popen([TOP, "-i", "0.1", recorder], stdout=subprocess.PIPE, text=True)
    for line in top.stdout:
        if "stored 100 (" in line:
            break
    top.stdout.close()
    assert re.match(rf"{network.near} queue 0 > \S+: received 100 \(\S+( k)?/s\), .* lost 0, failed 0, .* link up, XDP attached$",
                    line.strip()), line
    # Nobody reads any more: that is the end and no error.
    assert top.wait(10) == 0
    assert len(must(TOP, "-n", "2", "-i", "0.1", recorder).splitlines()) == 2


def test_what_does_not_answer_is_told(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        refused = call(TOP, f"http://127.0.0.1:{closed.getsockname()[1]}/metrics")
    assert refused.returncode == 1 and "connection refused: no recorder listens there" in refused.stdout
    absent = call(TOP, tmp_path / "none")
    assert absent.returncode == 1 and "there is no such socket" in absent.stdout
    assert call(TOP, "9464").returncode == 2
    assert call(TOP, "localhost:9464").returncode == 2
    # A name without a slash is a socket here.
    absent = call(TOP, "none.sock", cwd=tmp_path)
    assert absent.returncode == 1 and "none.sock: there is no such socket" in absent.stdout
    assert call(TOP).returncode == 2


@pytest.fixture
def wide_recorder(many_queues, device, start):
    """Four queues and three devices: the network, the devices, and the path of its socket."""
    path = f"/tmp/unified-top-{os.getpid()}.sock"
    devices = [device.with_name(f"{device.name}-{i}") for i in range(3)]
    start(OUT / "bin/metrics", "-q", "all", many_queues.near, ",".join(map(str, devices)), path).until("^Recording")
    yield many_queues, devices, path
    for one in [*devices, path]:
        if os.path.exists(one):
            os.unlink(one)


def test_lanes_and_devices_have_rows(wide_recorder, terminal):
    network, devices, path = wide_recorder
    screen = terminal(f"{TOP} -i 0.2 {path}", env="LC_ALL=C", width=120, height=50)
    screen.until(rf"^{network.near} all 4 queues > 3 devices .*link up")
    network.send(6000, 1472, rate=3000, flows=64)
    text = screen.until(r"^stored .* 6 000$")
    assert total(text, "received") == 6000 and "LOST  nothing" in text
    lanes = re.findall(r"^(\d) queue (\d) .* (\d+) +(\d+) +(\d+)$", text, re.M)
    assert [lane[:2] for lane in lanes] == [(str(i), str(i)) for i in range(4)]
    assert all(lane[2:4] == ("0", "0") for lane in lanes)
    rows = {}
    for one in devices:
        row = re.search(rf"{one.name} .*?([\d.]+) (k|M)?B +0 B +(\d+) +(\d+) +(\w+)$", text, re.M)
        assert row and row[3] == "0" and row[5] == "ok", text
        rows[one] = float(row[1]) * {"k": 1e3, "M": 1e6, None: 1}[row[2]]
    # What the devices have is what was written: three digits of each are shown.
    assert all(rows.values()) and abs(sum(rows.values()) - 6000 * 1536) < 6000 * 15.36, rows
    # Tab: the lanes one by one, each with the devices that it wrote to.
    for number in range(4):
        screen.key("Tab")
        text = screen.until(rf"^{network.near} lane {number} queue {number} > 3 devices")
        assert "LANES" not in text and "DEVICES" in text
    screen.key("q")
    screen.ended(0)


def test_lines_of_lanes_and_devices(wide_recorder):
    network, devices, path = wide_recorder
    network.send(400, 1024, rate=600, flows=64)
    for _ in range(50):
        lines = must(TOP, "-n", "1", path).splitlines()
        if "stored 400 (" in lines[0]:
            break
        time.sleep(0.1)
    assert len(lines) == 5 and lines[0].startswith(f"{network.near} all 4 queues > 3 devices: received 400 ")
    received = [int(re.search(rf"^{network.near} lane {i} queue {i} > 3 devices: received (\d+) ", line)[1])
                for i, line in enumerate(lines[1:])]
    assert sum(received) == 400
    for one in devices:
        assert re.search(rf"; {one}: written [\d.]+ k?B, read 0 B, errors 0, in flight 0, ok", lines[0]), lines[0]
