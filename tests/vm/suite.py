"""What runs in the guest: the project's integration test binaries, and scripts of its own."""

import fnmatch
import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
CARGO = os.environ.get("CARGO", "cargo")
CLANG = os.environ.get("CLANG", "clang")
# What a guest has and the host has not: a drive, the dispatcher, zero-copy; and the way through all of it.
GUEST = {"dispatcher", "end_to_end", "guest_nvme", "guest_sets", "guest_zero_copy"}
# Emulation is slow, and two guests share the host.
LIMIT = 180


class Failed(Exception):
    pass


class Test:
    def __init__(self, name, command, limit=LIMIT):
        self.name, self.command, self.limit = name, command, limit

    def line(self):
        return f"{self.name}\t{self.limit}\t{self.command}\n"


# Only if they are asked for: a comparison is no test, and rates need a machine for themselves.
RATES = {"guest_sets::drives_add_up"}
PEERS = Test("fio", "/bin/sh /tests/fio.sh", 300)


class Suite:
    """The tests, and the programs and files that they need in the guest."""

    def __init__(self):
        self.tests, self.programs, self.files = [], {}, {}
        # A compiler and its headers by the test that alone needs them: 190 MB.
        self.heavy = {}
        self.target = None
        self.traffic = None
        # Tests that have a guest each for themselves, and whose program's other half runs here.
        self.power_cuts = []
        # What those record to.
        self.layouts = {}

    def select(self, patterns):
        tests = [*self.tests, *self.power_cuts]
        if not patterns:
            return [test for test in tests if test.name not in RATES]
        if PEERS.name in patterns:
            add_peers(self)
            tests.append(PEERS)
        chosen = []
        for pattern in patterns:
            hits = [
                test
                for test in tests
                if fnmatch.fnmatchcase(test.name, pattern) or test.name.startswith(pattern + "::")
            ]
            if not hits:
                raise Failed(f"no test is named '{pattern}': see --list")
            chosen += [test for test in hits if test not in chosen]
        return chosen


def cargo(*args):
    """Runs cargo and returns what it built, as its JSON messages."""
    done = subprocess.run(
        [CARGO, *args, "--message-format=json"], cwd=ROOT, text=True, stdout=subprocess.PIPE
    )
    messages = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0:
        for message in messages:
            print((message.get("message") or {}).get("rendered") or "", end="")
        raise Failed(f"cargo {' '.join(args)} failed")
    return [m for m in messages if m["reason"] == "compiler-artifact" and m["executable"]]


def build():
    suite = Suite()
    (traffic,) = cargo("build", "-p", "unified-traffic")
    suite.traffic = Path(traffic["executable"])
    suite.target = suite.traffic.parents[1]
    suite.programs["usr/sbin/unified-traffic"] = suite.traffic
    for artifact in sorted(cargo("test", "--no-run"), key=lambda a: a["target"]["name"]):
        name = artifact["target"]["name"]
        if "test" in artifact["target"]["kind"] and name in GUEST:
            add_binary(suite, name, Path(artifact["executable"]))
        if name == "power_cut":
            suite.programs["tests/power_cut"] = Path(artifact["executable"])
    add_installed(suite)
    for script in sorted((HERE / "guest").glob("*.sh")):
        suite.files[f"tests/{script.name}"] = script
        suite.tests.append(Test(script.stem, f"/bin/sh /tests/{script.name}"))
    cut = "/tests/power_cut --exact records_until_the_power_is_cut --nocapture"
    suite.layouts = {"power_cut": "slot", "power_cut_log": "log", "power_cut_set": "set"}
    suite.power_cuts = [
        Test(name, f"env UNIFIED_TEST_CUT_LAYOUT={layout} {cut}") for name, layout in suite.layouts.items()
    ]
    suite.files["tests/other.bpf.o"] = compile_bpf(suite, HERE / "guest" / "other.bpf.c")
    return suite


def add_installed(suite):
    """The built library, its program and its script, and an unchanged program of the registration interface."""
    make = ["make", "-s", "-f", "Makefile.full-stack"]
    program = suite.target / "vm" / "uapi-full-stack"
    program.parent.mkdir(parents=True, exist_ok=True)
    selftest = ["selftest", "SRC=tests/capi/uapi-full-stack.c", f"OUT={program}"]
    for target in [["all"], selftest]:
        done = subprocess.run([*make, *target], cwd=ROOT, text=True, capture_output=True)
        if done.returncode != 0:
            raise Failed(f"make {' '.join(target)}: {done.stdout}{done.stderr}")
    built = ROOT / "target" / "full-stack"
    (soname,) = [path for path in (built / "lib").glob("libunified.so.*") if path.suffix[1:].isdigit() and path.is_symlink()]
    suite.programs[f"usr/lib/{soname.name}"] = soname
    for name in ["unified-full-stack-test", "unified-traffic", "unified-export", "recorder"]:
        suite.programs[f"opt/unified/bin/{name}"] = built / "bin" / name
    suite.programs["opt/unified/bin/uapi-full-stack"] = program
    suite.files["opt/unified/run-full-stack-test.sh"] = ROOT / "run-full-stack-test.sh"
    # What stdbuf puts into the programs that it starts.
    stdbuf = Path("/usr/libexec/coreutils/libstdbuf.so")
    suite.files[str(stdbuf)[1:]] = stdbuf
    suite.files["tests/common"] = HERE / "guest" / "common"
    # That program calls the compiler when it starts.
    clang = Path(shutil.which(CLANG)).resolve()
    machine = f"{os.uname().machine}-linux-gnu"
    trees = ["linux", "asm-generic", "bpf", f"{machine}/asm"]
    suite.heavy["registration"] = clang, [Path("/usr/include") / tree for tree in trees]


def add_peers(suite):
    """fio, and what writes as it does through this library."""
    fio = shutil.which("fio")
    if fio is None:
        raise Failed("fio is not installed: make -f Makefile.full-stack bench-deps")
    program, built = suite.target / "vm" / "write-only", ROOT / "target" / "full-stack" / "lib"
    source = ROOT / "benches" / "peers" / "write-only.c"
    command = [os.environ.get("CC", "cc"), "-O2", f"-I{ROOT}/include", source, "-o", program, f"-L{built}", "-lunified"]
    # For the look at what it needs, on this host.
    command.append(f"-Wl,-rpath,{built}")
    subprocess.run(command, check=True)
    suite.programs["opt/unified/bin/write-only"] = program
    suite.programs["usr/sbin/fio"] = Path(fio)
    suite.files["tests/fio.sh"] = HERE / "peers" / "fio.sh"


def add_binary(suite, name, executable):
    """Each test of the binary is a test here, run in a process of its own."""
    suite.programs[f"tests/{name}"] = executable
    done = subprocess.run(
        [executable, "--list", "--format", "terse"], text=True, capture_output=True, check=True
    )
    for line in done.stdout.splitlines():
        test, _, kind = line.rpartition(": ")
        if kind == "test":
            command = f"/tests/{name} --exact {shlex.quote(test)} --nocapture --test-threads=1"
            suite.tests.append(Test(f"{name}::{test}", command))


def compile_bpf(suite, source):
    out = suite.target / "vm" / source.with_suffix(".o").name
    out.parent.mkdir(parents=True, exist_ok=True)
    include = f"/usr/include/{os.uname().machine}-linux-gnu"
    flags = ["-O2", "-g", "-Wall", "-Werror", "-target", "bpf", f"-I{include}"]
    subprocess.run([CLANG, *flags, "-c", source, "-o", out], check=True)
    return out
