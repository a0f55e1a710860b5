//! NUMA: the region lies on the node of the NIC, and a device on another node is reported.

#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use crate::log::{self, Level};
use crate::sys::numa::PreferredNode;

/// Where an interface and its devices are, as sysfs has it. `None`: the machine has one node, or the interface is on none.
pub struct Placement {
    node: u32,
    ifname: String,
}

impl Placement {
    pub fn of(ifname: &str) -> Option<Placement> {
        Placement::below(Path::new("/sys"), ifname)
    }

    fn below(sys: &Path, ifname: &str) -> Option<Placement> {
        // "0", or a list of ranges.
        let online = fs::read_to_string(sys.join("devices/system/node/online")).ok()?;
        if !online.contains(['-', ',']) {
            return None;
        }
        let node = node_of(&sys.join("class/net").join(ifname).join("device"))?;
        Some(Placement {
            node,
            ifname: ifname.into(),
        })
    }

    /// Memory that is taken until this is dropped comes from the interface's node, if that has some.
    pub fn prefer(&self) -> Option<PreferredNode> {
        let (node, ifname) = (self.node, &self.ifname);
        match PreferredNode::new(node) {
            Ok(preferred) => {
                log::log(
                    Level::Info,
                    format_args!("the region is on NUMA node {node}, as interface '{ifname}' is"),
                );
                Some(preferred)
            }
            Err(e) => {
                log::log(
                    Level::Warn,
                    format_args!(
                        "the region may not be on NUMA node {node}, where interface '{ifname}' is: {e}"
                    ),
                );
                None
            }
        }
    }

    /// Warns of a device on another node.
    pub fn look_at(&self, device: &str) {
        if let Some(far) = self.other_node(Path::new("/sys"), device) {
            log::log(
                Level::Warn,
                format_args!(
                    "interface '{}' is on NUMA node {} and device '{device}' on node {far}: each packet crosses from one to the \
                     other; take a device of node {}",
                    self.ifname, self.node, self.node
                ),
            );
        }
    }

    fn other_node(&self, sys: &Path, device: &str) -> Option<u32> {
        let path = fs::canonicalize(device).ok()?;
        let name = path.file_name()?.to_str()?;
        // The node for passthrough of nvme0n1 is ng0n1.
        let block = match name.strip_prefix("ng") {
            Some(rest) => format!("nvme{rest}"),
            None => name.into(),
        };
        let node = node_of(&sys.join("class/block").join(block))?;
        (node != self.node).then_some(node)
    }
}

/// The node of a device in sysfs, or of the first one above it that knows: a virtio device or a namespace does not.
fn node_of(device: &Path) -> Option<u32> {
    let path = fs::canonicalize(device).ok()?;
    let known = path
        .ancestors()
        .find_map(|above| fs::read_to_string(above.join("numa_node")).ok())?;
    // -1: on none.
    known.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    fn write(file: &Path, text: &str) {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }

    #[test]
    fn where_interface_and_device_are() {
        let sys = std::env::temp_dir().join(format!("unified-numa-{}", std::process::id()));
        write(&sys.join("devices/system/node/online"), "0\n");
        let pci = |name: &str, node: &str| {
            let device = sys.join("devices/pci0000:00").join(name);
            write(&device.join("numa_node"), node);
            device
        };
        let link = |device: PathBuf, name: &str| {
            fs::create_dir_all(&device).unwrap();
            let name = sys.join("class").join(name);
            fs::create_dir_all(name.parent().unwrap()).unwrap();
            symlink(device, name).unwrap();
        };
        // A NIC, a virtio device on one, an interface on no node, and one without hardware.
        link(pci("0000:00:03.0", "1\n"), "net/eth0/device");
        link(
            pci("0000:00:04.0", "1\n").join("virtio0"),
            "net/eth1/device",
        );
        link(pci("0000:00:05.0", "-1\n"), "net/eth2/device");
        fs::create_dir_all(sys.join("class/net/veth0")).unwrap();
        assert!(Placement::below(&sys, "eth0").is_none(), "one node");
        write(&sys.join("devices/system/node/online"), "0-1\n");
        for name in ["eth2", "veth0", "gone"] {
            assert!(Placement::below(&sys, name).is_none(), "{name}");
        }
        assert_eq!(Placement::below(&sys, "eth1").unwrap().node, 1);
        let placement = Placement::below(&sys, "eth0").unwrap();
        assert_eq!(placement.node, 1);
        link(
            pci("0000:00:06.0", "0\n").join("nvme/nvme3/nvme3n1"),
            "block/nvme3n1",
        );
        link(pci("0000:00:07.0", "1\n").join("host0/sda"), "block/sda");
        for (name, other) in [
            ("nvme3n1", Some(0)),
            ("ng3n1", Some(0)),
            ("sda", None),
            ("gone", None),
        ] {
            let node = sys.join("dev").join(name);
            write(&node, "");
            let found = placement.other_node(&sys, node.to_str().unwrap());
            assert_eq!(found, other, "{name}");
        }
        fs::remove_dir_all(&sys).unwrap();
    }
}
