//! Opening a context: everything is checked and made before anything is attached.

#![forbid(unsafe_code)]

use std::ffi::CString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use parking_lot::Mutex;

use super::data_path::Turns;
use super::{Context, DeviceInfo, Info, NetworkInfo};
use crate::buffers::Buffers;
use crate::config::{Config, Drive, KERNEL_HEADROOM};
use crate::counters::RxStats;
use crate::error::{Error, Result};
use crate::frame::{FrameMap, Frames};
use crate::lane::{Lane, LaneParts, Peer};
use crate::locked::{Budget, Charge};
use crate::log::{self, Level};
use crate::net::interface::{Attached, Interface};
use crate::net::link::{self, Link};
use crate::net::rx::Receiver;
use crate::net::socket;
use crate::net::xdp::XdpConfig;
use crate::numa::Placement;
use crate::region::{Layout, Region, check_memory_cgroup};
use crate::ring::{Consumer, Producer};
use crate::storage::device::{Device, Limits, MadeFile, check_different};
use crate::storage::engine::{
    Driver, Engine, EngineConfig, OpenTarget, bounce_bytes, locked_bytes,
};
use crate::storage::spill::Spill;
use crate::sys::bpf::Mode;
use crate::sys::event::SignalShield;
use crate::sys::fork::ProcessId;
use crate::sys::limits;
use crate::sys::mmap::HUGE_PAGE;
use crate::sys::xsk::{QueueSetup, UmemSetup};

impl Context {
    /// Opens everything, in an order in which nothing is attached before all that can be checked was: configuration,
    /// interface, memory, device, region, engine, socket, XDP program last.
    ///
    /// Errors are those of `Config::validate`, `link::look_up`, `Device::open`, `Budget::take`, `Region::create`,
    /// `socket::open` and `Xdp::attach`. After an error nothing is left attached, open or made.
    pub fn open(config: &Config) -> Result<Context> {
        config.validate()?;
        log::to_stderr_if_asked();
        // While a signal is pending, loading a program fails with EAGAIN, and other calls end early.
        let _shield = SignalShield::new();
        Context::open_valid(config).map_err(|error| name_what_else_is_missing(config, error))
    }

    fn open_valid(config: &Config) -> Result<Context> {
        let process =
            ProcessId::of_this_process().map_err(|e| Error::os(&e, "marking this process"))?;
        let link = match &config.ifname {
            Some(name) => Some(link::look_up(name, config.queue)?),
            None => None,
        };
        let lanes = config.lanes(link.as_ref())?;
        let frame_count = config.frames(lanes);
        let map = FrameMap::new(config.frame_size, frame_count);
        let layout = Layout::with_lanes(
            lanes,
            config.sq_entries,
            config.cq_entries,
            map.bytes() as usize,
        )?;
        let (targets, made) = open_targets(config)?;
        let limits: Arc<[Limits]> = targets.iter().map(|t| t.device.limits).collect();
        // Sockets that were handed in do not share a UMEM.
        let umems = match link {
            Some(_) => config.xsks.len().max(1),
            None => 0,
        };
        let placement = config.ifname.as_deref().and_then(Placement::of);
        let (region, charge) = {
            let _near = placement.as_ref().and_then(Placement::prefer);
            make_region(config, layout, umems, &limits)?
        };
        if let Some(placement) = &placement {
            targets
                .iter()
                .for_each(|target| placement.look_at(&target.device.path));
        }
        let devices = config
            .devices()
            .zip(&targets)
            .map(|(config, target)| DeviceInfo {
                path: target.device.path.clone(),
                name: CString::new(target.device.path.as_str()).unwrap_or_default(),
                spill: config.spill.clone(),
                kind: target.device.kind,
                limits: target.device.limits,
                writable: target.device.writable,
                forced: config.force,
            });
        let mut info = Info {
            devices: devices.collect(),
            frame_size: config.frame_size,
            frame_count,
            headroom: config.headroom,
            layout,
            region_address: region.mapping.address(),
            huge_pages: region.mapping.is_huge(),
            drive: config.drive,
            cpus: config.cpus.clone(),
            registered_buffers: false,
            network: None,
        };
        let buffers = Buffers::new(config.buffers_max);
        let engine = |lane| {
            let config = EngineConfig {
                lane,
                depth: config.depth(),
                bounce: config.bounce,
                raw: false,
                threaded: config.drive == Drive::Thread,
                backlog: 0,
                registered: true,
                retry: config.retry,
            };
            let buffers = Some(buffers.table().clone());
            Engine::with_buffers(targets.clone(), &region, config, buffers)
        };
        let engines: Vec<Engine> = (0..lanes).map(engine).collect::<Result<_>>()?;
        info.registered_buffers = engines.iter().all(Engine::registered);
        let sides = RxParts::of_lanes(lanes, frame_count)?;
        let (mut receivers, mut interface) = (Vec::new(), None);
        if let Some(link) = link {
            let network = open_network(config, link, map, &region, &sides)?;
            receivers = network.receivers;
            interface = Some(Arc::new(network.interface));
            info.network = Some(network.info);
        }
        let mut receivers = receivers.into_iter();
        let mut lanes = Vec::new();
        for ((number, engine), rings) in (0..).zip(engines).zip(&region.rings) {
            lanes.push(Lane::new(LaneParts {
                process,
                number,
                peers: sides.peers.clone(),
                interface: interface.clone(),
                receiver: receivers.next(),
                shared: engine.shared().clone(),
                driver: match config.drive {
                    Drive::Inline => Driver::inline(engine),
                    Drive::Thread => {
                        let name = thread_name(number, layout.lanes);
                        Driver::thread(&name, engine, |thread| {
                            config.cpus.bind(number, thread, &name)
                        })?
                    }
                },
                frames: sides.frames[number as usize].clone(),
                map,
                data: region.data.clone(),
                buffers: buffers.table().clone(),
                devices: limits.clone(),
                rx_stats: sides.stats[number as usize].clone(),
                sq: Producer::new(rings.sq.clone(), "SQ"),
                cq: Consumer::new(rings.cq.clone(), "CQ"),
            }));
        }
        made.into_iter().for_each(MadeFile::keep);
        Ok(Context {
            info,
            process,
            interfaces: interface.into_iter().collect(),
            lanes,
            turns: Turns::default(),
            unpublished: AtomicU64::new(0),
            apart: AtomicBool::new(false),
            ranges: Mutex::new(Vec::new()),
            poll: Mutex::new(None),
            leaving: AtomicBool::new(false),
            ended: false,
            buffers,
            region,
            _charge: charge,
        })
    }
}

/// The name of a lane's engine thread, at most 15 bytes.
fn thread_name(lane: u32, lanes: u32) -> String {
    match lanes {
        1 => "unified-engine".into(),
        _ => format!("unified-eng-{lane}"),
    }
}

/// What lanes have for receiving, and share.
struct RxParts {
    frames: Vec<Arc<Frames>>,
    stats: Vec<Arc<RxStats>>,
    peers: Arc<[Peer]>,
}

impl RxParts {
    fn of_lanes(lanes: u32, frame_count: u32) -> Result<RxParts> {
        let frames = Frames::of_lanes(frame_count, lanes);
        Ok(RxParts {
            frames: frames.into_iter().map(Arc::new).collect(),
            stats: (0..lanes).map(|_| Arc::default()).collect(),
            peers: (0..lanes).map(|_| Peer::new()).collect::<Result<_>>()?,
        })
    }
}

/// Opens the devices and their spills. The files that were made are removed again unless they are kept.
fn open_targets(config: &Config) -> Result<(Vec<OpenTarget>, Vec<MadeFile>)> {
    let devices: Vec<_> = config.devices().cloned().collect();
    if devices.len() > 1 {
        check_different(&devices)?;
    }
    let mut targets = Vec::new();
    let mut made = Vec::new();
    for config in &devices {
        let mut device = Device::open(config)?;
        made.extend(device.made.take());
        let mut spill = None;
        if let Some(path) = &config.spill {
            let mut opened = Spill::open(path, &device, config.force)?;
            made.extend(opened.made.take());
            spill = Some(opened);
        }
        targets.push(OpenTarget::new(device, spill));
    }
    Ok((targets, made))
}

/// Makes the region, after the limits on memory were checked.
fn make_region(
    config: &Config,
    layout: Layout,
    umems: usize,
    devices: &[Limits],
) -> Result<(Region, Charge)> {
    let depth = config.depth();
    let engines = layout.lanes as usize;
    let budget = Budget::take(
        layout,
        umems,
        locked_bytes(devices, depth) * engines,
        config.huge_pages,
        limits::memlock(),
    )?;
    let memory = layout.memory() + bounce_bytes(devices, depth) * engines;
    check_memory_cgroup(memory, limits::memory_cgroup())?;
    let region = match budget.huge || layout.total < HUGE_PAGE {
        true => Region::create(layout, config.huge_pages && budget.huge)?,
        false => {
            log::log(
                Level::Info,
                format_args!(
                    "the region of {} bytes takes base pages: huge pages count whole, and RLIMIT_MEMLOCK allows less",
                    layout.total
                ),
            );
            Region::in_base_pages(layout)?
        }
    };
    let charge = budget.settle(region.mapping.is_huge());
    region.begin_at(config.first_index);
    Ok((region, charge))
}

struct Network {
    /// Of each lane.
    receivers: Vec<Receiver>,
    interface: Interface,
    info: NetworkInfo,
}

fn open_network(
    config: &Config,
    link: Link,
    map: FrameMap,
    region: &Region,
    sides: &RxParts,
) -> Result<Network> {
    let xdp_config = XdpConfig {
        ports: config.ports.clone(),
        mode: config.xdp_mode,
        run_priority: config.run_priority,
        event_sample: config.event_sample,
        events_bytes: config.events_bytes,
        queues: config.queue + sides.frames.len() as u32,
    };
    // The program first: a native zero-copy bind needs it.
    let mut attached = Attached::attach(link.clone(), &xdp_config, config.xsk_map)?;
    let umem = UmemSetup {
        frame_size: config.frame_size,
        headroom: config.headroom,
        fill_size: config.fill_ring,
        socket: None,
    };
    let queues = (config.queue..).take(sides.frames.len());
    let setup = QueueSetup {
        ifname: link.name,
        queue: config.queue,
        rx_size: config.rx_ring,
        zero_copy: None,
        skb_mode: attached.mode() == Some(Mode::Skb),
    };
    let sockets = socket::open(
        &umem,
        &setup,
        queues.clone(),
        &config.xsks,
        config.zero_copy,
        &region.data,
    )?;
    let backlog = config.rx_ring.min(config.fill_ring).min(map.count());
    let mut zero_copy = true;
    let mut receivers = Vec::new();
    for (lane, socket) in sockets.into_iter().enumerate() {
        let frames = &sides.frames[lane];
        let receiver = Receiver::new(
            socket,
            map,
            frames.clone(),
            region.data.clone(),
            KERNEL_HEADROOM + config.headroom,
            (config.fill_ring, backlog),
            (
                sides.stats[lane].clone(),
                sides.peers[lane].outcomes.clone(),
            ),
        );
        zero_copy &= receiver
            .is_zero_copy()
            .map_err(|e| Error::os(&e, "asking the AF_XDP socket for its mode"))?;
        receivers.push(receiver);
    }
    // Frames are in the fill rings before the first packet can come.
    for (queue, receiver) in queues.zip(&receivers) {
        attached.insert_socket(queue, receiver.fd())?;
    }
    let interface = attached.watched()?;
    let found = interface.info;
    let info = NetworkInfo {
        ifindex: found.ifindex,
        queue: config.queue,
        rx_queues: found.rx_queues,
        native: found.native,
        dispatcher: found.dispatcher,
        zero_copy,
        program_id: found.program_id,
        backlog,
        // Somebody else's program may leave more before a packet than ours does, and another lane other bytes in a frame.
        writes_are_delivered: !zero_copy
            && sides.frames.len() == 1
            && config.rx_ring >= config.fill_ring
            && config.xsk_map.is_none(),
    };
    Ok(Network {
        receivers,
        interface,
        info,
    })
}

/// Whoever lacks one privilege mostly lacks others: the first error names all of them.
fn name_what_else_is_missing(config: &Config, error: Error) -> Error {
    if !matches!(error.errno(), libc::EPERM | libc::EACCES | libc::ENOMEM) {
        return error;
    }
    let mut needed = Vec::new();
    if config.ifname.is_some() && config.xsk_map.is_none() {
        needed.push(limits::NET_ADMIN);
        if !limits::has(limits::SYS_ADMIN) {
            needed.extend([limits::BPF, limits::PERFMON]);
        }
    }
    if config.ifname.is_some() && config.xsks.is_empty() {
        needed.push(limits::NET_RAW);
    }
    let mut more = limits::missing(&needed);
    more.retain(|name| !error.message().contains(name));
    match more.is_empty() {
        true => error,
        false => error.hint(format_args!(
            "this process also lacks {} (run as root, or grant these)",
            more.join(", ")
        )),
    }
}
