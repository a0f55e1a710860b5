//! Faults of the network, made for real: interfaces that go down, disappear and move away, XDP programs that
//! somebody else takes off or replaces, packets of every bad kind. Nothing hangs, nothing is lost unsaid, and
//! what can go on goes on by itself.
#![forbid(unsafe_code)]

#[path = "../common/mod.rs"]
mod common;

mod link;
mod traffic;

use std::fs;
use std::process::Command;
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use common::part::{Part, say, told};
use common::recording;
use common::recording::{Stream, check_stored, config, settle, statistics, until, within_a_second};
use common::{Scratch, SmallDisk, Veth, check_sums, ip, is_full_tier, is_root, payload};
use unified::config::{Config, Drive};
use unified::context::Context;
use unified::lane::Ready;
use unified::log::{self, Level};
use unified::net::rx::Received;
use unified::pipeline::{Pipeline, PipelineConfig};
use unified::stats::Statistics;
use unified::sys::bpf;
