//! Servers of a suite: found, started, waited for and ended, also those that a killed suite left.

use std::fs::File;
use std::io::{Read, Seek};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use hyper::Method;
use hyper::body::Bytes;
use serde_json::Value;

use super::{Server, Side, versions};
use crate::clock::Clock;
use crate::target::{HttpUrl, Target};
use crate::transport::Protocol;

const POLL: Duration = Duration::from_millis(100);
/// How long it may take to answer what it is.
pub const ANSWER: Duration = Duration::from_secs(2);
/// How long a server may take to end after SIGTERM.
const STOP: Duration = Duration::from_secs(40);
/// Writes what `/proc/PID/stat` says of it to the suite's lock, its standard input, and becomes the server. So
/// the lock is held until the line is there, at whatever moment the suite is killed.
const START: &str = r#"read -r line </proc/$$/stat; echo "$line" >&0; exec "$@" </dev/null"#;
/// Last bytes of a server's log that a failure shows.
const LOG_TAIL: usize = 2000;

/// A running server: asked to end when dropped, and made to when it does not.
pub struct Served {
    child: Child,
    log: PathBuf,
    /// How it was started, the port left out.
    pub command: String,
    /// Where it answers.
    pub url: String,
    /// Its version.
    pub version: Value,
}

impl Served {
    /// Starts `program`, which the suite's lock then names, in a process group of its own: an interrupt from the
    /// terminal is for the suite. What it says goes to the end of `log`.
    pub fn start(
        server: &Server,
        side: Side<'_>,
        program: &Path,
        lock: &File,
        log: PathBuf,
    ) -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .port()
            .to_string();
        let words = |port: &str| {
            let filled = server
                .command
                .iter()
                .map(|word| fill(word, side, ("{port}", port)));
            filled.filter(|word| !word.is_empty()).collect::<Vec<_>>()
        };
        let said = File::options().create(true).append(true).open(&log)?;
        let child = Command::new("sh")
            .args(["-c", START, "sh"])
            .arg(program)
            .args(&words(&port)[1..])
            .stdin(lock.try_clone()?)
            .stdout(said.try_clone()?)
            .stderr(said)
            .process_group(0)
            .spawn()?;
        let url = format!("http://127.0.0.1:{port}");
        Ok(Self {
            child,
            log,
            command: words("PORT").join(" "),
            url,
            version: Value::Null,
        })
    }

    /// Waits until the server answers that it is ready, and asks it what it is.
    pub async fn ready(&mut self, server: &Server, program: &Path) -> Result<()> {
        let begun = Instant::now();
        let clock = Clock::start();
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended before it was ready ({status})");
            }
            if let Ok(target) = Target::resolve(
                HttpUrl::parse_base(&self.url)?,
                None,
                Protocol::Http1,
                clock,
            )
            .await
            {
                let path = &server.ready;
                let answer = target
                    .fetch(Method::GET, path, "*/*", Bytes::new(), ANSWER)
                    .await;
                if matches!(answer, Ok((200, _))) {
                    self.version = versions::of(&target, program).await?;
                    return Ok(());
                }
            }
            if begun.elapsed() > Duration::from_secs_f64(server.start_s) {
                bail!("the server was not ready within {} s", server.start_s);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The end of what it said.
    pub fn last_words(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let tail = &text[text.len().saturating_sub(LOG_TAIL)..];
        String::from_utf8_lossy(tail).trim().to_owned()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let group = format!("-{}", self.child.id());
        let _ = Command::new("kill").args(["-TERM", "--", &group]).status();
        let begun = Instant::now();
        while begun.elapsed() < STOP {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(POLL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A word of a command with what it stands for.
pub fn fill(word: &str, side: Side<'_>, more: (&str, &str)) -> String {
    let pairs = [
        ("{source}", side.model.source.as_str()),
        ("{precision}", side.precision),
        ("{name}", &side.model.name),
        more,
    ];
    pairs
        .iter()
        .fold(word.to_owned(), |w, (key, value)| w.replace(key, value))
}

/// Beside this program, where a release puts both, else where the shell looks.
pub fn find(program: &str) -> Option<PathBuf> {
    let here = std::env::current_exe()
        .ok()
        .and_then(|p| Some(p.parent()?.to_owned()));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = here.into_iter().chain(std::env::split_paths(&path));
    folders
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// Ends the servers of a suite that was killed, which its lock names.
pub fn end_left_over(lock: &mut File) -> Result<()> {
    let mut lines = String::new();
    lock.rewind()?;
    lock.read_to_string(&mut lines)?;
    for line in lines.lines() {
        let Some((pid, start)) = identity(line) else {
            continue;
        };
        let now = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // Another process may have got the number since.
        if identity(&now) == Some((pid, start)) {
            let group = format!("-{pid}");
            let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
        }
    }
    lock.set_len(0)?;
    Ok(())
}

/// Number and time of start, which together no other process has (proc(5), fields 1 and 22).
fn identity(line: &str) -> Option<(&str, &str)> {
    let (pid, _) = line.split_once(' ')?;
    // The name of the program may hold anything.
    let (_, rest) = line.rsplit_once(") ")?;
    Some((pid, rest.split(' ').nth(19)?))
}
