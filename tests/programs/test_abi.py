"""What a release must keep: exported symbols and their versions, functions and types, layouts, and how structs grow."""

import os
import re
import subprocess
import sys

import pytest
from conftest import OUT, ROOT, call, must

sys.path.insert(0, str(ROOT / "bindings"))
import header  # noqa: E402

LIBRARY = OUT / "lib/libunified.so"
# What -Wl,--wrap calls in programs of the registration interface.
WRAPS = {"__wrap_syscall", "__wrap_xsk_umem__create", "__wrap_setrlimit"}


def listed() -> dict:
    """abi/symbols: the version of each symbol."""
    versions, version = {}, None
    for line in (ROOT / "abi/symbols").read_text().splitlines():
        if line.startswith("# "):
            version = line[2:]
        else:
            assert version and line not in versions, line
            versions[line] = version
    return versions


def exported(library) -> dict:
    """What the dynamic linker finds in a library; the version of each symbol, None where it has none."""
    found = {}
    for line in must("readelf", "-W", "--dyn-syms", library).splitlines():
        words = line.split()
        if len(words) == 8 and words[0].rstrip(":").isdigit() and words[6] not in ("UND", "ABS"):
            name, at, version = words[7].partition("@@")
            assert name not in found and (at or "@" not in name), line
            found[name] = version or None
    return found


def test_the_library_exports_the_listed_symbols_with_their_versions_and_nothing_else():
    assert exported(LIBRARY) == listed()
    # The nodes themselves are there too: a program that was linked with one is refused by a library without it.
    nodes = re.findall(r"Name: (UNIFIED_\S+)", must("readelf", "-W", "--version-info", LIBRARY))
    assert set(nodes) == set(listed().values()) and "UNIFIED_0.1" in nodes


def test_the_list_has_every_function_of_the_crate_and_of_the_header():
    """cargo's library exports whatever the crate does: a function that nobody wrote down is seen here."""
    names = set(listed())
    assert set(exported(ROOT / "target/release/libunified.so")) == names
    header = (ROOT / "include/unified.h").read_text()
    declared = set(re.findall(r"^\S.*?\b(unified_\w+)\(", header, re.M)) - {"unified_log_fn"}
    assert len(declared) > 30
    assert declared | WRAPS == names


def test_the_static_library_shows_its_functions_and_nothing_else():
    lines = must("nm", "-g", "--defined-only", OUT / "lib/libunified.a").splitlines()
    assert {line.split()[2] for line in lines if len(line.split()) == 3} == set(listed())


def test_a_list_with_a_symbol_of_no_version_or_of_no_function_makes_no_library(tmp_path):
    def built(symbols: str):
        (tmp_path / "symbols").write_text(symbols)
        script = subprocess.run(["sh", ROOT / "abi/version-script", tmp_path / "symbols"], text=True, capture_output=True)
        (tmp_path / "map").write_text(script.stdout)
        return script, call("gcc", "-shared", "-fPIC", tmp_path / "one.c", "-o", tmp_path / "one.so",
                            f"-Wl,--version-script={tmp_path}/map", "-Wl,--no-undefined-version")

    (tmp_path / "one.c").write_text("int one(void) { return 1; }\nint two(void) { return 2; }\n")
    script, link = built("# V_1\none\n# V_2\ntwo\n")
    assert script.returncode == link.returncode == 0, link.stdout
    assert exported(tmp_path / "one.so") == {"one": "V_1", "two": "V_2"}
    script, link = built("# V_1\none\n")
    assert exported(tmp_path / "one.so") == {"one": "V_1"}
    script, _ = built("one\n# V_1\ntwo\n")
    assert script.returncode != 0 and "symbols:1:" in script.stderr
    script, link = built("# V_1\none\nthree\n")
    assert script.returncode == 0 and link.returncode != 0 and "three" in link.stdout


USER = r"""
#include <dlfcn.h>
#include <stdio.h>
#include <unified.h>
int main(int argc, char **argv)
{
	/* What is linked and what a plain dlsym finds are one function. */
	void *lib = dlopen(argv[1], RTLD_NOW);
	void *found = lib ? dlsym(lib, "unified_version") : NULL;

	if (argc != 2 || !found)
		return fprintf(stderr, "%s\n", dlerror()), 1;
	return found == (void *)unified_version && unified_version() ? 0 : 2;
}
"""


def test_programs_record_the_version_and_dlsym_finds_the_function(tmp_path):
    (tmp_path / "user.c").write_text(USER)
    link = [f"-L{OUT}/lib", "-lunified", f"-Wl,-rpath,{OUT}/lib"]
    must("gcc", f"-I{ROOT}/include", tmp_path / "user.c", "-o", tmp_path / "user", *link)
    assert "unified_version@UNIFIED_0.1" in must("readelf", "-W", "--dyn-syms", tmp_path / "user")
    must(tmp_path / "user", LIBRARY)
    # One that was linked with a library of another version is refused, and told which is missing.
    (tmp_path / "map").write_text("UNIFIED_9.9 { global: unified_version; local: *; };")
    (tmp_path / "later.c").write_text("unsigned unified_version(void) { return 9; }")
    must("gcc", "-shared", "-fPIC", tmp_path / "later.c", "-o", tmp_path / "libunified.so",
         "-Wl,-soname,libunified.so.0", f"-Wl,--version-script={tmp_path}/map")
    must("gcc", f"-I{ROOT}/include", tmp_path / "user.c", "-o", tmp_path / "newer", f"-L{tmp_path}", *link[1:])
    refused = call(tmp_path / "newer", LIBRARY)
    assert refused.returncode != 0 and "UNIFIED_9.9' not found" in refused.stdout
    # One that was linked with a library without versions (cargo's own) goes on working.
    must("gcc", f"-I{ROOT}/include", tmp_path / "user.c", "-o", tmp_path / "plain", f"-L{ROOT}/target/release",
         "-lunified", f"-Wl,-rpath,{OUT}/lib")
    assert "unified_version@" not in must("readelf", "-W", "--dyn-syms", tmp_path / "plain")
    must(tmp_path / "plain", LIBRARY)


def test_a_program_linked_with_wrap_gets_the_versioned_functions(tmp_path):
    (tmp_path / "wrap.c").write_text("#include <sys/syscall.h>\n#include <unistd.h>\n"
                                     "int main(void) { return syscall(SYS_getpid) != getpid(); }\n")
    must("gcc", "-D_GNU_SOURCE", tmp_path / "wrap.c", "-o", tmp_path / "wrap", "-Wl,--wrap=syscall", f"-L{OUT}/lib",
         "-lunified", f"-Wl,-rpath,{OUT}/lib")
    assert "__wrap_syscall@UNIFIED_UAPI_0.1" in must("readelf", "-W", "--dyn-syms", tmp_path / "wrap")
    must(tmp_path / "wrap")


def test_sized_structs_may_be_older_and_newer(network, device, start, tmp_path):
    """Every struct with a size, in every size: tests/capi/growth.c, in which one that is forgotten is missed."""
    program = tmp_path / "growth"
    must("gcc", "-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined",
         "-fno-sanitize-recover=all", f"-I{ROOT}/include", ROOT / "tests/capi/growth.c", "-o",
         program, f"-L{OUT}/lib", "-lunified", f"-Wl,-rpath,{OUT}/lib")
    running = start(program, network.near, device)
    running.until("^ready$", 60)
    network.send(10)
    assert running.end() == 0, running.text()
    tried = {name: int(count) for name, count in re.findall(r"^(unified_\w+) (\d+)$", running.text(), re.M)}
    sized = {name for name, fields in header.read().structs.items() if fields and fields[0].name == "size"}
    assert tried.keys() == sized and len(sized) >= 7
    # Down to the size alone, up to the most that is taken.
    assert all(count > 25 for count in tried.values()), tried


def judged(tmp_path, *changes, symbols=(), released="0.1.0") -> subprocess.CompletedProcess:
    """What abi/run says of today's header and list of symbols with some words replaced, as if they were released."""
    include = tmp_path / "include"
    include.mkdir(exist_ok=True)
    for file, replaced in ((ROOT / "include/unified.h", changes), (ROOT / "abi/symbols", symbols)):
        text = file.read_text()
        for old, new in replaced:
            assert text.count(old) == 1, f"{file}: {old}"
            text = text.replace(old, new)
        (include / file.name).write_text(text)
    (tmp_path / "last").write_text(must(sys.executable, "-B", ROOT / "abi/run", "dump"))
    return call(sys.executable, "-B", ROOT / "abi/run", "check", tmp_path / "last", "--include", include, "--symbols", include / "symbols",
                "--released", released)


def test_programs_of_the_last_release_are_served():
    """Where it is meant to be so (before 1.0 a minor version may), the release renews the dump: abi-dump."""
    done = call(sys.executable, "-B", ROOT / "abi/run", "check")
    assert done.returncode == 0, f"the interface of the last release was changed:\n{done.stdout}"
    # It is the list of a release: it has everything that stands under a version not newer than its own.
    dumped = set(re.findall(r"elf-symbol name='(\w+)' version='(\w+\.\d+)'", (ROOT / "abi/libunified.abi").read_text()))
    assert len(dumped) > 30 and dumped <= set(listed().items())


CLOSE = "int unified_log_close(struct unified_log *log);"
SEEK = "int unified_log_seek(const struct unified_log *log,\n                     uint64_t sequence);"
LAST_STATS, LAST_STATUS = (f"  {fields[-1].type} {fields[-1].name};\n" for fields in
                           (header.read().structs[name] for name in ("unified_stats", "unified_pipeline_status")))

GOOD = {
    "a function more": dict(changes=[(CLOSE, CLOSE + "\nint unified_more(unified_ctx *ctx);")],
                            symbols=[("unified_wait\n", "unified_wait\n# UNIFIED_0.2\nunified_more\n")]),
    "a field at the end of a sized struct": dict(changes=[(LAST_STATS + "};", LAST_STATS + "  uint64_t more;\n};")]),
    "fields at the end of two": dict(changes=[(LAST_STATS + "};", LAST_STATS + "  uint32_t more;\n  uint32_t others;\n};"),
                                              (LAST_STATUS + "};", LAST_STATUS + "  uint64_t more;\n};")]),
    "a constant more and other comments": dict(changes=[("#include <stdint.h>", "#include <stdint.h>\n#define UNIFIED_NEW 1"),
                                                        ("Closes a log.", "Ends a log.")]),
}
BAD = {
    "a function less": (dict(changes=[(CLOSE, "")], symbols=[("unified_log_close\n", "")]), "unified_log_close"),
    "a parameter of another type": (dict(changes=[(SEEK, SEEK.replace("uint64_t", "uint32_t"))]), "unified_log_seek"),
    "a parameter more": (dict(changes=[(SEEK, SEEK.replace("sequence", "sequence, int more"))]), "unified_log_seek"),
    "a result of another type": (dict(changes=[(SEEK, SEEK.replace("int ", "int64_t ", 1))]), "unified_log_seek"),
    "another version": (dict(changes=[], symbols=[("unified_wait\n", "# UNIFIED_0.2\nunified_wait\n")]), "unified_wait"),
    "a field more in a struct without a size": (
        dict(changes=[("  uint8_t dst_addr[16];\n", "  uint8_t dst_addr[16];\n  uint64_t more;\n")]), "unified_event"),
    "a field more at the end of a struct without a size": (
        dict(changes=[("  uint32_t timeout;\n};", "  uint32_t timeout;\n  uint32_t more;\n};")]), "unified_nvme_command"),
    "a field more inside of a sized struct": (
        dict(changes=[(LAST_STATS + "};", "  uint64_t more;\n" + LAST_STATS + "};")]), "unified_stats"),
    "a field of another type in a struct that grows": (
        dict(changes=[(LAST_STATS + "};", LAST_STATS + "  uint64_t more;\n};"),
                      ("  uint64_t xdp_fragments;", "  uint32_t xdp_fragments;")]), "unified_stats"),
    "a field less in a struct that grows": (
        dict(changes=[(LAST_STATS + "};", LAST_STATS + "  uint64_t more;\n};"),
                      ("  uint64_t xdp_fragments;\n", "")]), "unified_stats"),
    "two fields that change places": (
        dict(changes=[("  uint64_t xdp_matched;", "  uint64_t xdp_fragments;"),
                      ("   * IP fragments: passed.\n   */\n  uint64_t xdp_fragments;",
                       "   * UDP to one of the ports.\n   */\n  uint64_t xdp_matched;")]), "unified_stats"),
    "another name of a field": (dict(changes=[("  uint64_t xdp_fragments;", "  uint64_t xdp_pieces;")]), "unified_stats"),
    "a sized struct without its last field": (dict(changes=[(LAST_STATS + "};", "};")]), "unified_stats"),
}


@pytest.mark.parametrize("what", GOOD)
def test_what_may_change_between_releases_passes(what, tmp_path):
    done = judged(tmp_path, *GOOD[what]["changes"], symbols=GOOD[what].get("symbols", ()))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("what", BAD)
def test_what_breaks_programs_is_told(what, tmp_path):
    wrong, name = BAD[what]
    done = judged(tmp_path, *wrong["changes"], symbols=wrong.get("symbols", ()))
    assert done.returncode == 1 and name in done.stdout, done.stdout


def test_a_new_function_stands_under_a_version_that_no_release_has(tmp_path):
    more = (CLOSE, CLOSE + "\nint unified_more(unified_ctx *ctx);")

    def under(node: str, released: str) -> subprocess.CompletedProcess:
        heading = "" if node == "UNIFIED_0.1" else f"# {node}\n"
        symbols = [("unified_wait\n", f"unified_wait\n{heading}unified_more\n")]
        return judged(tmp_path, more, symbols=symbols, released=released)

    late = under("UNIFIED_0.1", "0.1.3")
    assert late.returncode == 1 and "unified_more is new" in late.stdout, late.stdout
    assert under("UNIFIED_0.2", "0.1.3").returncode == 0
    assert under("UNIFIED_0.2", "0.10.0").returncode == 1
    assert under("UNIFIED_0.11", "0.10.0").returncode == 0


def table() -> list:
    """abi/layout: names, sizes and offsets; a constant has a `=` and its value."""
    lines = [line.split() for line in (ROOT / "abi/layout").read_text().splitlines()]
    assert len(lines) > 250
    return lines


@pytest.mark.parametrize("compiler, standard", [("gcc", "c11"), ("clang", "c11"), ("g++", "c++17"), ("clang++", "c++17")])
def test_the_headers_lay_out_what_the_table_says(compiler, standard, tmp_path):
    def compiled(text: str):
        source = tmp_path / ("layout.cc" if "++" in standard else "layout.c")
        source.write_text(header.asserts(text))
        return call(compiler, f"-std={standard}", "-Wall", "-Wextra", "-Werror", f"-I{ROOT}/include", "-fsyntax-only", source)

    text = (ROOT / "abi/layout").read_text()
    good = compiled(text)
    assert good.returncode == 0, good.stdout
    # What is wrong is named: an offset, a size, a constant, a field that is not there.
    for line, wrong in [("unified_stats errors 8 208", "unified_stats errors 8 216"), ("unified_packet - 56 0", "unified_packet - 64 0"),
                        ("UNIFIED_KEEP = 2", "UNIFIED_KEEP = 3"), ("io_unified_cqe len 4 24", "io_unified_cqe length 4 24")]:
        assert f"{line}\n" in text, line
        told = compiled(text.replace(f"{line}\n", f"{wrong}\n"))
        assert told.returncode != 0 and wrong.split()[1] in told.stdout, told.stdout


def test_the_table_has_every_field_and_constant_of_the_headers():
    for made in (header.read(), header.read_uapi()):
        for name, fields in made.structs.items():
            assert [words[1] for words in table() if words[0] == name] == ["-", *(field.name for field in fields)]
        for name in made.constants:
            assert [words[1] for words in table() if words[0] == name] == ["="]
    names = {*header.read().structs, *header.read().constants, *header.read_uapi().structs, *header.read_uapi().constants}
    assert {words[0] for words in table()} == names


def test_no_struct_has_hidden_padding():
    """A field that a later version put into it would hold whatever an older program's compiler left there."""
    ends = {}
    for name, field, *numbers in reversed(table()):
        if field == "=":
            continue
        size, offset = map(int, numbers)
        if field == "-":
            assert ends.pop(name)[0] == 0
        else:
            # Members of a union begin together.
            end = ends.get(name, (None,))[0]
            whole = next(int(words[2]) for words in table() if words[:2] == [name, "-"])
            assert offset + size == (whole if end is None else end) or offset == end, f"behind {name}.{field}"
            ends[name] = (offset,)
    assert not ends


def test_the_test_that_compares_the_crate_is_made_from_the_headers():
    made = must(sys.executable, "-B", ROOT / "bindings/header.py", "rust")
    assert (ROOT / "tests/layout.rs").read_text() == made, "make -f Makefile.full-stack generated"
