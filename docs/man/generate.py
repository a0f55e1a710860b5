#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Manual pages: of functions and structs from the comments of include/unified.h, of the programs from their --help,
and the overview from unified.7.in. Examples are in examples.c and below.

    generate.py DIR [PROGRAM...]    writes DIR/man1, DIR/man3 and DIR/man7

They are made at every build and not checked in: all of their text is in the tree already, under its own tests, and a
second copy would get out of date.
"""

import errno
import os
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Dict, List, NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "bindings"))
sys.dont_write_bytecode = True
import header  # noqa: E402

# Page: what it is about, and its functions; the first names it. A function of the header that is in none has a
# page by itself; one that is here and not in the header is an error.
GROUPS = {
    "open and close a context": ["unified_ctx_create", "unified_ctx_destroy"],
    "what a context turned out to be": ["unified_ctx_info", "unified_device_info", "unified_ctx_device"],
    "the lanes of a context": ["unified_ctx_lane"],
    "counters of a context": ["unified_ctx_stats", "unified_ctx_latency", "unified_latency_bound",
                              "unified_latency_quantile", "unified_stats_render"],
    "UDP ports that are received": ["unified_port_add", "unified_port_remove"],
    "metadata events of the XDP program": ["unified_events", "unified_events_fd", "unified_events_sample"],
    "frames of the region": ["unified_frame_alloc", "unified_frame_release", "unified_frames_release",
                             "unified_frame_data"],
    "buffers of any size": ["unified_buffer_alloc", "unified_buffer_import", "unified_buffer_import_fd", "unified_buffer_info",
                            "unified_buffer_free"],
    "receive packets": ["unified_rx_batch"],
    "parts of a received packet": ["unified_packet_payload", "unified_packet_payload_len", "unified_packet_timestamp",
                                   "unified_packet_vlan", "unified_packet_flow"],
    "submit commands to the device": [
        "unified_submit_write", "unified_submit_writes", "unified_submit_read", "unified_submit_compare", "unified_submit_flush",
        "unified_submit_write_zeroes", "unified_submit_deallocate", "unified_submit_raw", "unified_submit_pending",
        "unified_submit"],
    "take completions": ["unified_completions"],
    "wait for packets and completions": ["unified_wait", "unified_poll_fd"],
    "store what is received with threads of the library": ["unified_pipeline_start", "unified_pipeline_status",
                                                           "unified_pipeline_stop", "unified_stripe_locate"],
    "read a log of records": ["unified_log_open", "unified_log_open_set", "unified_log_close", "unified_log_next",
                              "unified_log_seek", "unified_log_seek_time", "unified_log_add_spill", "unified_log_info"],
    "errors in words, and the log": ["unified_last_error", "unified_strerror", "unified_status_string",
                                     "unified_set_log_callback"],
    "version of the library": ["unified_version", "unified_version_string"],
}

# If the comment of a constant does not name a struct or function, its first words say where it belongs.
CONSTANTS = {"Configuration flag": "struct unified_config", "Submission flag": "unified_submit_write"}

# Section of the pages of structs.
TYPES = "3type"

# EXAMPLES of the programs: a command, and what it does.
COMMANDS = {
    "unified-full-stack-test": [
        ("unified-full-stack-test --check eth0 /dev/nvme0n1 0", "Says whether the device may be written to."),
        ("unified-full-stack-test eth0 /dev/nvme0n1 0", "Stores the payloads that come to UDP port 9999 until Ctrl-C."),
        ("unified-full-stack-test --queues all eth0 /dev/nvme0n1,/dev/nvme1n1 0",
         "Receives all queues, and stores on two drives in turn."),
        ("unified-full-stack-test -s 64000000 -c 10000 eth0 packets.bin 0", "Stores 10000 payloads in a file of 64 MB."),
    ],
    "unified-traffic": [
        ("unified-traffic send --to 198.18.0.1:9999 --count 10000 --rate 50000",
         "Sends 10000 payloads of 1024 bytes, 50000 a second."),
        ("unified-traffic send --to 198.18.0.1:9999 --size 64-1472 --duration 10",
         "Sends 1000 payloads of various sizes a second for ten seconds."),
        ("unified-traffic verify --stored 10000 --sent 10000 packets.bin",
         "Compares every byte in the file that a recorder wrote with what was sent."),
        ("unified-traffic verify --stored 10000 --block 512,4096 /dev/nvme0n1,/dev/nvme1n1",
         "Does so on two drives, of which one has blocks of 4096 bytes."),
    ],
    "unified-export": [
        ("unified-export report /dev/nvme0n1", "Shows what the log holds, its gaps and its losses."),
        ("unified-export pcapng /dev/nvme0n1 capture.pcapng", "Writes the log to a file that Wireshark opens."),
        ("unified-export pcapng /dev/nvme0n1,/dev/nvme1n1 capture.pcapng", "Does so for a recording on two drives."),
        ("unified-export pcapng --follow 10 /dev/nvme0n1 - | tshark -r -",
         "Shows packets while a recorder writes, until none has come for ten seconds."),
    ],
    "unified-top": [
        ("unified-top http://127.0.0.1:9464/metrics", "Shows the recorder that serves this address."),
        ("unified-top /run/recorder.sock", "Shows the recorder that serves this Unix socket, with a row for each lane and each device."),
        ("unified-top --plain --interval 10 --count 6 /run/recorder.sock >log",
         "Writes one line every ten seconds for a minute."),
    ],
}

# What --help does not say: the exit codes.
EXITS = {
    "unified-full-stack-test": [("0", "Every packet that was received is stored."), ("1", "Something failed."),
                                ("2", "Wrong usage."), ("3", "The device holds data (--check).")],
    "unified-traffic": [("0", "Everything was sent, or every payload is intact."),
                        ("1", "Payloads are missing or damaged."), ("2", "Wrong usage, or an error of the system.")],
    "unified-export": [("0", "Done; the log has no gap."), ("1", "The log has a gap (report)."),
                       ("2", "Wrong usage, or an error.")],
    "unified-top": [("0", "The user ended it, or --count was reached."),
                    ("1", "The recorder did not answer."), ("2", "Wrong usage.")],
}


class Item(NamedTuple):
    name: str
    text: str  # its comment, paragraphs apart by an empty line
    code: str  # as it stands in the header


class Api(NamedTuple):
    functions: Dict[str, Item]
    structs: Dict[str, Item]
    callbacks: Dict[str, Item]
    constants: Dict[str, Item]


def comment(raw: str) -> str:
    return "\n".join(re.sub(r"^\s*\* ?", "", line) for line in raw.split("\n")).strip()


def parse() -> Api:
    """Each declaration with the comment before it. What header.py found and this did not is an error."""
    text, known = header.HEADER.read_text(), header.read()
    found: Dict[str, Dict[str, Item]] = {kind: {} for kind in Api._fields}
    before = r"(?:^/\*\*((?:(?!\*/).)*)\*/\n)?"
    for kind, pattern in [
            ("functions", before + r"(^\w[^;{}#/]*?\b(\w+)\([^;{}#]*\);)"),
            ("structs", before + r"(^struct (\w+) \{.*?^\};)"),
            ("callbacks", before + r"(^typedef [^;]*\(\*(\w+)\)\([^;]*;)"),
            ("constants", before + r"(^#define (UNIFIED_\w+) \w+$)")]:
        for raw, code, name in re.findall(pattern, text, re.M | re.S):
            if not (kind == "functions" and code.startswith("typedef")):
                found[kind][name] = Item(name, comment(raw), code)
    api = Api(**found)
    for kind in ("functions", "structs", "constants"):
        missed = set(getattr(known, kind)) ^ set(getattr(api, kind))
        if missed:
            sys.exit(f"generate.py: {kind} of the header that were not understood: {sorted(missed)}")
    for item in api.functions.values():
        if not item.text:
            sys.exit(f"generate.py: {item.name} has no comment")
    return api


# --- roff

def plain(text: str) -> str:
    """Text as roff takes it literally."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga").replace("^", "\\(ha")
    text = text.replace("~", "\\(ti").replace("…", "...")
    return "\n".join("\\&" + line if line.startswith((".", "'")) else line for line in text.split("\n"))


def prose(text: str, pages: Dict[str, str], own: str) -> str:
    """A comment as running text: functions with their page, code and errors in type."""
    out = []
    for paragraph in re.split(r"\n\s*\n", text):
        words = plain(" ".join(paragraph.split()))
        words = re.sub(r"\\\(ga(.*?)\\\(ga", r"\\fI\1\\fR", words)
        words = re.sub(r"\\-(E[A-Z0-9]{2,})\b", r"\\fB\\-\1\\fR", words)
        words = re.sub(r"\b(UNIFIED_[A-Z0-9_]+)\b", r"\\fB\1\\fR", words)

        def refer(match: "re.Match[str]") -> str:
            page = pages.get(match[0])
            return match[0] if page is None else f"\\fB{match[0]}\\fR()" if page == own else f"\\fB{match[0]}\\fR(3)"
        words = re.sub(r"(?<![\w.])unified_\w+(?![\w.]*\w)(?!\()", refer, words)
        # A line a sentence, as roff's own typesetting of sentences wants it.
        words = re.sub(r"(?<=[.:;]) (?=[A-Z`\\])", "\n", words)
        out.append("\n".join("\\&" + line if line.startswith((".", "'")) else line for line in words.split("\n")))
    return "\n.PP\n".join(out)


def example(code: str) -> List[str]:
    return [".PP", ".in +4n", ".EX", plain(code.expandtabs(4)), ".EE", ".in"]


def title(name: str, section: "int | str", manual: str) -> List[str]:
    """The date is the sources', or what a reproducible build says."""
    seconds = os.environ.get("SOURCE_DATE_EPOCH")
    when = float(seconds) if seconds else max(path.stat().st_mtime for path in [header.HEADER, HERE / "unified.7.in"])
    day = time.strftime("%Y-%m-%d", time.gmtime(when))
    return [f'.\\" Made by docs/man/generate.py; do not edit.',
            f'.TH {name.upper().replace("-", chr(92) + "-")} {section} "{day}" "unified {version()}" "{manual}"']


def examples(name: str) -> List[str]:
    """The example of a page of section 3."""
    parts = re.split(r"^/\* EXAMPLE (\w+) \*/\n", (HERE / "examples.c").read_text(), flags=re.M)
    found = dict(zip(parts[1::2], parts[2::2]))
    return [".SH EXAMPLES", *example(found[name].strip())[1:]] if name in found else []


def version() -> str:
    return re.search(r'^version = "(.*?)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]


# --- section 3

def struct(item: Item) -> str:
    """With its comments, at a width that a terminal has."""
    lines = []
    for raw, line in re.findall(r"^  /\*\*\n(.*?)^   \*/$|^([^\n]*)$", item.code, re.M | re.S):
        if raw:
            words = textwrap.wrap(" ".join(comment(raw).replace("`", "").split()), 66)
            words[0] = "/* " + words[0]
            lines += ["    " + ("" if i == 0 else "   ") + word for i, word in enumerate(words)]
            lines[-1] += " */"
        elif line:
            lines.append(re.sub(r"^  ", "    ", line))
    return "\n".join(lines)


def general() -> Dict[str, str]:
    """What unified(7) says of an error wherever it comes up."""
    text = (HERE / "unified.7.in").read_text().split(".SH ERRORS", 1)[1].split(".SH", 1)[0]
    return {name: meaning.strip() for name, meaning in re.findall(r"^\.TP\n\.B (E\w+)\n((?:[^.\n].*\n)+)", text, re.M)}


def errors(item: Item) -> "tuple[Dict[str, str], List[str]]":
    """Which errors a comment names, with what it says of each; and functions whose errors are this one's too."""
    text = " ".join(item.text.split())
    named: Dict[str, str] = {}
    # "Other calls return -EBUSY until then" is no error of this function.
    for match in re.finditer(r"(?<!return )-(E[A-Z0-9]{2,})\b", text):
        # -EINVAL (why); -ENODEV: why; -ENOENT, -EACCES, -EROFS: why. The last three share it. Brackets are not shared.
        rest = re.sub(r"^(, -E[A-Z0-9]+)+(?=:? [a-z])(?! or )", "", text[match.end():])
        said = re.match(r" \(((?:[^()]|\([^()]*\))*)\)", rest) or re.match(
            r":? (?!or |and |when )([a-zA-Z`].*?)(?=;|\.(?: |$)|, -E|,? or -E|,? or (?:the|an) error |$)", rest)
        named[match[1]] = named.get(match[1]) or (said[1].strip() if said else "")
    return named, re.findall(r"(?:[Ee]rrors and thread as|\bAs) (unified_\w+)", text)


def place(api: Api, pages: Dict[str, str]) -> Dict[str, str]:
    """The page of every struct (its own), callback and constant: the first function or struct that names it."""
    where: Dict[str, str] = {name: f"{name}.{TYPES}" for name in api.structs}
    for name, item in api.functions.items():
        for word in re.findall(r"\bunified_\w+", item.code):
            if word in api.callbacks:
                where.setdefault(word, pages[name])
    speaks = {**api.structs, **api.functions}
    for name, item in api.constants.items():
        told = re.match(r"unified_(\w+)\b", item.text)
        first = next((words for words in CONSTANTS if item.text.startswith(words)), None)
        if told and told[0] in where:
            where[name] = where[told[0]]
        elif first:
            owner = CONSTANTS[first].removeprefix("struct ")
            where[name] = where.get(owner) or pages[owner]
        else:
            for other, there in speaks.items():
                if re.search(rf"\b{name}\b", there.text + there.code):
                    where[name] = where.get(other) or pages.get(other, "")
                    break
    for name in api.constants:
        # UNIFIED_XDP_SKB stands in the header as "_SKB", behind the first of its family.
        family = name.rsplit("_", 1)[0]
        if not where.get(name):
            where[name] = next((where[o] for o in api.constants if o.rsplit("_", 1)[0] == family and where.get(o)), "")
    # A struct that no function takes is told about where it is spoken of.
    for name in [*api.structs, *api.callbacks]:
        if name not in where:
            where[name] = next((pages.get(o) or where.get(o, "") for o, there in speaks.items()
                                if o != name and re.search(rf"\b{name}\b", there.text + there.code)), "")
    # The handles are opaque, and documented by their functions.
    opaque = {name for name, item in api.structs.items() if "{" not in item.code}
    lost = [name for name, page in where.items() if not page and name not in opaque]
    if lost:
        sys.exit(f"generate.py: no page of a function speaks of {lost}: say in their comment where they belong")
    return where


def member(constant: str, api: Api) -> str:
    """The member whose comment speaks of a constant that has none itself, or of the first of its family."""
    for name in [constant, *(o for o in api.constants if o.rsplit("_", 1)[0] == constant.rsplit("_", 1)[0])]:
        for item in api.structs.values():
            found = re.search(rf"/\*\*((?:(?!\*/).)*\b{name}\b(?:(?!\*/).)*)\*/\s*[^;]*?(\w+);", item.code, re.S)
            if found:
                return f"{item.name}.{found[2]}"
    sys.exit(f"generate.py: no comment says what {constant} is")


def constants(own: str, api: Api, pages: Dict[str, str], where: Dict[str, str]) -> List[str]:
    """The constants of a page."""
    out: List[str] = []
    for item in (item for name, item in api.constants.items() if where[name] == own):
        out += [] if out else [".SS Constants"]
        words = re.sub(r"^(?:Configuration|Submission) flag: (.)", lambda m: m[1].upper(), item.text)
        out += [".TP", f".BR {item.name} \" (\" {item.code.split()[-1]} )",
                prose(words, pages, own) if words else f"See \\fI{plain(member(item.name, api))}\\fR."]
    return out


def see_also(others: "set[str]") -> List[str]:
    """References to pages, of which those of structs carry their section."""
    out = [".SH SEE ALSO"]
    for other in sorted(others):
        name, _, section = other.partition(".")
        out.append(f".BR {plain(name)} ({section or 3}),")
    return out + [".BR unified (7)"]


def page_type(item: Item, api: Api, pages: Dict[str, str], where: Dict[str, str]) -> str:
    own = where[item.name]
    short, _, rest = " ".join(item.text.split()).partition(". ")
    short = short.rstrip(".")
    out = title(item.name, TYPES, "unified Library Manual")
    out += [".SH NAME", f"{plain(item.name)} \\- {plain(short[0].lower() + short[1:])}"]
    out += [".SH SYNOPSIS", ".nf", ".B #include <unified.h>", ".fi", *example(struct(item))]
    out += [".SH DESCRIPTION", prose(short + ".", pages, own)]
    if rest:
        # Paragraphs as in the header, without the sentence that is said already.
        out += [".PP", prose(item.text.replace(item.text.split(". ")[0] + ".", "", 1).strip(), pages, own)]
    if re.search(r"^  uint64_t size;", item.code, re.M):
        out += [".PP", "Set", ".I size", "to sizeof the struct before each call that takes it: the struct can grow at its end in",
                "later versions."]
    out += constants(own, api, pages, where)
    users = {pages[name] for name, function in api.functions.items() if re.search(rf"\bstruct {item.name}\b", function.code)}
    return "\n".join(out + see_also(users)) + "\n"


def page3(what: str, names: List[str], api: Api, pages: Dict[str, str], where: Dict[str, str]) -> str:
    own = names[0]
    out = title(own, 3, "unified Library Manual")
    out += [".SH NAME", ", ".join(plain(name) for name in names) + " \\- " + plain(what)]
    out += [".SH LIBRARY", "Network to NVMe without a copy", "(\\fIlibunified\\fR, \\fI\\-lunified\\fR;",
            "\\fBpkg\\-config \\-\\-cflags \\-\\-libs unified\\fR)"]
    out += [".SH SYNOPSIS", ".nf", ".B #include <unified.h>"]
    for name in names:
        out += [".PP", *(f'.B "{plain(line)}"' for line in api.functions[name].code.split("\n"))]
    out += [".fi", ".SH DESCRIPTION"]
    for name in names:
        out += [f".SS {plain(name)}()", prose(api.functions[name].text, pages, own)]
    types = [item for name, item in api.callbacks.items() if where.get(name) == own]
    for item in types:
        out += [f".SS {plain(item.name)}", prose(item.text, pages, own), *example(item.code)]
    out += constants(own, api, pages, where)
    if any(re.match(r"int\b", api.functions[name].code) for name in names):
        out += [".SH RETURN VALUE", "A number below 0 is a negated", ".I errno", "of those below;",
                ".BR unified_last_error (3)", "then says what was tried, on what, and what to do.",
                "The description of each function says what 0 and greater numbers mean."]
    listed, usual = [], general()
    for name in names:
        own_errors, as_well = errors(api.functions[name])
        if own_errors or as_well:
            listed.append(f".SS {plain(name)}()")
        for code, said in own_errors.items():
            if said:
                said = prose(said[0].upper() + said[1:], pages, own)
            else:
                said = usual.get(code) or plain(os.strerror(getattr(errno, code)))
            listed += [".TP", f".B {code}", said if said.endswith(".") else said + "."]
        if as_well:
            listed += [".PP"] * bool(own_errors) + [("And the" if own_errors else "The") + " errors of " + ", ".join(
                f"\\fB{other}\\fR{'()' if pages[other] == own else '(3)'}" for other in as_well) + "."]
    if listed:
        out += [".SH ERRORS", *listed]
    if not (shown := examples(own)):
        print(f"generate.py: no example for {own} in examples.c", file=sys.stderr)
    spoken = " ".join(api.functions[name].text + api.functions[name].code for name in names)
    spoken += " ".join(item.text + item.code for item in types)
    others = {pages[word] for word in re.findall(r"\bunified_\w+", spoken) if word in pages} - {own}
    others |= {where[word] for word in re.findall(r"\bstruct (unified_\w+)", spoken) if word in where}
    return "\n".join([*out, *shown, *see_also(others)]) + "\n"


# --- section 1

def options(text: str) -> List[str]:
    """The entries below one heading of --help."""
    out = []
    for line in text.split("\n"):
        entry = re.match(r"\s+(\S.*?)(?:\s{2,}(.*))?$", line)
        if entry:
            out += [".TP", f'.B "{plain(entry[1])}"', plain(entry[2] or "\\&").replace("\\e&", "\\&")]
        elif line:
            out += [".PP", plain(line)]
    return out


def helped(program: Path, *command: str) -> "tuple[str, str, List[tuple[str, str]]]":
    """What --help says: about, usage, and (heading, entries)."""
    done = subprocess.run([program, *command, "--help"], text=True, capture_output=True, check=True)
    lines = done.stdout.replace(str(program), program.name).rstrip("\n").split("\n")
    about, use, parts = [], "", [["Options", []]]
    for line in lines:
        usage = re.match(r"[Uu]sage: (.*)", line)
        if usage:
            use = usage[1]
        elif re.match(r"\S.*:$", line):
            parts.append([line[:-1], []])
        elif line and not line.startswith(" "):
            about.append(line)
        elif line:
            parts[-1][1].append(line)
    if not use or not about:
        sys.exit(f"generate.py: {program.name} {' '.join(command)} --help has no usage, or says nothing about itself")
    return " ".join(about), use, [(heading, "\n".join(entries)) for heading, entries in parts if entries]


def page1(program: Path) -> str:
    name = program.name
    about, use, parts = helped(program)
    commands = [line.split()[0] for heading, text in parts if heading == "Commands" for line in text.split("\n")]
    each = {command: helped(program, command) for command in commands if command != "help"}
    out = title(name, 1, "unified Programs")
    short = about.rstrip(".")
    out += [".SH NAME", f"{plain(name)} \\- {plain(short[0].lower() + short[1:])}", ".SH SYNOPSIS", ".nf"]
    out += [f'.B "{plain(line)}"' for line in [u for _, u, _ in each.values()] or [use]]
    out += [".fi", ".SH DESCRIPTION", plain(about.rstrip(".") + ".")]
    for heading, text in parts:
        if heading != "Commands":
            out += [f".SH {plain(heading.upper())}", *options(text)]
    if each:
        out.append(".SH COMMANDS")
    for command, (what, _, entries) in each.items():
        out += [f".SS {plain(command)}", plain(what.rstrip(".") + ".")]
        for _, text in entries:
            out += options(text)
    if name not in EXITS or name not in COMMANDS:
        sys.exit(f"generate.py: {name} has no exit codes or no examples here")
    out.append(".SH EXIT STATUS")
    for code, meaning in EXITS[name]:
        out += [".TP", f".B {code}", plain(meaning)]
    out.append(".SH EXAMPLES")
    for command, meaning in COMMANDS[name]:
        out += [".TP", f'.B "{plain(command)}"', plain(meaning)]
    out += [".SH SEE ALSO", ".BR unified (7)"]
    return "\n".join(out) + "\n"


# --- section 7

def page7(groups: Dict[str, str]) -> str:
    text = (HERE / "unified.7.in").read_text()
    text = "\n".join(title("unified", 7, "unified Library Manual")) + "\n" + text
    minimal = (ROOT / "c-examples/minimal.c").read_text().rstrip("\n")
    listing = "\n".join(f".TP\n.BR {plain(page)} (3)\n{plain(what[0].upper() + what[1:])}." for page, what in groups.items())
    for mark, instead in [("@EXAMPLE@", "\n".join(example(minimal))), ("@FUNCTIONS@", listing)]:
        if text.count(mark) != 1:
            sys.exit(f"generate.py: unified.7.in must have {mark} once")
        text = text.replace(mark, instead)
    return text


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    api, out = parse(), Path(sys.argv[1])
    groups = {what: list(names) for what, names in GROUPS.items()}
    gone = [name for names in groups.values() for name in names if name not in api.functions]
    if gone:
        sys.exit(f"generate.py: the header has no {gone}")
    grouped = {name for names in groups.values() for name in names}
    for name, item in api.functions.items():
        if name not in grouped:
            sentence = re.split(r"[.:;](?:\s|$)", " ".join(item.text.split()))[0]
            groups[sentence[0].lower() + sentence[1:]] = [name]
    pages = {name: names[0] for names in groups.values() for name in names}
    where = place(api, pages)
    written: Dict[Path, str] = {}
    links: Dict[Path, str] = {}
    for what, names in groups.items():
        written[out / "man3" / f"{names[0]}.3"] = page3(what, names, api, pages, where)
        links.update({out / "man3" / f"{name}.3": f"{names[0]}.3" for name in names[1:]})
    for name, item in api.structs.items():
        written[out / "man3" / where[name]] = page_type(item, api, pages, where)
    for program in map(Path, sys.argv[2:]):
        written[out / "man1" / f"{program.name}.1"] = page1(program.resolve())
    written[out / "man7" / "unified.7"] = page7({names[0]: what for what, names in groups.items()})
    for section in ("man1", "man3", "man7"):
        (out / section).mkdir(parents=True, exist_ok=True)
        for old in (out / section).iterdir():
            if old not in written:
                old.unlink()
    for path, text in written.items():
        path.write_text(text)
    for path, target in links.items():
        path.symlink_to(target)


if __name__ == "__main__":
    main()
