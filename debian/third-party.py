#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Writes what is compiled into the library and the programs: each crate with its licence's text, as those ask for."""

import json
import os
import subprocess
import sys
from pathlib import Path

CARGO = os.environ.get("CARGO", "cargo")
# What their crates bring along in directories of their own, and their licence files say.
TEXTS = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "*/LICENSE*")


def main() -> None:
    tree = [CARGO, "tree", "--workspace", "--locked", "--edges", "normal", "--prefix", "none", "--format", "{p}"]
    used = {tuple(line.split()[:2]) for line in subprocess.run(tree, check=True, text=True, capture_output=True).stdout.splitlines()}
    metadata = json.loads(subprocess.run([CARGO, "metadata", "--locked", "--format-version", "1"], check=True, text=True,
                                         capture_output=True).stdout)
    known, lines = {}, []
    for package in sorted(metadata["packages"], key=lambda package: package["name"]):
        if package["source"] is None or (package["name"], f"v{package['version']}") not in used:
            continue
        if not package["license"]:
            sys.exit(f"third-party.py: {package['name']} says no licence")
        lines.append(f"{package['name']} {package['version']}: {package['license']}")
        lines += [f"    {author}" for author in package["authors"]]
        where = Path(package["manifest_path"]).parent
        for path in sorted({path for pattern in TEXTS for path in where.glob(pattern) if path.is_file()}):
            text = path.read_text(errors="replace").strip()
            # The Apache licence is Debian's common one, and the same everywhere; others differ in their names.
            if text.lstrip().startswith("Apache License"):
                lines.append(f"    {path.name}: /usr/share/common-licenses/Apache-2.0")
            else:
                lines.append(f"    {path.relative_to(where)}: text {known.setdefault(text, len(known) + 1)}")
    if len(lines) < 10:
        sys.exit("third-party.py: cargo names next to nothing")
    for text, number in known.items():
        lines += ["", f"--- text {number}", "", text]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
