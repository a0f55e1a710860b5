"""The library from other languages: each binding's example over a veth pair, its own tests, and its structs
compared with C's."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import OUT, ROOT, call, must, need, verify

BINDINGS = ROOT / "bindings"
LIBRARY = OUT / "lib/libunified.so.0"
COUNT = 400
sys.path.insert(0, str(BINDINGS))
import header  # noqa: E402


def fetch(place: Path, env=None) -> Path:
    """The packages of bindings/node in `place`; fetched where they are not there. The lock file pins them."""
    wanted = json.loads((BINDINGS / "node/package.json").read_text())["dependencies"]["koffi"]
    found = place / "node_modules/koffi/package.json"
    if not found.exists() or json.loads(found.read_text())["version"] != wanted:
        place.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(BINDINGS / "node" / name, place)
        try:
            result = call("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=place, env=env, timeout=120)
            said = result.stdout if result.returncode else ""
        except subprocess.TimeoutExpired:
            said = "no answer in 120 s"
        if said:
            shutil.rmtree(place / "node_modules", ignore_errors=True)
            pytest.fail(f"koffi {wanted} could not be fetched; is npm's registry reachable? npm said:\n{said}", pytrace=False)
    return place / "node_modules"


@functools.cache
def koffi() -> Path:
    """Fetched once, and kept from run to run."""
    return fetch(ROOT / "target/node")


@functools.cache
def go(program: str) -> Path:
    """A built program of bindings/go."""
    made = ROOT / "target/go" / program
    must("go", "build", "-o", made, f"./{program}", cwd=BINDINGS / "go", env=environment("go"), timeout=300)
    return made


@functools.cache
def rust(example: str) -> Path:
    must(os.environ.get("CARGO", "cargo"), "build", "--example", example, cwd=ROOT, timeout=900)
    return ROOT / "target/debug/examples" / example


def environment(language: str) -> dict:
    more = {"UNIFIED_LIB": str(LIBRARY)}
    if language == "node":
        need("node", "npm")
        more["NODE_PATH"] = str(koffi())
    if language == "go":
        need("go", "gcc")
        lib = str(OUT / "lib")
        # Nothing of it comes from a proxy: it has no dependency.
        more |= {"CGO_LDFLAGS": f"-L{lib}", "LD_LIBRARY_PATH": lib, "GOCACHE": str(ROOT / "target/go-cache"),
                 "GOPROXY": "off", "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local"}
    if language == "lua":
        need("luajit")
    return os.environ | more


def example(language: str, name="store") -> list:
    if language == "go":
        return [go(name)]
    return {"python": [sys.executable, BINDINGS / f"python/{name}.py"], "lua": ["luajit", BINDINGS / f"lua/{name}.lua"],
            "node": ["node", BINDINGS / f"node/{name}.js"]}[language]


@pytest.mark.parametrize("language", ["python", "lua", "node", "go"])
def test_the_example_stores_what_was_sent(language, network, device, start):
    env = environment(language)
    program = start(*example(language), network.near, device, COUNT, env=env)
    program.until("^Receiving on")
    assert network.program()
    network.send(COUNT, "1-1472")
    assert program.end() == 0, program.text()
    assert f"Stored {COUNT} of {COUNT}, {COUNT} read back as they came" in program.text()
    verify(device, COUNT, "1-1472", "--sent", COUNT)
    assert not network.program()


@pytest.mark.parametrize("language", ["python", "lua", "node", "go"])
def test_bad_arguments_are_told(language, tmp_path):
    env = environment(language)
    assert call(*example(language), env=env).returncode == 2
    absent = call(*example(language), "nosuchif0", tmp_path / "file", 1, env=env)
    assert absent.returncode == 1
    assert "nosuchif0" in absent.stdout
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize("language", ["lua", "node", "go"])
def test_a_pipeline_records_and_the_log_reads_back(language, network, device, start):
    env = environment(language)
    program = start(*example(language, "record"), network.near, device, COUNT, env=env)
    program.until("^Receiving on")
    network.send(COUNT, 700)
    assert program.end() == 0, program.text()
    assert f"Stored {COUNT}, read back {COUNT} with {COUNT * 700} bytes\nDevice 0: {COUNT} records\n" in program.text()


@pytest.mark.parametrize("language", ["lua", "node", "go"])
def test_a_recording_of_all_queues_over_two_devices_reads_back(language, many_queues, tmp_path, start):
    network, env = many_queues, environment(language)
    devices = [tmp_path / "one", tmp_path / "two"]
    program = start(*example(language, "record"), network.near, ",".join(map(str, devices)), COUNT, env=env)
    program.until("^Receiving on")
    network.send(COUNT, 700, flows=64)
    assert program.end() == 0, program.text()
    text = program.text()
    assert f"Stored {COUNT}, read back {COUNT} with {COUNT * 700} bytes" in text
    each = [int(n) for n in re.findall(r"^Device \d: (\d+) records", text, re.M)]
    assert len(each) == 2 and all(each) and sum(each) == COUNT


def test_the_rust_example_records_a_log(network, device, start):
    program = start(rust("record"), network.near, device, COUNT)
    program.until("^Receiving on")
    network.send(COUNT, "1-1472")
    assert program.end() == 0, program.text()
    assert f"Stored {COUNT}, read back {COUNT}, 0 missing" in program.text()
    # The log's payloads, laid out as the verifier expects them.
    os.environ.setdefault("UNIFIED_LIB", str(LIBRARY))
    sys.path.insert(0, str(BINDINGS / "python"))
    import unified
    flat = device.with_name(device.name + "-payloads")
    try:
        with unified.Log(device) as log, open(flat, "wb") as out:
            for record in log:
                out.write(bytes(record.payload) + bytes(-len(record.payload) % 512))
        verify(flat, COUNT, "1-1472", "--sent", COUNT)
    finally:
        flat.unlink(missing_ok=True)


def test_lua_keeps_its_promises(device):
    assert must("luajit", BINDINGS / "lua/test.lua", device, env=environment("lua")) == "ok\n"


def test_node_keeps_its_promises(device):
    assert must("node", BINDINGS / "node/test.js", device, env=environment("node")) == "ok\n"


def test_go_keeps_its_promises():
    env = environment("go")
    assert must("gofmt", "-l", BINDINGS / "go") == ""
    must("go", "vet", "./...", cwd=BINDINGS / "go", env=env, timeout=300)
    text = must("go", "test", "-count=1", "-v", ".", cwd=BINDINGS / "go", env=env, timeout=300)
    assert text.count("--- PASS") == 12


@pytest.mark.parametrize("kind, file", [("lua", "lua/unified_h.lua"), ("node", "node/header.js")])
def test_what_is_made_from_the_header_is_current(kind, file):
    assert (BINDINGS / file).read_text() == must(sys.executable, "-B", BINDINGS / "header.py", kind), \
        f"run bindings/header.py {kind} >bindings/{file}"


def in_c(tmp_path) -> list:
    """Every size, offset and constant as the compiler has it."""
    source, program = tmp_path / "layout.c", tmp_path / "layout"
    source.write_text(header.layout(header.read()))
    must("gcc", "-Wall", "-Wextra", "-Werror", f"-I{ROOT}/include", source, "-o", program)
    lines = must(program).splitlines()
    assert len(lines) > 200
    return lines


def in_python() -> list:
    os.environ.setdefault("UNIFIED_LIB", str(LIBRARY))
    sys.path.insert(0, str(BINDINGS / "python"))
    import ctypes

    import unified
    lines = []
    for name, fields in header.read().structs.items():
        struct = getattr(unified, name.removeprefix("unified"))
        lines.append(f"{name} - {ctypes.sizeof(struct)} 0")
        assert {f.name for f in fields} == {f[0] for f in struct._fields_}
        lines += [f"{name} {f[0]} {getattr(struct, f[0]).size} {getattr(struct, f[0]).offset}" for f in struct._fields_]
    return lines + [f"UNIFIED_{name} = {value}" for name, value in vars(unified).items()
                    if name.isupper() and isinstance(value, int)]


def in_lua() -> list:
    asked = "".join(f"{name} {field}\n" for name, fields in header.read().structs.items()
                    for field in ["-", *(f.name for f in fields)])
    return must("luajit", BINDINGS / "lua/layout.lua", input=asked, env=environment("lua")).splitlines()


def in_node() -> list:
    return must("node", BINDINGS / "node/layout.js", env=environment("node")).splitlines()


def in_go() -> list:
    return must(go("layout"), env=environment("go")).splitlines()


@pytest.mark.parametrize("language", [in_python, in_lua, in_node, in_go])
def test_its_structs_are_those_of_c(language, tmp_path):
    environment(language.__name__.removeprefix("in_"))

    def plain(lines: list) -> set:
        """Names as every language may write them: xdp_seen and XDPSeen are the same."""
        return {" ".join([(words := line.split())[0], words[1].replace("_", "").lower(), *words[2:]]) for line in lines}

    expected = plain(in_c(tmp_path))
    if language is in_go:
        # These are filled in through cgo, which has the layout from C itself. A slice has its length, a struct its size.
        copied = {"unified_config", "unified_device", "unified_device_info"}
        by_hand = {words[0] + " " + words[1] + " cgo cgo" for line in expected if (words := line.split())[0] in copied
                   and words[1] != "-" and not re.fullmatch("size|reserved.*|(port|cpu|device|xskfd)count", words[1])}
        expected = {line for line in expected if line.split()[0] not in copied} | by_hand
        expected.remove("unified_config ifname cgo cgo")
        expected.add("unified_config interface cgo cgo")
    assert plain(language()) == expected


def test_every_function_of_the_header_is_bound_in_python():
    os.environ.setdefault("UNIFIED_LIB", str(LIBRARY))
    text = (BINDINGS / "python/unified.py").read_text()
    names = {name.removeprefix("unified_") for name in header.read().functions}
    # What Python has its own way for: structs are read, errors have words.
    own = {"version", "strerror", "frame_data", "packet_payload", "packet_payload_len", "packet_timestamp",
           "packet_vlan", "packet_flow"}
    assert len(names) > 40
    assert {n for n in names - own if f"unified_{n}" not in text} == set()


def test_an_unreachable_registry_is_told(tmp_path):
    need("npm")
    env = os.environ | {"npm_config_registry": "http://127.0.0.1:9/", "npm_config_cache": str(tmp_path / "cache"),
                        "npm_config_fetch_retries": "0"}
    with pytest.raises(pytest.fail.Exception, match="(?s)registry reachable.*127.0.0.1:9") as told:
        fetch(tmp_path / "node", env)
    assert "koffi" in str(told.value)
    assert not (tmp_path / "node/node_modules").exists()


def test_a_missing_tool_is_a_failure_where_nothing_may_be_skipped(monkeypatch):
    monkeypatch.setenv("UNIFIED_REQUIRE_ROOT", "1")
    with pytest.raises(pytest.fail.Exception, match="no-such-tool is not installed"):
        need("no-such-tool")
    monkeypatch.delenv("UNIFIED_REQUIRE_ROOT")
    with pytest.raises(pytest.skip.Exception, match="no-such-tool is not installed"):
        need("no-such-tool")


def of_the_manual(language, number, tmp_path, **devices):
    """A program of the manual, with other devices; and its environment."""
    text = (ROOT / "docs/bindings.md").read_text().split(f"```{language}\n")[number].split("```")[0]
    for name, device in devices.items():
        assert name in text
        text = text.replace(name if name == "eth0" else f"/dev/{name}", str(device))
    program = tmp_path / {"python": "one.py", "lua": "one.lua", "javascript": "one.js", "go": "main.go"}[language]
    program.write_text(text)
    env = environment("node" if language == "javascript" else language)
    if language == "python":
        env["PYTHONPATH"] = str(BINDINGS / "python")
        command = [sys.executable, program]
    elif language == "lua":
        env["LUA_PATH"] = f"{BINDINGS}/lua/?.lua"
        command = ["luajit", program]
    elif language == "javascript":
        (tmp_path / "unified").symlink_to(BINDINGS / "node")
        env["NODE_PATH"] += f":{tmp_path}"
        command = ["node", program]
    else:
        (tmp_path / "go.mod").write_text(f"module one\ngo 1.19\nrequire unified v0.0.0\nreplace unified => {BINDINGS}/go\n")
        must("go", "build", "-o", "one", ".", cwd=tmp_path, env=env, timeout=300)
        command = [tmp_path / "one"]
    return command, env


@pytest.mark.parametrize("language", ["python", "lua", "javascript", "go"])
def test_the_programs_of_the_manual_run(language, network, device, start, tmp_path):
    command, env = of_the_manual(language, 1, tmp_path, eth0=network.near, ng0n1=device)
    device.write_bytes(bytes(1 << 20))
    running = start(*command, env=env)
    for _ in range(100):
        if network.program() or running.process.poll() is not None:
            break
        time.sleep(0.1)
    network.send(1, 100)
    assert running.end() == 0, running.text()
    verify(device, 1, 100)


@pytest.mark.parametrize("language", ["python", "lua", "javascript", "go"])
def test_the_manuals_batch_for_two_devices_runs(language, tmp_path):
    devices = [tmp_path / "first", tmp_path / "second"]
    command, env = of_the_manual(language, 2, tmp_path, ng0n1=devices[0], ng1n1=devices[1])
    for one in devices:
        one.write_bytes(b"x" * 16384)
    must(*command, env=env)
    for one in devices:
        assert one.read_bytes() == b"data" + bytes(8188) + b"x" * 8192
