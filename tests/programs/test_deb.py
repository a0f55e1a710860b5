"""The Debian packages: what is in them, what they depend on, and a consumer built and run from nothing else."""

import os
import re
import shutil
from pathlib import Path

import debian
import pytest
from conftest import OUT, ROOT, call, must, need, verify

VERSION = re.search(r'^version = "(.*?)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
NAMES = ["libunified0", "libunified-dev", "unified-tools", "python3-unified"]
COUNT = 200
# The project has no mail address.
KNOWN = "bogus-mail-host,bogus-mail-host-in-debian-changelog"


@pytest.fixture(scope="module")
def packages():
    if not shutil.which("apt-get"):
        pytest.skip("Debian's packages are made on Debian")
    need("dh", "dpkg-deb")
    must("make", "-s", "-f", "Makefile.full-stack", "deb", cwd=ROOT, timeout=600)
    arch = must("dpkg", "--print-architecture").strip()
    made = {name: OUT / "deb" / f"{name}_{VERSION}_{'all' if name == 'python3-unified' else arch}.deb" for name in NAMES}
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


def test_making_them_leaves_nothing_in_the_tree(packages):
    assert not [path for path in (ROOT / "debian").iterdir() if path.is_dir() and path.name != "source"]
    assert not (ROOT / "debian/files").exists()


def test_they_depend_on_what_the_files_need(packages):
    depends = field(packages["libunified0"], "Depends")
    for library in ("libc6", "libelf1", "zlib1g"):
        assert re.search(rf"\b{library} \(>= [\d.:]+\)", depends), depends
    assert "libbpf" not in depends and "libxdp" not in depends
    for name in ("libunified-dev", "unified-tools"):
        assert field(packages[name], "Version") == VERSION
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
        # Of make install alone: a package knows its directories.
        if path.is_dir() or path.name == "directories":
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


def test_the_python_module_of_the_package_finds_the_library(packages, unpacked):
    multiarch = must("dpkg-architecture", "-qDEB_HOST_MULTIARCH").strip()
    depends = field(packages["python3-unified"], "Depends")
    assert f"libunified0 (>= {VERSION})" in depends and "python3" in depends
    env = {"PYTHONPATH": str(unpacked / "usr/lib/python3/dist-packages"), "LD_LIBRARY_PATH": str(unpacked / "usr/lib" / multiarch)}
    said = must("/usr/bin/python3", "-B", "-c", "import unified; print(unified.__file__, unified.version())", env=env, cwd="/")
    assert said.split() == [str(unpacked / "usr/lib/python3/dist-packages/unified.py"), VERSION]


def test_an_example_of_the_package_does_the_main_job_with_its_files_alone(unpacked, network, device, start, tmp_path):
    multiarch = must("dpkg-architecture", "-qDEB_HOST_MULTIARCH").strip()
    lib = unpacked / "usr/lib" / multiarch
    env = os.environ | {"PKG_CONFIG_LIBDIR": str(lib / "pkgconfig"), "PKG_CONFIG_SYSROOT_DIR": str(unpacked)}
    flags = must("pkg-config", "--cflags", "--libs", "unified", env=env).split()
    # For directories that the compiler searches anyway, pkg-config prints nothing; here the root is another one.
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
    debian.only_full()
    need("lintian")
    said = must("lintian", "--allow-root", "--fail-on", "error,warning", "--suppress-tags", KNOWN, *packages.values(), timeout=300)
    assert not re.search(r"^[EW]: ", said, re.M), said


def test_they_install_into_a_clean_debian_and_an_example_made_there_stores(packages, network, start):
    debian.only_full()
    packed = debian.base("gcc", "gcc", "libc6-dev", "pkg-config", "libelf-dev", "zlib1g-dev")
    with debian.unpacked(packed) as root:
        def inside(*words):
            return debian.inside(root, *words)

        for package in packages.values():
            shutil.copy(package, root / "tmp")
        inside("dpkg", "-i", *(f"/tmp/{package.name}" for package in packages.values()))
        for name in NAMES:
            assert inside("dpkg-query", "-W", "-f", "${Status}", name) == "install ok installed"
        # The trigger has run: the loader knows it by name.
        assert "libunified.so.0" in inside("ldconfig", "-p")
        build = "cd /tmp; gcc /usr/share/doc/libunified-dev/examples/minimal.c -o "
        inside("sh", "-ec", build + "minimal $(pkg-config --cflags --libs unified)")
        program = start("chroot", root, "/tmp/minimal", network.near, "/tmp/device", COUNT)
        program.until("^Receiving on")
        network.send(COUNT, "1-1472")
        assert program.end() == 0, program.text()
        verify(root / "tmp/device", COUNT, "1-1472", "--sent", COUNT)
        assert f"{COUNT} of {COUNT}" in inside("unified-traffic", "verify", "/tmp/device", "--stored", COUNT, "--size", "1-1472")
        assert not network.program()
        # The static library, with what pkg-config says it needs.
        inside("sh", "-ec", build + "static $(pkg-config --cflags --static --libs unified | sed s/-lunified/-l:libunified.a/)")
        assert "usage" in call("chroot", root, "/tmp/static").stdout
        assert "libunified" not in inside("ldd", "/tmp/static")
        inside("dpkg", "--purge", *reversed(NAMES))
        assert not [path for path in (root / "usr").rglob("*unified*")]
        assert "libunified" not in inside("ldconfig", "-p")
