"""What is to be installed, and for what: packaging/deps, with package managers and compilers that are made up."""

import shutil

import pytest
from conftest import ROOT, call

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
            # Never through a link: behind it is this machine's own.
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
