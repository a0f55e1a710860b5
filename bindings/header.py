#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""What include/unified.h declares, for bindings that are made from it and for the test that compares them.

    header.py lua     bindings/lua/unified_h.lua
    header.py node    bindings/node/header.js
    header.py layout  a C program that prints every size, offset and constant
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


def layout(header: Header) -> str:
    out = ["#include <stddef.h>", "#include <stdio.h>", "#include <unified.h>", "int main(void)", "{"]
    for name, fields in header.structs.items():
        out.append(f'\tprintf("{name} - %zu 0\\n", sizeof(struct {name}));')
        for field in fields:
            at = f"((struct {name} *)0)->{field.name}"
            out.append(f'\tprintf("{name} {field.name} %zu %zu\\n", sizeof({at}), offsetof(struct {name}, {field.name}));')
    for name in header.constants:
        out.append(f'\tprintf("{name} = %lld\\n", (long long){name});')
    return "\n".join(out + ["\treturn 0;", "}", ""])


if __name__ == "__main__":
    makers = {"lua": lua, "node": node, "layout": layout}
    if len(sys.argv) != 2 or sys.argv[1] not in makers:
        sys.exit(__doc__)
    sys.stdout.write(makers[sys.argv[1]](read()))
