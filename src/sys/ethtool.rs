//! Driver and features of an interface of the caller's network namespace, by the ioctl of ethtool.

use std::io;

use super::link::ethtool;

// linux/ethtool.h
const ETHTOOL_GDRVINFO: u32 = 0x3;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETH_SS_FEATURES: u32 = 4;
const ETH_GSTRING_LEN: usize = 32;

/// Words of struct ethtool_drvinfo, and bytes of the driver's name, which is its second member.
const DRVINFO: usize = 49;
const DRIVER: std::ops::Range<usize> = 4..36;

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// The name of an interface's driver; for an interface without hardware, its kind ("veth", "tun", "bridge").
pub fn driver(name: &str) -> io::Result<String> {
    let mut words = [0u32; DRVINFO];
    words[0] = ETHTOOL_GDRVINFO;
    // SAFETY: the kernel writes struct ethtool_drvinfo, which is DRVINFO words.
    unsafe { ethtool(name, &mut words)? };
    Ok(text(&bytes(&words)[DRIVER]))
}

/// A feature of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feature {
    pub on: bool,
    /// `ethtool -K` can change it.
    pub changeable: bool,
}

/// The features of one interface, by the kernel's names ("rx-vlan-hw-parse").
#[derive(Debug, Clone)]
pub struct Features(Vec<(String, Feature)>);

impl Features {
    pub fn of(name: &str) -> io::Result<Features> {
        // struct ethtool_sset_info: cmd, reserved, a mask of 64 bits, then a count for each of its bits.
        let mut info = [0u32; 5];
        info[0] = ETHTOOL_GSSET_INFO;
        info[2..4].copy_from_slice(&mask(1 << ETH_SS_FEATURES));
        // SAFETY: the mask has one bit, so the kernel writes one count at most, for which there is room.
        unsafe { ethtool(name, &mut info)? };
        let count = match info[2..4] == mask(1 << ETH_SS_FEATURES) {
            true => info[4] as usize,
            false => return Err(io::ErrorKind::Unsupported.into()),
        };
        // struct ethtool_gstrings: cmd, string_set, len, then names of 32 bytes.
        let mut names = vec![0u32; 3 + count * ETH_GSTRING_LEN / 4];
        names[..2].copy_from_slice(&[ETHTOOL_GSTRINGS, ETH_SS_FEATURES]);
        names[2] = count as u32;
        // SAFETY: the kernel writes as many names as it counted before: their number is fixed when it is built.
        unsafe { ethtool(name, &mut names)? };
        // struct ethtool_gfeatures: cmd, size, then blocks of available, requested, active, never_changed, each for
        // 32 features.
        let blocks = count.div_ceil(32);
        let mut state = vec![0u32; 2 + blocks * 4];
        state[..2].copy_from_slice(&[ETHTOOL_GFEATURES, blocks as u32]);
        // SAFETY: the kernel writes `size` blocks at most.
        unsafe { ethtool(name, &mut state)? };
        let bit = |at: usize, word: usize| state[2 + at / 32 * 4 + word] >> (at % 32) & 1 != 0;
        let names = bytes(&names[3..]);
        let each = names.chunks_exact(ETH_GSTRING_LEN).enumerate();
        Ok(Features(
            each.map(|(at, name)| {
                let feature = Feature {
                    on: bit(at, 2),
                    changeable: bit(at, 0) && !bit(at, 3),
                };
                (text(name), feature)
            })
            .collect(),
        ))
    }

    /// `None` if this kernel has no such feature.
    pub fn get(&self, name: &str) -> Option<Feature> {
        let mut all = self.0.iter();
        all.find(|(known, _)| known == name).map(|(_, f)| *f)
    }
}

fn mask(bits: u64) -> [u32; 2] {
    let bytes = bits.to_ne_bytes();
    let word = |at: usize| u32::from_ne_bytes(std::array::from_fn(|i| bytes[at + i]));
    [word(0), word(4)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_features_and_no_hardware() {
        let features = Features::of("lo").unwrap();
        // linux/netdev_features.h: it cannot be turned off.
        let loopback = features.get("loopback").unwrap();
        assert_eq!(
            (loopback.on, loopback.changeable),
            (true, false),
            "{features:?}"
        );
        assert!(features.get("rx-gro").is_some() && features.get("rx-grow").is_none());
    }

    #[test]
    fn what_is_not_there_has_none() {
        let error = |e: io::Error| e.raw_os_error();
        let gone = Some(libc::ENODEV);
        assert_eq!(
            Features::of("nosuchif0").map(|_| ()).map_err(error),
            Err(gone)
        );
        assert_eq!(driver("nosuchif0").map_err(error), Err(gone));
        // Names that no interface can have.
        for name in ["", "a name that is far too long for it"] {
            assert!(driver(name).is_err(), "'{name}'");
        }
    }
}
