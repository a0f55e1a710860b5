"""The built library and its header, as consumers find them."""

import os
import re
import shutil

import pytest
from conftest import OUT, ROOT, call, must

LIBRARY = OUT / "lib/libunified.so"


def test_it_exports_its_functions_and_nothing_else():
    exported = {line.split()[-1] for line in must("nm", "-D", "--defined-only", LIBRARY).splitlines()}
    header = (ROOT / "include/unified.h").read_text()
    declared = set(re.findall(r"^\S.*?\b(unified_\w+)\(", header, re.M)) - {"unified_log_fn"}
    assert len(declared) > 30
    # What -Wl,--wrap calls in programs of the registration interface.
    wraps = {"__wrap_syscall", "__wrap_xsk_umem__create", "__wrap_setrlimit"}
    assert declared | wraps == exported


def test_it_has_a_soname():
    assert "Library soname: [libunified.so.0]" in must("readelf", "-d", LIBRARY)


@pytest.mark.parametrize("compiler, standard", [("gcc", "c11"), ("clang", "c11"), ("gcc", "c++17"), ("clang", "c++17")])
def test_the_header_alone_compiles_without_a_warning(compiler, standard, tmp_path):
    if not shutil.which(compiler):
        pytest.fail(f"{compiler} is not installed")
    plus = standard.startswith("c++")
    source = tmp_path / ("use.cc" if plus else "use.c")
    source.write_text('#include <unified.h>\nint main(void) { return unified_version() >> 16; }\n')
    tool = {"gcc": "g++", "clang": "clang++"}[compiler] if plus and shutil.which("g++") else compiler
    must(tool, f"-std={standard}", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{ROOT}/include", source, "-o",
         tmp_path / "use", f"-L{OUT}/lib", "-lunified", f"-Wl,-rpath,{OUT}/lib")
    assert call(tmp_path / "use").returncode == 0


def test_installed_files_serve_a_program_outside(tmp_path):
    must("make", "-s", "-f", "Makefile.full-stack", "install", f"DESTDIR={tmp_path}", "PREFIX=/usr", cwd=ROOT, timeout=600)
    lib = tmp_path / "usr/lib"
    env = os.environ | {"PKG_CONFIG_PATH": str(lib / "pkgconfig"), "PKG_CONFIG_SYSROOT_DIR": str(tmp_path)}
    flags = must("pkg-config", "--cflags", "--libs", "unified", env=env).split()
    example = tmp_path / "usr/share/doc/unified/examples/minimal.c"
    must("gcc", example, *flags, "-o", tmp_path / "minimal")
    result = call(tmp_path / "minimal", env=os.environ | {"LD_LIBRARY_PATH": str(lib)})
    assert result.returncode == 2 and "usage" in result.stdout
    must("make", "-s", "-f", "Makefile.full-stack", "uninstall", f"DESTDIR={tmp_path}", "PREFIX=/usr", cwd=ROOT)
    assert not list(tmp_path.glob("usr/lib/libunified*"))


def test_a_new_build_leaves_the_library_of_running_programs_alone():
    file = LIBRARY.resolve()
    with open(file, "rb") as running:
        before = os.fstat(running.fileno())
        os.utime(ROOT / "target/release/libunified.so")
        must("make", "-s", "-f", "Makefile.full-stack", "lib", "CARGO=true", cwd=ROOT)
        assert file.stat().st_mtime_ns > before.st_mtime_ns
        assert file.stat().st_ino != before.st_ino


def test_the_readme_shows_the_example_as_it_is():
    readme = (ROOT / "README.md").read_text()
    assert (ROOT / "c-examples/minimal.c").read_text() in readme


def test_make_help_names_the_targets():
    text = must("make", "-s", "-f", "Makefile.full-stack", "help", cwd=ROOT)
    for target in ("all", "demo", "test", "test-full", "bench", "install", "clean", "check-deps"):
        assert re.search(rf"^  .*\b{target}\b", text, re.M), target
