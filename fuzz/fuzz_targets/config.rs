//! A configuration that is said to be right is one from which a region can be laid out, within the documented ranges.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use unified::config::Config;
use unified::region::Layout;

#[derive(Debug, Arbitrary)]
struct Input {
    ifname: Option<String>,
    path: String,
    ports: Vec<u16>,
    shifts: [u8; 6],
    plus: [u8; 6],
    headroom: u32,
    run_priority: u32,
    retry: [u32; 3],
}

fuzz_target!(|input: Input| {
    // Near powers of two, on which most of the rules are.
    let number = |i: usize| {
        (1u32 << (input.shifts[i] % 32))
            .wrapping_add(u32::from(input.plus[i] % 4))
            .wrapping_sub(u32::from(input.plus[i] / 4 % 2))
    };
    let mut config = Config {
        ifname: input.ifname,
        ports: input.ports,
        frame_size: number(0),
        frame_count: number(1),
        sq_entries: number(2),
        cq_entries: number(3),
        rx_ring: number(4),
        fill_ring: number(4),
        events_bytes: number(5),
        headroom: input.headroom,
        run_priority: input.run_priority,
        ..Config::default()
    };
    config.device.path = input.path;
    [
        config.retry.limit,
        config.retry.backoff_us,
        config.retry.give_up_ms,
    ] = input.retry;
    match config.validate() {
        Ok(()) => {
            let bytes = config.frame_count as usize * config.frame_size as usize;
            Layout::new(config.sq_entries, config.cq_entries, bytes).unwrap();
            assert!((1..=1024).contains(&config.depth()));
            assert!(config.headroom + 256 + 128 + 320 <= config.frame_size);
            assert!(config.retry.limit <= 255 && config.retry.backoff_us <= 1_000_000);
            assert!(!config.ports.contains(&0) && !config.device.path.is_empty());
        }
        Err(error) => assert!(error.errno() == 22 && !error.message().is_empty()),
    }
});
