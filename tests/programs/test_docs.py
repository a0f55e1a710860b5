"""The documents: their links, names, messages and code are those of the tree."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, must

DOCS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
TEXT = {path: path.read_text() for path in DOCS}
HEADER = (ROOT / "include" / "unified.h").read_text()


def ident(path):
    return str(path.relative_to(ROOT))


def fenced(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def prose(text):
    """Without code blocks, fenced and indented."""
    return re.sub(r"^    .*$", "", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), flags=re.M)


def anchors(text):
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCS, ids=ident)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)\s]+)\)", prose(TEXT[path]))
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{link}: there is no {target}"
        if anchor:
            assert anchor in anchors(target.read_text()), f"{link}: no such heading"


def test_the_readme_leads_to_every_document():
    linked = {(ROOT / link).resolve() for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", TEXT[ROOT / "README.md"])}
    documents = {path for path in (ROOT / "docs").glob("*.md")} - {ROOT / "docs" / "kernel-features.md"}
    assert documents <= linked, documents - linked


@pytest.mark.parametrize("name", ["SECURITY.md", "docs/reliability.md"])
def test_promises_name_tests_that_exist(name):
    # A test program is a file, or a directory with main.rs.
    sources = {path.stem: path.read_text() for path in (ROOT / "tests").glob("*.rs")}
    for main in (ROOT / "tests").glob("*/main.rs"):
        sources[main.parent.name] = "\n".join(path.read_text() for path in main.parent.glob("*.rs"))
    sources["everything"] = "\n".join([*sources.values(), *(p.read_text() for p in (ROOT / "src").rglob("*.rs"))])
    known = set(re.findall(r"fn (\w+)\(", sources["everything"]))
    named = set(re.findall(r"`([a-z]+(?:_[a-z0-9]+){2,})`", TEXT[ROOT / name]))
    tests = {word for word in named if word.count("_") >= 2 and word not in HEADER}
    assert len(tests) > 15
    assert tests <= known | set(sources), tests - known - set(sources)


@pytest.mark.parametrize("name", ["troubleshooting.md", "devices.md"])
def test_messages_are_the_librarys_own(name):
    sources = "\n".join(path.read_text() for path in [*(ROOT / "src").rglob("*.rs")])
    sources = re.sub(r"\\\n\s*", "", sources)
    text = TEXT[ROOT / "docs" / name]
    # In devices.md it is one table of several.
    text = text[text.find("## What is refused"):] if name == "devices.md" else text
    quoted = re.findall(r"^\| `([^`]+)`", text, re.M)
    counters = set(re.findall(r"\b(\w+);", HEADER))
    messages = [words for words in quoted if words not in counters]
    assert len(messages) > 12
    for words in messages:
        assert words in sources, f"nothing says '{words}'"


def test_names_of_the_interface_exist():
    """Functions, constants and fields that the documents name in code."""
    known = HEADER + (ROOT / "include" / "unified_uapi.h").read_text()
    for path, text in TEXT.items():
        # The metrics have a test of their own.
        if path.name == "monitoring.md":
            continue
        for name in re.findall(r"`(unified_[a-z_]+)(?:\(\))?`", prose(text)):
            if name.endswith("_") or name in ("unified_xdp", "unified_xsks", "unified_ports", "unified_stats", "unified_set",
                                               "unified_events"):
                continue
            assert re.search(rf"\b{name}\b", known), f"{ident(path)}: {name}"
        for name in re.findall(r"`(UNIFIED_[A-Z_]+)`", prose(text)):
            found = re.search(rf"\b{name}\b", known) or subprocess.run(
                ["grep", "-rqw", name, "src", "tests", "traffic", "c-examples", "bindings", "Makefile.full-stack",
                 "run-full-stack-test.sh"], cwd=ROOT).returncode == 0
            assert found, f"{ident(path)}: {name}"


def test_make_targets_exist():
    for path, text in TEXT.items():
        for target in re.findall(r"make -f Makefile\.full-stack ([a-z][a-z-]*)", text):
            done = subprocess.run(["make", "-n", "-f", "Makefile.full-stack", target, "SRC=x.c"], cwd=ROOT, text=True,
                                  capture_output=True)
            assert "No rule to make target" not in done.stderr, f"{ident(path)}: {target}: {done.stderr}"


def test_options_of_the_script_exist():
    script = (ROOT / "run-full-stack-test.sh").read_text()
    for path, text in TEXT.items():
        for line in re.findall(r"run-full-stack-test\.sh([^`\n|]*)", text):
            for option in re.findall(r" (--[a-z-]+)", line):
                assert f"{option}" in script, f"{ident(path)}: {option}"


@pytest.mark.parametrize("path", [path for path in DOCS if fenced(TEXT[path], "c")], ids=ident)
def test_c_blocks_compile(path, tmp_path):
    for number, block in enumerate(fenced(TEXT[path], "c")):
        source = tmp_path / f"{number}.c"
        whole = "#include" in block
        source.write_text(block if whole else f"#include <unified.h>\n#include <unified_uapi.h>\nvoid block(void)\n{{\n{block}}}\n")
        must("cc", "-std=c11", "-fsyntax-only", f"-I{ROOT / 'include'}", *([] if whole else ["-w"]), source)


def test_python_blocks_are_python():
    blocks = [(path, block) for path, text in TEXT.items() for block in fenced(text, "python")]
    assert blocks
    for path, block in blocks:
        ast.parse(block, ident(path))


def shell_blocks(text):
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    return [re.sub(r"^    ", "", block, flags=re.M) for block in re.findall(r"(?:^    .*\n)+", text, re.M)]


def test_getting_started_from_the_first_line_to_the_last(tmp_path):
    """The commands as they stand there, with places of this test's own."""
    text = TEXT[ROOT / "docs" / "getting-started.md"]
    build, network, send, program, look, down = shell_blocks(text)
    assert "make -f Makefile.full-stack install" in build and "wait" in look
    (python,) = fenced(text, "python")
    (tmp_path / "trial.py").write_text(python)
    # What the two commands of the README have done already, and what would touch this machine's own places.
    build = re.sub(r"^make -f Makefile\.full-stack (deps|all)$|^ldconfig$", "", build, flags=re.M)
    name = f"t{os.getpid():x}"
    script = "\n".join([
        "set -eu", f"cd {ROOT}", build, network,
        "trap 'set +e; ip link del trial0; ip netns del trial; wait' EXIT",
        f"export LD_LIBRARY_PATH={tmp_path}/usr/lib", program, "sleep 2", send, look,
        f"cat >/dev/null; PYTHONPATH={ROOT}/bindings/python {sys.executable} {tmp_path}/trial.py &",
        "sleep 2", send, "wait", f"cd {ROOT}", "trap - EXIT", down,
    ])
    for word, own in [("/usr/local", f"{tmp_path}/usr"), ("/tmp/trial", f"{tmp_path}/trial"), ("trial0", f"{name}h"),
                      ("trial1", f"{name}p"), ("netns trial", f"netns {name}"), ("netns add trial", f"netns add {name}"),
                      ("netns exec trial", f"netns exec {name}"), ("netns del trial", f"netns del {name}"),
                      ("ip -n trial", f"ip -n {name}")]:
        script = script.replace(word, own)
    python_file = tmp_path / "trial.py"
    python_file.write_text(python.replace("trial0", f"{name}h"))
    done = subprocess.run(["bash", "-c", script], text=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Stored 30 of 30" in done.stdout and "packet 1" in done.stdout, done.stdout
    assert "stored 30" in done.stdout, done.stdout
    assert not (tmp_path / "usr" / "lib" / "libunified.so").exists(), "uninstalled"
