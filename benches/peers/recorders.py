# SPDX-License-Identifier: MIT OR Apache-2.0
"""Everything that is measured: how it is started, how it says what it stored, and what it copies by design."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

from lab import PORT, RECORDER_CORE, SENDER_CORE, Lab, run, words

PCAP_FILE_HEADER, PCAP_RECORD_HEADER, FRAME_HEADERS = 24, 16, 42
# Of a log of version 2, and below which length of a packet it packs by default.
RECORD_HEADER, PACK_BELOW = 24, 800
MIB = 1 << 20


class Recorder:
    name = ""
    package = None
    # Bytes copied by a CPU for each byte stored, from the design: from the socket buffer on, into the page cache
    # if there is no O_DIRECT. (On tmpfs there is none, and everybody copies into the page cache.)
    copies = 1
    o_direct = False
    # Packets are stored, not only received.
    stores = True
    own = False

    def __init__(self, lab: Lab):
        self.lab = lab
        self.process = None

    def command(self, target: Path) -> list[str]:
        raise NotImplementedError

    def version(self) -> str:
        if not self.package:
            return "this tree"
        try:
            return run("dpkg-query", "-W", "-f", "${Package} ${Version}", self.package)
        except (RuntimeError, FileNotFoundError):
            return "unknown version"

    def start(self, target: Path) -> None:
        self.target = target
        self.log = open(self.lab.programs / "recorder.log", "w+")
        self.process = subprocess.Popen(self.lab.here(self.command(target)), stdin=subprocess.PIPE, stdout=self.log,
                                        stderr=subprocess.STDOUT)
        self.await_ready()

    def output(self) -> str:
        self.log.seek(0)
        return self.log.read()

    # Seconds from then on until the first packet.
    ready_pause = 0.2
    # What it prints when packets are seen from then on.
    ready_mark = "ready"

    def await_ready(self) -> None:
        until = time.monotonic() + 20
        while self.ready_mark not in self.output():
            if self.process.poll() is not None or time.monotonic() > until:
                self.kill()
                raise RuntimeError(f"{self.name} did not start: {self.output()}")
            time.sleep(0.02)
        time.sleep(self.ready_pause)

    def ask_to_stop(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def stop(self) -> dict:
        self.ask_to_stop()
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError(f"{self.name} did not end: {self.output()}") from None
        self.process.stdin.close()
        if code not in (0, -signal.SIGINT):
            raise RuntimeError(f"{self.name}: exit code {code}: {self.output()}")
        with self.log:
            return self.result(self.output())

    def result(self, output: str) -> dict:
        return words(output)

    def kill(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
            # A killed recorder has left its program attached.
            self.lab.drop_everything(False)

    def bytes_per_packet(self, size: int) -> int:
        """On the device."""
        raise NotImplementedError


class Ours(Recorder):
    own = True
    o_direct = True
    copies = 1

    def __init__(self, lab: Lab, layout: str, drive: str, *arguments: str):
        super().__init__(lab)
        self.layout, self.drive, self.arguments = layout, drive, arguments
        self.name = self.name_of(drive)

    def name_of(self, what: str) -> str:
        unchecked = " unchecked" if "--unchecked" in self.arguments else ""
        return f"unified {self.layout} {what}{unchecked}"

    def command(self, target):
        return [f"{self.lab.programs}/recorder", *self.arguments, "--layout", self.layout, "--drive", self.drive,
                self.lab.iface, str(target)]

    def bytes_per_packet(self, size):
        if self.layout == "payload":
            return -(-size // 512) * 512
        packed = self.layout == "log" and size + FRAME_HEADERS < PACK_BELOW
        return size + FRAME_HEADERS + RECORD_HEADER if packed else 2048


class OursWith(Ours):
    """The slot layout with something turned."""

    def __init__(self, lab, what: str, *arguments: str, cores: str = "", deferred: bool = False, huge: bool = True):
        super().__init__(lab, "slot", "inline", *arguments)
        self.name = f"unified slot, {what}"
        self.cores, self.deferred, self.huge = cores, deferred, huge

    def start(self, target):
        self.lab.defer_interrupts(self.deferred)
        super().start(target)

    def stop(self):
        try:
            result = super().stop()
        finally:
            self.lab.defer_interrupts(False)
        if int(result["huge_pages"]) != self.huge:
            raise RuntimeError(f"{self.name}: it had {'no ' if self.huge else ''}huge pages")
        return result

    def command(self, target):
        pinned = ["taskset", "-c", self.cores] if self.cores else []
        return [*pinned, *super().command(target)]


class OursNull(Ours):
    """The pipeline to a device that stores nothing: everything but the device."""

    stores = False

    def __init__(self, lab, layout, *arguments):
        super().__init__(lab, layout, "inline", *arguments)
        self.name = self.name_of("null")

    def command(self, target):
        return super().command("null:68719476736")


class OursReceive(Ours):
    """Packets are taken and let go."""

    stores = False

    def __init__(self, lab):
        super().__init__(lab, "slot", "inline")
        self.name = "unified rx-only"

    def command(self, target):
        return [f"{self.lab.programs}/recorder", "--mode", "receive", self.lab.iface, "null:1048576"]

    def result(self, output):
        found = words(output)
        return found | {"stored": found["received"]}


class OursLatency(Ours):
    """The low-level calls in one thread, each payload a write of its own; from the XDP program's timestamp."""

    def __init__(self, lab):
        super().__init__(lab, "payload", "inline")
        self.name = "unified low-level"

    def command(self, target):
        return [f"{self.lab.programs}/recorder", "--mode", "latency", self.lab.iface, str(target)]


class ByHand(Recorder):
    """recvmmsg and O_DIRECT pwrite: what one writes without this library."""

    name = "recvmmsg by hand"
    o_direct = True
    copies = 2

    def __init__(self, lab, timed=False):
        super().__init__(lab)
        self.timed = timed

    def command(self, target):
        # tmpfs takes O_DIRECT, and copies all the same.
        return [f"{self.lab.programs}/by-hand", *(["--latency"] if self.timed else []), str(PORT), str(target)]

    def bytes_per_packet(self, size):
        return size + 16


class Rival(Recorder):
    """AF_XDP by hand: each packet is copied once, into buffers of 1 MiB."""

    o_direct = True
    copies = 2
    WRITERS = ("thread", "inline", "pwrite")

    def __init__(self, lab: Lab, stored: str, writer: str, *arguments: str):
        """`stored`: "frame" (from the Ethernet header on) or "payload"."""
        super().__init__(lab)
        self.stored, self.writer, self.arguments = stored, writer, arguments
        self.stores = writer != "null"
        self.name = " ".join(["rival", stored, writer, *arguments])

    def command(self, target):
        return [f"{self.lab.programs}/rival", *(["--payload"] if self.stored == "payload" else []), "--writer",
                self.writer, *self.arguments, f"{self.lab.programs}/rival.bpf.o", self.lab.iface, str(target)]

    def bytes_per_packet(self, size):
        """But for the padding of partial buffers."""
        return 16 + -(-(size + (0 if self.stored == "payload" else FRAME_HEADERS)) // 4) * 4


class Pcap(Recorder):
    """Writes a pcap file through the page cache."""

    def start(self, target):
        self.size = None
        super().start(target.with_suffix(f".{self.name}.pcap"))

    def result(self, output):
        # Written through to the device before the clock is read, as the others are.
        with open(self.target, "rb+") as file:
            os.fsync(file)
        return {"file_bytes": self.target.stat().st_size}

    def bytes_per_packet(self, size):
        return size + FRAME_HEADERS + PCAP_RECORD_HEADER

    def kill(self):
        super().kill()
        # After the clock was read: the others' targets are not deleted either.
        self.target.unlink(missing_ok=True)


class Tcpdump(Pcap):
    name = package = "tcpdump"
    ready_mark = "listening on"
    copies = 3

    def command(self, target):
        return ["tcpdump", "-i", self.lab.iface, "-p", "-n", "-s", "0", "-Z", "root", "-B", str(64 * 1024),
                "-w", str(target), "udp", "port", str(PORT)]


class NetsniffNg(Pcap):
    name = package = "netsniff-ng"
    ready_mark = "Running!"
    copies = 2

    def command(self, target):
        return ["netsniff-ng", "--in", self.lab.iface, "--out", str(target), "--silent", "--no-promisc",
                "--ring-size", "64MiB", "--filter", f"udp port {PORT}"]


class Dumpcap(Pcap):
    name = "dumpcap"
    package = "wireshark-common"
    ready_mark = "File:"
    copies = 3

    def command(self, target):
        return ["dumpcap", "-i", self.lab.iface, "-p", "-P", "-B", "64", "-w", str(target), "-f",
                f"udp port {PORT}"]


class Testpmd(Recorder):
    """The receive ceiling: DPDK polls an AF_XDP socket and throws away what comes."""

    name = "testpmd rx-only"
    package = "dpdk"
    ready_mark = "Press enter to exit"
    stores = False

    def command(self, target):
        return ["stdbuf", "-oL", "dpdk-testpmd", "--no-huge", "-m", "512", "--no-pci", "--lcores", "0@1,1@1",
                "--file-prefix", f"bench{os.getpid()}", "--vdev", f"net_af_xdp0,iface={self.lab.iface}",
                "--", "--forward-mode=rxonly", "--total-num-mbufs=16384", "--no-lsc-interrupt"]

    def ask_to_stop(self):
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def result(self, output):
        return {"stored": int(re.findall(r"RX-packets: (\d+)", output)[-1])}


class Drop(Recorder):
    """No receiver: an XDP program drops everything. What the sender costs."""

    name = "XDP_DROP"
    stores = False

    def start(self, target):
        self.lab.drop_everything(True)

    def stop(self):
        self.lab.drop_everything(False)
        return {"stored": 0}

    def kill(self):
        self.lab.drop_everything(False)


def variants(lab: Lab) -> list[Recorder]:
    """What can be turned, each beside the default."""
    return [Drop(lab), OursWith(lab, "as it comes"), OursWith(lab, "reserved huge pages", "--reserved-pages"),
            OursWith(lab, "4 KiB pages", "--small-pages", huge=False),
            OursWith(lab, "moderation 1 ms", "--moderation", "1000"),
            OursWith(lab, "no moderation", "--moderation", "1"),
            OursWith(lab, "both cores", cores=f"{SENDER_CORE},{RECORDER_CORE}"),
            OursWith(lab, "interrupts deferred", deferred=True), OursWith(lab, "an event of each packet", "--events")]


def all_recorders(lab: Lab) -> list[Recorder]:
    return [Drop(lab), Testpmd(lab), OursReceive(lab), OursNull(lab, "payload"), OursNull(lab, "slot"),
            OursNull(lab, "log"),
            *(Ours(lab, layout, drive) for layout in ("log", "slot", "payload") for drive in ("inline", "thread")),
            ByHand(lab), NetsniffNg(lab), Tcpdump(lab), Dumpcap(lab)]


def stored(recorder: Recorder, result: dict, size: int) -> int:
    """Packets. Pcap files are measured: all their records are equally long."""
    if "file_bytes" not in result:
        return int(result["stored"])
    records, rest = divmod(result["file_bytes"] - PCAP_FILE_HEADER, recorder.bytes_per_packet(size))
    if rest:
        raise RuntimeError(f"{recorder.name}: {result['file_bytes']} bytes are not whole records of {size} bytes")
    return records
