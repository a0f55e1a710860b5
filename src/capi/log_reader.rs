//! Logs: reading them back.

use std::ffi::{c_char, c_int};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::types::*;
use super::{guard, keep, null, optional_str, put, put_sized};
use crate::error::{Error, Result};
use crate::log_reader::{Item, LogReader};
use crate::record::{FLAG_VLAN, Header, NAME_LEN, Superblock};
use crate::sys::fork::{Guard, Lock};

/// A log that is being read. As with contexts, the cell behind the handle is never freed.
#[allow(non_camel_case_types)]
pub struct unified_log {
    reader: Lock<Option<LogReader>>,
}

/// `ENOTSUP` if a thread of the parent process was using the handle at the fork.
fn locked(log: &unified_log) -> Result<Guard<'_, Option<LogReader>>> {
    log.reader.lock().map_err(|_| {
        Error::new(
            libc::ENOTSUP,
            "a thread of the parent process was reading this log at the fork: open the log here",
        )
    })
}

fn with<T>(log: *const unified_log, body: impl FnOnce(&mut LogReader) -> Result<T>) -> Result<T> {
    if log.is_null() || !log.is_aligned() {
        return Err(null("`log`"));
    }
    // SAFETY: by the contract of every function here it came from unified_log_open, whose cells are never
    // freed, and it is only shared.
    let handle = unsafe { &*log };
    match &mut *locked(handle)? {
        Some(reader) => body(reader),
        None => Err(Error::new(
            libc::EBADF,
            "this log was closed: its handle must not be used any more",
        )),
    }
}

/// Opens a log that a pipeline with UNIFIED_LAYOUT_SLOT or UNIFIED_LAYOUT_LOG wrote, or still writes, to `path`. The log begins `start` bytes into the
/// device or file. No context is needed, and no privilege other than to read `path`. Stores the handle in `*log`; NULL on
/// failure. The first record to be read is the oldest.
///
/// Returns 0, -EINVAL (NULL, or `start` is not a multiple of 512), -ENOENT, -EACCES (the path may not be read), -ENOMSG
/// (there is no log), -EPROTONOSUPPORT (this library does not know the log's version) or -EIO. Any thread. One thread
/// at a time uses a log; others wait. A forked child gets -ENOTSUP from all calls if a thread of the parent was inside
/// one at the fork.
///
/// # Safety
/// `path` must end in a zero byte; `log` must be valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_log_open(
    path: *const c_char,
    start: u64,
    log: *mut *mut unified_log,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe { put(log, std::ptr::null_mut(), "`log`")? };
        // SAFETY: the caller's promise.
        let path =
            unsafe { optional_str(path, "the log's path")? }.ok_or_else(|| null("`path`"))?;
        let reader = LogReader::open(Path::new(&path), start)?;
        let cell = keep(unified_log {
            reader: Lock::new(Some(reader)),
        });
        // SAFETY: as above.
        unsafe { put(log, cell, "`log`")? };
        Ok(0)
    })
}

/// As unified_log_open, of a recording over several devices: opens `count` of them together, in any order. Each log begins `starts[i]` bytes into
/// `paths[i]`; NULL for `starts`: all at 0. Not all devices of the recording need to be there: records that only the others have
/// are reported as missing. unified_log_info says how many there are. unified_log_open reads one device by itself in the same way.
///
/// Returns as unified_log_open, and -EINVAL for a count of 0 or of more than 65535, for devices of different recordings, and for one
/// that is given twice, also under two names. unified_last_error names them.
///
/// # Safety
/// `paths` must have `count` strings that end in a zero byte, and `starts`, if it is not NULL, `count` numbers; `log` must be valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_log_open_set(
    paths: *const *const c_char,
    starts: *const u64,
    count: u32,
    log: *mut *mut unified_log,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe { put(log, std::ptr::null_mut(), "`log`")? };
        if paths.is_null() || !paths.is_aligned() {
            return Err(null("`paths`"));
        }
        if !starts.is_null() && !starts.is_aligned() {
            return Err(null("`starts`"));
        }
        if count == 0 || count > u16::MAX.into() {
            return Err(Error::new(
                libc::EINVAL,
                format!("{count} devices: a recording has 1 to 65535"),
            ));
        }
        let mut devices = Vec::new();
        for place in 0..count as usize {
            // SAFETY: the caller's promise: there are `count` of them, and the pointer is aligned.
            let path = unsafe { *paths.add(place) };
            // SAFETY: the caller's promise.
            let path = unsafe { optional_str(path, "a device's path")? };
            let path = path.ok_or_else(|| null("a path in `paths`"))?;
            let start = match starts.is_null() {
                true => 0,
                // SAFETY: as for `paths`.
                false => unsafe { *starts.add(place) },
            };
            devices.push((PathBuf::from(path), start));
        }
        let reader = LogReader::open_set(&devices)?;
        let cell = keep(unified_log {
            reader: Lock::new(Some(reader)),
        });
        // SAFETY: as above.
        unsafe { put(log, cell, "`log`")? };
        Ok(0)
    })
}

/// Closes a log. Pointers into its records become invalid. Returns 0, -EINVAL for NULL, or -EBADF if it was closed before.
///
/// # Safety
/// `log` must be a handle of unified_log_open, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_log_close(log: *mut unified_log) -> c_int {
    guard(|| {
        with(log, |_| Ok(()))?;
        // SAFETY: checked by `with`.
        let handle = unsafe { &*log };
        locked(handle)?.take();
        Ok(0)
    })
}

/// Adds the file or block device that the recorder spilled to (unified_config.spill): records that the device does not have are
/// read from there. Call it before the first unified_log_next; it goes back to the oldest record. Returns 0, -EINVAL for
/// NULL, -EBADF, -ENOENT, -EACCES (the path may not be read) or -EIO.
///
/// # Safety
/// `log` must be a handle of unified_log_open, or NULL; `path` must end in a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_log_add_spill(
    log: *const unified_log,
    path: *const c_char,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise.
        let path =
            unsafe { optional_str(path, "the spill's path")? }.ok_or_else(|| null("`path`"))?;
        with(log, |reader| reader.add_spill(Path::new(&path)))?;
        Ok(0)
    })
}

fn record_of(header: &Header, packet: &[u8]) -> unified_log_record {
    let payload = usize::from(header.payload_offset - header.packet_offset);
    unified_log_record {
        kind: UNIFIED_LOG_RECORD,
        sequence: header.sequence,
        count: 1,
        timestamp: header.timestamp,
        packet: packet.as_ptr().cast(),
        payload: packet[payload..].as_ptr().cast(),
        len: packet.len() as u32,
        payload_len: header.payload_len.into(),
        src_port: header.src_port,
        dst_port: header.dst_port,
        vlan_tci: header.vlan_tci,
        queue: header.queue,
        ip_version: header.ip_version,
        flags: header.flags & FLAG_VLAN,
        lane: header.lane,
        device: header.device,
        ..unified_log_record::default()
    }
}

/// Reads the next record, or the next range of records that cannot be read. Set `record->size` first. Returns 1 and fills in
/// `*record`, or 0 at the end of the log. At the end it waits up to `timeout_ms` for a recorder to continue (-1: no limit).
/// `record->kind` says whether it is a record, or why a range of sequence numbers is not there. The log owns the packet's
/// bytes; they are valid until the next call with this log.
///
/// A recorder's writes may complete in another order than they began. With a timeout, the function waits up to one second
/// for a record before it reports it as missing. Without one (0), a record is missing at once if a later one is there, which
/// is right for a log that nobody writes to.
///
/// Several lanes are merged by time; each keeps the order of its own sequence numbers. With a timeout, a record is held back for up
/// to 100 ms for lanes that have none.
///
/// Errors: -EINVAL, -EBADF, -EIO (the device cannot be read, or ends before the log does), -ENOMSG (the log was replaced by
/// something else or by a new log: close this handle and open the log again).
///
/// # Safety
/// `log` must be a handle; `record` must have `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_log_next(
    log: *const unified_log,
    record: *mut unified_log_record,
    timeout_ms: c_int,
) -> c_int {
    guard(|| {
        if timeout_ms < -1 {
            return Err(Error::new(
                libc::EINVAL,
                format!("a timeout of {timeout_ms} ms: -1, 0 or more is needed"),
            ));
        }
        // SAFETY: the caller's promise. Before anything is taken that could not be handed out.
        unsafe { put_sized(record, unified_log_record::default(), "the record")? };
        with(log, |reader| {
            let item = match timeout_ms {
                0 => reader.next_item()?,
                -1 => reader.follow(Duration::from_secs(u64::from(u32::MAX)))?,
                ms => reader.follow(Duration::from_millis(ms as u64))?,
            };
            let range = |kind, lane, first, count| unified_log_record {
                kind,
                lane,
                sequence: first,
                count,
                ..unified_log_record::default()
            };
            let filled = match item {
                None => return Ok(0),
                Some(Item::Record { header, packet }) => record_of(&header, packet),
                Some(Item::Gap {
                    lane,
                    first,
                    count,
                    damaged: false,
                }) => range(UNIFIED_LOG_MISSING, lane, first, count),
                Some(Item::Gap {
                    lane, first, count, ..
                }) => range(UNIFIED_LOG_DAMAGED, lane, first, count),
                Some(Item::Overwritten { lane, first, count }) => {
                    range(UNIFIED_LOG_OVERWRITTEN, lane, first, count)
                }
            };
            // SAFETY: the caller's promise.
            unsafe { put_sized(record, filled, "the record")? };
            Ok(1)
        })
    })
}

/// Seeks to a record by its sequence number: the next unified_log_next returns it, or why it is not there. Returns 0, -EINVAL (also
/// if the log has several lanes, each of which has its own sequence numbers: use unified_log_seek_time), -EBADF or -EIO.
///
/// # Safety
/// `log` must be a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_log_seek(log: *const unified_log, sequence: u64) -> c_int {
    guard(|| {
        with(log, |reader| {
            reader.seek(sequence)?;
            Ok(0)
        })
    })
}

/// Seeks to the first record (of each lane) that is not older than `timestamp`, in ns since 1970-01-01 UTC. Returns 0, -EINVAL, -EBADF or
/// -EIO.
///
/// # Safety
/// `log` must be a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_log_seek_time(log: *const unified_log, timestamp: u64) -> c_int {
    guard(|| with(log, |reader| reader.seek_time(timestamp)).map(|()| 0))
}

fn interface_of(superblock: &Superblock) -> [c_char; NAME_LEN] {
    let mut bytes = [0; NAME_LEN];
    let name = superblock.interface_name().unwrap_or_default();
    for (byte, c) in bytes.iter_mut().zip(name.bytes()) {
        *byte = c as c_char;
    }
    bytes
}

/// Stores the properties of the log, and what was read so far, in `*info`. Set `info->size` first. Returns 0, -EINVAL, -EBADF or
/// -EIO.
///
/// # Safety
/// `log` must be a handle; `info` must have `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_log_info(
    log: *const unified_log,
    info: *mut unified_log_info,
) -> c_int {
    guard(|| {
        let filled = with(log, |reader| {
            let oldest = reader.oldest()?;
            let end = reader.end()?;
            let superblock = *reader.superblock();
            let tally = reader.tally();
            Ok(unified_log_info {
                size: 0,
                log_id: superblock.log_id,
                created: superblock.created,
                slots: superblock.slots,
                slot_size: superblock.slot_size,
                block_size: superblock.block_size,
                oldest,
                end,
                position: reader.position(),
                records: tally.records,
                missing: tally.missing,
                damaged: tally.damaged,
                overwritten: tally.overwritten,
                dropped: superblock.losses.dropped,
                unrecorded: superblock.losses.unrecorded,
                first_loss: superblock.losses.first,
                last_loss: superblock.losses.last,
                interface: interface_of(&superblock),
                version: reader.version().into(),
                reserved: 0,
                lanes: reader.lanes().into(),
                devices: reader.devices().0.into(),
                devices_given: reader.devices().1.into(),
                reserved2: 0,
            })
        })?;
        // SAFETY: the caller's promise.
        unsafe { put_sized(info, filled, "the log's info")? };
        Ok(0)
    })
}
