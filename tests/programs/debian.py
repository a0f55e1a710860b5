"""A Debian of its own to install and build in: debootstrap's minbase, kept packed, and mounts that come off again."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from conftest import must, need

MIRROR = "http://deb.debian.org/debian"


def only_full() -> None:
    if os.environ.get("UNIFIED_TIER") != "full":
        pytest.skip("a Debian of its own takes a while: full tier")


def base(name: str, *packages: str) -> Path:
    """A minimal Debian 12 with these packages, packed; made when there is none yet."""
    need("debootstrap", "tar")
    given = os.environ.get("UNIFIED_VM_CACHE")
    cache = (Path(given) if given else Path.home() / ".cache" / "unified-vm") / f"bookworm-{name}.tar"
    if cache.exists():
        return cache
    cache.parent.mkdir(parents=True, exist_ok=True)
    made, root = cache.with_suffix(f".{os.getpid()}"), Path(tempfile.mkdtemp(prefix="unified-test.", dir="/var/tmp"))
    try:
        include = [f"--include={','.join(packages)}"] if packages else []
        must("debootstrap", "--variant=minbase", *include, "bookworm", root, MIRROR, timeout=900)
        must("tar", "--one-file-system", "-C", root, "-cf", made, ".", timeout=300)
        made.rename(cache)
    finally:
        shutil.rmtree(root, ignore_errors=True)
        made.unlink(missing_ok=True)
    return cache


@contextlib.contextmanager
def unpacked(packed: Path):
    """Its root, with /proc, /dev and /sys; the network is this machine's."""
    root = Path(tempfile.mkdtemp(prefix="unified-test.", dir="/var/tmp"))
    mounts = []
    try:
        must("tar", "-C", root, "-xpf", packed, timeout=300)
        root.chmod(0o755)
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
        for kind, where in (("proc", "proc"), ("sysfs", "sys"), ("bpf", "sys/fs/bpf"), ("devtmpfs", "dev")):
            must("mount", "-t", kind, kind, root / where)
            mounts.append(root / where)
        yield root
    finally:
        for where in reversed(mounts):
            # Lazily: after a failure a program of the test may still be in there.
            must("umount", "-l", where)
        # Never through what may still be mounted.
        assert not [line for line in Path("/proc/self/mounts").read_text().splitlines() if f" {root}/" in line]
        shutil.rmtree(root)


def inside(root: Path, *words, timeout=60, env=None, **options) -> str:
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"} | (env or {})
    return must("chroot", root, *words, env=env, timeout=timeout, **options)
