"""The host's end of the guest's network: a namespace with a tap device, and the sender that works in it."""

import re
import subprocess
import threading
import time

HOST_ADDRESS = "10.77.0.1"
GUEST_ADDRESS = "10.77.0.2"
GUEST_MAC = "52:54:00:75:6e:69"
HOST_MAC = "52:54:00:75:6e:01"
TAP = "tap0"
# A NIC of several queues, which the guest spreads flows over.
MANY_HOST_ADDRESS = "10.77.1.1"
MANY_GUEST_ADDRESS = "10.77.1.2"
MANY_GUEST_MAC = "52:54:00:75:6e:6d"
MANY_TAP = "tap1"
MANY_QUEUES = 4
MANY_FLOWS = 64
# The most that one request may ask for, so that no test floods anything for long.
MOST_PACKETS, MOST_SECONDS = 1_000_000, 60


def ip(*args):
    done = subprocess.run(["ip", *args], text=True, capture_output=True)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(args)}: {done.stderr.strip()}")


class Namespace:
    """A network namespace with nothing but the tap device, removed at the end."""

    def __init__(self, name):
        self.name = name

    def __enter__(self):
        ip("netns", "add", self.name)
        try:
            inside = ("-n", self.name)
            ip(*inside, "tuntap", "add", TAP, "mode", "tap")
            ip(*inside, "link", "set", TAP, "address", HOST_MAC)
            ip(*inside, "addr", "add", f"{HOST_ADDRESS}/30", "dev", TAP)
            ip(*inside, "link", "set", TAP, "up")
            # Nothing asks who has the address: the first packet is not held back for it.
            neighbour = (GUEST_ADDRESS, "lladdr", GUEST_MAC, "dev", TAP, "nud", "permanent")
            ip(*inside, "neigh", "replace", *neighbour)
            ip(*inside, "tuntap", "add", MANY_TAP, "mode", "tap", "multi_queue")
            ip(*inside, "addr", "add", f"{MANY_HOST_ADDRESS}/30", "dev", MANY_TAP)
            ip(*inside, "link", "set", MANY_TAP, "up")
            neighbour = (MANY_GUEST_ADDRESS, "lladdr", MANY_GUEST_MAC, "dev", MANY_TAP, "nud", "permanent")
            ip(*inside, "neigh", "replace", *neighbour)
        except Exception:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True)

    def command(self, *args):
        return ["ip", "netns", "exec", self.name, *map(str, args)]


class Sender(threading.Thread):
    """Answers the guest's requests on its channel, one line each.

    "send COUNT SIZE RATE PORT FIRST" sends that many payloads and answers "sent N" or "error WHY". "spread ..." does so from
    many ports, to the NIC of several queues.
    "throttle DRIVE IOPS" lets that namespace do so many operations a second (0: any number), and answers "throttled".
    "limit DRIVE BYTES" lets so many bytes a second be written to it (0: any number), and answers the same.
    "unplug SERIAL" takes a drive away, and answers when it is gone; "plug SERIAL" puts it in again, with its first namespace.
    """

    REQUEST = re.compile(r"(send|spread) (\d+) (\d+(?:-\d+)?) (\d+) (\d+) (\d+)$")
    THROTTLE = re.compile(r"(throttle|limit) (\w+-\d+) (\d+)$")
    PLUG = re.compile(r"(plug|unplug) (\w+)$")

    def __init__(self, channel, namespace, traffic, qmp):
        super().__init__(daemon=True)
        self.channel, self.namespace, self.traffic, self.qmp = channel, namespace, traffic, qmp
        self.sending = threading.Event()
        # Drives that were plugged in again.
        self.again = set()

    def run(self):
        try:
            with self.channel.makefile("rw", encoding="ascii", newline="\n") as lines:
                for line in lines:
                    try:
                        answer = self.answer(line.strip())
                    except Exception as error:
                        answer = f"error {error}"
                    lines.write(answer + "\n")
                    lines.flush()
        except OSError:
            # The guest is gone.
            pass

    def answer(self, line):
        if asked := self.THROTTLE.match(line):
            limits = dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)
            limits["iops" if asked[1] == "throttle" else "bps_wr"] = int(asked[3])
            serial = asked[2].split("-")[0]
            which = {"id": serial} if serial in self.again else {"device": asked[2]}
            self.qmp.execute("block_set_io_throttle", **which, **limits)
            return "throttled"
        if asked := self.PLUG.match(line):
            return self.plug(asked[1] == "plug", asked[2])
        asked = self.REQUEST.match(line)
        if not asked:
            return f"error not a request: {line}"
        word, count, size, rate, port, first = asked.groups()
        address, flows = (GUEST_ADDRESS, 1) if word == "send" else (MANY_GUEST_ADDRESS, MANY_FLOWS)
        if not 0 < int(count) <= MOST_PACKETS:
            return f"error {count} packets: 1 to {MOST_PACKETS} are sent"
        self.sending.set()
        done = subprocess.run(
            self.namespace.command(
                *(self.traffic, "send", "--to", f"{address}:{port}", "--size", size, "--flows", flows),
                *("--rate", rate, "--count", count, "--first", first),
                *("--duration", MOST_SECONDS),
            ),
            text=True,
            capture_output=True,
        )
        sent = re.search(r"^Sent: (\d+) packets", done.stdout, re.M)
        if done.returncode != 0 or not sent:
            return f"error {' '.join((done.stderr or done.stdout).split())}"
        return f"sent {sent[1]}"

    def plug(self, into, serial):
        if into:
            # QEMU does not let go of the namespace's own image.
            blocks = self.qmp.execute("query-block")
            (image,) = [block["inserted"]["file"] for block in blocks if block["device"] == f"{serial}-1"]
            file = {"driver": "file", "filename": image, "locking": "off"}
            self.qmp.execute("blockdev-add", **{"driver": "raw", "node-name": f"{serial}-again{len(self.again)}", "file": file})
            self.qmp.execute("device_add", driver="nvme", bus="pci.0", id=serial, serial=serial, drive=f"{serial}-again{len(self.again)}")
            self.again.add(serial)
            return "plugged"
        self.qmp.events.clear()
        self.qmp.execute("device_del", id=serial)
        for _ in range(100):
            # Answers bring the events that came before them.
            self.qmp.execute("query-status")
            gone = [event["data"].get("device") for event in self.qmp.events if event["event"] == "DEVICE_DELETED"]
            if serial in gone:
                return "unplugged"
            time.sleep(0.1)
        return f"error the guest does not let {serial} go"
