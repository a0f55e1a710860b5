"""The guest's root file system: one cpio archive of busybox, tools, modules and tests."""

import lzma
import os
import re
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

# Loaded at boot, with what they depend on. What a kernel has built in has no file and is left out.
MODULES = [
    *("virtio_pci", "virtio_console", "virtio_net", "veth", "xsk_diag", "loop"),
    *("nvmet_tcp", "nvme_tcp"),
]
# Debian package by tool.
TOOLS = {
    "ip": "iproute2",
    "tc": "iproute2",
    "ethtool": "ethtool",
    "bpftool": "bpftool",
    "xdp-loader": "xdp-tools",
    "nvme": "nvme-cli",
    "strace": "strace",
    "bash": "bash",
    "ss": "iproute2",
    "iostat": "sysstat",
    "stdbuf": "coreutils",
}


class Missing(Exception):
    pass


def find_tools():
    """The host's tools that go into the guest, as {name: path}."""
    path = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"
    found = {name: shutil.which(name, path=path) for name in TOOLS}
    packages = {TOOLS[name] for name, where in found.items() if where is None}
    busybox = Path("/bin/busybox")
    if not busybox.exists() or needed_libraries(busybox):
        packages.add("busybox-static")
    if packages:
        raise Missing(f"missing on this host: apt-get install {' '.join(sorted(packages))}")
    return {name: Path(where) for name, where in found.items()}


def needed_libraries(binary):
    """What the dynamic linker would load for a program, itself included."""
    done = subprocess.run(["ldd", binary], text=True, capture_output=True)
    if done.returncode != 0:
        return []
    if "not found" in done.stdout:
        raise Missing(f"{binary}: {done.stdout}")
    found = [Path(p) for p in re.findall(r"(?:=> |^\s+)(/\S+) \(0x", done.stdout, re.M)]
    # The library itself has one place in the guest, wherever it was found here.
    return [path for path in found if not path.name.startswith("libunified.so")]


def modules_in_order(kernel, names):
    """Module files, each behind those it depends on."""
    needs = {}
    for line in (kernel.modules / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[Path(path).name.split(".ko")[0].replace("-", "_")] = (path, rest.split())
    order = []
    for name in names:
        if name not in needs:
            continue
        path, dependencies = needs[name]
        # modules.dep names the direct user first: the deepest dependency is the last one.
        for file in [*reversed(dependencies), path]:
            if file not in order:
                order.append(file)
    return [kernel.modules / file for file in order]


class Archive:
    """A cpio archive (newc), written as it grows."""

    def __init__(self, path):
        self.out = open(path, "wb")
        self.inode = 0
        self.dirs = set()
        self.files = set()

    def _entry(self, name, mode, data=b""):
        self.inode += 1
        name_bytes = name.encode() + b"\0"
        fields = [self.inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name_bytes), 0]
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name_bytes
        self.out.write(head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4))

    def directory(self, path):
        path = str(path).strip("/")
        if not path or path in self.dirs:
            return
        self.directory(os.path.dirname(path))
        self.dirs.add(path)
        self._entry(path, stat.S_IFDIR | 0o755)

    def bytes(self, path, data, mode=0o755):
        path = str(path).strip("/")
        if path in self.files:
            return
        self.files.add(path)
        self.directory(os.path.dirname(path))
        self._entry(path, stat.S_IFREG | mode, data)

    def link(self, path, target):
        self.directory(os.path.dirname(str(path).strip("/")))
        self._entry(str(path).strip("/"), stat.S_IFLNK | 0o777, str(target).encode())

    def program(self, source, to):
        """A program with its libraries, without its debug information."""
        self.bytes(to, stripped(source))
        for library in needed_libraries(source):
            self.bytes(library, library.read_bytes())

    def tree(self, source):
        """A directory of data, at the same place."""
        for path in sorted(source.rglob("*")):
            if path.is_file():
                self.bytes(path, path.read_bytes(), 0o644)

    def module(self, source, to):
        data = source.read_bytes()
        self.bytes(to, lzma.decompress(data) if source.suffix == ".xz" else data)

    def close(self):
        self._entry("TRAILER!!!", 0)
        self.out.close()


def stripped(source):
    """Most of a test binary is debug information, which would have to be loaded into the guest."""
    with tempfile.NamedTemporaryFile() as out:
        command = ["objcopy", "--strip-debug", source, out.name]
        if subprocess.run(command, capture_output=True).returncode == 0:
            return Path(out.name).read_bytes()
    # What objcopy does not understand (a script) goes in as it is.
    return Path(source).read_bytes()


def build(path, kernel, tools, programs, files, directories, heavy=()):
    """Writes the archive. `programs` and `files` are {place in the guest: path or bytes}."""
    archive = Archive(path)
    for name in ["bin", "dev", "proc", "sys", "run", "tmp", "var/tmp", "root", *directories]:
        archive.directory(name)
    archive.program(Path("/bin/busybox"), "bin/busybox")
    # Not busybox's shell, which would take its own `ip` before any on the PATH.
    archive.program(Path("/bin/dash"), "bin/dash")
    archive.link("bin/sh", "dash")
    for name, source in tools.items():
        archive.program(source, f"usr/sbin/{name}")
    for to, source in programs.items():
        archive.program(source, to)
    for to, source in files.items():
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        archive.bytes(to, data)
    for program, trees in heavy:
        # Where it looks for its own parts, and on the PATH.
        archive.program(program, program)
        archive.link("usr/sbin/clang", program)
        for tree in trees:
            archive.tree(tree)
    loaded = []
    for module in modules_in_order(kernel, MODULES):
        to = f"lib/unified/{module.name.removesuffix('.xz')}"
        archive.module(module, to)
        loaded.append(f"/{to}\n")
    archive.bytes("etc/modules", "".join(loaded).encode(), 0o644)
    archive.close()
