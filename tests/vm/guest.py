"""A running guest: QEMU with its devices, its channels and its control socket (QMP)."""

import json
import socket
import subprocess
import time
from pathlib import Path

import network

QEMU = "qemu-system-x86_64"
MIB = 1 << 20
# Drives by what is special about them: controller options, and the namespaces as (size, options), with
# the image's own options behind a "|".
# The serial says which is which in the guest. Blocks have 512 bytes and MDTS is 512 KiB unless said.
DRIVES = {
    "plain": ("", [(64 * MIB, ""), (16 * MIB, "")]),
    "block4k": ("", [(64 * MIB, "logical_block_size=4096,physical_block_size=4096")]),
    # MDTS counts in powers of two of 4 KiB.
    "mdts64": ("mdts=4", [(64 * MIB, "")]),
    # The cache is off, yet QEMU's Identify claims one, and so the kernel says write back.
    "nocache": ("", [(64 * MIB, "write-cache=off")]),
    # Every write fails. (QEMU has no write protection of namespaces that Identify would show.)
    "unwritable": ("", [(16 * MIB, "|readonly=on")]),
    # One block that cannot be written, one that cannot be read, and a flush that always fails: see FAULTS.
    "badblock": ("", [(64 * MIB, "")]),
    "unreadable": ("", [(64 * MIB, "")]),
    "noflush": ("", [(64 * MIB, "")]),
    # Of recordings on several drives. Throttled, unplugged and plugged in again by the tests.
    **{f"leg{n}": ("", [(64 * MIB, "")]) for n in range(1, 5)},
    # Holds a file system: the tests' own directory for files.
    "files": ("", [(96 * MIB, "")]),
}
# Below the emulated drive, so that passthrough meets them: rules of QEMU's blkdebug. Sectors have 512 bytes.
BAD_SECTOR = 4096
# Drives of the guest that loses its power, for its recorder.
CUT = {name: ("", [(20 * MIB, "")]) for name in ("cut1", "cut2")}
FAULTS = {
    "badblock": f'[inject-error]\nevent = "write_aio"\niotype = "write"\nerrno = "5"\nsector = "{BAD_SECTOR}"\n',
    "unreadable": f'[inject-error]\nevent = "read_aio"\niotype = "read"\nerrno = "5"\nsector = "{BAD_SECTOR}"\n',
    "noflush": '[inject-error]\nevent = "none"\niotype = "flush"\nerrno = "5"\n',
}
CHANNELS = ["results", "requests"]
# Of the second NUMA node.
FAR_BUS = "far"


class Failed(Exception):
    pass


def check_qemu():
    """QEMU's version; bookworm's own (7.2) crashes guests under emulation."""
    try:
        first = subprocess.run([QEMU, "--version"], text=True, capture_output=True).stdout
        version = first.split("version ", 1)[1].split()[0]
        if int(version.split(".")[0]) >= 9:
            return version
        found = f"QEMU {version} is too old"
    except (FileNotFoundError, IndexError):
        found = "QEMU is not installed"
    raise Failed(f"{found}: tests/vm/run --install-qemu takes the one of bookworm-backports")


class Qmp:
    """QEMU's control protocol: one JSON object a line."""

    def __init__(self, path):
        connection = connect(path)
        connection.settimeout(30)
        self.stream = connection.makefile("rw", encoding="utf-8", newline="\n")
        self.events = []
        self.greeting = json.loads(self.stream.readline())["QMP"]
        self.execute("qmp_capabilities")

    def execute(self, command, **arguments):
        json.dump({"execute": command, "arguments": arguments}, self.stream)
        self.stream.write("\n")
        self.stream.flush()
        while True:
            line = self.stream.readline()
            if not line:
                raise Failed(f"QEMU went away during {command}")
            answer = json.loads(line)
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise Failed(f"{command}: {answer['error']['desc']}")
            else:
                return answer["return"]


def connect(path, patience=10.0):
    until = time.monotonic() + patience
    while True:
        stream = socket.socket(socket.AF_UNIX)
        try:
            stream.connect(str(path))
            return stream
        except OSError:
            stream.close()
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


class Guest:
    """One guest, from start to end. Use it as a context: nothing of it is left behind."""

    def __init__(self, kernel, initramfs, directory, namespace, console=None, drives=DRIVES):
        """The console goes to a file, or, without one, a shell on it to this terminal."""
        self.kinds = drives
        self.kernel, self.initramfs, self.dir = kernel, initramfs, Path(directory)
        self.namespace, self.console = namespace, console
        self.shell = console is None
        self.process = self.qmp = None
        self.said = ""

    def command(self):
        sockets = {name: self.dir / f"{name}.sock" for name in [*CHANNELS, "qmp"]}
        console = "mon:stdio" if self.shell else f"file:{self.console}"
        # An oops ends the guest. Lockup detectors give false alarms if two guests share few processors.
        words = ["console=ttyS0", "panic=-1", "oops=panic", "nowatchdog"]
        words += ["unified.shell"] if self.shell else []
        command = [QEMU, "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2,sockets=2", "-m", "3072"]
        # Two NUMA nodes.
        for node in range(2):
            command += ["-object", f"memory-backend-ram,id=node{node},size={1 + node}G"]
            command += ["-numa", f"node,nodeid={node},cpus={node},memdev=node{node}"]
        command += ["-nodefaults", "-display", "none", "-no-reboot", "-serial", console]
        command += ["-kernel", self.kernel.image, "-initrd", self.initramfs]
        command += ["-append", " ".join(words)]
        command += ["-qmp", f"unix:{sockets['qmp']},server=on,wait=off"]
        command += ["-device", "virtio-serial-pci"]
        for name in CHANNELS:
            command += ["-chardev", f"socket,id={name},path={sockets[name]},server=on,wait=off"]
            command += ["-device", f"virtserialport,chardev={name},name=unified.{name}"]
        return [str(word) for word in command + self.drives() + self.nic()]

    def drives(self):
        options = []
        for serial, (controller, namespaces) in self.kinds.items():
            extra = f",{controller}" if controller else ""
            options += ["-device", f"nvme,id={serial},serial={serial}{extra}"]
            for number, (size, special) in enumerate(namespaces, 1):
                name = f"{serial}-{number}"
                image = self.dir / f"{name}.img"
                with open(image, "wb") as made:
                    made.truncate(size)
                if serial == "files":
                    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
                space = [f"nvme-ns,drive={name},bus={serial},nsid={number}"]
                file = image
                if serial in CUT:
                    # Every write and flush in its order, in the format of dm-log-writes.
                    log = self.dir / f"{name}.log"
                    log.touch()
                    node = f"driver=blklogwrites,node-name={name},log-sector-size=512,file.driver=file,file.filename={image}"
                    options += ["-blockdev", f"{node},log.driver=file,log.filename={log}", "-device", space[0]]
                    continue
                if serial in FAULTS:
                    rules = self.dir / f"{name}.rules"
                    rules.write_text(FAULTS[serial])
                    file = f"blkdebug:{rules}:{image}"
                drive = [f"file={file},if=none,id={name},format=raw,discard=unmap"]
                ours, _, image_options = special.partition("|")
                options += ["-drive", ",".join(drive + [image_options] * bool(image_options))]
                options += ["-device", ",".join(space + [ours] * bool(ours))]
        return options

    def nic(self):
        off = "tso4 tso6 ufo ecn csum uso4 uso6".split()
        device = f"virtio-net-pci,id=nic,netdev=net,mac={network.GUEST_MAC}"
        # What lets the guest's driver give its queues to AF_XDP without a copy.
        device += ",iommu_platform=on,disable-legacy=on," + ",".join(f"guest_{o}=off" for o in off)
        tap = f"tap,id=net,ifname={network.TAP},script=no,downscript=no"
        many = f"virtio-net-pci,id=many,bus={FAR_BUS},addr=1,netdev=spread,mac={network.MANY_GUEST_MAC},mq=on,rss=on"
        many += f",vectors={2 * network.MANY_QUEUES + 2},iommu_platform=on,disable-legacy=on,"
        many += ",".join(f"guest_{o}=off" for o in off)
        taps = f"tap,id=spread,ifname={network.MANY_TAP},queues={network.MANY_QUEUES},script=no,downscript=no"
        # Last of all: QEMU puts devices without a bus on any.
        far = f"pxb,id={FAR_BUS},bus=pci.0,bus_nr=128,numa_node=1"
        return ["-netdev", tap, "-device", device, "-netdev", taps, "-device", far, "-device", many]

    def __enter__(self):
        stdio = None if self.shell else subprocess.DEVNULL
        self.errors = open(self.dir / "qemu.err", "w+")
        self.process = subprocess.Popen(
            self.namespace.command(*self.command()),
            stdin=stdio,
            stdout=stdio,
            stderr=None if self.shell else self.errors,
        )
        try:
            self.qmp = self.reach("qmp", Qmp)
            self.channels = {name: self.reach(name, connect) for name in CHANNELS}
        except Exception:
            self.__exit__()
            raise
        return self

    def reach(self, name, opener):
        try:
            return opener(self.dir / f"{name}.sock")
        except OSError as error:
            self.errors.seek(0)
            raise Failed(f"QEMU's {name} socket: {error}; QEMU said: {self.errors.read()}")

    def __exit__(self, *_):
        """Ends QEMU, the process that was started here and no other."""
        if self.process and self.process.poll() is None:
            try:
                self.qmp.execute("quit")
                self.process.wait(5)
            except (AttributeError, Failed, OSError, ValueError, subprocess.TimeoutExpired):
                self.process.kill()
        if self.process:
            self.process.wait()
        self.errors.seek(0)
        self.said = self.errors.read().strip()
        self.errors.close()

    def is_running(self):
        return self.process.poll() is None

    def tail(self, lines=60):
        text = self.console.read_text(errors="replace") if self.console.exists() else ""
        return text.replace("\r", "").splitlines()[-lines:]
