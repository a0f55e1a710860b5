"""What is to be installed, and for what: packaging/deps, with package managers and compilers that are made up."""

import re
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, call, must

DEPS = ROOT / "packaging/deps"
# No rustup is here, and none of this machine's is asked.
COMPILERS = ["cc", "clang", "m4", "ld", "objcopy", "ar", "pkg-config", "make", "bash", "ip", "ethtool", "sysctl", "ls", "uname"]
BASIC = ["sh", "sed", "sort", "head", "id", "mktemp", "rm", "dirname", "cat", "chmod", "mkdir"]


@pytest.fixture
def machine(tmp_path):
    """A machine with few commands, all in one directory; `calls` is what apt-get was asked for."""

    class Machine:
        bin, home, log = tmp_path / "bin", tmp_path / "home", tmp_path / "calls"

        def command(self, name, text):
            # Never through a link: its target belongs to this machine.
            (self.bin / name).unlink(missing_ok=True)
            (self.bin / name).write_text(f"#!/bin/sh\n{text}\n")
            (self.bin / name).chmod(0o755)

        def links(self, names):
            for name in names:
                (self.bin / name).symlink_to(shutil.which(name))

        @property
        def env(self):
            return {"PATH": str(self.bin), "HOME": str(self.home)}

        def run(self, *words):
            return call("/bin/sh", DEPS, *words, env=self.env)

        @property
        def calls(self):
            return self.log.read_text().split() if self.log.exists() else []

    machine = Machine()
    machine.bin.mkdir()
    machine.home.mkdir()
    machine.links(BASIC)
    machine.command("apt-get", f'echo "$@" >>{machine.log}')
    return machine


@pytest.fixture
def builder(machine):
    """One on which only Rust is missing."""
    machine.links(COMPILERS)
    return machine


def test_an_old_cargo_is_told_and_replaced(machine, builder):
    machine.command("cargo", "echo 'cargo 1.63.0 (fd9c4297c 2022-07-01)'")
    said = machine.run("check", "build")
    assert said.returncode == 1 and "nothing is missing" not in said.stdout
    assert "cargo-1.95(here-is-1.63)" in said.stdout and "Rust is too old: 1.95 or later is needed" in said.stdout
    # The installer, which puts a newer one where rustup does.
    machine.command("curl", 'while [ "$1" != -o ]; do shift; done; cat >"$2" <<END\n'
                    'mkdir -p \\$HOME/.cargo/bin; echo "echo cargo 1.95.1" >\\$HOME/.cargo/bin/cargo\n'
                    'chmod +x \\$HOME/.cargo/bin/cargo\nEND')
    said = machine.run("install", "build")
    assert said.returncode == 0, said.stdout
    assert machine.calls == [], "only Rust was missing"
    said = machine.run("check", "build")
    assert said.returncode == 0 and "nothing is missing" in said.stdout, said.stdout


@pytest.mark.parametrize("version, good", [("1.94.9", False), ("1.95.0", True), ("1.100.0", True), ("2.0.0", True), ("", False)])
def test_versions_are_compared_as_numbers(machine, builder, version, good):
    machine.command("cargo", f"echo cargo {version}")
    assert (machine.run("check", "build").returncode == 0) == good


@pytest.mark.parametrize("curl", ["echo 'curl: (6) Could not resolve host: sh.rustup.rs' >&2; exit 6", "exit 0"])
def test_a_download_that_fails_is_told_as_that(machine, builder, curl):
    machine.command("cargo", "echo cargo 1.65.0")
    machine.command("curl", curl)
    said = machine.run("install", "build")
    assert said.returncode == 1
    assert "downloading https://sh.rustup.rs failed" in said.stdout and "install-deps" not in said.stdout
    # make ends there, and says nothing else.
    made = call("make", "-f", "Makefile.full-stack", "deps", cwd=ROOT, env=machine.env)
    assert made.returncode != 0 and "downloading https://sh.rustup.rs failed" in made.stdout
    assert "nothing is missing" not in made.stdout


def test_each_purpose_installs_what_it_needs(machine):
    machine.command("curl", "exit 22")
    machine.run("install", "build", "demo")
    demo = set(machine.calls)
    assert {"clang", "gcc", "libxdp-dev", "iproute2", "ethtool"} <= demo
    assert not demo & {"bpftrace", "tmux", "abigail-tools", "python3-pytest", "bpftool", "golang-go", "nodejs", "luajit", "debhelper"}
    machine.log.unlink()
    assert machine.run("install", "test").returncode == 0
    assert {"bpftrace", "tmux", "python3-pytest"} <= set(machine.calls) and "clang" not in machine.calls
    machine.log.unlink()
    said = machine.run("check", "deb")
    assert said.returncode == 1 and "missing: dh dh_python3 dpkg-deb" in said.stdout and "install-deps SETS='deb'" in said.stdout
    assert machine.run("install", "deb").returncode == 0
    assert [word for word in machine.calls if not word.startswith("-")] == ["update", "install", "debhelper", "dh-python", "dpkg-dev"]


def test_words_that_mean_nothing_are_refused(machine):
    assert machine.run("install", "everything").returncode == 2
    assert machine.run("check").returncode == 2 and machine.run().returncode == 2
    assert "there is no set 'everything'" in machine.run("check", "everything").stdout


def test_a_package_manager_that_fails_ends_it(machine):
    machine.command("apt-get", "[ $1 = update ] || { echo 'E: Unable to locate package' >&2; exit 100; }")
    said = machine.run("install", "demo")
    assert said.returncode == 1 and "Unable to locate" in said.stdout and "this failed, see above: apt-get install" in said.stdout
    (machine.bin / "apt-get").unlink()
    said = machine.run("install", "demo")
    assert said.returncode == 1 and "neither apt-get nor dnf is here" in said.stdout
    machine.command("id", "echo 1000")
    machine.command("apt-get", "exit 0")
    said = machine.run("install", "demo")
    assert said.returncode == 1 and "installing packages takes root: apt-get install" in said.stdout


RUST = 'mkdir -p "$BIN"; printf "#!/bin/sh\\necho cargo 1.95.1\\n" >"$BIN/cargo"; chmod +x "$BIN/cargo"'


def installer(machine, place):
    """curl that brings an installer which puts cargo into this place."""
    machine.command("curl", f'while [ "$1" != -o ]; do shift; done\ncat >"$2" <<\'END\'\nBIN={place}\n{RUST}\nEND')


def test_rust_is_looked_for_where_rustup_puts_it(machine, builder, tmp_path):
    installer(machine, '"$CARGO_HOME/bin"')
    env = machine.env | {"CARGO_HOME": str(tmp_path / "elsewhere")}
    for action in ("install", "check"):
        said = call("/bin/sh", DEPS, action, "build", env=env)
        assert said.returncode == 0, said.stdout
    made = call("make", "-s", "-f", "Makefile.full-stack", "check-deps", cwd=ROOT, env=env)
    assert made.returncode == 0 and "nothing is missing" in made.stdout, made.stdout


def test_an_installation_that_is_not_the_one_in_use_is_no_success(machine, builder):
    machine.command("cargo", "echo cargo 1.63.0")
    installer(machine, '"$HOME/.cargo/bin"')
    old = machine.bin / "cargo"
    said = call("/bin/sh", DEPS, "install", "build", env=machine.env | {"CARGO": str(old)})
    assert said.returncode == 1 and f"this is missing: {old}-1.95(here-is-1.63)" in said.stdout, said.stdout


def test_an_old_rustc_beside_a_new_cargo_is_told(machine, builder):
    machine.command("cargo", "echo cargo 1.95.0")
    machine.command("rustc", "echo 'rustc 1.63.0 (4b91a6ea7 2022-08-08)'")
    said = machine.run("check", "build")
    assert said.returncode == 1 and "rustc-1.95(here-is-1.63)" in said.stdout and "Rust is too old" in said.stdout


def test_rust_alone_is_not_installed_for_root(machine, builder):
    """Another user's builds would not find it in root's home."""
    machine.command("cargo", "echo cargo 1.63.0")
    said = machine.run("check", "build")
    assert "run, as the user who builds: make -f Makefile.full-stack install-deps" in said.stdout and "as root" not in said.stdout
    (machine.bin / "m4").unlink()
    machine.command("id", "echo 1000")
    said = machine.run("check", "build")
    assert "it says which packages root has to install" in said.stdout


@pytest.mark.parametrize("words", [{"CC": "cc -O1"}, {"CC": "env cc"}, {"CARGO": "cargo --offline"}])
def test_commands_of_several_words(machine, builder, words):
    machine.links(["env"])
    machine.command("cargo", "echo cargo 1.95.0")
    said = call("/bin/sh", DEPS, "check", "build", env=machine.env | words)
    assert said.returncode == 0, said.stdout


def test_a_plain_user_need_not_have_sbin_in_the_path(machine, builder):
    for tool in ("ethtool", "sysctl"):
        if not shutil.which(tool, path="/usr/local/sbin:/usr/sbin:/sbin"):
            pytest.skip(f"{tool} is not in /usr/sbin here")
        (machine.bin / tool).unlink()
    assert "ethtool sysctl" in machine.run("check", "demo").stdout
    machine.command("id", "echo 1000")
    said = machine.run("check", "demo")
    assert said.returncode == 0, said.stdout


def test_npm_is_installed_also_where_node_is(machine):
    machine.command("node", "")
    assert machine.run("install", "languages").returncode == 0
    assert "npm" in machine.calls
    machine.log.unlink()
    machine.command("npm", "")
    assert machine.run("install", "languages").returncode == 0
    assert "nodejs" in machine.calls and "npm" not in machine.calls


def test_a_tool_is_told_with_the_set_that_has_it(machine):
    for tool, name in [("dh", "deb"), ("lintian", "deb-test"), ("mandoc", "languages"), ("tmux", "test"), ("no-such-tool", "")]:
        said = machine.run("set-of", tool)
        assert said.returncode == 0 and said.stdout.strip() == name, said.stdout
    assert machine.run("set-of").returncode == 2


def test_making_packages_says_what_is_missing_before_it_builds(machine, builder):
    machine.command("cargo", f"echo built >>{machine.log}; echo cargo 1.95.0")
    made = call("make", "-f", "Makefile.full-stack", "deb", cwd=ROOT, env=machine.env)
    assert made.returncode != 0 and "missing: dh dh_python3 dpkg-deb" in made.stdout and "SETS='deb'" in made.stdout, made.stdout
    assert machine.calls == [], "it was built before"
    (machine.bin / "apt-get").unlink()
    made = call("make", "-f", "Makefile.full-stack", "deb", cwd=ROOT, env=machine.env)
    assert made.returncode != 0 and "Debian packages are made on Debian" in made.stdout, made.stdout
    assert machine.calls == []


def test_a_build_by_an_old_cargo_says_so(machine, builder):
    machine.command("cargo", '[ "$1" = --version ] && { echo cargo 1.63.0; exit; }\necho "failed to parse manifest" >&2; exit 101')
    made = call("make", "-f", "Makefile.full-stack", "lib", cwd=ROOT, env=machine.env)
    assert made.returncode != 0 and "Rust is too old: 1.95 or later is needed" in made.stdout, made.stdout


def test_nothing_is_piped_from_the_network_into_a_shell():
    """A pipe hides that nothing came."""
    texts = [ROOT / name for name in must("git", "ls-files", cwd=ROOT).splitlines()]
    texts = {path: path.read_text(errors="ignore") for path in texts if path.is_file() and path.stat().st_size < 1 << 20}
    assert DEPS in texts and ROOT / "packaging/Dockerfile" in texts
    piped = re.compile(r"\b(curl|wget)\b[^\n|]*(\\\n[^\n|]*)*\|\s*(sudo\s+)?(ba|da)?sh\b")
    assert piped.search("curl -sSf https://x \\\n\t-o - | sh -s -- -y")
    assert not [str(path) for path, text in texts.items() if piped.search(text) and path != Path(__file__)]
    assert "RUN packaging/deps install build deb" in texts[ROOT / "packaging/Dockerfile"]
