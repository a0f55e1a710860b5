//! Where the library puts the blocks of a recording over several devices: the formula of docs/devices.md, computed here
//! once more and not taken from the library, so that a fault there is found here.

use std::fs::OpenOptions;
use std::io::{Error, ErrorKind, Read, Result, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

/// Most devices of a context.
const MOST: usize = 16;

/// One device, or several with commas between them, unless that is a name itself.
pub fn names(text: &Path) -> Vec<PathBuf> {
    match text.to_str() {
        Some(list) if list.contains(',') && !text.exists() => {
            list.split(',').map(PathBuf::from).collect()
        }
        _ => vec![text.into()],
    }
}

/// One or more devices, read as the blocks that the library spread over them.
pub struct Stripe<R> {
    devices: Vec<R>,
    /// Whole chunks of each device.
    rows: Vec<u64>,
    /// Bytes of a chunk; 0: there is one device, and its blocks are those of the recording.
    chunk: u64,
    /// Where the next byte is: on which device, and at which of its bytes; `None` after the last chunk.
    place: Option<(usize, u64)>,
}

fn invalid(text: String) -> Error {
    Error::new(ErrorKind::InvalidInput, text)
}

impl<R: Read + Seek> Stripe<R> {
    /// `lengths`: bytes of each device. `block`: bytes in a block of the recording, the largest of the devices'.
    pub fn new(devices: Vec<R>, lengths: &[u64], chunk: u64, block: u64) -> Result<Stripe<R>> {
        if devices.is_empty() || devices.len() > MOST {
            return Err(invalid(format!(
                "{} devices: 1 to {MOST} are possible",
                devices.len()
            )));
        }
        if !chunk.is_power_of_two() || !(block..=1 << 30).contains(&chunk) {
            return Err(invalid(format!(
                "--chunk {chunk}: it is no power of two from {block} (a block) to {}",
                1 << 30
            )));
        }
        let rows: Vec<u64> = lengths.iter().map(|length| length / chunk).collect();
        if devices.len() == 1 {
            return Ok(Stripe {
                devices,
                rows,
                chunk: 0,
                place: Some((0, 0)),
            });
        }
        if rows.iter().all(|rows| *rows == 0) {
            return Err(invalid(format!(
                "no device has room for a chunk of {chunk} bytes: --chunk must be that of the recorder"
            )));
        }
        Ok(Stripe {
            devices,
            rows,
            chunk,
            place: None,
        })
    }

    /// Device and row of a chunk: row by row, and in each over the devices that still have room for one.
    fn find(&self, mut chunk: u64) -> Option<(usize, u64)> {
        let mut row = 0;
        loop {
            let open = || {
                self.rows
                    .iter()
                    .enumerate()
                    .filter(|(_, rows)| **rows > row)
            };
            let (width, end) = (open().count() as u64, open().map(|(_, rows)| *rows).min()?);
            if chunk < (end - row) * width {
                let (device, _) = open().nth((chunk % width) as usize)?;
                return Some((device, row + chunk / width));
            }
            chunk -= (end - row) * width;
            row = end;
        }
    }

    /// Goes to a byte of the recording. `false`: the devices have no such byte.
    pub fn seek(&mut self, byte: u64) -> Result<bool> {
        self.place = match self.chunk {
            0 => Some((0, byte)),
            chunk => self
                .find(byte / chunk)
                .map(|(device, row)| (device, row * chunk + byte % chunk)),
        };
        if let Some((device, at)) = self.place {
            self.devices[device].seek(SeekFrom::Start(at))?;
        }
        Ok(self.place.is_some())
    }

    /// Bytes from `byte` to the end of its chunk.
    pub fn left_in_chunk(&self, byte: u64) -> u64 {
        match self.chunk {
            0 => u64::MAX,
            chunk => chunk - byte % chunk,
        }
    }

    /// Reads on where `seek` went to, at most to the end of that chunk: nothing of a recording goes on in the next one.
    pub fn append(&mut self, len: usize, out: &mut Vec<u8>) -> Result<bool> {
        let Some((device, _)) = self.place else {
            return Ok(false);
        };
        let before = out.len();
        let got = (&mut self.devices[device])
            .take(len as u64)
            .read_to_end(out)?;
        if got < len {
            out.truncate(before);
        }
        Ok(got == len)
    }

    pub fn device_of(&self, byte: u64) -> usize {
        match self.chunk {
            0 => 0,
            chunk => self.find(byte / chunk).map_or(0, |(device, _)| device),
        }
    }
}

/// A device that is read past the page cache, which does not see writes by passthrough.
pub struct Direct {
    file: std::fs::File,
    buffer: Vec<u8>,
    /// Start of the aligned part of the buffer, its unread part, and its end.
    base: usize,
    at: usize,
    end: usize,
    /// Offset of the file: after what is in the buffer.
    position: u64,
}

const BUFFER: usize = 1 << 20;
/// What direct reads must be aligned to, wherever.
const ALIGN: u64 = 4096;

impl Direct {
    /// The device, and how many bytes it has.
    pub fn open(path: &Path) -> Result<(Direct, u64)> {
        let name = |e: Error| Error::new(e.kind(), format!("reading '{}': {e}", path.display()));
        let mut direct = OpenOptions::new();
        direct.read(true).custom_flags(OFlag::O_DIRECT.bits());
        let mut file = direct
            .open(path)
            .or_else(|_| std::fs::File::open(path))
            .map_err(name)?;
        let length = file.seek(SeekFrom::End(0)).map_err(name)?;
        file.rewind().map_err(name)?;
        let buffer = vec![0; BUFFER + ALIGN as usize];
        let base = buffer.as_ptr().align_offset(ALIGN as usize);
        let direct = Direct {
            file,
            buffer,
            base,
            at: 0,
            end: 0,
            position: 0,
        };
        Ok((direct, length))
    }
}

impl Read for Direct {
    fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        if self.at == self.end {
            let room = &mut self.buffer[self.base..self.base + BUFFER];
            (self.at, self.end) = (0, self.file.read(room)?);
            self.position += self.end as u64;
        }
        let part = out.len().min(self.end - self.at);
        let from = self.base + self.at;
        out[..part].copy_from_slice(&self.buffer[from..from + part]);
        self.at += part;
        Ok(part)
    }
}

impl Seek for Direct {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        let SeekFrom::Start(byte) = to else {
            return Err(ErrorKind::Unsupported.into());
        };
        let start = self.position - self.end as u64;
        if (start..=self.position).contains(&byte) {
            self.at = (byte - start) as usize;
            return Ok(byte);
        }
        let aligned = byte - byte % ALIGN;
        self.position = self.file.seek(SeekFrom::Start(aligned))?;
        (self.at, self.end) = (0, 0);
        // The first bytes of the block that `byte` is in.
        let mut skipped = vec![0; (byte - aligned) as usize];
        let _ = self.read(&mut skipped)?;
        Ok(byte)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    /// Devices whose every chunk begins with its device and its row.
    fn stripe(rows: &[u8], chunk: usize) -> Stripe<Cursor<Vec<u8>>> {
        let device = |number: usize| {
            let row = |row: u8| {
                let mut bytes = vec![0xee; chunk];
                (bytes[0], bytes[1]) = (number as u8, row);
                bytes
            };
            let mut bytes: Vec<u8> = (0..rows[number]).flat_map(row).collect();
            // Not a whole chunk: it is left unused.
            bytes.resize(bytes.len() + chunk / 2, 0xdd);
            Cursor::new(bytes)
        };
        let devices: Vec<_> = (0..rows.len()).map(device).collect();
        let lengths: Vec<u64> = devices.iter().map(|d| d.get_ref().len() as u64).collect();
        Stripe::new(devices, &lengths, chunk as u64, 512).unwrap()
    }

    fn walk(rows: &[u8]) -> Vec<(u8, u8)> {
        let mut stripe = stripe(rows, 1024);
        let mut seen = Vec::new();
        for chunk in 0.. {
            if !stripe.seek(chunk * 1024).unwrap() {
                break;
            }
            let mut bytes = Vec::new();
            assert!(stripe.append(1024, &mut bytes).unwrap());
            assert_eq!(usize::from(bytes[0]), stripe.device_of(chunk * 1024));
            seen.push((bytes[0], bytes[1]));
        }
        seen
    }

    #[test]
    fn chunks_are_found_where_the_document_says() {
        // The example of docs/devices.md.
        let example = [(0, 0), (1, 0), (2, 0), (1, 1), (2, 1), (1, 2)];
        assert_eq!(walk(&[1, 3, 2]), example);
        assert_eq!(walk(&[2, 2]), [(0, 0), (1, 0), (0, 1), (1, 1)]);
        // One that has room for none, and one that outlives all.
        assert_eq!(walk(&[0, 1, 3]), [(1, 0), (2, 0), (2, 1), (2, 2)]);
    }

    #[test]
    fn one_device_is_its_own_blocks() {
        let mut stripe = stripe(&[2], 1024);
        assert_eq!(stripe.left_in_chunk(1000), u64::MAX);
        let mut bytes = Vec::new();
        assert!(stripe.seek(1024).unwrap() && stripe.append(2, &mut bytes).unwrap());
        assert_eq!(bytes, [0, 1]);
        // To its end, and no further.
        assert!(stripe.append(1024 + 512 - 2, &mut bytes).unwrap());
        assert!(!stripe.append(1, &mut bytes).unwrap());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let none = || Vec::<Cursor<Vec<u8>>>::new();
        assert!(Stripe::new(none(), &[], 4096, 512).is_err());
        let two = || vec![Cursor::new(vec![0; 4096]), Cursor::new(vec![0; 100])];
        let refused = |chunk, block| {
            let error = Stripe::new(two(), &[4096, 100], chunk, block)
                .err()
                .unwrap();
            error.to_string()
        };
        assert!(refused(3000, 512).contains("no power of two"));
        assert!(refused(512, 4096).contains("from 4096 (a block)"));
        assert!(refused(8192, 512).contains("no device has room"));
    }
}
