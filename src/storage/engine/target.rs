//! A device as the engine uses it: its backend, its limits and rules, its spill, and the run that grows for it.

#![forbid(unsafe_code)]

use super::stuck::Silence;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::EngineConfig;
use super::run::Run;
use super::spilling::TargetSpill;
use super::submit::Entry;
use crate::error::{Error, Result};
use crate::log::{self, Level};
use crate::storage::backend::Backend;
use crate::storage::command::Rules;
use crate::storage::device::{Device, Kind, Limits, MAX_DEVICES};
use crate::storage::merge::{AccessPattern, Bounds};
use crate::storage::nvme;
use crate::storage::spill::Spill;
use crate::sys::shm::Shared;

/// A device that is open, with the place for the writes that it fails. The engines of several lanes share it.
#[derive(Debug, Clone)]
pub struct OpenTarget {
    pub device: Arc<Device>,
    pub spill: Option<Arc<Spill>>,
}

impl OpenTarget {
    pub fn new(device: Device, spill: Option<Spill>) -> OpenTarget {
        OpenTarget {
            device: Arc::new(device),
            spill: spill.map(Arc::new),
        }
    }
}

pub(super) struct Target {
    pub backend: Backend,
    pub limits: Limits,
    pub rules: Rules,
    pub bounds: Bounds,
    /// Its NVMe commands may use registered buffers. True if it is no NVMe drive.
    pub registered: bool,
    /// Runs may be of memory in pieces, if the ring can gather.
    pub gathers: bool,
    pub spill: Option<TargetSpill>,
    /// Grows while the device is busy.
    pub run: Option<Run>,
    pub pattern: AccessPattern,
    /// Operations that the device has.
    pub operating: u32,
    /// Commands that it has, or that are to be given to it.
    pub slots: usize,
    /// Flushes that it does not answer, and for which nobody waits any more.
    pub orphans: usize,
    /// Entries that wait until it has fewer: others go on to other devices.
    pub waiting: VecDeque<Entry>,
    /// How long the device has not answered.
    pub silence: Silence,
    /// Since the engine last looked for commands without an answer, one ended that was begun after that look.
    pub young_answers: bool,
    /// It had more operations before this turn's reap than after: it has room again.
    pub freed: bool,
    // Kept open as long as the engine may use its files.
    pub device: Arc<Device>,
}

impl Target {
    /// Appends the files that the engine must register to `files`.
    pub fn new(
        opened: OpenTarget,
        config: &EngineConfig,
        data: &Shared,
        files: &mut Vec<OwnedFd>,
    ) -> Result<Target> {
        let OpenTarget { device, spill } = opened;
        let backend = Backend::of(&device, files.len() as u32)?;
        // The first lane has the description that was opened.
        let own = config.lane > 0;
        files.extend(device.duplicate_files(own)?);
        let spill = match spill {
            Some(spill) => {
                files.push(spill.duplicate_file(own)?);
                Some(TargetSpill {
                    file: files.len() as u32 - 1,
                    spill,
                })
            }
            None => None,
        };
        let mut takes = nvme::Takes {
            registered: true,
            pieces: true,
        };
        if device.kind == Kind::Nvme {
            takes = match config.registered {
                true => nvme::takes(&device)?,
                false => nvme::Takes::default(),
            };
            if config.registered && !takes.registered {
                log::log(
                    Level::Warn,
                    format_args!(
                        "device '{}': this kernel refuses registered buffers for passthrough; each command maps its own (kernel 6.11.8 or newer does not)",
                        device.path
                    ),
                );
            }
        }
        let limits = device.limits;
        Ok(Target {
            rules: Rules {
                nsid: limits.nsid,
                block_shift: limits.block_shift(),
                blocks: limits.blocks,
                max_transfer: limits.max_transfer,
                writable: device.writable,
                buffers: data.address() as u64,
                buffers_len: data.len() as u64,
                raw: config.raw,
                pass_unknown: backend.passes_unknown(),
            },
            bounds: Bounds::of(&limits, device.kind != Kind::Nvme),
            registered: takes.registered,
            gathers: backend.gathers() && takes.pieces,
            backend,
            limits,
            spill,
            run: None,
            pattern: AccessPattern::default(),
            operating: 0,
            slots: 0,
            orphans: 0,
            waiting: VecDeque::new(),
            silence: Silence::default(),
            young_answers: false,
            freed: false,
            device,
        })
    }

    pub fn kind(&self) -> Kind {
        self.device.kind
    }
}

/// As many as there may be.
pub(super) fn checked(targets: Vec<Target>) -> Result<Box<[Target]>> {
    match targets.len() {
        1..=MAX_DEVICES => Ok(targets.into()),
        count => Err(Error::new(
            libc::EINVAL,
            format!("an engine for {count} devices: 1 to {MAX_DEVICES} are possible"),
        )),
    }
}
