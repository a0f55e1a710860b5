#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""The main job without a compiler: dlopen the library, store COUNT payloads, read them back, compare.

    store.py IFACE FILE COUNT

UNIFIED_LIB names the library where the loader does not find libunified.so.0 by itself.
"""

import ctypes as c
import os
import sys

WAIT_RX, WAIT_COMPLETIONS = 1, 2
MORE = 4
BATCH = 64


def fields(types: str):
    """Fields in the words of the header: 'u32 a b, ptr c'."""
    known = {"u64": c.c_uint64, "u32": c.c_uint32, "u16": c.c_uint16, "u8": c.c_uint8,
             "i32": c.c_int32, "str": c.c_char_p, "ptr": c.c_void_p}
    return [(name, known[group.split()[0]]) for group in types.split(",") for name in group.split()[1:]]


class Config(c.Structure):
    _fields_ = fields(
        "u64 size, str ifname device, u64 file_size, u32 queue flags, ptr ports, u32 port_count drive"
        " frame_size frame_count headroom sq_entries cq_entries rx_ring fill_ring xdp_mode copy_mode"
        " run_priority event_sample events_bytes block_size reserved retries retry_backoff_us retry_give_up_ms,"
        " i32 xsk_map_fd xsk_fd device_fd")


class Info(c.Structure):
    _fields_ = fields(
        "u64 size, str backend, ptr region, u64 region_size sq_ring cq_ring sq_entries_offset"
        " cq_entries_offset buffers buffers_size blocks, u32 block_size max_transfer dma_alignment nsid"
        " sq_entries cq_entries frame_size frame_count headroom ifindex queue rx_queues xdp_program_id,"
        " u8 huge_pages native zero_copy dispatcher direct_io writable volatile_cache threaded, u32 reserved")


class Packet(c.Structure):
    _fields_ = fields(
        "ptr data payload, u64 timestamp, u32 len payload_len frame queue, u16 l3_offset payload_offset"
        " src_port dst_port vlan_tci, u8 ip_version flags, u32 reserved")


class Completion(c.Structure):
    _fields_ = fields("u64 user_data, i32 result, u32 status len frame flags reserved")


lib = c.CDLL(os.environ.get("UNIFIED_LIB", "libunified.so.0"))
lib.unified_last_error.restype = c.c_char_p
lib.unified_submit_write.argtypes = [c.c_void_p, c.c_uint32, c.c_void_p, c.c_uint32, c.c_uint64, c.c_uint64,
                                     c.c_uint32]


def check(ret: int) -> int:
    if ret < 0:
        raise OSError(-ret, lib.unified_last_error().decode())
    return ret


def store(ctx, count: int, info: Info) -> list[tuple[int, bytes]]:
    """Stores `count` payloads one behind the other: where each went, and a copy to compare with."""
    packets, done = (Packet * BATCH)(), (Completion * BATCH)()
    kept, finished, lba = [], 0, 0
    while finished < count:
        check(lib.unified_wait(ctx, WAIT_COMPLETIONS | (WAIT_RX if len(kept) < count else 0), 1000))
        room = min(BATCH, count - len(kept), info.sq_entries - (len(kept) - finished))
        for p in packets[:check(lib.unified_rx_batch(ctx, packets, room))] if room else []:
            check(lib.unified_submit_write(ctx, p.frame, p.payload, p.payload_len, lba, 0, MORE))
            kept.append((lba, c.string_at(p.payload, p.payload_len)))
            lba += -(-p.payload_len // info.block_size)
        check(lib.unified_submit_pending(ctx))
        for d in done[:check(lib.unified_completions(ctx, done, BATCH))]:
            if d.status:
                raise OSError(f"a write failed with NVMe status {d.status:#x}")
            finished += 1
    return kept


def main() -> int:
    if len(sys.argv) != 4:
        print(__doc__, file=sys.stderr)
        return 2
    iface, path, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    config = Config(size=c.sizeof(Config), ifname=iface.encode(), device=path.encode(), file_size=64 << 20)
    info = Info(size=c.sizeof(Info))
    ctx = c.c_void_p()
    check(lib.unified_ctx_create(c.byref(config), c.byref(ctx)))
    try:
        check(lib.unified_ctx_info(ctx, c.byref(info)))
        print(f"Receiving on {iface}, storing on {path} ({info.backend.decode()})", flush=True)
        kept = store(ctx, count, info)
    finally:
        check(lib.unified_ctx_destroy(ctx))
    with open(path, "rb") as device:
        wrong = 0
        for lba, payload in kept:
            device.seek(lba * info.block_size)
            wrong += device.read(len(payload)) != payload
    print(f"Stored {len(kept)} of {count}, {len(kept) - wrong} read back as they came")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
