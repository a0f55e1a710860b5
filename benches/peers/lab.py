# SPDX-License-Identifier: MIT OR Apache-2.0
"""Where measurements happen: two namespaces with a veth pair between them, a sender, and the clocks of the CPUs.

The sender is on one core. A veth's receive work runs in softirq on the sender's core, for every recorder; the
recorder's own threads are on the other core.
"""

import json
import os
import re
import subprocess
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SENDER_CORE, RECORDER_CORE = "0", "1"
PORT = 9999
TICKS = os.sysconf("SC_CLK_TCK")


def run(*command: str, **options) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def build(out: Path) -> None:
    """The programs of this directory, against the release build of the library."""
    library = ROOT / "target/full-stack/lib"
    flags = ["-O2", "-g", "-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    ours = [f"-L{library}", "-lunified", f"-Wl,-rpath,{library}"]
    needed = {"sender": [], "by-hand": [], "recorder": ours, "write-only": ours, "live": ["-lbpf"],
              "rival": ["-lxdp", "-lbpf", "-luring"]}
    for name, libraries in needed.items():
        run(os.environ.get("CC", "cc"), *flags, f"-I{ROOT}/include", f"{HERE}/{name}.c", "-o", f"{out}/{name}",
            *libraries, "-pthread")
    machine = run("cc", "-print-multiarch").strip()
    for name in ["drop", "live", "rival"]:
        run(os.environ.get("CLANG", "clang"), "-O2", "-g", "-target", "bpf", f"-I/usr/include/{machine}",
            "-c", f"{HERE}/{name}.bpf.c", "-o", f"{out}/{name}.bpf.o")


def words(text: str) -> dict[str, float | str]:
    """key=value words."""
    found = {}
    for key, value in re.findall(r"(\w+)=(.*?)(?=\s+\w+=|\s*$)", text, re.MULTILINE):
        try:
            found[key] = float(value)
        except ValueError:
            found[key] = value
    return found


def busy_seconds() -> float:
    """CPU time of the whole system: all that passed on its cores but idling, waiting for I/O, and what the hypervisor
    took. The kernel measures how long a core idles; user and system time it only samples, some hundred times a second,
    which misses half of what wakes up and sleeps again at once."""
    cores = [line.split() for line in Path("/proc/stat").read_text().splitlines() if re.match(r"cpu\d", line)]
    resting = sum(int(core[field]) for core in cores for field in (4, 5, 8)) / TICKS
    return len(cores) * time.monotonic() - resting


def foreign_seconds() -> float:
    """CPU time of all processes that this one did not start, those that they have waited for included.

    On a machine that others use, this much of `busy_seconds` is not ours."""
    parents, seconds = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = int(stat.parent.name), stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[pid] = int(rest[1])
        if parents[pid] != 2:  # Kernel threads work for everybody: they count as ours.
            seconds[pid] = sum(map(int, rest[11:15])) / TICKS

    def is_ours(pid: int) -> bool:
        while pid > 1:
            if pid == os.getpid():
                return True
            pid = parents.get(pid, 0)
        return False

    return sum(spent for pid, spent in seconds.items() if not is_ours(pid))


def process_seconds(pid: int) -> float:
    """CPU time of a process so far, in user and kernel mode, by the scheduler's clock."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except FileNotFoundError:  # A kernel worker of an io_uring, gone since.
            continue
    return total / 1e9


class Clock:
    """CPU seconds of the system since it was made, less those of others."""

    def __init__(self):
        self.start, self.busy, self.foreign = time.monotonic(), busy_seconds(), foreign_seconds()

    def read(self) -> dict[str, float]:
        busy, foreign = busy_seconds() - self.busy, max(0.0, foreign_seconds() - self.foreign)
        return {"cpu": max(0.0, busy - foreign), "foreign_cpu": foreign, "window": time.monotonic() - self.start,
                "load": float(Path("/proc/loadavg").read_text().split()[0])}


class SlowDisk:
    """A cgroup whose processes write at most so many bytes a second to the disk that a file is on: the kernel's block
    throttling. `RuntimeError` where the kernel or the disk has none."""

    def __init__(self, file: Path, bytes_per_second: int):
        self.device, self.rate = self._disk_of(file), bytes_per_second
        self.group = None
        self.enabled = False

    @staticmethod
    def _disk_of(file: Path) -> str:
        device = os.stat(file).st_dev
        block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
        if (block / "partition").exists():
            block = block.parent
        if not (block / "dev").exists():
            raise RuntimeError(f"{file} is on no disk of its own")
        return (block / "dev").read_text().strip()

    def __enter__(self) -> "SlowDisk":
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
        for _, at, kind, flags, *_ in mounts:
            if kind == "cgroup" and "blkio" in flags.split(","):
                self.root, limit = Path(at), ("blkio.throttle.write_bps_device", f"{self.device} {self.rate}")
                break
            if kind == "cgroup2" and "io" in (Path(at) / "cgroup.controllers").read_text().split():
                self.root, limit = Path(at), ("io.max", f"{self.device} wbps={self.rate}")
                self.enabled = "io" not in (self.root / "cgroup.subtree_control").read_text().split()
                break
        else:
            raise RuntimeError("no cgroup hierarchy with a controller for block I/O is mounted")
        try:
            if self.enabled:
                (self.root / "cgroup.subtree_control").write_text("+io")
            self.group = self.root / f"unified-bench-{os.getpid()}"
            self.group.mkdir()
            (self.group / limit[0]).write_text(limit[1])
        except OSError as error:
            self.__exit__()
            raise RuntimeError(f"the disk {self.device} can't be slowed: {error}") from error
        return self

    def __exit__(self, *_) -> None:
        if self.group and self.group.exists():
            self.group.rmdir()
        if self.enabled:
            (self.root / "cgroup.subtree_control").write_text("-io")

    def slowed(self, command: list[str]) -> list[str]:
        return ["sh", "-c", 'echo $$ >"$0" && exec "$@"', f"{self.group}/cgroup.procs", *command]


class Lab:
    def __init__(self, programs: Path, niceness: int):
        self.programs, self.niceness = programs, niceness
        self.slow_disk: SlowDisk | None = None
        self.near, self.far = f"bench-rx-{os.getpid()}", f"bench-tx-{os.getpid()}"
        self.iface, self.far_iface = "rx0", "tx0"

    def __enter__(self) -> "Lab":
        try:
            for netns in (self.near, self.far):
                run("ip", "netns", "add", netns)
                # No neighbour discovery: nothing but the sender's packets.
                run("ip", "netns", "exec", netns, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1",
                    "net.ipv6.conf.default.disable_ipv6=1")
            run("ip", "link", "add", self.iface, "netns", self.near, "type", "veth",
                "peer", "name", self.far_iface, "netns", self.far)
            for netns, iface, address in ((self.near, self.iface, "192.0.2.2/24"),
                                          (self.far, self.far_iface, "192.0.2.1/24")):
                run("ip", "-n", netns, "addr", "add", address, "dev", iface)
                run("ip", "-n", netns, "link", "set", iface, "up")
            link = json.loads(run("ip", "-n", self.near, "-j", "link", "show", self.iface))[0]
            self.mac = link["address"]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        for netns in (self.near, self.far):
            subprocess.run(["ip", "netns", "del", netns], stderr=subprocess.DEVNULL)

    def _prefix(self, netns: str, core: str) -> list[str]:
        return ["ip", "netns", "exec", netns, "nice", "-n", str(self.niceness), "taskset", "-c", core]

    def here(self, command: list[str]) -> list[str]:
        """A command on the recorders' core, in their namespace."""
        command = [*self._prefix(self.near, RECORDER_CORE), *command]
        return self.slow_disk.slowed(command) if self.slow_disk else command

    def send(self, size: int, rate: float, seconds: float) -> dict[str, float]:
        """`rate` 0: as many as go."""
        sent = words(run(*self._prefix(self.far, SENDER_CORE), f"{self.programs}/sender", self.far_iface, self.mac,
                         str(size), str(rate), str(seconds), timeout=seconds + 60))
        sent["offered"] = sent["sent"] + sent["refused"]
        return sent

    def send_live(self, size: int | str, rate: float, seconds: float, flows: int = 1) -> dict[str, float]:
        """Live frames: see live.c. `size` may be "imix". `rate` 0: as many as go.

        An XDP program has to receive: without one the interface takes no frames of this kind. `offered`: frames that
        the interface was given. `veth_dropped`: those that did not fit into its ring of 256. `arrived`: the rest, seen
        by the receiver's XDP program."""
        before = self._counters()
        pace = ["--rate", str(rate)] if rate else []
        sent = words(run(*self._prefix(self.far, SENDER_CORE), f"{self.programs}/live", *pace, "--seconds",
                         str(seconds), "--flows", str(flows), f"{self.programs}/live.bpf.o", self.far_iface,
                         self.mac, str(size), timeout=seconds + 60))
        until = time.monotonic() + 2
        while True:
            taken, dropped, arrived = (now - then for now, then in zip(self._counters(), before))
            if arrived >= taken or time.monotonic() > until:
                break
            time.sleep(0.01)
        # Packets of the network stack itself arrive too, but are not counted as taken.
        if taken + dropped != sent["sent"] or arrived < taken:
            raise RuntimeError(f"{int(sent['sent'])} frames sent: the interface took {taken}, dropped {dropped}, and "
                               f"{arrived} arrived")
        return sent | {"offered": sent["sent"], "veth_dropped": dropped, "arrived": taken}

    def _counters(self) -> tuple[int, int, int]:
        """Frames that the sender's interface took, frames that it had no room for, and those that arrived."""
        near, far = (dict(re.findall(r"(\w+): (\d+)", run("ip", "netns", "exec", netns, "ethtool", "-S", iface)))
                     for netns, iface in ((self.near, self.iface), (self.far, self.far_iface)))
        return (int(far["tx_queue_0_xdp_xmit"]), int(far["tx_queue_0_xdp_xmit_errors"]),
                int(near["rx_queue_0_xdp_packets"]))

    def defer_interrupts(self, on: bool) -> None:
        """The kernel's receive work for the interface is done by a timer, every 200 us, and not for each packet."""
        for setting, value in (("napi_defer_hard_irqs", 2), ("gro_flush_timeout", 200000)):
            if not self.set_interface(setting, value if on else 0):
                raise RuntimeError(f"no {setting} here")

    def set_interface(self, setting: str, value) -> bool:
        """In sysfs, where the interface is. `False` where it does not take it."""
        return subprocess.run(["ip", "netns", "exec", self.near, "sh", "-c",
                               f"echo {value} >/sys/class/net/{self.iface}/{setting}"],
                              stderr=subprocess.DEVNULL).returncode == 0

    def receive_here(self) -> None:
        """Gives the kernel's receive work to the recorders' core, for a recorder that has started: to a thread where an
        XDP program receives, which is there as long as the program is; else by RPS."""
        if not self.set_interface("queues/rx-0/rps_cpus", f"{1 << int(RECORDER_CORE):x}"):
            raise RuntimeError("no RPS here")
        if not self.set_interface("threaded", 1):
            return  # No program, and so no NAPI.
        threads = self.napi_threads()
        for thread in threads:
            run("taskset", "-pc", RECORDER_CORE, str(thread))
        if not threads:
            raise RuntimeError("no NAPI thread to pin")

    def napi_threads(self) -> list[int]:
        """Which receive for the interface after `receive_here`."""
        found = []
        for comm in Path("/proc").glob("[0-9]*/comm"):
            try:
                if comm.read_text().startswith(f"napi/{self.iface}-"):
                    found.append(int(comm.parent.name))
            except OSError:
                continue
        return found

    def receive_there(self) -> None:
        """Undoes `receive_here`, also for the programs to come: the interface remembers, and can be told only while it
        has one."""
        self.drop_everything(True)
        try:
            for setting in ("queues/rx-0/rps_cpus", "threaded"):
                if not self.set_interface(setting, 0):
                    raise RuntimeError(f"{setting} can't be put back")
        finally:
            self.drop_everything(False)

    def drop_everything(self, on: bool) -> None:
        program = ["obj", f"{self.programs}/drop.bpf.o", "sec", "xdp"] if on else ["off"]
        run("ip", "-n", self.near, "link", "set", self.iface, "xdpdrv", *program)
