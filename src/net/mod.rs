//! The network: the XDP program on an interface, the AF_XDP socket of a queue, and the packets from it.

#![forbid(unsafe_code)]

pub mod features;
pub mod link;
pub mod packet;
pub mod rx;
pub mod socket;
pub mod watch;
pub mod wire;
pub mod xdp;
