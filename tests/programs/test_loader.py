"""What is left to do for the loader after an installation: packaging/loader, with an ldconfig that is made up."""

import os

import pytest
from conftest import ROOT, call

NAME = "libunified.so.0"


@pytest.fixture
def loader(tmp_path):
    """What is said of a library in `lib`: for this user, with this cache, these directories, and this exit code."""
    tools, lib, log = tmp_path / "tools", tmp_path / "lib", tmp_path / "calls"
    tools.mkdir()
    lib.mkdir()

    def command(name, text):
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)

    def run(user=0, cache=None, searched=None, code=0, libdir=lib):
        log.unlink(missing_ok=True)
        command("id", f"echo {user}")
        lines = [f'echo "$*" >>{log}', 'case $1 in', f'-p) echo "	{NAME} (libc6,x86-64) => {cache}/{NAME}" ;;' if cache else "-p) ;;",
                 f'-N) echo "{searched}: (from <builtin>:0)" ;;' if searched else "-N) ;;", f"*) exit {code} ;;", "esac"]
        command("ldconfig", "\n".join(lines))
        said = call("/bin/sh", ROOT / "packaging/loader", libdir, NAME, env=os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"})
        assert said.returncode == 0, said.stdout
        return said.stdout, log.read_text().splitlines()

    run.lib, run.tmp = lib, tmp_path
    return run


def test_root_tells_it_and_hears_nothing_if_it_is_found(loader):
    said, calls = loader(cache=loader.lib)
    assert said == "" and calls[0] == ""
    # Not quite the same name.
    said, _ = loader(cache=f"{loader.lib}/other")
    assert f"the loader does not look into {loader.lib}" in said


def test_a_directory_has_many_names(loader):
    link = loader.tmp / "usrlib"
    link.symlink_to(loader.lib)
    for name in (link, f"{loader.lib}/", f"{loader.tmp}//lib"):
        assert loader(cache=loader.lib, libdir=name)[0] == ""
    assert loader(cache=link)[0] == ""


def test_root_is_told_of_a_place_where_it_does_not_look(loader):
    said, _ = loader(searched="/lib")
    assert f"does not look into {loader.lib}: set LD_LIBRARY_PATH={loader.lib}, or as root add it to /etc/ld.so.conf.d" in said


def test_others_change_nothing_and_are_told_what_to_do(loader):
    said, calls = loader(user=1000, searched=loader.lib)
    assert f"programs find {NAME} after: ldconfig (as root)" in said and "" not in calls
    # Of a place of one's own ldconfig would find nothing.
    said, calls = loader(user=1000, searched="/lib")
    assert f"LD_LIBRARY_PATH={loader.lib}" in said and "after: ldconfig" not in said and "" not in calls
    # A newer one in the same place.
    assert loader(user=1000, cache=loader.lib)[0] == ""


def test_an_ldconfig_that_fails_is_told(loader):
    said, _ = loader(code=1, cache=loader.lib)
    assert "ldconfig failed" in said and f"LD_LIBRARY_PATH={loader.lib}" in said


def test_this_machines_own_ldconfig_is_understood(loader):
    """Some library of the system, under the name of its directory that the cache does not have."""
    for line in call("/sbin/ldconfig", "-p").stdout.splitlines():
        if "libc.so.6 " in line:
            place = os.path.realpath(os.path.dirname(line.split(" => ")[1]))
            break
    else:
        pytest.skip("ldconfig knows no libc here")
    user = [] if os.geteuid() else ["setpriv", "--reuid=65534", "--clear-groups"]
    for name in ("libc.so.6", "libc.so.6x"):
        said = call(*user, "/bin/sh", ROOT / "packaging/loader", place, name)
        assert said.returncode == 0 and said.stdout == ("" if name == "libc.so.6" else f"programs find {name} after: ldconfig (as root)\n")
