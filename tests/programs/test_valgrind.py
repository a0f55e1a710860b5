"""The main job under valgrind: packets in, records out, and no access that is wrong, no memory that is lost."""

import signal

from conftest import OUT, ROOT, need, verify

COUNT = 300


def test_the_main_job_under_valgrind(network, device, start):
    need("valgrind")
    # Inline: valgrind does not know that io_uring_enter may wait, and an engine's thread stops all others there.
    program = start("valgrind", "--error-exitcode=99", "--leak-check=full", "--errors-for-leak-kinds=definite,indirect,possible",
                    f"--suppressions={ROOT}/tests/valgrind.supp", "--fair-sched=yes",
                    OUT / "bin/unified-full-stack-test", "--file-size", 8 << 20, network.near, device, 0)
    program.until("^System ready", 60)
    # So slowly that valgrind, which runs one thread at a time, keeps up.
    network.send(COUNT, "1-1472", rate=300)
    program.until(rf"^Stats: RX={COUNT} pps=\d+ \| Stored={COUNT} ", 30)
    program.process.send_signal(signal.SIGINT)
    assert program.end() == 0, program.text()
    text = program.text()
    assert "ERROR SUMMARY: 0 errors" in text and "Books: balanced" in text
    # It looked at all: the library's threads, its region, its memory.
    assert "total heap usage" in text
    verify(device, COUNT, "1-1472", "--sent", COUNT)
