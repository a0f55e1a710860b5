"""A release, made in a repository of its own."""

import hashlib
import os
import re
import shutil
import tarfile

import pytest
from conftest import ROOT, call, must

VERSION = re.search(r'^version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
MAJOR, MINOR, PATCH = map(int, VERSION.split("."))
NEXT = f"{MAJOR}.{MINOR + 1}.0"


class Repository:
    """The files of this tree as they are now, with one commit; something is new in it."""

    def __init__(self, place):
        self.place = place / "unified"
        for name in must("git", "ls-files", "-z", cwd=ROOT).split("\0"):
            # What was removed and not committed yet is in the list still.
            if name and (ROOT / name).exists():
                (self.place / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.place / name)
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        self.env |= {f"GIT_{who}_{what}": "tester@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        self.env |= {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
        self.git("init", "--quiet", "--initial-branch=main")
        self.change("CHANGELOG.md", "## Unreleased\n", "## Unreleased\n\n### Added\n\n- Something.\n")
        self.commit()

    def git(self, *words) -> str:
        return must("git", *words, cwd=self.place, env=self.env)

    def commit(self):
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "as it stands")

    def change(self, name: str, old: str, new: str):
        text = (self.place / name).read_text()
        assert old in text, f"{name}: {old}"
        (self.place / name).write_text(text.replace(old, new))

    def release(self, version=NEXT, *flags, checks="true"):
        return call(".ci/release", version, "--checks", checks, *flags, cwd=self.place, env=self.env)

    def state(self) -> tuple:
        return self.git("rev-parse", "HEAD"), self.git("tag"), self.git("status", "--porcelain")

    def refuses(self, words: str, *arguments, **options):
        before = self.state()
        done = self.release(*arguments, **options)
        assert done.returncode == 1 and words in done.stdout, done.stdout
        assert self.state() == before
        assert not (self.place / "target").exists()


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path)


def test_a_release_is_a_commit_a_tag_and_an_archive(repository, tmp_path):
    # So that renewing it shows.
    more = "int unified_log_close(struct unified_log *log);"
    repository.change("include/unified.h", more, f"{more}\nint unified_more(unified_ctx *ctx);")
    with open(repository.place / "abi/symbols", "a") as symbols:
        symbols.write(f"# UNIFIED_{MAJOR}.{MINOR + 1}\nunified_more\n")
    repository.commit()
    before = repository.git("rev-parse", "HEAD").strip()
    # The checks see the commit, with the versions in it.
    sees = f"test -z \"$(git status --porcelain)\" && grep -q '^version = \"{NEXT}\"' Cargo.toml && echo saw >{tmp_path}/saw"
    done = repository.release(NEXT, "--out", tmp_path / "out", checks=sees)
    assert done.returncode == 0 and "git push" in done.stdout, done.stdout
    assert (tmp_path / "saw").exists()
    assert repository.git("rev-list", f"{before}..HEAD").count("\n") == 1
    assert repository.git("log", "-1", "--format=%s").strip() == f"Release {NEXT}"
    assert repository.git("rev-parse", f"v{NEXT}^{{commit}}") == repository.git("rev-parse", "HEAD")
    assert repository.git("cat-file", "-t", f"v{NEXT}").strip() == "tag"
    assert repository.git("status", "--porcelain") == ""

    changed = set(repository.git("diff", "--name-only", before, "HEAD").split())
    assert changed == {"CHANGELOG.md", "Cargo.toml", "Cargo.lock", "tools/export/Cargo.toml", "tools/traffic/Cargo.toml", "tools/top/Cargo.toml",
                       "fuzz/Cargo.lock", "bindings/python/pyproject.toml", "bindings/node/package.json", "bindings/node/package-lock.json", "abi/libunified.abi"}
    # One line for another each: nothing but the version was touched in the manifests.
    for line in repository.git("diff", "--numstat", before, "HEAD", "--", *changed - {"CHANGELOG.md", "abi/libunified.abi"}).splitlines():
        added, removed, name = line.split()
        assert added == removed == {"Cargo.lock": "4", "bindings/node/package-lock.json": "2"}.get(name, "1"), line
    # cargo agrees with the lock file as it is.
    must("cargo", "tree", "--locked", "--offline", "--depth", 0, cwd=repository.place, timeout=120)
    assert "unified_more" in (repository.place / "abi/libunified.abi").read_text()
    text = (repository.place / "CHANGELOG.md").read_text()
    assert re.search(rf"^## Unreleased\n\n## {NEXT} - 20\d\d-\d\d-\d\d\n\n### ", text, re.M)
    assert re.search(r"^## Unreleased\n(.*)", (ROOT / "CHANGELOG.md").read_text(), re.M | re.S)[1] in text

    archive = tmp_path / f"out/unified-{NEXT}.tar.gz"
    must("sha256sum", "--check", "--strict", f"unified-{NEXT}.sha256", cwd=tmp_path / "out")
    with tarfile.open(archive) as tar:
        names = {member.name for member in tar if not member.isdir()}
        manifest = tar.extractfile(f"unified-{NEXT}/Cargo.toml").read().decode()
    # (pax_global_header is git's and no member.)
    assert names == {f"unified-{NEXT}/{name}" for name in repository.git("ls-files").split("\n") if name}
    assert f'version = "{NEXT}"' in manifest
    # Whoever makes it again from the tag gets the same bytes.
    again = tmp_path / "again.tar.gz"
    repository.git("archive", "--format=tar.gz", f"--prefix=unified-{NEXT}/", f"--output={again}", f"v{NEXT}")
    assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(archive.read_bytes()).digest()

    # Once more: nothing is new. A later one, with an entry, is the next section.
    kept = repository.state()
    for version, words in [(NEXT, "released already"), ("0.0.1", "not higher"),
                           (f"{MAJOR}.{MINOR + 1}.1", "no entry under")]:
        done = repository.release(version)
        assert done.returncode == 1 and words in done.stdout, done.stdout
    assert repository.state() == kept
    repository.change("CHANGELOG.md", "## Unreleased\n", "## Unreleased\n\n### Added\n\n- Something.\n")
    repository.commit()
    later = f"{MAJOR}.{MINOR + 1}.1"
    done = repository.release(later, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stdout
    headings = re.findall(r"^## (\S+)", (repository.place / "CHANGELOG.md").read_text(), re.M)
    assert headings[:3] == ["Unreleased", later, NEXT]


def test_what_cannot_be_released_is_refused_and_changes_nothing(repository):
    repository.refuses("is no version", "1.0")
    repository.refuses("is no version", f"v{NEXT}")
    repository.refuses("not higher", "0.0.9")
    repository.git("tag", f"v{NEXT}")
    repository.refuses("released already")
    later = f"{MAJOR}.{MINOR + 1}.1"
    # The last tag counts, also if the manifest has an older version.
    repository.git("tag", f"v{later}")
    repository.git("tag", "-d", f"v{NEXT}")
    repository.refuses("not higher")
    repository.git("tag", "-d", f"v{later}")

    (repository.place / "stray").write_text("")
    repository.refuses("stray")
    (repository.place / "stray").unlink()
    repository.change("README.md", "# unified", "# Unified")
    repository.refuses("README.md")
    repository.git("checkout", "--quiet", "README.md")

    repository.refuses("'false' failed", checks="false")
    repository.refuses("left files behind", checks="echo >>README.md")
    # There is no key, and no room for the archive: the commit and the tag are taken back.
    repository.refuses("git tag --sign", NEXT, "--sign")
    repository.refuses("the branch is as it was", NEXT, "--out", "/dev/null/out")

    text = (repository.place / "CHANGELOG.md").read_text()
    for unreleased in ("", "## Unreleased\n\n### Added\n"):
        (repository.place / "CHANGELOG.md").write_text("# Changelog\n\n" + unreleased)
        repository.commit()
        repository.refuses("no entry under")
    (repository.place / "CHANGELOG.md").write_text(text)
    # A manifest that nobody told the script of.
    (repository.place / "bindings/other.toml").write_text(f'version = "{VERSION}"\n')
    repository.commit()
    repository.refuses("bindings/other.toml")
    (repository.place / "bindings/other.toml").unlink()

    close = "int unified_log_close(struct unified_log *log);"
    repository.change("include/unified.h", close, close.replace(")", ", int more)"))
    repository.commit()
    repository.refuses("unified_log_close", f"{MAJOR}.{MINOR}.{PATCH + 1}")
    with open(repository.place / "abi/symbols", "a") as symbols:
        symbols.write(f"# UNIFIED_{MAJOR}.{MINOR + 2}\n")
    repository.commit()
    repository.refuses("later than", NEXT)
    repository.git("reset", "--quiet", "--hard", "HEAD~")
    # Before 1.0 a minor version may do that.
    if MAJOR == 0:
        done = repository.release(NEXT)
        assert done.returncode == 0, done.stdout


def test_the_first_release_has_the_version_that_stands_there(repository):
    """There is no tag and no section of it."""
    text = (repository.place / "CHANGELOG.md").read_text()
    (repository.place / "CHANGELOG.md").write_text(re.sub(r"^## \d.*", "", text, flags=re.M | re.S))
    if repository.git("status", "--porcelain"):
        repository.commit()
    done = repository.release(VERSION)
    assert done.returncode == 0, done.stdout
    assert set(repository.git("diff", "--name-only", "HEAD~").split()) <= {"CHANGELOG.md", "abi/libunified.abi"}
    assert repository.git("tag").strip() == f"v{VERSION}"


def test_the_target_wants_a_version_and_keeps_it_to_itself(repository, tmp_path):
    make = ["make", "-s", "-f", "Makefile.full-stack", "release"]
    done = call(*make, cwd=repository.place, env=repository.env)
    assert done.returncode != 0 and "say TO=" in done.stdout
    flags = f"--out {tmp_path}/out --checks '! make -s -f Makefile.full-stack release'"
    done = call(*make, f"TO={NEXT}", f"RELEASE_FLAGS={flags}", cwd=repository.place, env=repository.env)
    assert done.returncode == 0 and "say TO=" in done.stdout, done.stdout
    assert repository.git("tag").strip() == f"v{NEXT}"
