//! The program with a socket, run on one packet at a time (BPF_PROG_TEST_RUN).

use super::*;

pub const XDP_PASS: u32 = 2;
pub const XDP_REDIRECT: u32 = 4;

// ---- The program, with a socket behind it ----

pub struct Rig {
    pub xdp: Xdp,
    // Both only have to live as long as the program's map may name them.
    pub _socket: BoundQueue,
    pub veth: Veth,
    pub counted: XdpCounters,
}

/// What one packet caused.
#[derive(Debug)]
pub struct Outcome {
    pub verdict: u32,
    pub counted: XdpCounters,
    /// Between the start of the run and its end, in ns.
    pub between: (u64, u64),
    pub meta: Option<Meta>,
    pub events: Vec<Event>,
}

pub fn config() -> XdpConfig {
    XdpConfig {
        ports: vec![PORT],
        mode: XdpMode::Auto,
        run_priority: 50,
        event_sample: 1,
        events_bytes: 4096,
        queues: 1,
    }
}

pub const NATIVE: Program = Program {
    metadata: true,
    merged: false,
};

impl Rig {
    pub fn without_socket(config: &XdpConfig, program: Program) -> Rig {
        let veth = Veth::new();
        let umem = UmemSetup {
            frame_size: 2048,
            headroom: 0,
            fill_size: 64,
            socket: None,
        };
        let queue = QueueSetup {
            ifname: veth.host.clone(),
            queue: 0,
            rx_size: 64,
            zero_copy: Some(false),
            skb_mode: true,
        };
        let len = 64 * 2048;
        let memory = Arc::new(Mapping::anonymous(len, false).unwrap());
        Rig {
            xdp: Xdp::load_as(config, program).unwrap(),
            _socket: Umem::new(&umem, Shared::new(memory, 0, len).unwrap())
                .and_then(|umem| umem.bind(&queue))
                .unwrap(),
            veth,
            counted: XdpCounters::default(),
        }
    }

    pub fn new(config: &XdpConfig) -> Rig {
        Rig::running(config, NATIVE)
    }

    pub fn running(config: &XdpConfig, program: Program) -> Rig {
        let mut rig = Rig::without_socket(config, program);
        rig.insert_socket();
        rig
    }

    pub fn insert_socket(&mut self) {
        self.xdp
            .insert_socket(0, self._socket.socket.as_raw_fd())
            .unwrap();
    }

    pub fn run(&mut self, packet: &[u8]) -> Outcome {
        self.run_from(packet, None)
    }

    /// Also checks what holds for every packet: one verdict, counted once, and the packet unchanged.
    pub fn run_from(&mut self, packet: &[u8], ingress: Option<Ingress>) -> Outcome {
        let mut out = Vec::new();
        let start = monotonic_ns();
        let verdict = self.xdp.run(packet, ingress, &mut out).unwrap();
        let between = (start, monotonic_ns());
        let meta = match verdict {
            XDP_PASS => {
                assert_eq!(out, packet, "a passed packet is left as it was");
                None
            }
            XDP_REDIRECT => {
                assert_eq!(&out[META_LEN..], packet, "behind its record");
                let meta = Meta::parse(out[..META_LEN].try_into().unwrap());
                assert!(meta.is_some(), "no markers in {:x?}", &out[..META_LEN]);
                meta
            }
            other => panic!("verdict {other} for {packet:x?}"),
        };
        let now = self.xdp.counters().unwrap();
        let counted = difference(&now, &self.counted);
        self.counted = now;
        assert_eq!(now.seen, now.passed + now.redirected, "{now:?}");
        assert_eq!(
            (counted.seen, counted.passed, counted.redirected),
            (
                1,
                u64::from(verdict == XDP_PASS),
                u64::from(verdict == XDP_REDIRECT)
            ),
        );
        let mut events = Vec::new();
        let drained = self
            .xdp
            .drain_events(usize::MAX >> 1, |event| events.push(*event))
            .unwrap();
        assert_eq!(drained, events.len());
        Outcome {
            verdict,
            counted,
            between,
            meta,
            events,
        }
    }

    /// Runs a packet through a program that logs every event, and compares everything with `want`.
    pub fn check(&mut self, packet: &[u8], want: &Want, context: &str) {
        let got = self.run(packet);
        let mut counted = XdpCounters {
            seen: 1,
            passed: 1,
            ..XdpCounters::default()
        };
        match want {
            Want::NotOurs => {}
            Want::Fragment => counted.fragments = 1,
            Want::Malformed => counted.malformed = 1,
            Want::Ours(_) => {
                counted = XdpCounters {
                    seen: 1,
                    redirected: 1,
                    matched: 1,
                    events: 1,
                    ..XdpCounters::default()
                }
            }
        }
        assert_eq!(got.counted, counted, "{context}: {packet:x?}");
        let Want::Ours(flow) = want else {
            assert_eq!(got.verdict, XDP_PASS, "{context}");
            assert_eq!(got.events, [], "{context}");
            return;
        };
        assert_eq!(got.verdict, XDP_REDIRECT, "{context}");
        let timestamp = got.meta.unwrap().timestamp;
        assert!(
            (got.between.0..=got.between.1).contains(&timestamp),
            "{context}: {timestamp} is not in {:?}",
            got.between
        );
        let meta = Meta {
            timestamp,
            payload_offset: flow.payload_offset as u16,
            payload_len: flow.payload_len as u16,
            vlan_tci: flow.vlan_tci,
            l3_offset: flow.l3_offset as u8,
            ip_version: flow.ip_version,
        };
        assert_eq!(got.meta, Some(meta), "{context}");
        let event = Event {
            timestamp,
            src_addr: flow.src_addr,
            dst_addr: flow.dst_addr,
            src_port: flow.src_port,
            dst_port: flow.dst_port,
            payload_len: flow.payload_len as u16,
            vlan_tci: flow.vlan_tci,
            queue: 0,
            ip_version: flow.ip_version,
        };
        assert_eq!(got.events, [event], "{context}");
    }
}

pub fn difference(now: &XdpCounters, before: &XdpCounters) -> XdpCounters {
    XdpCounters {
        seen: now.seen - before.seen,
        passed: now.passed - before.passed,
        redirected: now.redirected - before.redirected,
        matched: now.matched - before.matched,
        no_socket: now.no_socket - before.no_socket,
        malformed: now.malformed - before.malformed,
        fragments: now.fragments - before.fragments,
        events: now.events - before.events,
        events_lost: now.events_lost - before.events_lost,
        no_metadata: now.no_metadata - before.no_metadata,
        merged: now.merged - before.merged,
    }
}
