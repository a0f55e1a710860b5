//! Where the text comes from: an HTTP endpoint over TCP, or over a Unix socket.

#![forbid(unsafe_code)]

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

/// For everything: connecting, and the whole answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// No text of the library is near that long.
const LONGEST: usize = 16 << 20;

#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    Http { host: String, path: String },
    Unix(PathBuf),
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Source, String> {
        if let Some(rest) = text.strip_prefix("http://") {
            let (host, path) = match rest.find('/') {
                Some(at) => (&rest[..at], &rest[at..]),
                None => (rest, "/metrics"),
            };
            if host.is_empty() || path.contains([' ', '\r', '\n']) {
                return Err(format!("'{text}' is no URL: say http://HOST:PORT/metrics"));
            }
            // A colon inside brackets is part of an IPv6 address.
            let port = host.rsplit(']').next().is_some_and(|end| end.contains(':'));
            return Ok(Source::Http {
                host: if port {
                    host.into()
                } else {
                    format!("{host}:80")
                },
                path: path.into(),
            });
        }
        if text.contains("://") {
            return Err(format!("'{text}': only http:// is spoken here"));
        }
        // A socket in the current directory, unless it is rather a port that was meant.
        let port = text.bytes().all(|b| b.is_ascii_digit()) || text.contains(':');
        if !text.contains('/') && port && !Path::new(text).exists() {
            return Err(format!(
                "'{text}' is neither a URL (http://HOST:PORT/metrics) nor the path of a socket"
            ));
        }
        Ok(Source::Unix(text.into()))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Http { host, path } => write!(f, "http://{host}{path}"),
            Source::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Source {
    /// The text, or what went wrong, in words.
    pub fn fetch(&self) -> Result<String, String> {
        self.answer()
            .map_err(|e| format!("{self}: {}", words(&e)))
            .and_then(|bytes| body(&bytes).map_err(|what| format!("{self}: {what}")))
    }

    fn answer(&self) -> io::Result<Vec<u8>> {
        let until = Instant::now() + PATIENCE;
        match self {
            Source::Http { host, path } => {
                let mut last = io::Error::other("the name has no address");
                for address in host.to_socket_addrs()? {
                    match TcpStream::connect_timeout(&address, PATIENCE) {
                        Ok(stream) => {
                            stream.set_write_timeout(Some(PATIENCE))?;
                            let left = |s: &TcpStream, t| s.set_read_timeout(Some(t));
                            return converse(stream, host, path, until, left);
                        }
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
            Source::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_write_timeout(Some(PATIENCE))?;
                let left = |s: &UnixStream, t| s.set_read_timeout(Some(t));
                converse(stream, "localhost", "/metrics", until, left)
            }
        }
    }
}

/// HTTP/1.0: the answer ends with the connection, in one piece.
fn converse<S: Read + Write>(
    mut stream: S,
    host: &str,
    path: &str,
    until: Instant,
    wait: impl Fn(&S, Duration) -> io::Result<()>,
) -> io::Result<Vec<u8>> {
    // In one piece: a server that reads once would answer the first of several, and close.
    let request = format!(
        "GET {path} HTTP/1.0\r\nHost: {host}\r\nAccept: application/openmetrics-text\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let (mut answer, mut piece) = (Vec::new(), [0; 16 << 10]);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        wait(&stream, left)?;
        match stream.read(&mut piece) {
            Ok(0) => return Ok(answer),
            Ok(n) => answer.extend_from_slice(&piece[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if answer.len() > LONGEST {
            return Err(io::Error::other("the answer does not end"));
        }
    }
}

fn words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            "connection refused: no recorder listens there (c-examples/metrics.c is one that does)"
                .into()
        }
        io::ErrorKind::NotFound => "there is no such socket: is the recorder running?".into(),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            format!("no answer in {} s", PATIENCE.as_secs())
        }
        _ => error.to_string(),
    }
}

/// The body of an answer.
fn body(answer: &[u8]) -> Result<String, String> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Response::new(&mut headers);
    let at = match head.parse(answer) {
        Ok(httparse::Status::Complete(at)) => at,
        Ok(httparse::Status::Partial) => return Err("the answer was cut".into()),
        Err(error) => return Err(format!("the answer is not HTTP ({error})")),
    };
    let body = &answer[at..];
    let header = |name: &str| {
        let found = head
            .headers
            .iter()
            .find(|h| h.name.eq_ignore_ascii_case(name));
        found.and_then(|h| std::str::from_utf8(h.value).ok())
    };
    if header("Transfer-Encoding").is_some() {
        return Err("the answer is in chunks, which HTTP/1.0 does not have".into());
    }
    let length = header("Content-Length").and_then(|text| text.trim().parse::<usize>().ok());
    if length.is_some_and(|length| length > body.len()) {
        return Err("the answer was cut".into());
    }
    let body = String::from_utf8_lossy(&body[..length.unwrap_or(body.len())]);
    match head.code {
        Some(200) => Ok(body.into_owned()),
        code => Err(format!(
            "the answer is {} {}",
            code.unwrap_or(0),
            body.lines().next().unwrap_or_default()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_urls_or_paths() {
        let http = |host: &str, path: &str| Source::Http {
            host: host.into(),
            path: path.into(),
        };
        for (text, source) in [
            (
                "http://127.0.0.1:9464/metrics",
                http("127.0.0.1:9464", "/metrics"),
            ),
            ("http://host", http("host:80", "/metrics")),
            ("http://[::1]/m", http("[::1]:80", "/m")),
            ("http://[::1]:99/", http("[::1]:99", "/")),
            ("./sock", Source::Unix("./sock".into())),
        ] {
            assert_eq!(text.parse(), Ok(source), "{text}");
        }
        for text in ["https://a/b", "http://", "9464", "http://a/ b"] {
            assert!(text.parse::<Source>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_answer_is_taken_whole_or_not_at_all() {
        let ok = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n";
        assert_eq!(body(format!("{ok}text").as_bytes()), Ok("text".into()));
        for (answer, word) in [
            (format!("{ok}tex"), "cut"),
            ("HTTP/1.1 200".into(), "cut"),
            ("HTTP/1.1 500 No\r\n\r\nbroken\n".into(), "500 broken"),
            ("SSH-2.0-OpenSSH\r\n".into(), "not HTTP"),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
                "chunks",
            ),
        ] {
            let said = body(answer.as_bytes()).unwrap_err();
            assert!(said.contains(word), "{said}");
        }
    }
}
