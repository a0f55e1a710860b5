//! The error type: an errno for the program, a sentence for the reader.

#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::fmt;

/// An errno and a sentence that says what was tried, on what, and what to do about it.
///
/// The hot path returns errors too (`EAGAIN` for a full ring): those carry a `'static` sentence, so
/// that making one allocates nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    errno: i32,
    message: Cow<'static, str>,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// `errno` is positive, as in `<errno.h>`.
    pub fn new(errno: i32, message: impl Into<Cow<'static, str>>) -> Self {
        debug_assert!(errno > 0, "errno {errno} must be positive");
        Error {
            errno,
            message: message.into(),
        }
    }

    /// An error of the system, after a text that says what was tried.
    pub fn os(error: &std::io::Error, what: impl fmt::Display) -> Self {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        Error::new(errno, format!("{what}: {}", errno_text(errno)))
    }

    /// Positive errno.
    pub fn errno(&self) -> i32 {
        self.errno
    }

    pub fn message(&self) -> &str {
        &self.message
    }

    /// Appends a hint to the message.
    pub fn hint(self, hint: impl fmt::Display) -> Self {
        Error {
            errno: self.errno,
            message: Cow::Owned(format!("{}; {hint}", self.message)),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// The C library's words for a positive errno, without std's " (os error N)".
pub fn errno_text(errno: i32) -> String {
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_string(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_os_error_keeps_its_errno_and_says_what_was_tried() {
        let os = std::io::Error::from_raw_os_error(libc::ENOENT);
        let error = Error::os(&os, "opening device '/dev/nope'").hint("check the path");
        assert_eq!(error.errno(), libc::ENOENT);
        assert_eq!(
            error.to_string(),
            "opening device '/dev/nope': No such file or directory; check the path"
        );
    }
}
