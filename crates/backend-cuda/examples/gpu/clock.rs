//! The clock and the power of the device while it works, as `nvidia-smi` of the driver says; and what the part
//! can do at that clock.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use backend_cuda::Precision;
use backend_cuda::device::Properties;

/// What was last seen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    /// Clock of the multiprocessors, in Hz.
    pub hertz: f64,
    /// Watts.
    pub watts: f64,
}

/// Watches the first device until it is dropped.
pub struct Clock {
    seen: Arc<Mutex<Option<Seen>>>,
    watcher: Option<Child>,
}

impl Clock {
    /// Starts `nvidia-smi`; where it is missing nothing is ever seen.
    pub fn watch() -> Self {
        let seen: Arc<Mutex<Option<Seen>>> = Arc::default();
        let started = Command::new("nvidia-smi")
            .args(["--id=0", "--query-gpu=clocks.sm,power.draw"])
            .args(["--format=csv,noheader,nounits", "--loop-ms=50"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mut watcher = started.ok();
        if let Some(output) = watcher.as_mut().and_then(|child| child.stdout.take()) {
            let shared = Arc::clone(&seen);
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    if let Ok(mut seen) = shared.lock() {
                        *seen = read(&line);
                    }
                }
            });
        }
        Self { seen, watcher }
    }

    /// A clock that nobody reads.
    #[cfg(test)]
    pub fn none() -> Self {
        Self {
            seen: Arc::default(),
            watcher: None,
        }
    }

    /// The last line that was read.
    pub fn seen(&self) -> Option<Seen> {
        self.seen.lock().ok().and_then(|seen| *seen)
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        if let Some(watcher) = &mut self.watcher {
            watcher.kill().ok();
            watcher.wait().ok();
        }
    }
}

/// `1695, 148.20`: MHz and watts; boards without a power sensor say `[N/A]`.
pub fn read(line: &str) -> Option<Seen> {
    let (clock, power) = line.split_once(',')?;
    let megahertz: f64 = clock.trim().parse().ok()?;
    Some(Seen {
        hertz: megahertz * 1e6,
        watts: power.trim().parse().unwrap_or(f64::NAN),
    })
}

/// Multiplications and additions a second at a clock, both counted, of the tensor cores: half precision that adds in
/// 32 bits has half of the 8-bit rate, a quarter on GeForce (`GeForce` stands in the names of those).
pub fn peak(properties: &Properties, hertz: f64, precision: Precision) -> f64 {
    let per_clock = match properties.capability {
        (8, 0) => 4096.0,
        (9.., _) => 8192.0,
        _ => 2048.0,
    };
    let share = match precision.has_int8_products() {
        true => 1.0,
        false if properties.name.contains("GeForce") => 0.25,
        false => 0.5,
    };
    f64::from(properties.multiprocessors) * per_clock * hertz * share
}

/// The share of the peak that a rate is, with the clock, in words.
pub fn share(properties: &Properties, clock: &Clock, precision: Precision, rate: f64) -> String {
    match clock.seen() {
        Some(seen) => format!(
            "{:.0} % of the peak at {:.0} MHz, {:.0} W",
            100.0 * rate / peak(properties, seen.hertz, precision),
            seen.hertz / 1e6,
            seen.watts
        ),
        None => "clock unknown".to_owned(),
    }
}
