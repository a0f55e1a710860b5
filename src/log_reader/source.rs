//! The device or file that a log is read from. Bypasses the page cache if the device or file allows it.

#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::record::mark_unreadable;

/// Memory alignment that every device accepts.
const ALIGN: usize = 4096;
/// If a slot is still empty after this time although later ones are written, its write has failed.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// Scan past the current read for a record after a hole only this often; otherwise followers keep rereading an idle
/// log.
pub(super) const SCAN: Duration = Duration::from_millis(250);
/// Bytes at the start of the range in which the copies of a superblock are: the longest slots are 64 KiB.
const HEAD: usize = 2 * 65536;

/// Threads that look at the headers of segments, and places for which one more is worth it.
const MOST_THREADS: u64 = 16;
const PLACES_PER_THREAD: u64 = 256;

#[derive(Debug)]
pub(super) struct Source {
    file: File,
    path: PathBuf,
    /// Opened with O_DIRECT.
    direct: bool,
    pub name: String,
    /// Byte of the device at which the range begins.
    pub start: u64,
    buffer: Vec<u8>,
    aligned: usize,
}

impl Source {
    /// Bytes per read, at most.
    pub const BATCH: usize = 256 << 10;

    /// `ENOENT`, `EACCES` (the path), `EINVAL` (`start` is not a multiple of 512).
    pub fn open(path: &Path, start: u64) -> Result<Source> {
        let name = path.display().to_string();
        if !start.is_multiple_of(512) {
            return Err(Error::new(
                libc::EINVAL,
                format!(
                    "a log in '{name}' cannot begin at byte {start}, which is not a multiple of 512"
                ),
            ));
        }
        let path = block_node(path);
        let mut direct = OpenOptions::new();
        direct.read(true).custom_flags(libc::O_DIRECT);
        let (file, direct) = match direct.open(&path) {
            Ok(file) => (file, true),
            Err(_) => (
                File::open(&path)
                    .map_err(|e| Error::os(&e, format_args!("opening '{name}' to read a log")))?,
                false,
            ),
        };
        let buffer = vec![0; Source::BATCH + ALIGN];
        Ok(Source {
            file,
            path,
            direct,
            name,
            start,
            aligned: buffer.as_ptr().align_offset(ALIGN),
            buffer,
        })
    }

    pub fn open_spill(&self, path: &Path) -> Result<File> {
        File::open(path).map_err(|e| {
            Error::os(
                &e,
                format_args!("opening '{}', the spill of '{}'", path.display(), self.name),
            )
        })
    }

    /// What was read last.
    pub fn bytes(&self, at: usize, len: usize) -> &[u8] {
        &self.buffer[self.aligned + at..self.aligned + at + len]
    }

    pub fn bytes_mut(&mut self, len: usize) -> &mut [u8] {
        &mut self.buffer[self.aligned..self.aligned + len]
    }

    /// Reads the start of the range. Returns how many bytes there are.
    pub fn read_head(&mut self) -> Result<usize> {
        self.read(self.start, HEAD, 512)
    }

    /// Where the copies of a superblock can be, and the bytes from there on. The second copy is one slot after the first.
    /// The first copy says how long a slot is; if it cannot be read, the second copy itself does, wherever it is found.
    pub fn copies(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
        std::iter::once(0)
            .chain((9..=16).map(|shift| 1usize << shift))
            .filter_map(|at| Some((at, bytes.get(at..)?)))
    }

    /// Reads to the start of the buffer; fewer bytes at the end of the file. A piece that cannot be read is marked, and
    /// costs no other.
    pub fn read(&mut self, at: u64, len: usize, piece: usize) -> Result<usize> {
        match self.pread(at, len) {
            Ok(got) => Ok(got),
            Err(error) => self.read_piece_by_piece(at, len, piece, error),
        }
    }

    /// Bytes of the device or file.
    pub fn size(&self) -> Result<u64> {
        let mut file = &self.file;
        file.seek(SeekFrom::End(0))
            .map_err(|e| Error::os(&e, format_args!("asking for the length of '{}'", self.name)))
    }

    /// Reads `len` bytes, a multiple of 512, at each of many places, by several threads if there are many, and returns what `look`
    /// makes of them. It gets nothing if they cannot be read.
    pub fn read_many<T: Send>(
        &self,
        places: u64,
        len: usize,
        offset: impl Fn(u64) -> u64 + Sync,
        look: impl Fn(u64, &mut [u8]) -> Result<Option<T>> + Sync,
    ) -> Result<Vec<T>> {
        let threads = (places / PLACES_PER_THREAD).clamp(1, MOST_THREADS);
        let each = places.div_ceil(threads);
        let part = |number: u64| -> Result<Vec<T>> {
            let mut buffer = vec![0; len + ALIGN];
            let aligned = buffer.as_ptr().align_offset(ALIGN);
            let buffer = &mut buffer[aligned..aligned + len];
            let mut buffered = None;
            let mut found = Vec::new();
            for place in number * each..places.min((number + 1) * each) {
                let mut got = self.file.read_exact_at(buffer, offset(place));
                if got.is_err() && self.direct {
                    // The file's end, or a disk with larger blocks than the log has.
                    if buffered.is_none() {
                        buffered = File::open(&self.path).ok();
                    }
                    if let Some(file) = &buffered {
                        got = file.read_exact_at(buffer, offset(place));
                    }
                }
                let bytes = if got.is_ok() { &mut *buffer } else { &mut [] };
                found.extend(look(place, bytes)?);
            }
            Ok(found)
        };
        if threads == 1 {
            return part(0);
        }
        let parts: Vec<Result<Vec<T>>> = std::thread::scope(|scope| {
            let part = &part;
            let running: Vec<_> = (0..threads)
                .map(|number| scope.spawn(move || part(number)))
                .collect();
            let lost = || Error::new(libc::EIO, "a thread that read segments failed");
            let ended = running.into_iter().map(|thread| thread.join());
            ended
                .map(|part| part.unwrap_or_else(|_| Err(lost())))
                .collect()
        });
        let mut found = Vec::new();
        for part in parts {
            found.extend(part?);
        }
        Ok(found)
    }

    pub fn cut_off(&self) -> Error {
        Error::new(
            libc::EIO,
            format!("'{}' ends before its log does", self.name),
        )
    }

    pub fn begun_anew(&self) -> Error {
        Error::new(
            libc::ENOMSG,
            format!(
                "a new log was begun at byte {} of '{}' while the old one was read: open it again",
                self.start, self.name
            ),
        )
    }

    fn pread(&mut self, at: u64, len: usize) -> Result<usize> {
        let len = len.min(Source::BATCH);
        let mut done = 0;
        while done < len {
            let room = &mut self.buffer[self.aligned + done..self.aligned + len];
            match self.file.read_at(room, at + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // A direct read past the end of the file may fail instead of being short.
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) && done > 0 => break,
                // The log was copied to a disk with larger blocks than its own.
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) && self.direct => {
                    self.file = File::open(&self.path)
                        .map_err(|e| Error::os(&e, format_args!("opening '{}' anew", self.name)))?;
                    self.direct = false;
                }
                Err(e) => {
                    return Err(Error::os(
                        &e,
                        format_args!("reading '{}' at byte {}", self.name, at + done as u64),
                    ));
                }
            }
        }
        Ok(done)
    }

    /// After a read of the whole buffer gave `error`: reads it in pieces and marks those that cannot be read. Returns
    /// the error if not even the range's first blocks can be read: then the device has failed, not a single spot.
    fn read_piece_by_piece(
        &mut self,
        offset: u64,
        len: usize,
        piece: usize,
        error: Error,
    ) -> Result<usize> {
        let len = len.min(Source::BATCH);
        let mut readable = false;
        for done in (0..len).step_by(piece) {
            let at = self.aligned + done;
            let slot = &mut self.buffer[at..at + piece];
            match self.file.read_exact_at(slot, offset + done as u64) {
                Ok(()) => readable = true,
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(done),
                Err(_) => mark_unreadable(slot),
            }
        }
        let first = &mut self.buffer[self.aligned..self.aligned + piece];
        if !readable && self.file.read_exact_at(first, self.start).is_err() {
            return Err(error);
        }
        if !readable {
            mark_unreadable(first);
        }
        Ok(len)
    }
}

/// The character node of passthrough cannot be read as a file. The block node of the same namespace can.
fn block_node(path: &Path) -> PathBuf {
    let name = path.to_str().unwrap_or_default();
    match name.strip_prefix("/dev/ng") {
        Some(rest) => format!("/dev/nvme{rest}").into(),
        None => path.to_path_buf(),
    }
}
