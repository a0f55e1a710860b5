//! On which NUMA node memory is taken (kernel: Documentation/admin-guide/mm/numa_memory_policy.rst).

use std::io;
use std::ptr;

/// As many nodes as a mask has bits here. No machine has more.
const MOST_NODES: usize = 1024;
const WORDS: usize = MOST_NODES / 64;
/// MPOL_PREFERRED: elsewhere if that node has none left.
const PREFERRED: libc::c_int = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Policy {
    mode: libc::c_int,
    nodes: [u64; WORDS],
}

impl Policy {
    fn current() -> io::Result<Policy> {
        let mut policy = Policy {
            mode: 0,
            nodes: [0; WORDS],
        };
        // SAFETY: the kernel writes a mode and a mask of MOST_NODES bits, which are live; no address is asked about.
        let done = unsafe {
            libc::syscall(
                libc::SYS_get_mempolicy,
                &raw mut policy.mode,
                policy.nodes.as_mut_ptr(),
                MOST_NODES,
                ptr::null_mut::<libc::c_void>(),
                0,
            )
        };
        match done {
            0 => Ok(policy),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn set(&self) -> io::Result<()> {
        // An empty mask goes with the modes that take none. The kernel looks at one bit less than it is told.
        let (mask, bits) = match self.nodes.iter().all(|word| *word == 0) {
            true => (ptr::null(), 0),
            false => (self.nodes.as_ptr(), MOST_NODES + 1),
        };
        // SAFETY: the kernel reads MOST_NODES bits, which are live, or none. It changes where this thread's later pages come
        // from, and no memory.
        match unsafe { libc::syscall(libc::SYS_set_mempolicy, self.mode, mask, bits) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Until it is dropped, new memory of the calling thread comes from one node, as long as that has some.
pub struct PreferredNode {
    before: Policy,
    // The policy belongs to the thread.
    _thread: std::marker::PhantomData<*const ()>,
}

impl PreferredNode {
    /// `EINVAL`: there is no such node. `ENOSYS`: the kernel was built without NUMA.
    pub fn new(node: u32) -> io::Result<PreferredNode> {
        let before = Policy::current()?;
        let mut nodes = [0; WORDS];
        let word = nodes
            .get_mut(node as usize / 64)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        *word = 1 << (node % 64);
        let mode = PREFERRED;
        Policy { mode, nodes }.set()?;
        Ok(PreferredNode {
            before,
            _thread: std::marker::PhantomData,
        })
    }
}

impl Drop for PreferredNode {
    fn drop(&mut self) {
        let _ = self.before.set();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_preferred_until_the_end() {
        let before = match Policy::current() {
            Ok(before) => before,
            Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => {
                return eprintln!("SKIPPED: this kernel has no NUMA");
            }
            Err(e) => panic!("{e}"),
        };
        let prefers = PreferredNode::new(0).unwrap();
        let now = Policy::current().unwrap();
        assert_eq!((now.mode, now.nodes[0]), (PREFERRED, 1));
        drop(prefers);
        assert_eq!(Policy::current().unwrap(), before);
        for node in [1000, 5000] {
            let error = PreferredNode::new(node).err().unwrap();
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{node}");
        }
        assert_eq!(Policy::current().unwrap(), before);
    }
}
