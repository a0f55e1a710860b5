"""bindings/python: what the module promises about frames, views, errors, pipelines, logs and asyncio."""

import asyncio
import dataclasses
import errno
import gc
import inspect
import ipaddress
import logging
import os
import re
import sys
import warnings

import pytest
from conftest import OUT, ROOT, must, need, verify

os.environ.setdefault("UNIFIED_LIB", str(OUT / "lib/libunified.so.0"))
sys.path.insert(0, str(ROOT / "bindings/python"))
import unified  # noqa: E402

COUNT = 200


@pytest.fixture(autouse=True)
def nothing_is_lost():
    """A frame or context that nobody gave back fails its test."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", ResourceWarning)
        yield
        gc.collect()
    assert not [str(w.message) for w in seen if "frame" in str(w.message) or "context" in str(w.message)]


@pytest.fixture
def storage(device):
    with unified.Context(device=device, file_size=1 << 20) as ctx:
        yield ctx


def finished(ctx) -> unified.Completion:
    while not (done := ctx.completions(1)):
        assert ctx.wait(completions=True, timeout=5) == unified.WAIT_COMPLETIONS
    return done[0]


def received(ctx, count):
    packets = []
    while len(packets) < count:
        assert ctx.wait(rx=True, timeout=5) == unified.WAIT_RX
        packets += ctx.rx_batch(count - len(packets))
    return packets


def test_commands_name_their_device_and_buffers_serve_as_frames(tmp_path):
    devices = [unified.Device(tmp_path / name, file_size=1 << 20, block_size=size) for name, size in (("a", 512), ("b", 4096))]
    with unified.Context(devices=devices) as ctx:
        assert ctx.info.devices == 2 and ctx.device == str(tmp_path / "a")
        assert [ctx.device_info(i).block_size for i in range(2)] == [512, 4096]
        assert ctx.stripe_locate(256) == (1, 0)
        frame, buffer = ctx.frame_alloc(), ctx.buffer_alloc(8192)
        frame.view(0, 512)[:] = b"f" * 512
        buffer.memory[:] = b"b" * 8192
        written = [unified.Submission(unified.OP_WRITE, device=0, lba=3, frame=frame, offset=0, length=512, user_data=1),
                   unified.Submission(unified.OP_WRITE, device=1, lba=2, buffer=buffer, user_data=2)]
        assert ctx.submit(written) == 2
        done = sorted((finished(ctx).check() for _ in written), key=lambda one: one.user_data)
        assert [(one.device, one.len) for one in done] == [(0, 512), (1, 8192)]
        ctx.submit([unified.Submission(unified.OP_FLUSH, device=unified.ALL_DEVICES)])
        finished(ctx).check()
        assert (tmp_path / "a").read_bytes()[3 * 512:4 * 512] == b"f" * 512
        assert (tmp_path / "b").read_bytes()[2 * 4096:4 * 4096] == b"b" * 8192
        buffer.memory[:] = bytes(8192)
        ctx.submit([unified.Submission(unified.OP_READ, device=1, lba=2, buffer=buffer)])
        finished(ctx).check()
        assert bytes(buffer.memory) == b"b" * 8192 and buffer.info() == (8192, 0)
        info = ctx.device_info(1)
        assert (info.bytes_written, info.bytes_read, info.out) == (8192, 8192, False)
        buffer.free()
        with pytest.raises(unified.UnifiedError, match="device 2 does not exist"):
            ctx.submit([unified.Submission(unified.OP_FLUSH, device=2)])
        left = ctx.buffer_alloc(4096)
        assert left.memory[:4] == bytes(4)
    for gone in (buffer, left):
        with pytest.raises(ValueError, match="released"):
            gone.memory[0]
    with pytest.raises(ValueError, match="closed"):
        left.free()


def test_mypy_finds_nothing():
    need("mypy")
    must("mypy", "--strict", "--cache-dir", ROOT / "target/mypy", "unified.py", "store.py",
         cwd=ROOT / "bindings/python", timeout=180)


def test_an_error_has_an_errno_and_a_sentence(tmp_path):
    with pytest.raises(unified.UnifiedError, match="nosuchif0") as caught:
        unified.Context(interface="nosuchif0", device=tmp_path / "file", file_size=4096)
    assert caught.value.errno == errno.ENODEV
    assert isinstance(caught.value, OSError)


def test_a_frame_goes_to_the_device_and_back(storage):
    frame = storage.frame_alloc()
    view = frame.view()
    view[:5] = b"hello"
    storage.submit_write(frame, 3, length=5, user_data=7, fua=True, keep=True)
    assert not frame.held
    with pytest.raises(ValueError):
        view[0]
    with pytest.raises(ValueError):
        frame.view()
    with pytest.raises(ValueError):
        storage.submit_write(frame, 4)
    done = finished(storage).check()
    assert (done.user_data, done.len) == (7, storage.info.block_size)
    back = done.frame
    assert back.held and back.number == frame.number
    back.view()[:5] = b"xxxxx"
    storage.submit_read(back, 3, storage.info.block_size)
    back = finished(storage).check().frame
    assert bytes(back.view(0, 7)) == b"hello\0\0"
    back.view()[0] = ord("j")
    storage.submit_compare(back, 3, storage.info.block_size)
    done = finished(storage)
    assert done.status == 0x285
    with pytest.raises(unified.UnifiedError, match=unified.status_string(0x285)):
        done.check()
    view = done.frame.view()
    done.frame.release()
    with pytest.raises(ValueError):
        view[0]
    with pytest.raises(ValueError):
        done.frame.release()


def test_a_submission_that_fails_leaves_the_frame(storage):
    frame = storage.frame_alloc()
    view = frame.view(0, 4)
    with pytest.raises(unified.UnifiedError) as caught:
        storage.submit_read(frame, 0, 100)
    assert caught.value.errno == errno.EINVAL
    view[:] = b"mine"
    for wrong in ({"length": -1}, {"offset": -1}, {"length": 1 << 32}, {"offset": storage.info.frame_size + 1}):
        with pytest.raises(ValueError):
            storage.submit_write(frame, 0, **wrong)
    with pytest.raises(ValueError):
        storage.submit_write(frame, -1)
    frame.release()


def test_batches(storage):
    frames = [storage.frame_alloc() for _ in range(3)]
    view = frames[1].view()
    view[100:106] = b"second"
    writes = [unified.Write(frames[0], 8, length=512, keep=True),
              unified.Write(frames[1], 9, offset=100, length=6, user_data=9, keep=True)]
    assert storage.submit_writes([*writes, writes[0]]) == 2
    assert [frame.held for frame in frames] == [False, False, True]
    with pytest.raises(ValueError):
        view[0]
    with pytest.raises(ValueError, match="submitted"):
        storage.submit_writes(writes)
    for wrong in ({"length": -1}, {"offset": storage.info.frame_size + 1}, {"lba": -1}, {"user_data": 1 << 64}):
        with pytest.raises(ValueError):
            storage.submit_writes([unified.Write(**{"frame": frames[2], "lba": 0} | wrong)])
    done = sorted((finished(storage).check() for _ in writes), key=lambda one: one.user_data)
    assert [one.user_data for one in done] == [0, 9]
    storage.submit_read(done[1].frame, 9, storage.info.block_size)
    back = finished(storage).check().frame
    assert bytes(back.view(0, 7)) == b"second\0"
    # The last one is there twice.
    assert storage.frames_release([done[0].frame, back, frames[2], frames[2]]) == 3
    assert not frames[2].held and not back.held
    gone = unified.Frame(storage, back.number)
    for call in (lambda: storage.frames_release([gone]), lambda: storage.submit_writes([unified.Write(gone, 0)])):
        with pytest.raises(unified.UnifiedError, match=f"frame {back.number} is free") as caught:
            call()
        assert caught.value.errno == errno.EINVAL
    gone._end()
    assert storage.frames_release([]) == storage.submit_writes([]) == 0
    assert storage.statistics().frames_held == 0


def test_every_field_of_the_configuration_can_be_given():
    """But for those that C needs and Python has by itself."""
    fields = {name for name, _ in unified._config._fields_} - {"size", "ifname", "port_count", "cpu_count", "device_count",
                                                                  "reserved", "reserved2", "reserved3", "xsk_fd_count"}
    given = set(inspect.signature(unified.Context.__init__).parameters) - {"self"}
    assert given == fields | {"interface"}


def test_a_descriptor_instead_of_a_path(device):
    device.write_bytes(bytes(1 << 20))
    fd = os.open(device, os.O_RDWR)
    with unified.Context(device_fd=fd, retries=3, retry_backoff_us=10, retry_give_up_ms=1000) as ctx:
        os.close(fd)
        frame = ctx.frame_alloc()
        frame.view()[:5] = b"hello"
        ctx.submit_write(frame, 3, length=5)
        finished(ctx).check()
    assert device.read_bytes()[3 * 512:3 * 512 + 6] == b"hello\0"
    with pytest.raises(unified.UnifiedError) as error:
        unified.Context(device=device, retries=256)
    assert error.value.errno == errno.EINVAL
    with pytest.raises(unified.UnifiedError) as error:
        unified.Context(device=device, xsk_fd=fd)
    assert error.value.errno in (errno.EINVAL, errno.EBADF)
    for fields, number, words in [({"xsk_fd": 5, "xsk_fds": [6]}, errno.EINVAL, "put all sockets into xsk_fds"),
                                  ({"xsk_fds": [5, -1]}, errno.EBADF, r"xsk_fds\[1\] -1 is not a descriptor"),
                                  ({"xsk_fds": [5] * 65}, errno.EINVAL, "xsk_fd_count is above 64"),
                                  ({"xsk_fds": [5]}, errno.EINVAL, "no interface is named")]:
        with pytest.raises(unified.UnifiedError, match=words) as error:
            unified.Context(device=device, **fields)
        assert error.value.errno == number


def test_commands_without_data(storage):
    storage.submit_write_zeroes(0, 8, user_data=1)
    finished(storage).check()
    storage.submit_deallocate(0, 8, user_data=2)
    finished(storage).check()
    storage.submit_flush(3)
    assert finished(storage).check().user_data == 3
    storage.submit_raw(unified.NvmeCommand(0xff), user_data=4)
    assert finished(storage).status == 1
    stats = storage.statistics()
    assert (stats.submitted, stats.completed, stats.errors, stats.frames_held) == (4, 4, 1, 0)
    # The text has the same numbers, all but those that it groups by a label.
    text = dict(re.findall(r"^unified_(\w+?)(?:_total)?\{[^}]*\} (\d+)$", storage.openmetrics(), re.M))
    for name, value in dataclasses.asdict(stats).items():
        if name not in ("rx_dropped", "rx_ring_full", "redirect_errors") and not name.startswith("frames_"):
            assert text[name] == str(value), name
    latency = storage.latency(unified.LATENCY_COMMAND)
    assert latency.count == sum(count for _, count in latency.buckets) == 4
    assert 0 < latency.max <= latency.sum < 4 * 60 * 10**9
    assert latency.quantile(1) == latency.max >= latency.quantile(0.5) > 0
    assert [bound for bound, _ in latency.buckets[:5]] == [1000, 2000, 3000, 4000, 5000]
    assert latency.buckets[-2][0] == (1 << 26) * 1000 and latency.buckets[-1][0] == 2**64 - 1
    assert storage.latency().count == storage.latency().quantile(0.99) == 0
    with pytest.raises(unified.UnifiedError, match="latency 2 is unknown"):
        storage.latency(2)


def test_lanes(device):
    with pytest.raises(unified.UnifiedError, match="no interface is named"):
        unified.Context(device="null:", queues=unified.ALL_QUEUES)
    with unified.Context(device=device, file_size=1 << 20, queues=3, cpus=[0]) as whole:
        assert (whole.info.lanes, whole.info.lane, whole.info.frame_count) == (3, 0, 3 * 4096)
        assert whole.statistics().frames_reserve == 3 * 4096
        lanes = [whole.lane(number) for number in range(3)]
        assert whole.lane(1) is lanes[1] and [lane.info.lane for lane in lanes] == [0, 1, 2]
        for number, lane in enumerate(lanes):
            frame = lane.frame_alloc()
            frame.view()[:4] = b"lane"
            # It may be written by another lane.
            lanes[(number + 1) % 3].submit_write(frame, number, length=4)
        for number, lane in enumerate(lanes):
            finished(lane).check()
            assert lane.statistics().submitted == 1
        assert whole.statistics().submitted == 3
        for lane in "012":
            assert re.search(r'^unified_submitted_total\{.*lane="%s",queue=""\} 1$' % lane, whole.openmetrics(), re.M)
        for act, error in [(whole.frame_alloc, errno.EBUSY), (lambda: whole.lane(3), errno.EINVAL),
                           (lambda: lanes[0].lane(1), errno.EINVAL)]:
            with pytest.raises(unified.UnifiedError) as caught:
                act()
            assert caught.value.errno == error
        with pytest.raises(ValueError, match="ends with its context"):
            lanes[0].close()
    assert all(lane.closed for lane in lanes)
    with pytest.raises(ValueError, match="closed"):
        lanes[1].statistics()
    assert device.read_bytes()[1024:1028] == b"lane"


def test_a_closed_context_says_so_and_closes_once(storage):
    frame = storage.frame_alloc()
    view = frame.view()
    storage.close()
    storage.close()
    assert not frame.held
    with pytest.raises(ValueError):
        view[0]
    for call in (storage.statistics, storage.rx_batch, storage.completions, frame.view, frame.release):
        with pytest.raises(ValueError, match="closed"):
            call()


def test_a_forgotten_frame_is_told(storage):
    with pytest.warns(ResourceWarning, match="neither submitted nor released"):
        storage.frame_alloc()
        gc.collect()


def test_log_lines_reach_a_logger(network, device, caplog):
    logger = logging.getLogger("unified-test")
    with caplog.at_level(logging.DEBUG, "unified-test"):
        unified.log_to(logger, logging.DEBUG)
        try:
            with unified.Context(interface=network.near, device=device, file_size=1 << 20):
                pass
        finally:
            unified.log_to(None)
        seen = len(caplog.records)
        assert seen > 0
        with unified.Context(interface=network.near, device=device):
            pass
    assert len(caplog.records) == seen


def test_packets_their_fields_and_events(network, device):
    with unified.Context(interface=network.near, device=device, file_size=1 << 20, ports=(9999, 7)) as ctx:
        network.send(3, 100)
        packets = received(ctx, 3)
        one = packets[0]
        assert one.payload_len == 100 and len(one.payload) == 100 and len(one.data) == one.len == 142
        assert bytes(one.data[-100:]) == bytes(one.payload)
        assert one.dst_addr == ipaddress.ip_address(network.address) and one.ip_version == 4
        assert (one.dst_port, one.vlan_tci, one.timestamp > 0) == (9999, None, True)
        events = list(ctx.events())
        assert [(e.dst_addr, e.src_port, e.payload_len) for e in events] == [(one.dst_addr, one.src_port, 100)] * 3
        view = one.payload
        ctx.submit_write(one, 0)
        with pytest.raises(ValueError):
            bytes(view)
        finished(ctx).check()
        for packet in packets[1:]:
            packet.release()
        ctx.port_remove(9999)
        network.send(1, 100)
        network.send(1, 100, port=7)
        (last,) = received(ctx, 1)
        assert last.dst_port == 7
        last.release()
        stats = ctx.statistics()
        assert (stats.received, stats.stored, stats.released, stats.frames_held) == (4, 1, 3, 0)


@pytest.mark.parametrize("layout, version", [(unified.LAYOUT_SLOT, 1), (unified.LAYOUT_LOG, 2)])
def test_a_pipeline_writes_a_log_and_the_log_reads_back(network, device, layout, version):
    with unified.Context(interface=network.near, device=device, file_size=4 << 20) as ctx:
        with ctx.pipeline(layout=layout, flush_writes=50) as pipeline:
            assert pipeline.status().running
            with pytest.raises(unified.UnifiedError) as caught:
                ctx.rx_batch()
            assert caught.value.errno == errno.EBUSY
            network.send(COUNT, 300)
            with unified.Log(device) as log:
                assert [r.sequence for _, r in zip(range(COUNT), log.follow(5))] == list(range(COUNT))
        status = pipeline.status()
        assert (status.stored, status.durable, status.failed, status.error) == (COUNT, COUNT, 0, 0)
        assert not status.running
    with unified.Log(device) as log:
        first = log.next()
        assert first.kind == unified.LOG_RECORD and first.dst_port == 9999
        view = first.payload
        assert len(view) == 300 and bytes(first.packet).endswith(bytes(view))
        second = log.next()
        with pytest.raises(ValueError):
            bytes(view)
        assert second.timestamp >= 0
        log.seek(COUNT - 2)
        assert [r.sequence for r in log] == [COUNT - 2, COUNT - 1]
        log.seek_time(0)
        assert log.next().sequence == 0
        info = log.info()
        assert (info.version, info.end, info.missing, info.damaged) == (version, COUNT, 0, 0)
        assert (info.interface, info.dropped, info.unrecorded) == (network.near, 0, 0)
    with pytest.raises(ValueError, match="closed"):
        log.next()


def test_a_small_sq_ring_makes_a_stream_wait(network, device):
    async def run(ctx):
        lba = 0
        async with ctx.stream() as stream:
            async for packet in stream.packets():
                await stream.submit_write(packet, lba, user_data=lba)
                lba += 1
                if lba == COUNT:
                    break
            done = []
            async for completion in stream.completions():
                done.append(completion.check().user_data)
                if len(done) == COUNT:
                    break
        return done

    with unified.Context(interface=network.near, device=device, file_size=1 << 20, sq_entries=4, cq_entries=4) as ctx:
        network.send(COUNT, 512)
        assert sorted(asyncio.run(asyncio.wait_for(run(ctx), 20))) == list(range(COUNT))
        assert ctx.statistics().sq_full > 0
    verify(device, COUNT, "512")


def test_a_stream_that_is_closed_ends_its_iterators_and_frees_packets(network, device):
    async def run(ctx):
        stream = ctx.stream()

        async def later():
            await asyncio.sleep(0.3)
            stream.close()

        async def nothing():
            return [c async for c in stream.completions()]

        assert await asyncio.gather(nothing(), later()) == [[], None]
        return [p async for p in stream.packets()]

    with unified.Context(interface=network.near, device=device, file_size=1 << 20) as ctx:
        network.send(5, 512)
        assert asyncio.run(asyncio.wait_for(run(ctx), 20)) == []
        stats = ctx.statistics()
        assert (stats.released, stats.frames_held) == (5, 0)


def test_an_error_ends_a_stream(network, device):
    async def run(ctx):
        async with ctx.stream() as stream:
            with ctx.pipeline():
                await asyncio.to_thread(network.send, 1, 512)
                async for _ in stream.packets():
                    pass

    with unified.Context(interface=network.near, device=device, file_size=1 << 20) as ctx:
        with pytest.raises(unified.UnifiedError) as caught:
            asyncio.run(asyncio.wait_for(run(ctx), 20))
        assert caught.value.errno == errno.EBUSY
