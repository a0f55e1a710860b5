"""The structure of the code: paths that the architecture document names exist, and modules import downwards only."""

import re

from conftest import ROOT

SRC = ROOT / "src"
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def modules():
    """Each module's name ("storage::engine::run") and its text, without comments and unit tests."""
    found = {}
    for path in SRC.rglob("*.rs"):
        parts = list(path.relative_to(SRC).with_suffix("").parts)
        if parts[-1] == "mod":
            parts.pop()
        if parts == ["lib"] or "tests" in parts:
            continue
        text = path.read_text().split("#[cfg(test)]\nmod tests {")[0]
        found["::".join(parts)] = re.sub(r"//.*", "", text)
    return found


def expand(tree):
    """The paths of a use declaration: "a::{b, c::{d, e}}" is a::b, a::c::d and a::c::e."""
    match = re.match(r"([^{]*)\{(.*)\}$", tree.strip(), re.S)
    if not match:
        return [tree.split(" as ")[0].strip()]
    depth, pieces, piece = 0, [], ""
    for char in match[2] + ",":
        depth += (char == "{") - (char == "}")
        if char == "," and depth == 0:
            pieces.append(piece)
            piece = ""
        else:
            piece += char
    return [match[1].strip() + path for piece in pieces if piece.strip() for path in expand(piece)]


def imports(known, module, text):
    own = module.split("::")
    paths = [path for tree in re.findall(r"\buse ([^;]+);", text) for path in expand(" ".join(tree.split()))]
    paths += re.findall(r"\b((?:crate|super)(?:::\w+)+)", text)
    for path in paths:
        path = path.replace(" ", "").split("::")
        if path[0] == "crate":
            path = path[1:]
        elif path[0] == "super":
            base = own
            while path and path[0] == "super":
                base, path = base[:-1], path[1:]
            path = base + path
        elif "::".join(own + path[:1]) in known:
            path = own + path
        else:
            continue
        while path and "::".join(path) not in known:
            path = path[:-1]
        if path and path != own:
            yield "::".join(path)


def edges():
    """Who imports whom, between siblings: an import of a::b::x by a::c::y is one of a::b by a::c."""
    known = modules()
    found = {}
    for module, text in known.items():
        for other in imports(known, module, text):
            ours, theirs = module.split("::"), other.split("::")
            common = 0
            while common < min(len(ours), len(theirs)) and ours[common] == theirs[common]:
                common += 1
            # A module and what is inside it are one thing.
            if common < min(len(ours), len(theirs)):
                key = "::".join(ours[: common + 1]), "::".join(theirs[: common + 1])
                found.setdefault(key, f"{module} imports {other}")
    return found


def test_no_import_cycle():
    graph = {}
    for (module, other), why in edges().items():
        graph.setdefault(module, {})[other] = why
    assert sum(map(len, graph.values())) > 100
    done = set()

    def walk(module, path):
        assert module not in path, "; ".join(
            graph[a][b] for a, b in zip(path[path.index(module):], [*path[path.index(module) + 1:], module])
        )
        if module in done:
            return
        for other in graph.get(module, {}):
            walk(other, [*path, module])
        done.add(module)

    for module in list(graph):
        walk(module, [])


def test_the_system_boundary_imports_nothing_from_above():
    known = modules()
    checked = [name for name in known if name.split("::")[0] == "sys"]
    assert len(checked) > 15
    for module in checked:
        above = {other for other in imports(known, module, known[module]) if other.split("::")[0] != "sys"}
        assert not above, f"{module} imports {above}"


def test_unsafe_code_is_in_its_two_rooms():
    for path in SRC.rglob("*.rs"):
        room = path.relative_to(SRC).parts[0]
        if room not in ("capi", "sys", "lib.rs"):
            assert "#![forbid(unsafe_code)]" in path.read_text() or "tests" in path.parts, path


def test_the_paths_of_the_architecture_exist():
    named = re.findall(r"`([\w/.-]+\.(?:rs|c)):(\w+)`", PAGE)
    assert len(named) > 50
    for file, function in named:
        path = SRC / file if (SRC / file).exists() else ROOT / file
        assert path.exists(), file
        form = rf"\bfn {function}\b" if path.suffix == ".rs" else rf"\b{function}\("
        assert re.search(form, path.read_text()), f"{file} has no function {function}"


def test_the_files_of_the_architecture_exist():
    named = set(re.findall(r"`((?:[\w-]+/)*[\w-]+(?:\.rs|\.c|\.h|\.py|/))`", PAGE))
    assert len(named) > 50
    for file in named:
        assert any((base / file).exists() for base in (SRC, ROOT, ROOT / "bpf")), file
