//! The region: one mapping that holds the rings, their entries and the data buffers.
//!
//! ```text
//!     0    SQ ring       40 bytes, a cache line of its own
//!    64    CQ ring       40 bytes
//!   128    SQ entries    96 bytes each
//!          CQ entries    32 bytes each
//!  page    data buffers  AF_XDP UMEM and io_uring registered buffer at once
//!  page    the rings of lane 1, as those of lane 0 at the start; then those of lane 2, and so on, each from a page on
//! ```

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::{Error, Result};
use crate::log::{self, Level};
use crate::sys::abi::{UnifiedCqe, UnifiedSqe};
use crate::sys::mmap::{HUGE_PAGE, Mapping, PAGE};
use crate::sys::shm::{Shared, SharedRing};

/// Most entries of a ring.
pub const MAX_ENTRIES: u32 = 32768;
const SQ_RING: usize = 0;
const CQ_RING: usize = 64;
const SQ_ENTRIES: usize = 128;

/// Where the parts are, in bytes from the region's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    pub lanes: u32,
    /// Entries of each lane's rings.
    pub sq_count: u32,
    pub cq_count: u32,
    /// A multiple of the page.
    pub buffers: usize,
    pub buffers_len: usize,
    pub total: usize,
}

/// Where the rings of a lane are, in bytes from the region's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingPlaces {
    pub sq_ring: usize,
    pub cq_ring: usize,
    pub sq_entries: usize,
    pub cq_entries: usize,
}

impl Layout {
    /// Of one lane. Counts are powers of two up to `MAX_ENTRIES`. `EINVAL` if they are not, or if the sum overflows.
    pub fn new(sq_count: u32, cq_count: u32, buffers_len: usize) -> Result<Layout> {
        Layout::with_lanes(1, sq_count, cq_count, buffers_len)
    }

    /// As `new`, with rings for so many lanes.
    pub fn with_lanes(
        lanes: u32,
        sq_count: u32,
        cq_count: u32,
        buffers_len: usize,
    ) -> Result<Layout> {
        for (name, count) in [("SQ", sq_count), ("CQ", cq_count)] {
            if !count.is_power_of_two() || count > MAX_ENTRIES {
                return Err(Error::new(
                    libc::EINVAL,
                    format!("{count} {name} entries: a power of two up to {MAX_ENTRIES} is needed"),
                ));
            }
        }
        let buffers = rings_len(sq_count, cq_count);
        let further = (lanes.max(1) - 1) as usize * buffers;
        let page = if further > 0 { PAGE } else { 1 };
        let total = buffers
            .checked_add(buffers_len)
            .and_then(|end| end.checked_next_multiple_of(page)?.checked_add(further))
            .filter(|total| buffers_len > 0 && *total <= isize::MAX as usize - HUGE_PAGE)
            .ok_or_else(|| {
                Error::new(
                    libc::EINVAL,
                    format!("data buffers of {buffers_len} bytes are not possible"),
                )
            })?;
        Ok(Layout {
            lanes: lanes.max(1),
            sq_count,
            cq_count,
            buffers,
            buffers_len,
            total,
        })
    }

    /// The rings of a lane. It must exist.
    pub fn rings(&self, lane: u32) -> RingPlaces {
        let start = match lane {
            0 => 0,
            lane => {
                let buffers_end = (self.buffers + self.buffers_len).next_multiple_of(PAGE);
                buffers_end + (lane as usize - 1) * rings_len(self.sq_count, self.cq_count)
            }
        };
        let sq_entries = start + SQ_ENTRIES;
        RingPlaces {
            sq_ring: start + SQ_RING,
            cq_ring: start + CQ_RING,
            sq_entries,
            cq_entries: sq_entries + self.sq_count as usize * size_of::<UnifiedSqe>(),
        }
    }

    /// The most memory that a region takes: in huge pages, if it fills one.
    pub fn memory(&self) -> usize {
        if self.total < HUGE_PAGE {
            self.total
        } else {
            self.total.next_multiple_of(HUGE_PAGE)
        }
    }
}

/// Bytes that the rings of a lane take: whole pages.
fn rings_len(sq_count: u32, cq_count: u32) -> usize {
    let entries =
        sq_count as usize * size_of::<UnifiedSqe>() + cq_count as usize * size_of::<UnifiedCqe>();
    (SQ_ENTRIES + entries).next_multiple_of(PAGE)
}

/// The rings of a lane.
#[derive(Debug, Clone)]
pub struct LaneRings {
    pub sq: SharedRing<UnifiedSqe>,
    pub cq: SharedRing<UnifiedCqe>,
}

/// The mapping with its parts.
#[derive(Debug, Clone)]
pub struct Region {
    pub mapping: Arc<Mapping>,
    pub layout: Layout,
    /// Of each lane.
    pub rings: Box<[LaneRings]>,
    pub data: Shared,
}

impl Region {
    /// Maps, prefaults and lays out a region, in transparent huge pages if it fills one and the system has enough of
    /// them. With `reserved`, in reserved ones (hugetlbfs) if there are enough. `mapping.is_huge()` says which pages
    /// it got. `ENOMEM`.
    pub fn create(layout: Layout, reserved: bool) -> Result<Region> {
        let from_reserved = || match Mapping::anonymous(layout.total, true) {
            Ok(mapping) => Some(mapping),
            Err(e) => {
                log::log(
                    Level::Warn,
                    format_args!(
                        "no reserved huge pages for a region of {} bytes ({e}): taking others; reserve {} with vm.nr_hugepages",
                        layout.total,
                        layout.total.div_ceil(HUGE_PAGE)
                    ),
                );
                None
            }
        };
        let transparent = || {
            let fills_one = layout.total >= HUGE_PAGE;
            fills_one.then(|| Mapping::transparent(layout.total).ok())?
        };
        let huge = reserved.then(from_reserved).flatten();
        match huge.or_else(transparent) {
            Some(mapping) => Region::over(Arc::new(mapping), layout),
            None => Region::in_base_pages(layout),
        }
    }

    /// The same in base pages, even if the system has huge ones.
    pub fn in_base_pages(layout: Layout) -> Result<Region> {
        let mapping = Mapping::anonymous(layout.total, false).map_err(|e| {
            Error::os(
                &e,
                format_args!("mapping a region of {} bytes", layout.total),
            )
        })?;
        Region::over(Arc::new(mapping), layout)
    }

    /// Lays a region out in a mapping. `EINVAL` if it does not fit.
    pub fn over(mapping: Arc<Mapping>, layout: Layout) -> Result<Region> {
        let rings_of = |lane| {
            let at = layout.rings(lane);
            Some(LaneRings {
                sq: SharedRing::new(&mapping, at.sq_ring, at.sq_entries, layout.sq_count)?,
                cq: SharedRing::new(&mapping, at.cq_ring, at.cq_entries, layout.cq_count)?,
            })
        };
        let parts = || {
            let rings = (0..layout.lanes).map(rings_of).collect::<Option<_>>()?;
            let data = Shared::new(mapping.clone(), layout.buffers, layout.buffers_len)?;
            Some((rings, data))
        };
        let (rings, data): (Box<[LaneRings]>, _) = parts().ok_or_else(|| {
            Error::new(
                libc::EINVAL,
                format!(
                    "a region of {} bytes does not fit into {}",
                    layout.total,
                    mapping.len()
                ),
            )
        })?;
        for LaneRings { sq, cq } in &rings {
            sq.initialize();
            cq.initialize();
        }
        Ok(Region {
            mapping,
            layout,
            rings,
            data,
        })
    }

    /// Sets the first value of the rings' free running indices. Before anybody reads them.
    pub fn begin_at(&self, index: u32) {
        for LaneRings { sq, cq } in &self.rings {
            for word in [sq.producer(), sq.consumer(), cq.producer(), cq.consumer()] {
                word.store(index, Ordering::Relaxed);
            }
        }
    }
}

/// Checks the control groups' memory limit: the kernel does not refuse memory above it, it kills the process.
/// `ENOMEM`.
pub fn check_memory_cgroup(needed: usize, limit: Option<(u64, String)>) -> Result<()> {
    match limit {
        Some((limit, file)) if needed as u64 > limit => Err(Error::new(
            libc::ENOMEM,
            format!(
                "memory: {needed} bytes are needed for the region and the bounce pool, and {file} allows this \
                 process {limit} in all; raise it, or take fewer frames"
            ),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_layout() {
        let layout = Layout::new(256, 256, 4096 * 2048).unwrap();
        let at = layout.rings(0);
        assert_eq!((at.sq_ring, at.cq_ring), (0, 64));
        assert_eq!((at.sq_entries, at.cq_entries), (128, 128 + 256 * 96));
        assert_eq!(layout.buffers, 36864);
        assert_eq!(layout.total, 36864 + 4096 * 2048);
    }

    #[test]
    fn huge_pages_are_taken_where_a_region_fills_one() {
        let small = Layout::new(64, 64, HUGE_PAGE / 2).unwrap();
        assert_eq!(small.memory(), small.total);
        assert!(!Region::create(small, false).unwrap().mapping.is_huge());
        let large = Layout::new(64, 64, HUGE_PAGE).unwrap();
        assert_eq!(large.memory(), 2 * HUGE_PAGE);
        let mapping = Region::create(large, false).unwrap().mapping;
        let expected = match mapping.is_huge() {
            true => large.memory(),
            false => large.total,
        };
        assert_eq!(mapping.len(), expected);
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        for (sq, cq, len) in [
            (0, 1, 1),
            (3, 4, 1),
            (65536, 4, 1),
            (4, 5, 1),
            (4, 4, 0),
            (4, 4, usize::MAX),
        ] {
            assert_eq!(
                Layout::new(sq, cq, len).unwrap_err().errno(),
                libc::EINVAL,
                "{sq} {cq} {len}"
            );
        }
    }

    #[test]
    fn the_rings_of_further_lanes_lie_after_the_data_buffers() {
        let one = Layout::new(64, 128, 100 * 2048).unwrap();
        let three = Layout::with_lanes(3, 64, 128, 100 * 2048).unwrap();
        assert_eq!(one.rings(0), three.rings(0));
        assert_eq!(one.buffers, three.buffers);
        let end = (three.buffers + 100 * 2048).next_multiple_of(PAGE);
        assert_eq!(three.rings(1).sq_ring, end);
        assert_eq!(three.rings(2).sq_ring, end + one.buffers);
        assert_eq!(three.total, end + 2 * one.buffers);
        let region = Region::create(three, false).unwrap();
        for (lane, rings) in region.rings.iter().enumerate() {
            for entry in 0..64 {
                let user_data = lane as u64 * 1000 + u64::from(entry);
                rings.sq.write(
                    entry,
                    UnifiedSqe {
                        user_data,
                        ..UnifiedSqe::default()
                    },
                );
            }
            rings.cq.producer().store(lane as u32, Ordering::Relaxed);
        }
        region.data.write(0, &vec![0xff; 100 * 2048]);
        for (lane, rings) in region.rings.iter().enumerate() {
            for entry in 0..64 {
                let expected = lane as u64 * 1000 + u64::from(entry);
                assert_eq!(rings.sq.read(entry).user_data, expected);
            }
            assert_eq!(rings.cq.producer().load(Ordering::Relaxed), lane as u32);
            assert_eq!(rings.sq.producer().load(Ordering::Relaxed), 0);
        }
        for lanes in [2, u32::MAX] {
            let error = Layout::with_lanes(lanes, 64, 64, isize::MAX as usize - 4096);
            assert_eq!(error.unwrap_err().errno(), libc::EINVAL);
        }
    }

    #[test]
    fn the_parts_do_not_overlap_and_the_buffers_are_page_aligned() {
        let layout = Layout::new(512, 1024, 1 << 20).unwrap();
        let region = Region::create(layout, false).unwrap();
        assert!(region.data.address().is_multiple_of(PAGE));
        let LaneRings { sq, cq } = &region.rings[0];
        sq.write(
            511,
            UnifiedSqe {
                user_data: u64::MAX,
                ..UnifiedSqe::default()
            },
        );
        cq.write(
            0,
            UnifiedCqe {
                user_data: 7,
                ..UnifiedCqe::default()
            },
        );
        region.data.write(0, &[0xff; 64]);
        assert_eq!(sq.read(511).user_data, u64::MAX);
        assert_eq!(cq.read(0).user_data, 7);
    }

    #[test]
    fn a_control_groups_limit_is_named_with_its_file() {
        assert!(check_memory_cgroup(100, None).is_ok());
        let limit = |limit| Some((limit, "/sys/fs/cgroup/x/memory.max".to_string()));
        assert!(check_memory_cgroup(100, limit(100)).is_ok());
        let error = check_memory_cgroup(101, limit(100)).unwrap_err();
        assert_eq!(error.errno(), libc::ENOMEM);
        assert!(error.message().contains("x/memory.max"), "{error}");
    }
}
