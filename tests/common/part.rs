//! Another process of a test: the same binary, which runs one test's other part.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::recording::until;

const CHILD: &str = "UNIFIED_TEST_CHILD";

/// This test binary again, running one test's other part, told which by a variable. Ends with its owner.
pub struct Part {
    pub child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
    stdin: ChildStdin,
}

impl Part {
    /// `before`: a command line in front of the binary's, such as setpriv's.
    pub fn start(test: &str, told: &str, before: &[&str]) -> Part {
        let own = std::env::current_exe().unwrap();
        Part::start_as(test, told, before, own.to_str().unwrap())
    }

    pub fn start_as(test: &str, told: &str, before: &[&str], binary: &str) -> Part {
        let words = [before, &[binary, test, "--nocapture", "--test-threads=1"]].concat();
        let mut child = Command::new(words[0])
            .args(&words[1..])
            .env(CHILD, told)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Part {
            lines: BufReader::new(child.stdout.take().unwrap()).lines(),
            stdin: child.stdin.take().unwrap(),
            child,
        }
    }

    /// What it says after "part: ".
    pub fn says(&mut self) -> String {
        let mut all = String::new();
        for line in self.lines.by_ref() {
            let line = line.unwrap();
            if let Some((_, said)) = line.split_once("part: ") {
                return said.to_string();
            }
            all += &(line + "\n");
        }
        panic!("it ended without a word: {all}");
    }

    pub fn tell(&mut self, what: &str) {
        writeln!(self.stdin, "{what}").unwrap();
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid() as i32), signal).unwrap();
    }

    /// Waits for its end, for a bounded time.
    pub fn end(&mut self) -> std::process::ExitStatus {
        let mut status = None;
        until(20, "the part ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The other part, if this process is one.
pub fn told() -> Option<String> {
    std::env::var(CHILD).ok()
}

pub fn say(what: impl std::fmt::Display) {
    println!("part: {what}");
}

pub fn hear() -> String {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    line.trim().to_string()
}
