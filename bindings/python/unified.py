# SPDX-License-Identifier: MIT OR Apache-2.0
"""Packets from AF_XDP to NVMe without a copy: the library of include/unified.h, by ctypes.

    with unified.Context(interface="eth0", device="/dev/ng0n1") as ctx:
        ctx.wait(rx=True)
        for lba, packet in enumerate(ctx.rx_batch()):
            ctx.submit_write(packet, lba)

A frame has one owner, and no garbage collector gives it back: submit it, or release it. Its memoryviews
end with that; using one later raises ValueError. UNIFIED_LIB names the library where the loader does
not find libunified.so.0 by itself.
"""

from __future__ import annotations

import asyncio
import collections
import ctypes as c
import dataclasses
import errno as _errno
import ipaddress
import logging
import os
import warnings
import weakref
from types import TracebackType
from typing import Any, AsyncIterator, Callable, Deque, Dict, Iterator, List, Optional, Sequence, Tuple, Type, Union

__all__ = ["Buffer", "Completion", "Context", "Device", "DeviceInfo", "Event", "Frame", "Info", "Latency", "Log", "LogInfo", "NvmeCommand", "Packet", "Pipeline",
           "PipelineStatus", "Record", "Statistics", "Stream", "Submission", "UnifiedError", "Write", "log_to", "status_string", "version"]

DRIVE_INLINE, DRIVE_THREAD = 0, 1
XDP_AUTO, XDP_NATIVE, XDP_SKB = 0, 1, 2
COPY_AUTO, COPY_ONLY, COPY_ZERO = 0, 1, 2
HUGE_PAGES, FORCE, READ_ONLY, NO_PASSTHROUGH, NO_BOUNCE, HEADROOM, NO_EVENTS = 1, 2, 4, 8, 16, 32, 64
XSK_MAP_FD, XSK_FD, DEVICE_FD = 128, 256, 512
NO_RETRY = 0xFFFFFFFF
ALL_QUEUES = 0xFFFFFFFF
FUA, KEEP, MORE = 1, 2, 4
WAIT_RX, WAIT_COMPLETIONS = 1, 2
PACKET_VLAN = 1
COMPLETION_DNR, COMPLETION_FRAME, COMPLETION_BOUNCED, COMPLETION_SPILLED = 1, 2, 4, 8
LAYOUT_PAYLOAD, LAYOUT_SLOT, LAYOUT_LOG = 0, 1, 2
LOG_NEW, LOG_UNCHECKED = 8, 16
AT_END_STOP, AT_END_WRAP = 0, 1
LATENCY_PACKET, LATENCY_COMMAND, LATENCY_BUCKETS = 0, 1, 101
OP_FLUSH, OP_WRITE, OP_READ, OP_COMPARE, OP_WRITE_ZEROES, OP_DEALLOCATE, OP_RAW = 0, 1, 2, 5, 8, 9, 256
ALL_DEVICES = 0xFFFFFFFF
LOG_RECORD, LOG_MISSING, LOG_DAMAGED, LOG_OVERWRITTEN = 1, 2, 3, 4

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]

# --- the structs, in the words of the header


def _fields(types: str) -> List[Tuple[str, Any]]:
    """'u32 a b, ptr c' as ctypes has it."""
    known = {"u64": c.c_uint64, "u32": c.c_uint32, "u16": c.c_uint16, "u8": c.c_uint8, "i32": c.c_int32,
             "str": c.c_char_p, "ptr": c.c_void_p, "addr": c.c_uint8 * 16, "name": c.c_char * 16,
             "buckets": c.c_uint64 * LATENCY_BUCKETS}
    return [(name, known[group.split()[0]]) for group in types.split(",") for name in group.split()[1:]]


class _config(c.Structure):
    _fields_ = _fields(
        "u64 size, str ifname device, u64 file_size, u32 queue flags, ptr ports, u32 port_count drive"
        " frame_size frame_count headroom sq_entries cq_entries rx_ring fill_ring xdp_mode copy_mode"
        " run_priority event_sample events_bytes block_size reserved retries retry_backoff_us retry_give_up_ms,"
        " i32 xsk_map_fd xsk_fd device_fd, str spill, u32 queues cpu_count, ptr cpus devices, u32 device_count reserved2,"
        " u64 buffers_max, ptr xsk_fds, u32 xsk_fd_count reserved3")


class _device(c.Structure):
    _fields_ = _fields("u64 size, str path, u64 file_size, u32 block_size flags, i32 fd, u32 reserved, str spill")


class _info(c.Structure):
    _fields_ = _fields(
        "u64 size, str backend, ptr region, u64 region_size sq_ring cq_ring sq_entries_offset"
        " cq_entries_offset buffers buffers_size blocks, u32 block_size max_transfer dma_alignment nsid"
        " sq_entries cq_entries frame_size frame_count headroom ifindex queue rx_queues xdp_program_id,"
        " u8 huge_pages native zero_copy dispatcher direct_io writable volatile_cache threaded, u32 reserved lanes lane"
        " devices reserved1")


class _device_info(c.Structure):
    _fields_ = _fields(
        "u64 size, str backend path, u64 blocks, u32 block_size max_transfer dma_alignment nsid,"
        " u8 direct_io writable volatile_cache out, u32 reserved, u64 operations errors bytes_written bytes_read spilled"
        " spilled_bytes in_flight")


class _submission(c.Structure):
    _fields_ = _fields("u64 size lba user_data, ptr data command, u32 op device frame len blocks flags, u64 buffer")


class _buffer_info(c.Structure):
    _fields_ = _fields("u64 size, ptr data, u64 len, u32 commands reserved")


class _stats(c.Structure):
    _fields_ = _fields(
        "u64 size xdp_seen xdp_passed xdp_redirected xdp_matched xdp_no_socket xdp_malformed xdp_fragments"
        " events events_lost no_metadata rx_dropped rx_ring_full rx_fill_ring_empty redirect_errors rx_pending"
        " received received_bytes stored stored_bytes failed released packets_held packets_in_flight submitted"
        " completed errors operations commands_in_flight sq_full bounced bounced_bytes bytes_written bytes_read"
        " frames_free frames_filled frames_held frames_in_flight misplaced bad_descriptors"
        " link_up link_changes xdp_attached xdp_changes spilled spilled_bytes xdp_merged packed packed_bytes frames_reserve"
        " buffers buffer_bytes buffer_registered_bytes")


class _latency(c.Structure):
    _fields_ = _fields("u64 size count sum max, buckets buckets")


class _event(c.Structure):
    _fields_ = _fields("u64 timestamp, addr src_addr dst_addr, u16 src_port dst_port payload_len vlan_tci, u32 queue,"
                       " u8 ip_version flags, u16 reserved")


class _packet(c.Structure):
    _fields_ = _fields(
        "ptr data payload, u64 timestamp, u32 len payload_len frame queue, u16 l3_offset payload_offset"
        " src_port dst_port vlan_tci, u8 ip_version flags, u32 reserved")


class _write(c.Structure):
    _fields_ = _fields("ptr data, u64 lba user_data, u32 len frame flags reserved")


class _nvme_command(c.Structure):
    _fields_ = _fields("u8 opcode reserved0, u16 reserved1, u32 nsid cdw2 cdw3 cdw10 cdw11 cdw12 cdw13 cdw14 cdw15"
                       " data_len timeout")


class _completion(c.Structure):
    _fields_ = _fields("u64 user_data, i32 result, u32 status len frame flags device")


class _pipeline_config(c.Structure):
    _fields_ = _fields("u64 size start_lba blocks, u32 at_end flags layout flush_writes flush_interval_ms moderation_us"
                       " pack_below chunk_bytes")


class _pipeline_status(c.Structure):
    _fields_ = _fields("u64 size next_lba wraps submitted stored failed payload_bytes no_space empty, u32 running,"
                       " i32 error, u64 first_sequence completed durable flushes pack_below rescued"
                       " unflushed")


class _log_record(c.Structure):
    _fields_ = _fields("u64 size sequence count timestamp, ptr packet payload, u32 len payload_len kind,"
                       " u16 src_port dst_port vlan_tci queue, u8 ip_version flags, u16 reserved lane device,"
                       " u32 reserved2")


class _log_info(c.Structure):
    _fields_ = _fields("u64 size log_id created slots, u32 slot_size block_size, u64 oldest end position records"
                       " missing damaged overwritten dropped unrecorded first_loss last_loss, name interface,"
                       " u32 version reserved lanes devices devices_given reserved2")


_log_fn = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)

# --- the library


def _load() -> c.CDLL:
    lib = c.CDLL(os.environ.get("UNIFIED_LIB", "libunified.so.0"))
    p, u16, u32, u64, i = c.c_void_p, c.c_uint16, c.c_uint32, c.c_uint64, c.c_int
    transfer = [p, u32, p, u32, u64, u64, u32]
    prototypes: Dict[str, List[Any]] = {
        "set_log_callback": [p, i, p],
        "ctx_create": [p, p], "ctx_destroy": [p], "ctx_info": [p, p], "ctx_lane": [p, u32, p], "ctx_stats": [p, p], "stats_render": [p, p, u32],
        "ctx_latency": [p, u32, p],
        "ctx_device": [p, p, u32], "device_info": [p, u32, p], "submit": [p, p, u32], "stripe_locate": [p, u64, u32, p, p],
        "buffer_alloc": [p, u64, p, p], "buffer_import": [p, p, u64, p], "buffer_import_fd": [p, i, u64, u64, p, p],
        "buffer_free": [p, u64], "buffer_info": [p, u64, p],
        "port_add": [p, u16], "port_remove": [p, u16],
        "events_sample": [p, u32], "events": [p, p, u32], "events_fd": [p],
        "frame_alloc": [p, p], "frame_release": [p, u32], "frames_release": [p, p, u32], "rx_batch": [p, p, u32],
        "submit_write": transfer, "submit_read": transfer, "submit_compare": transfer, "submit_flush": [p, u64],
        "submit_write_zeroes": [p, u64, u32, u64, u32], "submit_deallocate": [p, u64, u32, u64],
        "submit_raw": [p, p, u32, p, u64], "submit_pending": [p], "submit_writes": [p, p, u32],
        "completions": [p, p, u32], "wait": [p, u32, i], "poll_fd": [p],
        "pipeline_start": [p, p], "pipeline_status": [p, p], "pipeline_stop": [p, p],
        "log_open": [p, u64, p], "log_open_set": [p, p, u32, p], "log_close": [p], "log_next": [p, p, i], "log_seek": [p, u64],
        "log_seek_time": [p, u64], "log_add_spill": [p, p], "log_info": [p, p],
    }
    for name, arguments in prototypes.items():
        function = getattr(lib, f"unified_{name}")
        function.argtypes, function.restype = arguments, i
    for name in ("version_string", "last_error", "status_string"):
        getattr(lib, f"unified_{name}").restype = c.c_char_p
    lib.unified_status_string.argtypes = [u32]
    lib.unified_latency_bound.argtypes, lib.unified_latency_bound.restype = [u32], u64
    lib.unified_latency_quantile.argtypes, lib.unified_latency_quantile.restype = [p, c.c_double], u64
    return lib


_lib = _load()


class UnifiedError(OSError):
    """What the library could not do: `errno`, and in `strerror` its sentence: what, on what, what to do."""


def _check(result: int) -> int:
    if result < 0:
        raise UnifiedError(-result, _lib.unified_last_error().decode(errors="replace"))
    return result


def version() -> str:
    """The library's version."""
    text: bytes = _lib.unified_version_string()
    return text.decode()


def status_string(status: int) -> str:
    """An NVMe status (type << 8 | code) in words."""
    text: bytes = _lib.unified_status_string(status)
    return text.decode()


_log_callback: Any = None


def log_to(logger: Optional[logging.Logger], level: int = logging.INFO) -> None:
    """Sends the library's log lines, from any of its threads, to a logger; None: nowhere."""
    global _log_callback
    known = (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)
    if logger is None:
        _check(_lib.unified_set_log_callback(None, 0, None))
        _log_callback = None
        return
    to = logger

    def line(at: int, text: bytes, user: Optional[int]) -> None:
        to.log(known[at], "%s", text.decode(errors="replace"))

    callback = _log_fn(line)
    _check(_lib.unified_set_log_callback(callback, max(sum(level <= k for k in known) - 1, 0), None))
    # Only now does nobody call the one before.
    _log_callback = callback


def _address(raw: Any, version: int) -> Address:
    return ipaddress.IPv4Address(bytes(raw[:4])) if version == 4 else ipaddress.IPv6Address(bytes(raw))


# --- values


@dataclasses.dataclass(frozen=True)
class Info:
    """What a context turned out to be: unified_info, without the places of the rings."""

    backend: str
    region_size: int
    blocks: int
    block_size: int
    max_transfer: int
    dma_alignment: int
    nsid: int
    sq_entries: int
    cq_entries: int
    frame_size: int
    frame_count: int
    headroom: int
    ifindex: int
    queue: int
    rx_queues: int
    xdp_program_id: int
    huge_pages: bool
    native: bool
    zero_copy: bool
    dispatcher: bool
    direct_io: bool
    writable: bool
    volatile_cache: int
    """0 no, 1 yes: a flush is needed; 2 not known."""
    threaded: bool
    lanes: int
    """How many the context has."""
    lane: int
    """The one that this is about; 0 for the whole context."""
    devices: int
    """How many the context has; device_info() tells about each."""


@dataclasses.dataclass(frozen=True)
class Statistics:
    """All counters, as unified_stats describes them."""

    xdp_seen: int
    xdp_passed: int
    xdp_redirected: int
    xdp_matched: int
    xdp_no_socket: int
    xdp_malformed: int
    xdp_fragments: int
    events: int
    events_lost: int
    no_metadata: int
    rx_dropped: int
    rx_ring_full: int
    rx_fill_ring_empty: int
    redirect_errors: int
    rx_pending: int
    received: int
    received_bytes: int
    stored: int
    stored_bytes: int
    failed: int
    released: int
    packets_held: int
    packets_in_flight: int
    submitted: int
    completed: int
    errors: int
    operations: int
    commands_in_flight: int
    sq_full: int
    bounced: int
    bounced_bytes: int
    bytes_written: int
    bytes_read: int
    frames_free: int
    frames_filled: int
    frames_held: int
    frames_in_flight: int
    misplaced: int
    bad_descriptors: int
    link_up: int
    link_changes: int
    xdp_attached: int
    xdp_changes: int
    spilled: int
    spilled_bytes: int
    xdp_merged: int
    packed: int
    packed_bytes: int
    frames_reserve: int
    buffers: int
    buffer_bytes: int
    buffer_registered_bytes: int


@dataclasses.dataclass(frozen=True)
class Latency:
    """How long something took, since the context was made; times in ns."""

    count: int
    sum: int
    max: int
    buckets: List[Tuple[int, int]]
    """The longest time that counts in each, and how often; the last one's is 2**64 - 1."""
    _raw: _latency = dataclasses.field(repr=False, compare=False)

    def quantile(self, part: float) -> int:
        """What a part (0.99: the 99th percentile) did not exceed; 0 where nothing was counted."""
        ns: int = _lib.unified_latency_quantile(c.byref(self._raw), part)
        return ns


@dataclasses.dataclass(frozen=True)
class Event:
    """Metadata of one redirected packet."""

    timestamp: int
    """ns of CLOCK_MONOTONIC."""
    src_addr: Address
    dst_addr: Address
    src_port: int
    dst_port: int
    payload_len: int
    queue: int
    vlan_tci: Optional[int]


@dataclasses.dataclass(frozen=True)
class PipelineStatus:
    """Where a pipeline stands: unified_pipeline_status."""

    next_lba: int
    wraps: int
    submitted: int
    stored: int
    failed: int
    payload_bytes: int
    no_space: int
    empty: int
    running: bool
    error: int
    first_sequence: int
    completed: int
    durable: int
    flushes: int
    pack_below: int
    rescued: int
    unflushed: int


@dataclasses.dataclass(frozen=True)
class LogInfo:
    """What a log is, and what has been read of it: unified_log_info."""

    log_id: int
    created: int
    slots: int
    slot_size: int
    block_size: int
    oldest: int
    end: int
    position: int
    records: int
    missing: int
    damaged: int
    overwritten: int
    dropped: int
    unrecorded: int
    first_loss: int
    last_loss: int
    interface: str
    version: int
    lanes: int
    devices: int
    devices_given: int


@dataclasses.dataclass(frozen=True)
class NvmeCommand:
    """A command for submit_raw, as unified_nvme_command."""

    opcode: int
    nsid: int = 0
    cdw2: int = 0
    cdw3: int = 0
    cdw10: int = 0
    cdw11: int = 0
    cdw12: int = 0
    cdw13: int = 0
    cdw14: int = 0
    cdw15: int = 0
    data_len: int = 0
    timeout: int = 0


# --- frames


class Frame:
    """A frame of the data buffers, the caller's until it is submitted or released."""

    __slots__ = ("__weakref__", "_context", "_views", "number")

    def __init__(self, context: Context, number: int):
        self.number = number
        self._context: Optional[Context] = context
        self._views: List[memoryview] = []

    @property
    def held(self) -> bool:
        """Whether it is still the caller's."""
        return self._context is not None and not self._context.closed

    def _owner(self) -> Context:
        if self._context is None:
            raise ValueError(f"frame {self.number} was submitted or released")
        return self._context

    def view(self, offset: int = 0, length: Optional[int] = None) -> memoryview:
        """Bytes of the frame, not copied, writable. Ends when the frame is submitted or released; slices
        taken of it do not, and must not be used later."""
        context = self._owner()
        size = context.info.frame_size
        end = size if length is None else offset + length
        if not 0 <= offset <= end <= size:
            raise ValueError(f"bytes {offset} to {end} are not in a frame of {size}")
        view = context._region()[self.number * size + offset:self.number * size + end]
        self._views.append(view)
        context._viewed[self.number] = self
        return view

    def _end_views(self) -> None:
        views, self._views = self._views, []
        for view in views:
            view.release()

    def _end(self) -> None:
        self._context = None
        self._end_views()

    def _part(self) -> Tuple[int, int]:
        """What a write writes where nothing else is said."""
        return 0, self._owner().info.frame_size

    def release(self) -> None:
        """Gives it back unwritten."""
        context = self._owner()
        _check(_lib.unified_frame_release(context._handle(), self.number))
        self._end()

    def __del__(self) -> None:
        context = getattr(self, "_context", None)
        if context is not None and not context.closed:
            warnings.warn(f"frame {self.number} was neither submitted nor released: it is lost to its context",
                          ResourceWarning, source=self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} in frame {self.number}{'' if self.held else ', gone'}>"


class Packet(Frame):
    """A received packet and its frame."""

    __slots__ = ("timestamp", "len", "payload_len", "queue", "l3_offset", "src_port", "dst_port", "ip_version",
                 "vlan_tci", "_offset", "_payload_offset")

    def __init__(self, context: Context, p: _packet):
        super().__init__(context, p.frame)
        self.timestamp: int = p.timestamp
        self.len: int = p.len
        self.payload_len: int = p.payload_len
        self.queue: int = p.queue
        self.l3_offset: int = p.l3_offset
        self.src_port: int = p.src_port
        self.dst_port: int = p.dst_port
        self.ip_version: int = p.ip_version
        self.vlan_tci: Optional[int] = p.vlan_tci if p.flags & PACKET_VLAN else None
        self._offset: int = p.data - context._buffers - p.frame * context.info.frame_size
        self._payload_offset: int = self._offset + p.payload_offset

    @property
    def data(self) -> memoryview:
        """The packet from its Ethernet header on, not copied."""
        return self.view(self._offset, self.len)

    @property
    def payload(self) -> memoryview:
        """The UDP payload, not copied."""
        return self.view(self._payload_offset, self.payload_len)

    def _part(self) -> Tuple[int, int]:
        return self._payload_offset, self.payload_len

    def _addresses(self) -> Tuple[Address, Address]:
        with self.data as data:
            at, size = (self.l3_offset + 12, 4) if self.ip_version == 4 else (self.l3_offset + 8, 16)
            one, two = (bytes(data[at + i * size:at + (i + 1) * size]) for i in (0, 1))
        return ipaddress.ip_address(one), ipaddress.ip_address(two)

    @property
    def src_addr(self) -> Address:
        return self._addresses()[0]

    @property
    def dst_addr(self) -> Address:
        return self._addresses()[1]


@dataclasses.dataclass(frozen=True)
class Write:
    """One write of submit_writes, as the arguments of submit_write."""

    frame: Frame
    lba: int
    offset: Optional[int] = None
    length: Optional[int] = None
    user_data: int = 0
    fua: bool = False
    keep: bool = False


@dataclasses.dataclass(frozen=True)
class Device:
    """One of several devices of a context: unified_device."""

    path: Union[None, str, "os.PathLike[str]"] = None
    file_size: int = 0
    block_size: int = 0
    flags: int = 0
    fd: Optional[int] = None
    spill: Union[None, str, "os.PathLike[str]"] = None


@dataclasses.dataclass(frozen=True)
class DeviceInfo:
    """What a device is, and what was counted of it: unified_device_info."""

    backend: str
    path: str
    blocks: int
    block_size: int
    max_transfer: int
    dma_alignment: int
    nsid: int
    direct_io: bool
    writable: bool
    volatile_cache: int
    out: bool
    operations: int
    errors: int
    bytes_written: int
    bytes_read: int
    spilled: int
    spilled_bytes: int
    in_flight: int


@dataclasses.dataclass(frozen=True)
class Submission:
    """A command for submit(), which names its device: unified_submission. The data lies in a frame or in a buffer."""

    op: int
    device: int = 0
    lba: int = 0
    frame: Optional[Frame] = None
    buffer: Optional[Buffer] = None
    offset: Optional[int] = None
    length: Optional[int] = None
    blocks: int = 0
    user_data: int = 0
    flags: int = 0
    command: Optional[NvmeCommand] = None


class Buffer:
    """Memory that is registered with the device, of any size. It and `memory` end with free(), or with the context; slices of
    `memory` do not, and must not be used later."""

    def __init__(self, context: Context, number: int, data: int, length: int):
        self._context = context
        self.number = number
        self.address = data
        self.memory: memoryview = memoryview((c.c_uint8 * length).from_address(data)).cast("B")
        context._registered.add(self)

    def info(self) -> Tuple[int, int]:
        """Its length, and how many commands use it now."""
        about = _buffer_info(size=c.sizeof(_buffer_info))
        _check(_lib.unified_buffer_info(self._context._handle(), self.number, c.byref(about)))
        return about.len, about.commands

    def free(self) -> None:
        """Raises with EBUSY while commands use it."""
        _check(_lib.unified_buffer_free(self._context._handle(), self.number))
        self.memory.release()


class Completion:
    """One finished command."""

    __slots__ = ("user_data", "result", "status", "len", "frame", "dnr", "bounced", "spilled", "device")

    def __init__(self, context: Context, d: _completion):
        self.user_data: int = d.user_data
        self.result: int = d.result
        self.status: int = d.status
        self.len: int = d.len
        self.dnr = bool(d.flags & COMPLETION_DNR)
        self.bounced = bool(d.flags & COMPLETION_BOUNCED)
        self.spilled = bool(d.flags & COMPLETION_SPILLED)
        self.device: int = d.device
        self.frame: Optional[Frame] = Frame(context, d.frame) if d.flags & COMPLETION_FRAME else None
        """The frame, where the caller has it again."""

    def check(self) -> Completion:
        """Itself; raises UnifiedError where the command failed."""
        if self.result < 0:
            raise UnifiedError(-self.result, os.strerror(-self.result))
        if self.status:
            raise UnifiedError(_errno.EIO, f"NVMe status {self.status:#x}: {status_string(self.status)}")
        return self

    def __repr__(self) -> str:
        return f"<Completion of {self.user_data}: result {self.result}, status {self.status:#x}, {self.len} bytes>"


# --- contexts


class Context:
    """A network interface (or none), a device, and the memory between them. Closed by `with` or close().

    Arguments are the fields of unified_config, and their defaults are its. `retries` is 1 to 255 or NO_RETRY. Descriptors
    (`device_fd` instead of `device`, `xsk_map_fd`, `xsk_fd`; of several queues `xsk_fds`) stay the caller's, who may close them afterwards; their
    flags, and that of `headroom`, are set here."""

    def __init__(self, *, device: Union[None, str, "os.PathLike[str]"] = None, interface: Optional[str] = None, queue: int = 0,
                 ports: Sequence[int] = (), file_size: int = 0, flags: int = 0, drive: int = DRIVE_INLINE,
                 frame_size: int = 0, frame_count: int = 0, headroom: Optional[int] = None, sq_entries: int = 0,
                 cq_entries: int = 0, rx_ring: int = 0, fill_ring: int = 0, xdp_mode: int = XDP_AUTO,
                 copy_mode: int = COPY_AUTO, run_priority: int = 0, event_sample: int = 0, events_bytes: int = 0,
                 block_size: int = 0, spill: Union[None, str, "os.PathLike[str]"] = None, retries: int = 0,
                 retry_backoff_us: int = 0, retry_give_up_ms: int = 0, xsk_map_fd: Optional[int] = None,
                 xsk_fd: Optional[int] = None, device_fd: Optional[int] = None, queues: int = 0,
                 cpus: Sequence[int] = (), devices: Sequence[Device] = (), buffers_max: int = 0,
                 xsk_fds: Sequence[int] = ()):
        self._ctx: Optional[c.c_void_p] = None
        wanted = (c.c_uint16 * len(ports))(*ports) if ports else None
        places = (c.c_uint32 * len(cpus))(*cpus) if cpus else None
        sockets = (c.c_int32 * len(xsk_fds))(*xsk_fds) if xsk_fds else None
        several = (_device * len(devices))()
        for to, one in zip(several, devices):
            to.size, to.file_size, to.block_size = c.sizeof(_device), one.file_size, one.block_size
            to.path = None if one.path is None else os.fsencode(one.path)
            to.spill = None if one.spill is None else os.fsencode(one.spill)
            to.fd, to.flags = one.fd or 0, one.flags | DEVICE_FD * (one.fd is not None)
        given = {HEADROOM: headroom, XSK_MAP_FD: xsk_map_fd, XSK_FD: xsk_fd, DEVICE_FD: device_fd}
        for flag, value in given.items():
            if value is not None:
                flags |= flag
        config = _config(
            size=c.sizeof(_config), ifname=None if interface is None else os.fsencode(interface),
            device=None if device is None else os.fsencode(device), file_size=file_size, queue=queue, flags=flags,
            ports=None if wanted is None else c.addressof(wanted), port_count=len(ports), drive=drive,
            frame_size=frame_size, frame_count=frame_count, headroom=headroom or 0, sq_entries=sq_entries,
            cq_entries=cq_entries, rx_ring=rx_ring, fill_ring=fill_ring, xdp_mode=xdp_mode, copy_mode=copy_mode,
            run_priority=run_priority, event_sample=event_sample, events_bytes=events_bytes, block_size=block_size,
            spill=None if spill is None else os.fsencode(spill), retries=retries, retry_backoff_us=retry_backoff_us,
            retry_give_up_ms=retry_give_up_ms, xsk_map_fd=xsk_map_fd or 0, xsk_fd=xsk_fd or 0, device_fd=device_fd or 0,
            queues=queues, cpu_count=len(cpus), cpus=None if places is None else c.addressof(places),
            devices=c.addressof(several) if devices else None, device_count=len(devices), buffers_max=buffers_max,
            xsk_fds=None if sockets is None else c.addressof(sockets), xsk_fd_count=len(xsk_fds))
        ctx = c.c_void_p()
        _check(_lib.unified_ctx_create(c.byref(config), c.byref(ctx)))
        self._opened(ctx, None)

    def _opened(self, ctx: c.c_void_p, whole: Optional[Context]) -> None:
        """What a context and its lanes have."""
        self._ctx = ctx
        self._whole = whole
        self._lanes: Dict[int, Context] = {}
        # Frames with views, which end when the memory goes.
        self._viewed: weakref.WeakValueDictionary[int, Frame] = weakref.WeakValueDictionary()
        self._registered: weakref.WeakSet[Buffer] = weakref.WeakSet()
        info = _info(size=c.sizeof(_info))
        _check(_lib.unified_ctx_info(ctx, c.byref(info)))
        values = {f.name: getattr(info, f.name) for f in dataclasses.fields(Info)}
        values["backend"] = info.backend.decode()
        for name in ("huge_pages", "native", "zero_copy", "dispatcher", "direct_io", "writable", "threaded"):
            values[name] = bool(values[name])
        self.info = Info(**values)
        self._buffers: int = info.region + info.buffers
        memory = (c.c_uint8 * info.buffers_size).from_address(self._buffers)
        self._memory: Optional[memoryview] = memoryview(memory).cast("B")
        self._packets: Any = (_packet * 64)()
        self._done: Any = (_completion * 64)()
        self.device = self._device()

    def _device(self) -> str:
        path = c.create_string_buffer(4096)
        _check(_lib.unified_ctx_device(self._ctx, path, len(path)))
        return os.fsdecode(path.value)

    def device_info(self, device: int) -> DeviceInfo:
        """What a device is, and what was counted of it by all lanes, or by this lane."""
        raw = _device_info(size=c.sizeof(_device_info))
        _check(_lib.unified_device_info(self._handle(), _u32(device), c.byref(raw)))
        values = {f.name: getattr(raw, f.name) for f in dataclasses.fields(DeviceInfo)}
        values["backend"], values["path"] = raw.backend.decode(), os.fsdecode(raw.path)
        for name in ("direct_io", "writable", "out"):
            values[name] = bool(values[name])
        return DeviceInfo(**values)

    def stripe_locate(self, lba: int, chunk_bytes: int = 0) -> Tuple[int, int]:
        """Where a pipeline with LAYOUT_PAYLOAD over several devices stores a block: the device, and the block on it."""
        device, place = c.c_uint32(), c.c_uint64()
        _check(_lib.unified_stripe_locate(self._handle(), _u64(lba), _u32(chunk_bytes), c.byref(device), c.byref(place)))
        return device.value, place.value

    def buffer_alloc(self, length: int) -> Buffer:
        """Registered memory that is no frame, for submissions."""
        number, data = c.c_uint64(), c.c_void_p()
        _check(_lib.unified_buffer_alloc(self._handle(), _u64(length), c.byref(number), c.byref(data)))
        return Buffer(self, number.value, data.value or 0, length)

    def buffer_import(self, address: int, length: int) -> Buffer:
        """The same of shared memory that the program has mapped, and keeps mapped until it is freed."""
        number = c.c_uint64()
        _check(_lib.unified_buffer_import(self._handle(), address, _u64(length), c.byref(number)))
        return Buffer(self, number.value, address, length)

    def buffer_import_fd(self, fd: int, offset: int, length: int) -> Buffer:
        """The same of a memfd or a file of huge pages."""
        number, data = c.c_uint64(), c.c_void_p()
        _check(_lib.unified_buffer_import_fd(self._handle(), fd, _u64(offset), _u64(length), c.byref(number), c.byref(data)))
        return Buffer(self, number.value, data.value or 0, length)

    @property
    def closed(self) -> bool:
        return self._ctx is None

    def _handle(self) -> c.c_void_p:
        if self._ctx is None:
            raise ValueError("the context is closed")
        return self._ctx

    def _region(self) -> memoryview:
        if self._memory is None:
            raise ValueError("the context is closed")
        return self._memory

    def close(self) -> None:
        """Takes the XDP program off, finishes what is in flight, frees everything. Views of its memory end; slices
        of them, and views whose frame's object is gone, do not, and must not be used."""
        if self._ctx is not None:
            if self._whole is not None:
                raise ValueError(f"lane {self.info.lane} ends with its context: close that one")
            ctx = self._ctx
            for one in (self, *self._lanes.values()):
                for frame in list(one._viewed.values()):
                    frame._end_views()
                for buffer in one._registered:
                    buffer.memory.release()
                one._ctx = one._memory = None
            _check(_lib.unified_ctx_destroy(ctx))

    def __enter__(self) -> Context:
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], value: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_ctx", None) is not None and getattr(self, "_whole", None) is None:
            warnings.warn(f"context on {self.device} was not closed", ResourceWarning, source=self)
            self.close()

    # control

    def lane(self, number: int) -> Context:
        """One of the lanes, for a thread of its own: `info.lanes` says how many there are. From now on the data path of the
        whole context is theirs. It ends with the context, and is not closed itself."""
        handle = c.c_void_p()
        _check(_lib.unified_ctx_lane(self._handle(), number, c.byref(handle)))
        if number not in self._lanes:
            lane = Context.__new__(Context)
            lane._opened(handle, self)
            self._lanes[number] = lane
        return self._lanes[number]

    def statistics(self) -> Statistics:
        stats = _stats(size=c.sizeof(_stats))
        _check(_lib.unified_ctx_stats(self._handle(), c.byref(stats)))
        return Statistics(**{f.name: getattr(stats, f.name) for f in dataclasses.fields(Statistics)})

    def latency(self, which: int = LATENCY_PACKET) -> Latency:
        """LATENCY_PACKET: from arrival until the write is complete; LATENCY_COMMAND: from submission on."""
        raw = _latency(size=c.sizeof(_latency))
        _check(_lib.unified_ctx_latency(self._handle(), which, c.byref(raw)))
        bounds = (_lib.unified_latency_bound(i) for i in range(LATENCY_BUCKETS))
        return Latency(raw.count, raw.sum, raw.max, list(zip(bounds, raw.buckets)), raw)

    def openmetrics(self) -> str:
        """All counters as OpenMetrics text, labelled with interface, queue, device and, if there are several, lane."""
        text = c.create_string_buffer(32 << 10)
        while (size := _check(_lib.unified_stats_render(self._handle(), text, len(text)))) >= len(text):
            text = c.create_string_buffer(2 * size)
        return text.value.decode()

    def port_add(self, port: int) -> None:
        _check(_lib.unified_port_add(self._handle(), _u16(port)))

    def port_remove(self, port: int) -> None:
        _check(_lib.unified_port_remove(self._handle(), _u16(port)))

    def events_sample(self, sample: int) -> None:
        """One event in so many packets from now on; 0: none."""
        _check(_lib.unified_events_sample(self._handle(), sample))

    def events_fd(self) -> int:
        """Readable when a quarter of the events' ring buffer is full."""
        return _check(_lib.unified_events_fd(self._handle()))

    def events(self) -> Iterator[Event]:
        """The metadata events that are there now, oldest first."""
        raw = (_event * 64)()
        while count := _check(_lib.unified_events(self._handle(), raw, len(raw))):
            for e in raw[:count]:
                yield Event(e.timestamp, _address(e.src_addr, e.ip_version), _address(e.dst_addr, e.ip_version),
                            e.src_port, e.dst_port, e.payload_len, e.queue,
                            e.vlan_tci if e.flags & PACKET_VLAN else None)

    # data path

    def frame_alloc(self) -> Frame:
        """An empty frame."""
        number = c.c_uint32()
        _check(_lib.unified_frame_alloc(self._handle(), c.byref(number)))
        return Frame(self, number.value)

    def frames_release(self, frames: Sequence[Frame]) -> int:
        """Gives many frames back unwritten: how many, fewer than all if one of them is not held. Raises if the first is not."""
        numbers = (c.c_uint32 * len(frames))(*(self._own(frame).number for frame in frames))
        count = _check(_lib.unified_frames_release(self._handle(), numbers, len(frames)))
        for frame in frames[:count]:
            frame._end()
        return count

    def rx_batch(self, most: int = 64) -> List[Packet]:
        """Packets that have come; none where none has."""
        if most > len(self._packets):
            self._packets = (_packet * most)()
        count = _check(_lib.unified_rx_batch(self._handle(), self._packets, most))
        return [Packet(self, p) for p in self._packets[:count]]

    def _own(self, frame: Frame) -> Frame:
        owner = frame._owner()
        if (owner._whole or owner) is not (self._whole or self):
            raise ValueError("the frame is of another context")
        return frame

    def _place(self, frame: Frame, offset: Optional[int], length: Optional[int]) -> Tuple[int, int]:
        """The address and the number of the bytes of a transfer."""
        self._own(frame)
        if offset is None:
            start, size = frame._part()
        else:
            start, size = offset, self.info.frame_size - offset
        if length is not None:
            size = length
        # C would take a negative number for a big one, without a word.
        if not (0 <= start <= self.info.frame_size and 0 <= size <= self.info.frame_size):
            raise ValueError(f"{size} bytes at {start} are not in a frame of {self.info.frame_size}")
        return self._buffers + frame.number * self.info.frame_size + start, size

    def _transfer(self, function: Callable[..., int], frame: Frame, lba: int, offset: Optional[int],
                  length: Optional[int], user_data: int, flags: int) -> None:
        address, size = self._place(frame, offset, length)
        _check(function(self._handle(), frame.number, address, size, _u64(lba), _u64(user_data), flags))
        frame._end()

    def submit_write(self, frame: Frame, lba: int, *, offset: Optional[int] = None, length: Optional[int] = None,
                     user_data: int = 0, fua: bool = False, keep: bool = False, more: bool = False) -> None:
        """Writes a packet's payload (or `length` bytes at `offset` of the frame) from block `lba` on. The
        frame and its views end here, except where this raises."""
        self._transfer(_lib.unified_submit_write, frame, lba, offset, length, user_data,
                       FUA * fua | KEEP * keep | MORE * more)

    def submit_writes(self, writes: Sequence[Write]) -> int:
        """Submits many writes together: how many, fewer than all if the SQ ring became full or one was refused. Raises if the
        first was not submitted. The frames of those that were submitted end here."""
        raw = (_write * len(writes))()
        for to, write in zip(raw, writes):
            to.data, to.len = self._place(write.frame, write.offset, write.length)
            to.lba, to.user_data, to.frame = _u64(write.lba), _u64(write.user_data), write.frame.number
            to.flags = FUA * write.fua | KEEP * write.keep
        count = _check(_lib.unified_submit_writes(self._handle(), raw, len(writes)))
        for write in writes[:count]:
            write.frame._end()
        return count

    def submit_read(self, frame: Frame, lba: int, length: int, *, offset: int = 0, user_data: int = 0,
                    more: bool = False) -> None:
        """Reads whole blocks into the frame, which comes back with the completion."""
        self._transfer(_lib.unified_submit_read, frame, lba, offset, length, user_data, MORE * more)

    def submit_compare(self, frame: Frame, lba: int, length: int, *, offset: int = 0, user_data: int = 0,
                       more: bool = False) -> None:
        """Compares whole blocks; the frame comes back with the completion."""
        self._transfer(_lib.unified_submit_compare, frame, lba, offset, length, user_data, MORE * more)

    def submit(self, submissions: Sequence[Submission]) -> int:
        """Submits commands that name their devices: how many, fewer than all if the SQ ring became full or one was refused.
        Raises if the first was not submitted. The frames of those that were submitted end here."""
        raw = (_submission * len(submissions))()
        kept = []
        for to, one in zip(raw, submissions):
            to.size, to.op, to.device, to.flags = c.sizeof(_submission), one.op, _u32(one.device), one.flags
            to.lba, to.user_data, to.blocks = _u64(one.lba), _u64(one.user_data), _u32(one.blocks)
            if one.frame is not None:
                to.data, to.len = self._place(one.frame, one.offset, one.length)
                to.frame = one.frame.number
            elif one.buffer is not None:
                to.data, to.buffer = one.buffer.address + (one.offset or 0), one.buffer.number
                to.len = _u32(len(one.buffer.memory) - (one.offset or 0) if one.length is None else one.length)
            if one.command is not None:
                kept.append(_nvme_command(**dataclasses.asdict(one.command)))
                to.command = c.addressof(kept[-1])
        count = _check(_lib.unified_submit(self._handle(), raw, len(submissions)))
        for one in submissions[:count]:
            if one.frame is not None:
                one.frame._end()
        return count

    def submit_flush(self, user_data: int = 0) -> None:
        """Makes durable what completed before."""
        _check(_lib.unified_submit_flush(self._handle(), _u64(user_data)))

    def submit_write_zeroes(self, lba: int, blocks: int, *, user_data: int = 0, fua: bool = False) -> None:
        _check(_lib.unified_submit_write_zeroes(self._handle(), _u64(lba), _u32(blocks), _u64(user_data), FUA * fua))

    def submit_deallocate(self, lba: int, blocks: int, *, user_data: int = 0) -> None:
        _check(_lib.unified_submit_deallocate(self._handle(), _u64(lba), _u32(blocks), _u64(user_data)))

    def submit_raw(self, command: NvmeCommand, frame: Optional[Frame] = None, *, offset: int = 0,
                   user_data: int = 0) -> None:
        """Any NVMe command; its data, `command.data_len` bytes, lies at `offset` of the frame."""
        raw = _nvme_command(**dataclasses.asdict(command))
        if frame is None:
            _check(_lib.unified_submit_raw(self._handle(), c.byref(raw), 0, None, _u64(user_data)))
            return
        if frame._owner() is not self or not 0 <= offset <= self.info.frame_size:
            raise ValueError("the frame is of another context, or the offset is not in it")
        address = self._buffers + frame.number * self.info.frame_size + offset
        _check(_lib.unified_submit_raw(self._handle(), c.byref(raw), frame.number, address, _u64(user_data)))
        frame._end()

    def submit_pending(self) -> None:
        """Shows the engine what was submitted with `more`."""
        _check(_lib.unified_submit_pending(self._handle()))

    def completions(self, most: int = 64) -> List[Completion]:
        """Commands that have finished; none where none has."""
        if most > len(self._done):
            self._done = (_completion * most)()
        count = _check(_lib.unified_completions(self._handle(), self._done, most))
        return [Completion(self, d) for d in self._done[:count]]

    def wait(self, *, rx: bool = False, completions: bool = False, timeout: Optional[float] = None) -> int:
        """Waits for packets, completions or either, `timeout` seconds at most: WAIT_RX, WAIT_COMPLETIONS, both,
        or 0 when the time ran out or a signal came."""
        return _check(_lib.unified_wait(self._handle(), WAIT_RX * rx | WAIT_COMPLETIONS * completions,
                                        _milliseconds(timeout)))

    def poll_fd(self) -> int:
        """For event loops; see Stream for asyncio's. It belongs to the context."""
        return _check(_lib.unified_poll_fd(self._handle()))

    def stream(self) -> Stream:
        """Packets and completions for the running asyncio loop."""
        return Stream(self)

    def pipeline(self, *, start_lba: int = 0, blocks: int = 0, at_end: int = AT_END_STOP, fua: bool = False,
                 new_log: bool = False, layout: int = LAYOUT_PAYLOAD, flush_writes: int = 0,
                 flush_interval: float = 0, moderation: float = 0, pack_below: int = 0,
                 unchecked: bool = False, chunk_bytes: int = 0) -> Pipeline:
        """Stores everything that is received, by threads of the library; to be used with `with`. `chunk_bytes`: with
        LAYOUT_PAYLOAD over several devices, the bytes that go to one of them before the next one has its turn."""
        config = _pipeline_config(
            size=c.sizeof(_pipeline_config), start_lba=start_lba, blocks=blocks, at_end=at_end,
            flags=FUA * fua | LOG_NEW * new_log | LOG_UNCHECKED * unchecked, layout=layout, flush_writes=flush_writes,
            flush_interval_ms=_milliseconds(flush_interval),
            moderation_us=max(0, -int(-moderation * 1_000_000 // 1)), pack_below=_u32(pack_below),
            chunk_bytes=_u32(chunk_bytes))
        return Pipeline(self, config)


def _milliseconds(seconds: Optional[float]) -> int:
    """Rounded up, so that a short time does not become none."""
    return -1 if seconds is None else max(0, -int(-seconds * 1000 // 1))


def _within(value: int, bits: int) -> int:
    # ctypes would cut it off.
    if not 0 <= value < 1 << bits:
        raise ValueError(f"{value} is no unsigned number of {bits} bits")
    return value


def _u16(value: int) -> int:
    return _within(value, 16)


def _u32(value: int) -> int:
    return _within(value, 32)


def _u64(value: int) -> int:
    return _within(value, 64)


class Pipeline:
    """A pipeline that runs while its `with` does; `status()` afterwards is its last."""

    def __init__(self, context: Context, config: _pipeline_config):
        self._context, self._config = context, config
        self._last: Optional[PipelineStatus] = None

    def __enter__(self) -> Pipeline:
        _check(_lib.unified_pipeline_start(self._context._handle(), c.byref(self._config)))
        return self

    def _ask(self, function: Callable[..., int], is_last: bool) -> PipelineStatus:
        status = _pipeline_status(size=c.sizeof(_pipeline_status))
        result = function(self._context._handle(), c.byref(status))
        values = {f.name: getattr(status, f.name) for f in dataclasses.fields(PipelineStatus)}
        values["running"] = bool(values["running"])
        answer = PipelineStatus(**values)
        if is_last:
            self._last = answer
        _check(result)
        return answer

    def status(self) -> PipelineStatus:
        return self._last or self._ask(_lib.unified_pipeline_status, False)

    def stop(self) -> PipelineStatus:
        """Stores what was received, flushes, ends. Raises where a flush failed; status() then still tells."""
        return self._last or self._ask(_lib.unified_pipeline_stop, True)

    def __exit__(self, kind: Optional[Type[BaseException]], value: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        if not self._context.closed:
            self.stop()


# --- asyncio


class Stream:
    """Packets and completions of a context in an asyncio loop.

    One task may iterate over packets() while another iterates over completions(). Both roles of the data path
    are the loop's thread. Nothing limits the packets that wait here but the number of frames: where they run
    out, the kernel drops, and the statistics say so.
    """

    def __init__(self, context: Context):
        self._context = context
        self._packets: Deque[Packet] = collections.deque()
        self._completions: Deque[Completion] = collections.deque()
        self._news = asyncio.Event()
        self._error: Optional[BaseException] = None
        self._loop = asyncio.get_running_loop()
        # A copy: the loop must be able to drop it even if the context was closed first.
        self._fd = os.dup(context.poll_fd())
        self._open = True
        self._loop.add_reader(self._fd, self._take)

    def close(self) -> None:
        """Stops looking; packets that nobody took are released."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            while self._packets:
                packet = self._packets.popleft()
                if packet.held:
                    packet.release()
            self._tell()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, kind: Optional[Type[BaseException]], value: Optional[BaseException],
                        trace: Optional[TracebackType]) -> None:
        self.close()

    def _tell(self) -> None:
        # Whoever waits holds the old one.
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _take(self) -> None:
        """Takes all there is: the descriptor stays readable until both sides gave less than was asked for."""
        try:
            full = self._context.info.ifindex != 0
            while full:
                packets = self._context.rx_batch(64)
                self._packets.extend(packets)
                full = len(packets) == 64
            full = True
            while full:
                completions = self._context.completions(64)
                self._completions.extend(completions)
                full = len(completions) == 64
        except Exception as error:
            # It would come again at once, for ever.
            self._error = error
            self._loop.remove_reader(self._fd)
        self._tell()

    async def _wait(self) -> bool:
        """Waits for news; False once closed."""
        if self._error is not None:
            raise self._error
        if self._open:
            await self._news.wait()
        return self._open

    async def packets(self) -> AsyncIterator[Packet]:
        """Packets as they come, until the stream is closed. Each is whoever's took it to submit or release."""
        while self._packets or await self._wait():
            if self._packets:
                yield self._packets.popleft()

    async def completions(self) -> AsyncIterator[Completion]:
        """Completions as they come, until the stream is closed."""
        while self._completions or await self._wait():
            if self._completions:
                yield self._completions.popleft()

    async def submit_write(self, frame: Frame, lba: int, *, offset: Optional[int] = None,
                           length: Optional[int] = None, user_data: int = 0, fua: bool = False,
                           keep: bool = False) -> None:
        """As Context.submit_write, but waits while the SQ ring is full."""
        while True:
            try:
                self._context.submit_write(frame, lba, offset=offset, length=length, user_data=user_data, fua=fua,
                                           keep=keep)
                return
            except UnifiedError as error:
                if error.errno != _errno.EAGAIN:
                    raise
            # Taking completions is what makes room.
            if not await self._wait():
                raise ValueError("the stream is closed")


# --- logs


class Record:
    """One thing found in a log: a record, or a range of sequence numbers that is not there."""

    __slots__ = ("sequence", "count", "timestamp", "kind", "src_port", "dst_port", "vlan_tci", "queue", "ip_version",
                 "lane", "device", "packet", "payload")

    def __init__(self, r: _log_record):
        self.sequence: int = r.sequence
        self.count: int = r.count
        self.timestamp: int = r.timestamp
        self.kind: int = r.kind
        self.src_port: int = r.src_port
        self.dst_port: int = r.dst_port
        self.queue: int = r.queue
        self.ip_version: int = r.ip_version
        self.lane: int = r.lane
        self.device: int = r.device
        self.vlan_tci: Optional[int] = r.vlan_tci if r.flags & PACKET_VLAN else None
        self.packet = _foreign(r.packet, r.len)
        """The packet from its Ethernet header on, not copied; ends with the next record. Empty for ranges."""
        self.payload = _foreign(r.payload, r.payload_len)
        """Its UDP payload, likewise."""

    def __repr__(self) -> str:
        kind = {LOG_RECORD: "record", LOG_MISSING: "missing", LOG_DAMAGED: "damaged"}.get(self.kind, "overwritten")
        return f"<Record {self.sequence}: {kind}, {self.count}>"


def _foreign(address: Optional[int], length: int) -> memoryview:
    if not address:
        return memoryview(b"")
    return memoryview((c.c_uint8 * length).from_address(address)).cast("B").toreadonly()


class Log:
    """A log written by a pipeline with LAYOUT_SLOT or LAYOUT_LOG. Iterating gives what is in it now; follow() waits for more.

    Of a recording over several devices, `others` are its other devices, in any order. `start` is where the log begins, the
    same on each; a sequence has one for each.
    """

    def __init__(self, path: Union[str, "os.PathLike[str]"], start: Union[int, Sequence[int]] = 0,
                 others: Sequence[Union[str, "os.PathLike[str]"]] = ()):
        self._log: Optional[c.c_void_p] = None
        self._last: Optional[Record] = None
        paths = [os.fsencode(one) for one in (path, *others)]
        starts = [start] * len(paths) if isinstance(start, int) else list(start)
        if len(starts) != len(paths):
            raise ValueError(f"{len(starts)} starts for {len(paths)} devices")
        log = c.c_void_p()
        _check(_lib.unified_log_open_set((c.c_char_p * len(paths))(*paths), (c.c_uint64 * len(paths))(*map(_u64, starts)),
                                         len(paths), c.byref(log)))
        self._log = log

    def _handle(self) -> c.c_void_p:
        if self._log is None:
            raise ValueError("the log is closed")
        return self._log

    def _release(self) -> None:
        if self._last is not None:
            self._last.packet.release()
            self._last.payload.release()
            self._last = None

    def close(self) -> None:
        if self._log is not None:
            self._release()
            log, self._log = self._log, None
            _check(_lib.unified_log_close(log))

    def __enter__(self) -> Log:
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], value: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def next(self, timeout: Optional[float] = 0) -> Optional[Record]:
        """The next thing; None at the end, for which it waits `timeout` seconds (None: for ever)."""
        record = _log_record(size=c.sizeof(_log_record))
        handle = self._handle()
        self._release()
        if _check(_lib.unified_log_next(handle, c.byref(record), _milliseconds(timeout))) == 0:
            return None
        self._last = Record(record)
        return self._last

    def __iter__(self) -> Iterator[Record]:
        return self.follow(0)

    def follow(self, timeout: Optional[float]) -> Iterator[Record]:
        """Until nothing new came for `timeout` seconds."""
        while (record := self.next(timeout)) is not None:
            yield record

    def seek(self, sequence: int) -> None:
        _check(_lib.unified_log_seek(self._handle(), _u64(sequence)))

    def seek_time(self, timestamp: int) -> None:
        """To the first record not older than `timestamp`, ns since 1970-01-01 UTC."""
        _check(_lib.unified_log_seek_time(self._handle(), _u64(timestamp)))

    def add_spill(self, path: Union[str, "os.PathLike[str]"]) -> None:
        """Looks there too for what the device does not have; from the oldest record again."""
        self._release()
        _check(_lib.unified_log_add_spill(self._handle(), os.fsencode(path)))

    def info(self) -> LogInfo:
        info = _log_info(size=c.sizeof(_log_info))
        _check(_lib.unified_log_info(self._handle(), c.byref(info)))
        values = {f.name: getattr(info, f.name) for f in dataclasses.fields(LogInfo)}
        values["interface"] = values["interface"].decode()
        return LogInfo(**values)
