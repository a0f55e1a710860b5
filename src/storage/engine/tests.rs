//! The engine over a device that fails as told.

#![forbid(unsafe_code)]

use std::sync::atomic::Ordering;
use std::time::Instant;

mod broken;
mod changes;
mod groups;
mod retries;
mod runs;
mod spill;
mod stuck;
use super::submit::{FED, FEED};
use super::*;
use crate::buffers::{Buffers, DEFAULT_LIMIT};
use crate::region::{Layout, Region};
use crate::storage::backend::Backend;
use crate::storage::backend::faulty::{Fault, Faults, Faulty};
use crate::storage::command::status;
use crate::storage::command::{self, opcode};
use crate::storage::device::Device;
use crate::storage::device::DeviceConfig;
use crate::storage::null::Null;
use crate::storage::spill::Spill;
use crate::sys::abi::{CQE_DEVICE_SHIFT, CQE_SPILLED};
use crate::sys::event::monotonic_ns;

const BLOCK: u32 = 512;
const BLOCKS: u64 = 64;
const DEPTH: u32 = 64;

/// An inline engine over a file in memory, whose operations fail as told.
struct Rig {
    engine: Engine,
    buffers: Buffers,
    region: Region,
    sq: Producer<UnifiedSqe>,
    cq: Consumer<UnifiedCqe>,
    faults: Faults,
    path: std::path::PathBuf,
    shared: Arc<EngineShared>,
}

impl Rig {
    fn new(name: &str, retry: Retry) -> Rig {
        Rig::with_spill(name, retry, |_| None)
    }

    fn with_spill(name: &str, retry: Retry, spill: impl FnOnce(&Device) -> Option<Spill>) -> Rig {
        Rig::with_others(name, retry, spill, 0)
    }

    /// With so many more devices, which store nothing and fail nothing.
    fn with_others(
        name: &str,
        retry: Retry,
        spill: impl FnOnce(&Device) -> Option<Spill>,
        others: usize,
    ) -> Rig {
        let path = std::path::PathBuf::from(format!(
            "/dev/shm/unified-engine-{name}-{}",
            std::process::id()
        ));
        let region = Region::create(Layout::new(64, 64, 1 << 20).unwrap(), false).unwrap();
        let device = Device::open(&DeviceConfig {
            path: path.to_str().unwrap().into(),
            file_size: BLOCKS * u64::from(BLOCK),
            ..DeviceConfig::default()
        });
        let mut device = device.unwrap();
        device.made.take().unwrap().keep();
        let mut spill = spill(&device);
        if let Some(made) = spill.as_mut().and_then(|spill| spill.made.take()) {
            made.keep();
        }
        let mut targets = vec![OpenTarget::new(device, spill)];
        for _ in 0..others {
            let null = Device::open(&DeviceConfig {
                path: "null:".into(),
                ..DeviceConfig::default()
            });
            targets.push(OpenTarget::new(null.unwrap(), None));
        }
        let buffers = Buffers::new(DEFAULT_LIMIT);
        let mut engine = Engine::with_buffers(
            targets,
            &region,
            EngineConfig {
                lane: 0,
                depth: DEPTH,
                bounce: true,
                raw: false,
                threaded: false,
                backlog: 0,
                registered: true,
                retry,
            },
            Some(buffers.table().clone()),
        )
        .unwrap();
        let faults = Faults::default();
        let target = &mut engine.targets[0];
        let null = Backend::Null(Null::new(&target.device));
        let device = std::mem::replace(&mut target.backend, null);
        target.backend = Backend::Faulty(Box::new(Faulty {
            device,
            faults: faults.clone(),
        }));
        let shared = engine.shared().clone();
        Rig {
            sq: Producer::new(region.rings[0].sq.clone(), "SQ"),
            cq: Consumer::new(region.rings[0].cq.clone(), "CQ"),
            engine,
            buffers,
            region,
            faults,
            path,
            shared,
        }
    }

    fn fail(&self, opcode: u8, result: i32) {
        self.faults.lock().push_back(Fault { opcode, result });
    }

    /// One block each, neighbours in memory and on the device: one run.
    fn write(&mut self, blocks: std::ops::Range<u64>) {
        for block in blocks {
            let at = block * u64::from(BLOCK);
            self.region
                .data
                .write(at as usize, &[block as u8 + 1; BLOCK as usize]);
            let mut sqe = command::transfer(opcode::WRITE, block, 1, at, BLOCK, false);
            sqe.user_data = block;
            self.push(sqe);
        }
        let _ = self.sq.publish();
    }

    fn push(&mut self, sqe: UnifiedSqe) {
        self.shared.stamps.set(self.sq.tail(), monotonic_ns());
        assert!(self.sq.push(sqe).unwrap());
    }

    fn flush(&mut self) -> UnifiedCqe {
        self.push(command::flush());
        let _ = self.sq.publish();
        self.take(1)[0]
    }

    fn take(&mut self, count: usize) -> Vec<UnifiedCqe> {
        let start = Instant::now();
        let mut done = Vec::new();
        while done.len() < count {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "{} of {count}",
                done.len()
            );
            self.engine.pump(true).unwrap();
            match self.cq.pop().unwrap() {
                Some(cqe) => done.push(cqe),
                None => self
                    .engine
                    .ring
                    .submit(1, Some(Duration::from_millis(100)))
                    .unwrap(),
            }
            self.cq.release();
        }
        done.sort_by_key(|cqe| cqe.user_data);
        done
    }

    fn stored(&self, block: u64) -> bool {
        let file = std::fs::read(&self.path).unwrap();
        file.chunks(BLOCK as usize).nth(block as usize)
            == Some(&[block as u8 + 1; BLOCK as usize][..])
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        if !std::thread::panicking() {
            assert_eq!((self.engine.in_flight(), self.engine.operating()), (0, 0));
            let counted = self
                .shared
                .stats
                .devices
                .iter()
                .map(|device| device.snapshot());
            assert_eq!(counted.map(|counts| counts.in_flight).sum::<u64>(), 0);
            assert_eq!(self.engine.bounce.free.len(), 64, "every piece came back");
            assert!(self.engine.ring.all_tables_are_free());
            assert_eq!(
                self.shared.stats.submitted.get(),
                self.shared.stats.completed.get()
            );
            assert!(self.faults.lock().is_empty(), "every fault happened");
        }
    }
}
