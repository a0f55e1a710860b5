//! Accessors of a packet, for languages that call functions more easily than they read structs.
//!
//! All of them read the struct that unified_rx_batch filled in; none touches the context. Any thread, as
//! long as the packet's frame is the caller's.

use std::ffi::{c_int, c_void};

use super::types::*;
use super::{guard, null, put};
use crate::error::Error;
use crate::net::packet::{Headers, addresses};

/// # Safety
/// `packet` must be NULL or valid.
unsafe fn read<'a>(packet: *const unified_packet) -> Option<&'a unified_packet> {
    // SAFETY: the caller's promise; the struct is plain data.
    unsafe { packet.as_ref() }
}

/// Returns the first byte of the UDP payload; NULL for NULL.
///
/// # Safety
/// `packet` must be NULL or filled in by unified_rx_batch.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_packet_payload(packet: *const unified_packet) -> *mut c_void {
    // SAFETY: the caller's promise.
    unsafe { read(packet) }.map_or(std::ptr::null_mut(), |p| p.payload)
}

/// Returns the number of bytes of UDP payload; 0 for NULL.
///
/// # Safety
/// As unified_packet_payload.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_packet_payload_len(packet: *const unified_packet) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { read(packet) }.map_or(0, |p| p.payload_len)
}

/// Returns when the XDP program saw the packet: ns of CLOCK_MONOTONIC as this process reads it, also in a time namespace; 0 if
/// that is not known.
///
/// # Safety
/// As unified_packet_payload.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_packet_timestamp(packet: *const unified_packet) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { read(packet) }.map_or(0, |p| p.timestamp)
}

/// Returns the outermost VLAN tag (PCP, DEI, VID); -ENOENT if there is none, -EINVAL for NULL.
///
/// # Safety
/// As unified_packet_payload.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_packet_vlan(packet: *const unified_packet) -> c_int {
    // SAFETY: the caller's promise.
    match unsafe { read(packet) } {
        None => -libc::EINVAL,
        Some(p) if p.flags & UNIFIED_PACKET_VLAN != 0 => p.vlan_tci.into(),
        Some(_) => -libc::ENOENT,
    }
}

/// Stores the source and destination address (16 bytes each, network byte order, IPv4 in the first four) and the ports (host
/// byte order). Any of the pointers may be NULL. Returns the IP version, 4 or 6, or -EINVAL.
///
/// # Safety
/// As unified_packet_payload; the places must be NULL or have room.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unified_packet_flow(
    packet: *const unified_packet,
    src_addr: *mut [u8; 16],
    dst_addr: *mut [u8; 16],
    src_port: *mut u16,
    dst_port: *mut u16,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise.
        let packet = unsafe { read(packet) }.ok_or_else(|| null("`packet`"))?;
        if packet.data.is_null() || u32::from(packet.payload_offset) > packet.len {
            return Err(Error::new(
                libc::EINVAL,
                "this packet was not filled in by unified_rx_batch",
            ));
        }
        let mut head = [0u8; 256];
        // After long extension headers the payload begins later; addresses and ports come before them.
        let len = usize::from(packet.payload_offset).min(head.len());
        // SAFETY: a packet of unified_rx_batch has `len` readable bytes at `data`, and the payload begins
        // inside them; 256 are room enough, as just checked.
        unsafe { std::ptr::copy_nonoverlapping(packet.data.cast::<u8>(), head.as_mut_ptr(), len) };
        let headers = Headers {
            l3_offset: packet.l3_offset,
            ip_version: packet.ip_version,
            ..Headers::default()
        };
        let (source, destination) = addresses(&head[..len], &headers)
            .ok_or_else(|| Error::new(libc::EINVAL, "this packet's headers end too early"))?;
        // SAFETY: NULL or room, by the caller's promise.
        unsafe {
            if !src_addr.is_null() {
                put(src_addr, source, "src_addr")?;
            }
            if !dst_addr.is_null() {
                put(dst_addr, destination, "dst_addr")?;
            }
            if !src_port.is_null() {
                put(src_port, packet.src_port, "src_port")?;
            }
            if !dst_port.is_null() {
                put(dst_port, packet.dst_port, "dst_port")?;
            }
        }
        Ok(packet.ip_version.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flow_of_a_packet_with_long_extension_headers() {
        let options = 1000;
        let payload = 14 + 40 + options + 8;
        let mut bytes = vec![0u8; payload + 4];
        bytes[14] = 0x60;
        bytes[22..38].fill(0x11);
        bytes[38..54].fill(0x22);
        let packet = unified_packet {
            data: bytes.as_ptr().cast_mut().cast(),
            len: bytes.len() as u32,
            payload_offset: payload as u16,
            l3_offset: 14,
            ip_version: 6,
            src_port: 7,
            dst_port: 9999,
            payload: std::ptr::null_mut(),
            timestamp: 0,
            payload_len: 4,
            frame: 0,
            queue: 0,
            vlan_tci: 0,
            flags: 0,
            reserved: 0,
        };
        let (mut source, mut destination) = ([0u8; 16], [0u8; 16]);
        let (mut from, mut to) = (0, 0);
        // SAFETY: all pointers are to live values of the right types; `data` has `len` bytes.
        let version = unsafe {
            unified_packet_flow(&packet, &mut source, &mut destination, &mut from, &mut to)
        };
        assert_eq!(version, 6);
        assert_eq!((source, destination), ([0x11; 16], [0x22; 16]));
        assert_eq!((from, to), (7, 9999));
    }
}
