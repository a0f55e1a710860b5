//! The packet parser against a slow one that is written from the standards, byte by byte.
#![no_main]

use libfuzzer_sys::fuzz_target;
use unified::net::packet::{Headers, Unusable, addresses, parse};

struct Reader<'a> {
    packet: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.packet.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn number(&mut self, bytes: usize) -> Option<u64> {
        let mut number = 0;
        for _ in 0..bytes {
            number = number * 256 + u64::from(self.byte()?);
        }
        Some(number)
    }

    fn skip(&mut self, bytes: usize) -> Option<()> {
        for _ in 0..bytes {
            self.byte()?;
        }
        Some(())
    }
}

/// `None`: no UDP that can be used.
fn reference(packet: &[u8]) -> Option<Result<Headers, Unusable>> {
    let mut reader = Reader { packet, at: 0 };
    let mut headers = Headers::default();
    reader.skip(12)?;
    let mut ether_type = reader.number(2)?;
    let mut tags = 0;
    while (ether_type == 0x8100 || ether_type == 0x88a8) && tags < 2 {
        let tci = reader.number(2)? as u16;
        headers.vlan_tci.get_or_insert(tci);
        ether_type = reader.number(2)?;
        tags += 1;
    }
    let l3 = reader.at;
    headers.l3_offset = l3 as u16;
    let l3_end;
    if ether_type == 0x0800 {
        let first = reader.byte()?;
        reader.skip(1)?;
        let total = reader.number(2)? as usize;
        reader.skip(2)?;
        let fragment = reader.number(2)?;
        reader.skip(1)?;
        let protocol = reader.byte()?;
        reader.skip(10)?;
        if first / 16 != 4 || first % 16 < 5 || protocol != 17 {
            return None;
        }
        // More fragments follow, or it is not the first one. (Bit 14 is "do not fragment".)
        if fragment & 0x2000 != 0 || fragment & 0x1fff != 0 {
            return Some(Err(Unusable::Fragment));
        }
        headers.ip_version = 4;
        l3_end = l3 + total;
        reader.at = l3 + usize::from(first % 16) * 4;
    } else if ether_type == 0x86dd {
        let first = reader.byte()?;
        reader.skip(3)?;
        let payload = reader.number(2)? as usize;
        let mut next = reader.byte()?;
        reader.skip(33)?;
        if first / 16 != 6 {
            return None;
        }
        headers.ip_version = 6;
        l3_end = l3 + 40 + payload;
        let mut extensions = 0;
        // Hop-by-hop, routing, destination options.
        while [0, 43, 60, 44].contains(&next) && extensions < 4 {
            if next == 44 {
                return Some(Err(Unusable::Fragment));
            }
            let start = reader.at;
            next = reader.byte()?;
            let units = usize::from(reader.byte()?);
            reader.at = start + 8 + 8 * units;
            extensions += 1;
        }
        if next != 17 {
            return None;
        }
    } else {
        return None;
    }
    let udp = reader.at;
    headers.src_port = reader.number(2)? as u16;
    headers.dst_port = reader.number(2)? as u16;
    let length = reader.number(2)? as usize;
    reader.skip(2)?;
    if length < 8 || udp + length > l3_end || l3_end > packet.len() {
        return Some(Err(Unusable::Malformed));
    }
    headers.payload_offset = (udp + 8) as u16;
    headers.payload_len = (length - 8) as u16;
    Some(Ok(headers))
}

fuzz_target!(|packet: &[u8]| {
    // A frame holds no more.
    let packet = &packet[..packet.len().min(4096)];
    let found = parse(packet);
    assert_eq!(found, reference(packet).unwrap_or(Err(Unusable::NotUdp)));
    if let Ok(headers) = found {
        let end = usize::from(headers.payload_offset) + usize::from(headers.payload_len);
        assert!(end <= packet.len());
        assert!(addresses(packet, &headers).is_some());
    }
});
