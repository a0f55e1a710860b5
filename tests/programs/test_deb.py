"""The Debian packages: what is in them, what they depend on, and a consumer built and run from nothing else."""

import os
import re
import shutil
import tempfile
from pathlib import Path

import pytest
from conftest import OUT, ROOT, call, must, need, verify

VERSION = re.search(r'^version = "(.*?)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
NAMES = ["libunified0", "libunified-dev", "unified-tools"]
COUNT = 200
# The project has no mail address.
KNOWN = "bogus-mail-host,bogus-mail-host-in-debian-changelog"


def only_full():
    if os.environ.get("UNIFIED_TIER") != "full":
        pytest.skip("a Debian of its own takes a while: full tier")


@pytest.fixture(scope="module")
def packages():
    if not shutil.which("apt-get"):
        pytest.skip("Debian's packages are made on Debian")
    need("dh", "dpkg-deb")
    must("make", "-s", "-f", "Makefile.full-stack", "deb", cwd=ROOT, timeout=600)
    arch = must("dpkg", "--print-architecture").strip()
    made = {name: OUT / "deb" / f"{name}_{VERSION}_{arch}.deb" for name in NAMES}
    assert set((OUT / "deb").iterdir()) == set(made.values())
    return made


@pytest.fixture(scope="module")
def unpacked(packages, tmp_path_factory):
    root = tmp_path_factory.mktemp("unpacked")
    for package in packages.values():
        must("dpkg-deb", "-x", package, root)
    return root


def field(package, name):
    return must("dpkg-deb", "-f", package, name).strip()


def test_the_changelog_is_of_this_version():
    assert (ROOT / "debian/changelog").read_text().startswith(f"unified ({VERSION}) ")


def test_making_them_leaves_nothing_in_the_tree(packages):
    assert not [path for path in (ROOT / "debian").iterdir() if path.is_dir() and path.name != "source"]
    assert not (ROOT / "debian/files").exists()


def test_they_depend_on_what_the_files_need(packages):
    depends = field(packages["libunified0"], "Depends")
    for library in ("libc6", "libelf1", "zlib1g"):
        assert re.search(rf"\b{library} \(>= [\d.:]+\)", depends), depends
    assert "libbpf" not in depends and "libxdp" not in depends
    for name in ("libunified-dev", "unified-tools"):
        assert f"libunified0 (= {VERSION})" in field(packages[name], "Depends")
    for library in ("libelf-dev", "zlib1g-dev"):
        assert library in field(packages["libunified-dev"], "Depends")
    # The loader's cache follows, and other packages find out what they depend on.
    assert "activate-noawait ldconfig" in must("dpkg-deb", "-I", packages["libunified0"], "triggers")
    assert must("dpkg-deb", "-I", packages["libunified0"], "shlibs") == f"libunified 0 libunified0 (>= {VERSION})\n"


def test_every_installed_file_is_in_one_of_them(packages, unpacked, tmp_path):
    multiarch = must("dpkg-architecture", "-qDEB_HOST_MULTIARCH").strip()
    must("make", "-s", "-f", "Makefile.full-stack", "install", f"DESTDIR={tmp_path}", "PREFIX=/usr",
         f"LIBDIR=/usr/lib/{multiarch}", cwd=ROOT, timeout=600)
    missing = []
    for path in tmp_path.rglob("*"):
        if path.is_dir():
            continue
        there = str(path.relative_to(tmp_path)).replace("share/doc/unified/", "share/doc/libunified-dev/")
        if not any(os.path.lexists(unpacked / f"{there}{end}") for end in ("", ".gz")):
            missing.append(there)
    assert not missing
    lib = unpacked / "usr/lib" / multiarch
    assert os.readlink(lib / "libunified.so.0") == f"libunified.so.{VERSION}"
    # Stripping must leave the XDP program what the loader needs: its types.
    assert (lib / "bpf/unified_xdp.bpf.o").read_bytes() == (OUT / "lib/unified_xdp.bpf.o").read_bytes()
    assert not [path for path in (unpacked / "usr/share/man").rglob("*.gz") if not path.resolve().exists()]
    for name in NAMES:
        for file in ("copyright", "changelog.gz"):
            assert (unpacked / "usr/share/doc" / name / file).exists(), f"{name}: {file}"
    third = must("zcat", unpacked / "usr/share/doc/libunified0/THIRD-PARTY.gz")
    for crate in ("libbpf-sys", "libxdp-sys", "io-uring", "libc"):
        assert re.search(rf"^{crate} [\d.+v]+: ", third, re.M), crate
    assert "criterion" not in third
    # No path of the machine that made them is looked at when they run.
    for program in [*(unpacked / "usr/bin").iterdir(), *lib.glob("*.so*")]:
        dynamic = must("readelf", "-d", program)
        assert "RPATH" not in dynamic and "RUNPATH" not in dynamic, program


def test_an_example_of_the_package_does_the_main_job_with_its_files_alone(unpacked, network, device, start, tmp_path):
    multiarch = must("dpkg-architecture", "-qDEB_HOST_MULTIARCH").strip()
    lib = unpacked / "usr/lib" / multiarch
    env = os.environ | {"PKG_CONFIG_LIBDIR": str(lib / "pkgconfig"), "PKG_CONFIG_SYSROOT_DIR": str(unpacked)}
    flags = must("pkg-config", "--cflags", "--libs", "unified", env=env).split()
    # Where the compiler looks anyway, pkg-config says nothing; here the root is another one.
    flags += [f"-I{unpacked}/usr/include", f"-L{lib}"]
    must("gcc", unpacked / "usr/share/doc/libunified-dev/examples/minimal.c", *flags, "-o", tmp_path / "minimal")
    program = start(tmp_path / "minimal", network.near, device, COUNT, env=os.environ | {"LD_LIBRARY_PATH": str(lib)})
    program.until("^Receiving on")
    maps = Path(f"/proc/{program.process.pid}/maps").read_text()
    assert str(lib / f"libunified.so.{VERSION}") in maps
    network.send(COUNT)
    assert program.end() == 0, program.text()
    must(unpacked / "usr/bin/unified-traffic", "verify", device, "--stored", COUNT, "--sent", COUNT)


def test_lintian_has_nothing_to_say(packages):
    only_full()
    need("lintian")
    said = must("lintian", "--allow-root", "--fail-on", "error,warning", "--suppress-tags", KNOWN, *packages.values(), timeout=300)
    assert not re.search(r"^[EW]: ", said, re.M), said


def cached_base() -> Path:
    """A minimal Debian 12, packed; made when there is none yet."""
    given = os.environ.get("UNIFIED_VM_CACHE")
    cache = (Path(given) if given else Path.home() / ".cache" / "unified-vm") / "bookworm-minbase.tar"
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        made = cache.with_suffix(f".{os.getpid()}")
        try:
            must("debootstrap", "--variant=minbase", "--include=gcc,libc6-dev,pkg-config,libelf-dev,zlib1g-dev",
                 "bookworm", f"{made}.d", "http://deb.debian.org/debian", timeout=900)
            must("tar", "--one-file-system", "-C", f"{made}.d", "-cf", made, ".", timeout=300)
            made.rename(cache)
        finally:
            shutil.rmtree(f"{made}.d", ignore_errors=True)
            made.unlink(missing_ok=True)
    return cache


@pytest.fixture
def chroot():
    """A Debian of its own with /proc, /dev and /sys; its network is this machine's."""
    need("debootstrap", "chroot", "tar")
    base = cached_base()
    root = Path(tempfile.mkdtemp(prefix="unified-test.", dir="/var/tmp"))
    mounts = []
    try:
        must("tar", "-C", root, "-xpf", base, timeout=300)
        for kind, where in (("proc", "proc"), ("sysfs", "sys"), ("bpf", "sys/fs/bpf"), ("devtmpfs", "dev")):
            must("mount", "-t", kind, kind, root / where)
            mounts.append(root / where)
        yield root
    finally:
        for where in reversed(mounts):
            must("umount", where)
        # Never through what may still be mounted.
        assert not [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(root) in line]
        shutil.rmtree(root)


def test_they_install_into_a_clean_debian_and_an_example_made_there_stores(packages, network, start, request):
    only_full()
    chroot = request.getfixturevalue("chroot")

    def inside(*words, **options):
        return must("chroot", chroot, *words, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive",
                                                   "LC_ALL": "C.UTF-8"}, **options)

    for package in packages.values():
        shutil.copy(package, chroot / "tmp")
    inside("dpkg", "-i", *(f"/tmp/{package.name}" for package in packages.values()))
    for name in NAMES:
        assert inside("dpkg-query", "-W", "-f", "${Status}", name) == "install ok installed"
    # The trigger has run: the loader knows it by name.
    assert "libunified.so.0" in inside("ldconfig", "-p")
    inside("sh", "-ec", "cd /tmp; gcc /usr/share/doc/libunified-dev/examples/minimal.c $(pkg-config --cflags --libs unified) -o minimal")
    program = start("chroot", chroot, "/tmp/minimal", network.near, "/tmp/device", COUNT)
    program.until("^Receiving on")
    network.send(COUNT, "1-1472")
    assert program.end() == 0, program.text()
    verify(chroot / "tmp/device", COUNT, "1-1472", "--sent", COUNT)
    assert f"{COUNT} of {COUNT}" in inside("unified-traffic", "verify", "/tmp/device", "--stored", COUNT, "--size", "1-1472")
    assert not network.program()
    # The static library, with what pkg-config says it needs.
    inside("sh", "-ec", "cd /tmp; gcc /usr/share/doc/libunified-dev/examples/minimal.c -o static "
           "$(pkg-config --cflags --static --libs unified | sed s/-lunified/-l:libunified.a/)")
    assert "usage" in call("chroot", chroot, "/tmp/static").stdout
    assert "libunified" not in inside("ldd", "/tmp/static")
    inside("dpkg", "--purge", *reversed(NAMES))
    assert not [path for path in (chroot / "usr").rglob("*unified*")]
    assert "libunified" not in inside("ldconfig", "-p")
