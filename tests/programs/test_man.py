"""The manual pages: each function and program has one, they are well-formed, and say what the header says."""

import os
import re
import sys
from pathlib import Path

import pytest
from conftest import OUT, ROOT, call, must, need

MAN = OUT / "man"
PROGRAMS = ["unified-full-stack-test", "unified-traffic", "unified-export", "unified-top"]
FUNCTIONS = [name for name in (ROOT / "abi/symbols").read_text().split() if name.startswith("unified_")]
GENERATE = ROOT / "docs/man/generate.py"


def render(path) -> str:
    """As a reader sees it, in one line: where lines break is the width's affair."""
    need("mandoc")
    text = must("mandoc", "-Tutf8", "-O", "width=200", path)
    text = re.sub(r".\x08", "", text)
    return " ".join(text.split())


def described(path) -> str:
    return re.search(r"^\.SH NAME\n(.*)", path.read_text(), re.M)[1].replace("\\-", "-")


def test_every_exported_function_has_a_page_that_names_it():
    assert len(FUNCTIONS) > 40
    for name in FUNCTIONS:
        names = described(MAN / "man3" / f"{name}.3").split(" - ")[0].split(", ")
        assert name in names, name
    # And no page is of something that is not there.
    assert {path.stem for path in (MAN / "man3").glob("*.3")} == set(FUNCTIONS)


def test_every_struct_has_a_page_that_names_its_fields_and_its_functions():
    header = (ROOT / "include/unified.h").read_text()
    structs = re.findall(r"^struct (\w+) \{(.*?)^\};", header, re.M | re.S)
    assert len(structs) > 10
    assert {path.stem for path in (MAN / "man3").glob("*.3type")} == {name for name, _ in structs}
    for name, body in structs:
        page = MAN / "man3" / f"{name}.3type"
        assert described(page).startswith(f"{name} - ")
        shown = render(page)
        fields = re.findall(r"(\w+)(?:\[\w+\])?;", re.sub(r"/\*.*?\*/", "", body, flags=re.S))
        assert fields
        for field in fields:
            assert re.search(rf"\b{field}\b", shown), f"{name}.{field}"
        users = set(re.findall(rf"^[^\n;{{}}#/]*?\b(unified_\w+)\([^;{{}}]*\bstruct {name}\b", header, re.M))
        for user in users:
            assert f"{(MAN / 'man3' / f'{user}.3').resolve().stem}(3)" in shown, f"{name}: {user}"
            assert f"{name}(3type)" in render(MAN / "man3" / f"{user}.3"), f"{user}: {name}"


def test_every_page_of_a_function_or_program_has_examples():
    pages = [path for section in ("man1", "man3") for path in (MAN / section).glob("*.[13]") if not path.is_symlink()]
    assert len(pages) > 15
    for page in pages:
        assert "\n.SH EXAMPLES\n" in page.read_text(), page.name
    # Each function is in the example of its page.
    for name in FUNCTIONS:
        shown = (MAN / "man3" / f"{name}.3").read_text().split(".SH EXAMPLES", 1)[1]
        assert f"{name}(" in shown, name


def test_the_examples_compile():
    must("cc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-I", ROOT / "include", ROOT / "docs/man/examples.c")


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_has_a_page_with_each_of_its_options(name):
    page = MAN / "man1" / f"{name}.1"
    assert described(page).startswith(f"{name} - ")
    shown = render(page)
    helps = [must(OUT / "bin" / name, "--help")]
    commands = re.search(r"^Commands:\n((?:  .*\n)+)", helps[0], re.M)
    for command in re.findall(r"^  (\S+)", commands[1], re.M) if commands else []:
        if command != "help":
            helps.append(must(OUT / "bin" / name, command, "--help"))
    options = re.findall(r"(?<![\w-])--[a-z][a-z-]+", "\n".join(helps))
    assert len(options) > 4
    for option in options:
        assert option in shown, option
    assert "EXIT STATUS 0 " in shown


def test_they_are_without_a_fault():
    need("mandoc")
    pages = [path for path in MAN.rglob("unified*") if not path.is_symlink()]
    assert len(pages) > 15
    checked = call("mandoc", "-Tlint", "-Wwarning", *pages)
    assert checked.returncode == 0 and checked.stdout == "", checked.stdout
    links = [path for path in MAN.rglob("*.3") if path.is_symlink()]
    assert len(links) > 20 and all(path.resolve().exists() for path in links)


def test_they_refer_to_pages_that_exist():
    others = {"pkg-config", "io_uring", "capabilities"}
    for page in MAN.rglob("unified*"):
        text = page.read_text().replace("\\-", "-")
        for name, section in re.findall(r"^\.BR \"?([\w-]+)\"? \((\d(?:type)?)\)|", text, re.M):
            if name and name not in others:
                assert (MAN / f"man{section[0]}" / f"{name}.{section}").exists(), f"{page.name}: {name}({section})"
        for name in re.findall(r"\\fB(unified_\w+)\\fR\(3\)", text):
            assert (MAN / "man3" / f"{name}.3").exists(), f"{page.name}: {name}(3)"


def test_a_page_says_what_the_header_says():
    shown = render(MAN / "man3/unified_submit_write.3")
    for words in [
            "#include <unified.h>",
            "int unified_submit_write(const unified_ctx *ctx, uint32_t frame, const void *data, uint32_t len, uint64_t lba, "
            "uint64_t user_data, uint32_t flags);",
            "The last block is padded with zeroes",
            "ERRORS unified_submit_write() EINVAL Wrong length, not inside the frame, or the caller does not own the frame.",
            "EAGAIN The SQ ring is full: take completions.",
            # Not said there, so as everywhere.
            "ESHUTDOWN The context is being destroyed, or its engine was stopped.",
            "unified_submit_deallocate() EINVAL",
            "ENOBUFS It needs a free frame. And the errors of unified_submit_flush().",
            "UNIFIED_KEEP (2) The completion returns the frame to the caller instead of to the fill ring.",
            "EXAMPLES int store_batch("]:
        assert words in shown.replace("'", "’") or words in shown, words
    shown = render(MAN / "man3/unified_ctx_create.3")
    for words in ["E2BIG This version does not know all fields.", "EBUSY The interface, the queue or the device is in use.",
                  "EACCES The device may not be written to.", "ENOMEM Not enough memory or locked memory (RLIMIT_MEMLOCK)."]:
        assert words in shown, words
    shown = render(MAN / "man3/unified_config.3type")
    for words in ["Zero means the default for every field.", "UNIFIED_DEVICE_FD (512)"]:
        assert words in shown, words


def test_every_error_struct_and_constant_of_the_header_is_in_a_page():
    header = (ROOT / "include/unified.h").read_text()
    pages = {path: render(path) for path in (MAN / "man3").iterdir() if not path.is_symlink()}
    for name in re.findall(r"^#define (UNIFIED_\w+) ", header, re.M):
        assert sum(f"{name} (" in text for text in pages.values()) == 1, name
    for name in re.findall(r"^struct (\w+) \{", header, re.M):
        assert sum(f"struct {name} {{" in text for text in pages.values()) == 1, name
    # Each errno of a function's comment stands in the ERRORS of its page.
    for raw, name in re.findall(r"^/\*\*((?:(?!\*/).)*)\*/\n[^\n;{}#/]*?\b(unified_\w+)\(", header, re.M | re.S):
        text = (MAN / "man3" / f"{name}.3").read_text()
        part = text.split(".SH ERRORS", 1)[-1].split(f".SS {name}()", 1)[-1].split(".SS ")[0]
        for code in re.findall(r"(?<!return )-(E[A-Z0-9]{2,})\b", " ".join(raw.replace("*", " ").split())):
            assert f"\n.B {code}\n" in part, f"{name}: {code}"


def test_the_overview_shows_the_example_as_it_is():
    shown = render(MAN / "man7/unified.7")
    for line in (ROOT / "c-examples/minimal.c").read_text().split("\n"):
        assert " ".join(line.split()) in shown.replace("’", "'"), line


def tree_with(tmp_path: Path, header: str) -> Path:
    """The generator in a tree of its own, with another header."""
    for path in ("docs/man/generate.py", "docs/man/unified.7.in", "docs/man/examples.c", "bindings/header.py", "c-examples/minimal.c", "Cargo.toml"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text((ROOT / path).read_text())
    (tmp_path / "include").mkdir()
    (tmp_path / "include/unified.h").write_text(header)
    return tmp_path / "docs/man/generate.py"


def test_a_function_in_no_group_has_a_page_by_itself(tmp_path):
    header = (ROOT / "include/unified.h").read_text()
    new = "/**\n * Turns the context around: 0, -EDOM (it is round). Any thread.\n */\nint unified_ctx_turn(unified_ctx *ctx);\n\n"
    at = header.index("#ifdef __cplusplus\n}")
    made = tree_with(tmp_path, header[:at] + new + header[at:])
    said = must(sys.executable, "-B", made, tmp_path / "man")
    assert "no example for unified_ctx_turn" in said
    page = tmp_path / "man/man3/unified_ctx_turn.3"
    assert described(page) == "unified_ctx_turn - turns the context around"
    assert "ERRORS unified_ctx_turn() EDOM It is round. SEE" in render(page)


@pytest.mark.parametrize("old, new, says", [
    ("int unified_poll_fd(", "int unified_poll(", "unified_poll_fd"),
    ("#define UNIFIED_KEEP 2\n", "#define UNIFIED_KEEP 2\n\n#define UNIFIED_ODD_THING 3\n", "UNIFIED_ODD_THING"),
])
def test_what_has_no_place_fails_the_generator(old, new, says, tmp_path):
    header = (ROOT / "include/unified.h").read_text()
    assert old in header
    made = tree_with(tmp_path, header.replace(old, new))
    failed = call(sys.executable, "-B", made, tmp_path / "man")
    assert failed.returncode == 1 and says in failed.stdout, failed.stdout


def test_the_date_is_the_sources_or_the_one_that_is_told(tmp_path):
    must(sys.executable, "-B", GENERATE, tmp_path, env=os.environ | {"SOURCE_DATE_EPOCH": "86400"})
    assert '"1970-01-02"' in (tmp_path / "man7/unified.7").read_text()
