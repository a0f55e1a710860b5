//! Frames made by hand, and sent as they are.

use std::fs;
use std::os::fd::AsRawFd;
use std::time::Duration;

use etherparse::{EtherType, Ethernet2Header, PacketBuilder, SingleVlanHeader, VlanId};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, SockaddrLike, sendto, socket};

use super::Veth;

/// VLAN tags: EtherType of the tag, and what it carries.
pub type Tags<'a> = &'a [(u16, u16)];

const SOURCE: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// The hardware address of an interface.
pub fn mac_of(interface: &str) -> [u8; 6] {
    let text = fs::read_to_string(format!("/sys/class/net/{interface}/address")).unwrap();
    let mut mac = [0; 6];
    for (byte, hex) in mac.iter_mut().zip(text.trim().split(':')) {
        *byte = u8::from_str_radix(hex, 16).unwrap();
    }
    mac
}

/// An Ethernet frame with VLAN tags.
pub fn ethernet(destination: [u8; 6], tags: Tags, ether_type: u16, l3: &[u8]) -> Vec<u8> {
    let mut types = tags.iter().map(|tag| tag.0).chain([ether_type]);
    let header = Ethernet2Header {
        source: SOURCE,
        destination,
        ether_type: EtherType(types.next().unwrap()),
    };
    let mut frame = header.to_bytes().to_vec();
    for (tag, next) in tags.iter().zip(types) {
        let header = SingleVlanHeader {
            pcp: ((tag.1 >> 13) as u8).try_into().unwrap(),
            drop_eligible_indicator: tag.1 & 0x1000 != 0,
            vlan_id: VlanId::try_new(tag.1 & 0xfff).unwrap(),
            ether_type: EtherType(next),
        };
        frame.extend(header.to_bytes());
    }
    frame.extend(l3);
    frame
}

/// An Ethernet/IPv4/UDP frame.
pub fn udp(destination: [u8; 6], ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(SOURCE, destination)
        .ipv4([10, 9, 8, 7], [10, 9, 8, 6], 64)
        .udp(ports.0, ports.1)
        .write(&mut frame, payload)
        .unwrap();
    frame
}

/// Sends frames from the far end as they are, 32 a millisecond at most.
pub fn send_frames(veth: &Veth, frames: Vec<Vec<u8>>) {
    let peer = veth.peer.clone();
    let far = veth.far(move || {
        let to = nix::ifaddrs::getifaddrs()
            .unwrap()
            .filter(|a| a.interface_name == peer)
            .filter_map(|a| a.address)
            .find(|a| a.family() == Some(AddressFamily::Packet))
            .unwrap();
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None).unwrap();
        for (i, frame) in frames.iter().enumerate() {
            let sent = sendto(socket.as_raw_fd(), frame, &to, MsgFlags::empty());
            assert_eq!(sent, Ok(frame.len()));
            if i % 32 == 31 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
    far.join().unwrap();
}
