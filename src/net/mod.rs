//! The network: the XDP program on an interface, the AF_XDP socket of a queue, and the packets from it.

#![forbid(unsafe_code)]

mod attributes;
mod clock;
mod features;
pub mod interface;
pub mod link;
mod owner;
pub mod packet;
pub mod rx;
pub mod socket;
pub mod watch;
pub mod wire;
pub mod xdp;
