"""The C programs under gcc's sanitizers: what they do with the memory, and in the threads, that the library gives them.

The library itself is not compiled for them here; tests/run has its Rust tests under both."""

import os
import signal

import pytest
from conftest import OUT, ROOT, must, verify

SANITIZERS = {
    "thread": ["-fsanitize=thread"],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
}
ENV = os.environ | {"TSAN_OPTIONS": "exitcode=66"}
COUNT = 2000
# gcc's ThreadSanitizer does not know the places where newer kernels map a program.
FIXED = ["setarch", "-R"]


@pytest.mark.parametrize("drive", ["inline", "thread"])
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_the_documented_threads(sanitizer, drive, network, device, start, tmp_path):
    program = tmp_path / "program"
    must("gcc", "-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", *SANITIZERS[sanitizer], f"-I{ROOT}/include",
         ROOT / "c-examples/full-stack-test.c", "-o", program, f"-L{OUT}/lib", "-lunified", "-pthread",
         f"-Wl,-rpath,{OUT}/lib")
    options = ["--engine-thread"] if drive == "thread" else []
    running = start(*FIXED, program, *options, "--file-size", 8 << 20, network.near, device, 0, env=ENV)
    running.until("^System ready", 60)
    network.send(COUNT, "1-1472", rate=4000)
    running.until(rf"^Stats: RX={COUNT} pps=\d+ \| Stored={COUNT} ", 30)
    running.process.send_signal(signal.SIGINT)
    assert running.end() == 0, running.text()
    assert "Books: balanced" in running.text() and "Sanitizer" not in running.text()
    verify(device, COUNT, "1-1472", "--sent", COUNT)


def test_they_see_a_leak_of_creation(tmp_path):
    """No suppression hides what is allocated under a function of the library."""
    (tmp_path / "leak.c").write_text("#include <stdlib.h>\n"
                                     "static void *volatile last;\n"
                                     "__attribute__((noinline)) void unified_ctx_create(void) { last = malloc(100); }\n"
                                     "int main(void) { unified_ctx_create(); last = NULL; return 0; }\n")
    must("gcc", "-g", "-O0", *SANITIZERS["address"], tmp_path / "leak.c", "-o", tmp_path / "leak")
    with pytest.raises(AssertionError, match="Direct leak of 100 byte(?s:.*)unified_ctx_create"):
        must(*FIXED, tmp_path / "leak", env=ENV)


def test_they_see_a_race(tmp_path):
    (tmp_path / "race.c").write_text("#include <pthread.h>\nstatic int shared;\n"
                                     "static void *add(void *p) { shared++; return p; }\n"
                                     "int main(void) { pthread_t a, b; pthread_create(&a, 0, add, 0);\n"
                                     "pthread_create(&b, 0, add, 0); pthread_join(a, 0); return pthread_join(b, 0); }\n")
    must("gcc", "-g", *SANITIZERS["thread"], tmp_path / "race.c", "-o", tmp_path / "race", "-pthread")
    with pytest.raises(AssertionError, match="data race"):
        must(*FIXED, tmp_path / "race", env=ENV)
