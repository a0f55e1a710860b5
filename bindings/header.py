#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""What include/unified.h declares, for bindings that are made from it and for the test that compares them.

    header.py lua     bindings/lua/unified_h.lua
    header.py node    bindings/node/header.js
    header.py layout  a C program that prints every size, offset and constant
    header.py table   the same with those of include/unified_uapi.h: prints abi/layout
    header.py rust    tests/layout.rs, which compares the crate with that file
"""

import re
import sys
from pathlib import Path
from typing import Dict, List, NamedTuple

HEADER = Path(__file__).resolve().parent.parent / "include/unified.h"


class Field(NamedTuple):
    type: str
    name: str
    count: int  # 0: no array


class Header(NamedTuple):
    constants: Dict[str, int]
    structs: Dict[str, List[Field]]
    functions: Dict[str, str]  # name: the declaration on one line
    declarations: str  # everything without comments and preprocessor


def read(path: Path = HEADER) -> Header:
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", path.read_text(), flags=re.S)
    constants = {name: int(value, 0) for name, value in re.findall(r"^#define (UNIFIED_\w+) (\w+)$", text, re.M)}
    text = re.sub(r'^#ifdef __cplusplus\n.*?^#endif', "", text, flags=re.S | re.M)
    text = re.sub(r"^#.*$", "", text, flags=re.M)
    structs = {}
    for name, body in re.findall(r"^struct (\w+) \{(.*?)^\};", text, re.S | re.M):
        structs[name] = [Field(re.sub(r"\s+\*", " *", kind.strip()), field, int(count or 0)) for kind, field, count in
                         re.findall(r"^\s*(.+?[\s*])(\w+)(?:\[(\d+)\])?;", body, re.M)]
        assert len(structs[name]) == body.count(";"), f"a field of {name} was not understood"
    plain = re.sub(r"^(typedef |struct )[^;{]*(\{.*?^\})?[^;{]*;", "", text, flags=re.S | re.M)
    functions = {re.search(r"(\w+)\(", one)[1]: re.sub(r"\s+", " ", one).strip() for one in plain.split(";") if one.strip()}
    declarations = "\n".join(line.rstrip() for line in text.splitlines() if line.strip())
    return Header(constants, structs, functions, declarations)


def read_uapi() -> Header:
    """include/unified_uapi.h: its structs (members of a union stand side by side) and constants, no functions."""
    text = re.sub(r"/\*.*?\*/", "", (HEADER.parent / "unified_uapi.h").read_text(), flags=re.S)
    constants = {name: 0 for name in re.findall(r"^#define (IO_UNIFIED_\w+)\s", text, re.M)}
    structs = {}
    for name, body in re.findall(r"^struct (io_unified_\w+) \{(.*?)^\};", text, re.S | re.M):
        body = re.sub(r"^\s*(union \{|\};)", "", body, flags=re.M)
        structs[name] = [Field(kind.strip(), field, int(count or 0)) for kind, field, count in
                         re.findall(r"^\s*(.+?\s)(\w+)(?:\[(\d+)\])?;", body, re.M)]
        assert len(structs[name]) == body.count(";"), f"a field of {name} was not understood"
    return Header(constants, structs, {}, "")


def short(name: str) -> str:
    return name.removeprefix("UNIFIED_").removeprefix("unified_")


def lua(header: Header) -> str:
    constants = "\n".join(f"    {short(name)} = {value}," for name, value in header.constants.items())
    return (f"-- Made from include/unified.h by bindings/header.py; do not edit.\n"
            f'require("ffi").cdef [[\n{header.declarations}\n]]\n\nreturn {{\n{constants}\n}}\n')


def node(header: Header) -> str:
    def kind(text: str, count: int = 0) -> str:
        if "*" in text or "(" in text:
            return "'str'" if text == "const char *" else "'void *'"
        text = text.replace("unified_log_fn", "void *").replace("const ", "")
        return f"koffi.array('{text}', {count})" if count else f"'{text}'"

    out = ["// Made from include/unified.h by bindings/header.py; do not edit.", "'use strict';", "",
           "const koffi = require('koffi');", "", "exports.constants = Object.freeze({"]
    out += [f"  {short(name)}: {value}," for name, value in header.constants.items()]
    out += ["});", "", "exports.structs = {"]
    for name, fields in header.structs.items():
        out.append(f"  {name}: koffi.struct('{name}', {{")
        out += [f"    {field.name}: {kind(field.type, field.count)}," for field in fields]
        out.append("  }),")
    out += ["};", "", "// Name: result and arguments. Structs go as buffers or addresses.", "exports.functions = {"]
    for name, declaration in header.functions.items():
        result, arguments = re.fullmatch(rf"(.*?){name}\((.*)\)", declaration).groups()
        # A parameter's name is its last word; that of a pointer to an array is inside the brackets.
        types = [re.sub(r"(?<=[\s*])\w+$", "", one.strip()).strip() for one in arguments.split(",")]
        listed = ", ".join(kind(one) for one in types if one not in ("void", ""))
        out.append(f"  {name}: [{kind(result.strip())}, [{listed}]],")
    return "\n".join(out + ["};", ""])


def layout(*headers: Header) -> str:
    out = ["#include <stddef.h>", "#include <stdio.h>", "#include <unified.h>", "#include <unified_uapi.h>", "int main(void)", "{"]
    for header in headers:
        for name, fields in header.structs.items():
            out.append(f'\tprintf("{name} - %zu 0\\n", sizeof(struct {name}));')
            for field in fields:
                at = f"((struct {name} *)0)->{field.name}"
                out.append(f'\tprintf("{name} {field.name} %zu %zu\\n", sizeof({at}), offsetof(struct {name}, {field.name}));')
        for name in header.constants:
            out.append(f'\tprintf("{name} = %lld\\n", (long long){name});')
    return "\n".join(out + ["\treturn 0;", "}", ""])


def asserts(table: str) -> str:
    """C (and C++) that compiles where every line of abi/layout is true."""
    out = ["#include <stddef.h>", "#include <unified.h>", "#include <unified_uapi.h>", "#ifndef __cplusplus",
           "#define static_assert _Static_assert", "#endif"]
    for line in table.splitlines():
        name, field, *numbers = line.split()
        if field == "=":
            out.append(f'static_assert((long long)({name}) == {numbers[0]}LL, "{line}");')
        elif field == "-":
            out.append(f'static_assert(sizeof(struct {name}) == {numbers[0]}, "{line}");')
        else:
            out.append(f'static_assert(sizeof(((struct {name} *)0)->{field}) == {numbers[0]} && '
                       f'offsetof(struct {name}, {field}) == {numbers[1]}, "{line}");')
    return "\n".join([*out, ""])


# The crate's names for what include/unified_uapi.h declares; in a union one name is enough.
RUST = {"io_unified_nvme_cmd": "NvmeUringCmd", "io_unified_offsets": "UnifiedOffsets", "io_unified_reg": "UnifiedReg",
        "io_unified_ring": "UnifiedRing", "io_unified_sqe": "UnifiedSqe", "io_unified_cqe": "UnifiedCqe",
        "IO_UNIFIED_NO_BUFFER": "NO_BUFFER", "IO_UNIFIED_NEED_WAKEUP": "RING_NEED_WAKEUP",
        "IO_UNIFIED_CQE_DNR": "CQE_DNR", "IO_UNIFIED_CQE_BOUNCED": "CQE_BOUNCED"}
UNION = ("__resv", "resv")


def rust(header: Header, uapi: Header) -> str:
    """What the crate does not name itself is left to the C side."""
    out = ["//! Made from include/unified.h and include/unified_uapi.h by bindings/header.py; do not edit.",
           "//! Every struct and constant of the crate that C sees is as abi/layout has it; C is compared with that file by",
           "//! tests/programs/test_abi.py.", "#![forbid(unsafe_code)]", "", "use std::mem::offset_of;", "", "use unified::capi::types::*;",
           "use unified::sys::abi::*;", "", "fn field<T, F>(_: impl Fn(&T) -> &F) -> usize {", "    size_of::<F>()", "}", "",
           "macro_rules! of {", "    ($lines:ident, $name:literal, $kind:ident { $($field:ident)* }) => {",
           '        $lines.push(format!("{} - {} 0", $name, size_of::<$kind>()));',
           "        $(", "            let size = field(|value: &$kind| &value.$field);",
           '            let at = offset_of!($kind, $field);',
           '            $lines.push(format!("{} {} {size} {at}", $name, stringify!($field)));', "        )*",
           "    };", "    ($lines:ident, $name:literal = $value:ident) => {",
           '        $lines.push(format!("{} = {}", $name, i128::from($value) as i64));', "    };", "}", "", "#[test]",
           "fn the_crate_lays_out_what_c_sees_as_the_table_says() {", "    let mut lines = Vec::new();"]
    for one in (header, uapi):
        for name, fields in one.structs.items():
            names = " ".join(f.name for f in fields if f.name not in UNION)
            out.append(f'    of! {{ lines, "{name}", {RUST.get(name, name)} {{ {names} }} }}')
        for name in one.constants:
            if one is header or name in RUST:
                out.append(f'    of! {{ lines, "{name}" = {RUST.get(name, name)} }}')
    own = [*(name for name in uapi.constants if name not in RUST), *UNION]
    out += ["    let own = [", *(f'        "{name}",' for name in own), "    ];",
            '    let table: Vec<&str> = include_str!("../abi/layout")', "        .lines()",
            "        .filter(|line| !line.split_whitespace().any(|word| own.contains(&word)))", "        .collect();",
            "    assert!(table.len() > 250);", "    assert_eq!(lines, table);", "}", ""]
    return "\n".join(out)


if __name__ == "__main__":
    makers = {"lua": lua, "node": node, "layout": layout, "table": lambda one: layout(one, read_uapi()),
              "rust": lambda one: rust(one, read_uapi())}
    if len(sys.argv) != 2 or sys.argv[1] not in makers:
        sys.exit(__doc__)
    sys.stdout.write(makers[sys.argv[1]](read()))
