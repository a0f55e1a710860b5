"""Kernels for the guest: found in Debian's archive, unpacked into a cache, never installed.

apt runs with a configuration, lists and a package cache of its own, so the host's sources stay as they are.
"""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

MIRROR = "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SUITES = [
    (MIRROR, "bookworm"),
    (MIRROR + "-security", "bookworm-security"),
    (MIRROR, "bookworm-backports"),
    (MIRROR, "sid"),
]
# Which releases each name stands for; the highest one offered is taken.
CHANNELS = {"oldest": r"6\.1\.", "stable": r"6\.12\.", "newest": r"[0-9]+\.[0-9]+\."}
# How long a look-up in the archive is good for.
FRESH = 24 * 3600


class Unavailable(Exception):
    pass


def cache_dir():
    given = os.environ.get("UNIFIED_VM_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "unified-vm"


class Apt:
    """apt with its own sources. Sid is pinned so low that nothing is ever taken from it unasked."""

    def __init__(self, root):
        self.root = root
        for part in ["state/lists/partial", "cache/archives/partial", "preferences"]:
            (root / part).mkdir(parents=True, exist_ok=True)
        lines = [f"deb [signed-by={KEYRING}] {url} {suite} main\n" for url, suite in SUITES]
        (root / "sources.list").write_text("".join(lines))
        (root / "preferences" / "sid").write_text(
            "Package: *\nPin: release n=sid\nPin-Priority: 1\n"
        )
        options = {
            "Dir::State": root / "state",
            "Dir::Cache": root / "cache",
            "Dir::Etc::sourcelist": root / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferencesparts": root / "preferences",
            # The directories belong to the user who runs this, not to _apt.
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
        }
        self.options = [arg for key, value in options.items() for arg in ("-o", f"{key}={value}")]

    def run(self, tool, *args, cwd=None):
        done = subprocess.run(
            [tool, *self.options, "-q", *args], cwd=cwd, text=True, capture_output=True
        )
        if done.returncode != 0:
            raise Unavailable(f"{tool} {' '.join(args)}: {done.stderr.strip()}")
        return done.stdout

    def update(self):
        self.run("apt-get", "update")

    def names(self, regex):
        found = self.run("apt-cache", "search", "--names-only", regex)
        return [line.split(" ", 1)[0] for line in found.splitlines()]


def install_qemu():
    """Installs QEMU on this host, the one thing that is: bookworm's own crashes guests under emulation."""
    apt = Apt(cache_dir() / "apt")
    apt.update()
    subprocess.run(
        ["apt-get", *apt.options, "install", "-y", "--no-install-recommends"]
        + ["-t", "bookworm-backports", "qemu-system-x86"],
        check=True,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
    )


def version_key(release):
    return [int(number) for number in re.findall(r"\d+", release)]


class Kernel:
    """An unpacked kernel: its name here, its release, the image and the modules."""

    def __init__(self, channel, release, tree):
        self.channel, self.release, self.tree = channel, release, tree

    @property
    def modules(self):
        # /lib or /usr/lib, as the suite has it.
        for base in ("usr/lib/modules", "lib/modules"):
            path = self.tree / base / self.release
            if path.is_dir():
                return path
        raise Unavailable(f"{self.tree}: no modules of {self.release}")

    @property
    def image(self):
        for path in (self.modules / "vmlinuz", self.tree / "boot" / f"vmlinuz-{self.release}"):
            if path.is_file():
                return path
        raise Unavailable(f"{self.tree}: no kernel image of {self.release}")


def fetch(channel, refresh=False):
    """The kernel of a channel, from the cache where it is fresh enough, else from the archive."""
    cache = cache_dir()
    index = cache / "channels.json"
    known = json.loads(index.read_text()) if index.exists() else {}
    entry = known.get(channel)
    if entry and not refresh and time.time() - entry["looked_up"] < FRESH:
        tree = cache / "kernels" / entry["release"]
        if tree.is_dir():
            return Kernel(channel, entry["release"], tree)
    apt = Apt(cache / "apt")
    apt.update()
    offered = apt.names(rf"^linux-image-{CHANNELS[channel]}[0-9]+[^ ]*-cloud-amd64$")
    releases = sorted((name.removeprefix("linux-image-") for name in offered), key=version_key)
    if not releases:
        raise Unavailable(f"no cloud kernel for '{channel}' in {', '.join(s for _, s in SUITES)}")
    release = releases[-1]
    tree = cache / "kernels" / release
    if not tree.is_dir():
        unpack(apt, release, tree)
    known[channel] = {"release": release, "looked_up": time.time()}
    index.write_text(json.dumps(known, indent=1))
    return Kernel(channel, release, tree)


def unpack(apt, release, tree):
    # Newer packages are split: the image one only depends on these two.
    split = apt.names(f"^linux-(binary|modules)-{re.escape(release)}$")
    packages = split or [f"linux-image-{release}"]
    work = tree.with_name(f"{release}.part")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    apt.run("apt-get", "download", *packages, cwd=work)
    for package in work.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, work], check=True)
        package.unlink()
    base = work if (work / "lib").is_dir() else work / "usr"
    # The packages come without modules.dep. depmod also warns of lists that only the whole set has.
    command = ["depmod", "-b", base, release]
    done = subprocess.run(command, text=True, capture_output=True)
    if done.returncode != 0:
        raise Unavailable(f"depmod {release}: {done.stderr.strip()}")
    work.rename(tree)
