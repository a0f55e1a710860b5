"""The built library and its header, as consumers find them."""

import os
import re
import shutil

import pytest
from conftest import OUT, ROOT, call, must

LIBRARY = OUT / "lib/libunified.so"


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


@pytest.mark.parametrize("libdir", ["lib", "lib/x86_64-linux-gnu"])
def test_what_is_installed_and_that_uninstalling_leaves_nothing(libdir, tmp_path):
    def make(target):
        variables = [f"DESTDIR={tmp_path}", "PREFIX=/opt/it"]
        if libdir != "lib":
            variables.append(f"LIBDIR=/opt/it/{libdir}")
        must("make", "-s", "-f", "Makefile.full-stack", target, *variables, cwd=ROOT, timeout=600)

    def files():
        return {str(path.relative_to(tmp_path / "opt/it")) for path in tmp_path.rglob("*") if path.is_symlink() or path.is_file()}

    # One that was there before stays, also when it is empty.
    (tmp_path / "opt/it/include").mkdir(parents=True)
    make("install")
    version = re.search(r'^version = "(.*?)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
    expected = {f"{libdir}/libunified.so.{version}", f"{libdir}/libunified.so.0", f"{libdir}/libunified.so",
                f"{libdir}/libunified.a", f"{libdir}/libunified-uapi-preload.so", f"{libdir}/pkgconfig/unified.pc",
                f"{libdir}/pkgconfig/unified-uapi.pc", "include/unified.h", "include/unified_uapi.h"}
    programs = ["unified-full-stack-test", "unified-traffic", "unified-export", "unified-top"]
    expected |= {f"bin/{name}" for name in programs} | {f"share/man/man1/{name}.1" for name in programs}
    expected |= {"share/man/man7/unified.7"}
    expected |= {f"share/man/man3/{name}.3" for name in (ROOT / "abi/symbols").read_text().split() if name.startswith("unified_")}
    structs = re.findall(r"^struct (\w+) \{", (ROOT / "include/unified.h").read_text(), re.M)
    expected |= {f"share/man/man3/{name}.3type" for name in structs}
    expected |= {f"share/doc/unified/examples/{path.name}" for path in (ROOT / "c-examples").glob("*.*")
                 if path.suffix in (".c", ".py")}
    expected |= {f"share/unified/{path.relative_to(ROOT / 'include')}" for path in (ROOT / "include/compat").rglob("*.h")}
    expected |= {f"{libdir}/bpf/unified_xdp.bpf.o", "share/doc/unified/examples/unified_xdp.h"}
    (module,) = (tmp_path / "opt/it").rglob("unified.py")
    expected |= {str(module.relative_to(tmp_path / "opt/it")), "share/doc/unified/directories"}
    assert files() == expected
    python = os.environ | {"PYTHONPATH": str(module.parent), "LD_LIBRARY_PATH": str(tmp_path / "opt/it" / libdir)}
    python.pop("UNIFIED_LIB", None)
    said = must("/usr/bin/python3", "-c", "import unified; print(unified.__file__, unified.version())", env=python, cwd="/")
    assert said.split() == [str(module), version]
    lib = tmp_path / "opt/it" / libdir
    assert os.readlink(lib / "libunified.so.0") == f"libunified.so.{version}"
    assert os.readlink(lib / "libunified.so") == "libunified.so.0"
    for name, flag in (("unified", "-lunified"), ("unified-uapi", "--wrap=syscall")):
        pc = (lib / "pkgconfig" / f"{name}.pc").read_text()
        assert "@" not in pc and str(tmp_path) not in pc and flag in pc, pc
        where = os.environ | {"PKG_CONFIG_PATH": str(lib / "pkgconfig")}
        assert must("pkg-config", "--variable=libdir", name, env=where).strip() == f"/opt/it/{libdir}"
        assert must("pkg-config", "--modversion", name, env=where).strip() == version
    # Nothing speaks of the place where it was packed.
    assert call("grep", "-rl", str(tmp_path), tmp_path).stdout == ""
    # Somebody else's files stay.
    other = tmp_path / "opt/it/share/man/man3/other.3"
    other.write_text("other")
    make("install")
    make("uninstall")
    assert files() == {"share/man/man3/other.3"}
    other.unlink()
    make("install")
    make("uninstall")
    # But for those of the other file, which the first uninstall had to leave.
    left = {path.relative_to(tmp_path / "opt/it") for path in (tmp_path / "opt/it").rglob("*")}
    assert {str(path) for path in left} == {"include", "share", "share/man", "share/man/man3"}


def test_uninstalling_takes_the_directories_that_installing_made(tmp_path):
    prefix = tmp_path / "prefix/of/it"
    for target in ("install", "install", "uninstall"):
        must("make", "-s", "-f", "Makefile.full-stack", target, f"DESTDIR={tmp_path}", "PREFIX=/prefix/of/it", cwd=ROOT, timeout=600)
        assert prefix.exists() == (target == "install")
    assert not list(tmp_path.iterdir())


def test_uninstalling_needs_no_build_and_takes_nothing_of_others(tmp_path):
    """After `make clean`, and with directories that others have files in."""
    root, variables = tmp_path / "root", ["PREFIX=/it", "DOCDIR=/it/doc", "UAPI_DATADIR=/it/data"]
    others = [root / "it/doc/other/copyright", root / "it/doc/examples/mine.c", root / "it/data/compat/mine.h"]
    for path in others:
        path.parent.mkdir(parents=True)
        path.write_text("mine")
    before = sorted(root.rglob("*"))
    make = ["make", "-s", "-f", "Makefile.full-stack", f"DESTDIR={root}", *variables]
    must(*make, "install", cwd=ROOT, timeout=600)
    assert (root / "it/doc/examples/minimal.c").exists() and (root / "it/bin/unified-top").exists()
    must(*make, "uninstall", f"BUILT={tmp_path}/cleaned", cwd=ROOT)
    assert sorted(root.rglob("*")) == before


def test_an_installation_that_was_cut_short_can_be_undone(tmp_path):
    make = ["make", "-s", "-f", "Makefile.full-stack", f"DESTDIR={tmp_path}", "PREFIX=/it"]
    # The INSTALL that selftest.mk takes: by then much is there.
    assert call(*make, "install", "INSTALL=/bin/false", cwd=ROOT, timeout=600).returncode != 0
    assert (tmp_path / "it/lib/libunified.a").exists()
    must(*make, "uninstall", cwd=ROOT)
    assert not list(tmp_path.iterdir())


def test_a_relative_prefix_ends(tmp_path):
    make = ["timeout", "100", "make", "-s", "-f", "Makefile.full-stack", f"DESTDIR={tmp_path}/x", "PREFIX=it"]
    must(*make, "install", cwd=ROOT, timeout=600)
    assert (tmp_path / "xit/lib/libunified.a").exists()
    must(*make, "uninstall", cwd=ROOT)
    assert not list(tmp_path.iterdir())


def test_the_loader_is_told(tmp_path):
    """By ldconfig, unless it is packed up; whoever may not call it, or has a place of his own, is told what to do."""
    tools, prefix = tmp_path / "tools", tmp_path / "prefix"
    tools.mkdir()
    called = tmp_path / "called"
    (tools / "ldconfig").write_text(f'#!/bin/sh\necho "$@" >>{called}\n'
                                    f'[ "$1" != -p ] || [ -z "$KNOWN" ] || echo "	libunified.so.0 (libc6) => $KNOWN/libunified.so.0"\n')
    (tools / "ldconfig").chmod(0o755)

    def install(env={}, *variables):
        called.unlink(missing_ok=True)
        env = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"} | env
        said = must("make", "-s", "-f", "Makefile.full-stack", "install", f"PREFIX={prefix}", *variables, cwd=ROOT, env=env,
                    timeout=600)
        return said, called.read_text().splitlines() if called.exists() else []

    said, calls = install({"KNOWN": f"{prefix}/lib"})
    assert calls == ["", "-p"] and "the loader" not in said
    said, calls = install()
    assert calls[0] == "" and f"the loader does not look into {prefix}/lib: set LD_LIBRARY_PATH={prefix}/lib" in said
    said, calls = install({}, f"DESTDIR={tmp_path}/packed")
    assert calls == [] and "loader" not in said
    (tools / "id").write_text("#!/bin/sh\necho 1000\n")
    (tools / "id").chmod(0o755)
    said, calls = install()
    assert "" not in calls and f"the loader does not look into {prefix}/lib: set LD_LIBRARY_PATH" in said


CONSUMER = r"""
#include <stdio.h>
#include <string.h>
#include <unified.h>
#ifdef OWN
/* What libbpf calls it too, and libxdp's own library is linked beside. */
#ifdef __cplusplus
extern "C"
#endif
int bpf_object__load(void *object);
int bpf_object__load(void *object) { return object == NULL; }
#endif
int main(void)
{
	struct unified_config config;
	struct unified_completion done;
	unified_ctx *ctx;

	memset(&config, 0, sizeof(config));
	config.size = sizeof(config);
	config.device = "null:1048576";
	if (unified_ctx_create(&config, &ctx) < 0 || unified_submit_flush(ctx, 7) < 0)
		return fprintf(stderr, "%s\n", unified_last_error()), 1;
	while (unified_completions(ctx, &done, 1) == 0)
		unified_wait(ctx, UNIFIED_WAIT_COMPLETIONS, 1000);
	printf("%s %d %d\n", unified_version_string(), (int)done.user_data, (int)done.status);
	return unified_ctx_destroy(ctx);
}
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    root = tmp_path_factory.mktemp("installed")
    must("make", "-s", "-f", "Makefile.full-stack", "install", f"PREFIX={root}", cwd=ROOT, timeout=600)
    return root


@pytest.mark.parametrize("kind", ["shared", "static", "static beside libbpf"])
@pytest.mark.parametrize("compiler, standard", [("gcc", "c11"), ("clang", "c11"), ("g++", "c++17"), ("clang++", "c++17")])
def test_a_consumer_of_the_installed_files(installed, compiler, standard, kind, tmp_path):
    static = kind != "shared"
    env = os.environ | {"PKG_CONFIG_PATH": str(installed / "lib/pkgconfig")}
    flags = must("pkg-config", "--cflags", "--libs", *["--static"] * static, "unified", env=env).split()
    if static:
        flags = ["-l:libunified.a" if flag == "-lunified" else flag for flag in flags]
    if kind.endswith("libbpf"):
        flags += ["-DOWN", "-lxdp"]
    source = tmp_path / ("consumer.cc" if "++" in standard else "consumer.c")
    source.write_text(CONSUMER)
    must(compiler, f"-std={standard}", "-Wall", "-Wextra", "-Wpedantic", "-Werror", source, "-o", tmp_path / "consumer", *flags)
    needed = must("readelf", "-d", tmp_path / "consumer")
    assert ("libunified.so" in needed) == (not static)
    result = call(tmp_path / "consumer", env=os.environ | {"LD_LIBRARY_PATH": str(installed / "lib")})
    assert result.returncode == 0 and result.stdout.endswith(" 7 0\n"), result.stdout


def test_unloading_it_leaves_nothing(network, tmp_path):
    program = tmp_path / "unload"
    must("gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{ROOT}/include", ROOT / "tests/capi/unload.c", "-o", program,
         "-ldl", "-pthread")
    said = must(program, OUT / "lib/libunified.so.0", network.near, tmp_path / "device")
    assert said.splitlines() == ["threads=0 descriptors=0 mappings=0"] * 5
    assert not network.program()


def test_a_new_build_leaves_the_library_of_running_programs_alone():
    file = LIBRARY.resolve()
    with open(file, "rb") as running:
        before = os.fstat(running.fileno())
        os.utime(ROOT / "target/release/libunified.a")
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


def test_the_commands_of_the_registration_document(tmp_path):
    """docs/uapi.md: with nothing added."""
    document = (ROOT / "docs/uapi.md").read_text()
    said = "make -f selftest.mk selftest SRC=program.c OUT=program"
    assert said in document and "make -f selftest.mk preload" in document
    env = {name: value for name, value in os.environ.items() if not name.startswith("UAPI_") and name != "PKG_CONFIG_PATH"}
    program = tmp_path / "program"
    command = said.replace("program.c", "tests/capi/uapi-registration.c").replace("OUT=program", f"OUT={program}")
    must("sh", "-c", command, cwd=ROOT, env=env)
    must("sh", "-c", "make -f selftest.mk preload", cwd=ROOT, env=env)
    for made in (program, OUT / "libunified-uapi-preload.so"):
        linked = must("ldd", made, env=env)
        assert re.search(r"libunified\.so\.0 => /", linked), linked
