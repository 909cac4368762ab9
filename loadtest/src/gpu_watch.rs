//! The GPUs over a run, as `nvidia-smi` tells once a second where there is one: clocks, power, temperature, and
//! what held the clocks down.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::calibration::Around;
use crate::clock::{Clock, Nanos};

/// How long the first line is waited for: the driver wakes up where no process holds it, which must not fall into
/// a run.
const FIRST: Duration = Duration::from_secs(10);
/// One line for each GPU and second.
const QUERY: [&str; 4] = [
    "--query-gpu=index,clocks.sm,power.draw,temperature.gpu,clocks_throttle_reasons.active",
    "--format=csv,noheader,nounits",
    "-l",
    "1",
];
/// Bits of the reasons, by NVML's `nvmlClocksThrottleReasons`, that slow a GPU down against its will; idleness and
/// clocks that somebody set do not.
const REASONS: [(u64, &str); 5] = [
    (0x04, "power cap"),
    (0x08, "hardware slowdown"),
    (0x20, "temperature, by the driver"),
    (0x40, "temperature, by the hardware"),
    (0x80, "power brake"),
];
/// Samples of a window below which its thirds say nothing of a change.
const MIN_SAMPLES: usize = 6;

/// Least, mean and greatest of some samples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Range {
    /// Least.
    pub min: f64,
    /// Mean.
    pub mean: f64,
    /// Greatest.
    pub max: f64,
}

/// One GPU over the window.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct GpuLoad {
    /// Its number.
    pub index: u32,
    /// Samples inside the window.
    pub samples: usize,
    /// Clock of its multiprocessors, in hertz.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_hertz: Option<Range>,
    /// Power.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power_watts: Option<Range>,
    /// Temperature.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature_celsius: Option<Range>,
    /// What held its clock down, and in what share of the samples.
    pub throttled: BTreeMap<String, f64>,
    /// Median clock of the first and of the last third of the window.
    #[serde(skip)]
    pub clock_around: Option<Around>,
}

/// A line of `nvidia-smi`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Sample {
    at: Nanos,
    index: u32,
    clock: Option<f64>,
    power: Option<f64>,
    temperature: Option<f64>,
    reasons: u64,
}

/// A running `nvidia-smi`.
#[derive(Debug)]
pub struct GpuWatch {
    child: Child,
    reader: Option<JoinHandle<()>>,
    samples: Arc<Mutex<Vec<Sample>>>,
}

impl GpuWatch {
    /// Begins to look, and comes back after the first look; nothing where there is no such program.
    pub fn start(program: &str, clock: Clock) -> Option<Self> {
        let mut child = Command::new(program)
            .args(QUERY)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let lines = BufReader::new(child.stdout.take()?).lines();
        let samples = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&samples);
        let (first, is_there) = channel();
        // The driver answers between the looks of the client, which reads tokens on a thread of its own.
        let reader = thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some(sample) = parse(&line, clock.now()) {
                    seen.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(sample);
                    // Nobody listens after the first.
                    let _ = first.send(());
                }
            }
        });
        // Without an answer the run goes on: a sender that is dropped ends the wait, too.
        let _ = is_there.recv_timeout(FIRST);
        Some(Self {
            child,
            reader: Some(reader),
            samples,
        })
    }

    /// Ends it; what was seen inside the window, by GPU. A window too short for a look has those around it.
    pub fn end(self, window: (Nanos, Nanos)) -> Vec<GpuLoad> {
        let samples = Arc::clone(&self.samples);
        drop(self);
        let samples = samples.lock().unwrap_or_else(PoisonError::into_inner);
        let mut by_gpu: BTreeMap<u32, Vec<Sample>> = BTreeMap::new();
        let is_inside = |sample: &&Sample| (window.0..window.1).contains(&sample.at);
        let has_some = samples.iter().any(|sample| is_inside(&sample));
        for sample in samples.iter().filter(|s| !has_some || is_inside(s)) {
            by_gpu.entry(sample.index).or_default().push(*sample);
        }
        let all = by_gpu.into_iter();
        all.map(|(index, samples)| GpuLoad::new(index, &samples, window))
            .collect()
    }
}

impl Drop for GpuWatch {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// `0, 1695, 148.20, 61, 0x0000000000000004`, where a number that a GPU does not tell is in words.
fn parse(line: &str, at: Nanos) -> Option<Sample> {
    let fields: Vec<&str> = line.split(',').map(str::trim).collect();
    let [index, clock, power, temperature, reasons] = fields[..] else {
        return None;
    };
    let bits = reasons
        .strip_prefix("0x")
        .and_then(|hex| u64::from_str_radix(hex, 16).ok());
    Some(Sample {
        at,
        index: index.parse().ok()?,
        clock: clock.parse().ok().map(|megahertz: f64| megahertz * 1e6),
        power: power.parse().ok(),
        temperature: temperature.parse().ok(),
        reasons: bits.unwrap_or(0),
    })
}

impl GpuLoad {
    fn new(index: u32, samples: &[Sample], window: (Nanos, Nanos)) -> Self {
        let range = |of: fn(&Sample) -> Option<f64>| Range::of(samples.iter().filter_map(of));
        let share = |bit: u64| {
            let held = samples.iter().filter(|s| s.reasons & bit != 0).count();
            held as f64 / samples.len() as f64
        };
        let shares = REASONS.map(|(bit, name)| (name.to_owned(), share(bit)));
        let third = (window.1 - window.0) / 3;
        let clocks = |from: Nanos, to: Nanos| {
            let inside = samples.iter().filter(|s| (from..to).contains(&s.at));
            median(inside.filter_map(|s| s.clock).collect())
        };
        let around = || {
            Some(Around {
                before: clocks(window.0, window.0 + third)?,
                after: clocks(window.1 - third, window.1)?,
            })
        };
        Self {
            index,
            samples: samples.len(),
            clock_hertz: range(|s| s.clock),
            power_watts: range(|s| s.power),
            temperature_celsius: range(|s| s.temperature),
            throttled: shares
                .into_iter()
                .filter(|(_, share)| *share > 0.0)
                .collect(),
            clock_around: (samples.len() >= MIN_SAMPLES).then(around).flatten(),
        }
    }

    /// Why the run carries a warning, if it does.
    pub fn warning(&self) -> Option<String> {
        let reasons: Vec<String> = self
            .throttled
            .iter()
            .map(|(name, share)| format!("{name} in {:.0} % of the looks", share * 100.0))
            .collect();
        let index = self.index;
        (!reasons.is_empty()).then(|| format!("GPU {index} was held back: {}", reasons.join(", ")))
    }
}

impl Range {
    fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let values: Vec<f64> = values.collect();
        (!values.is_empty()).then(|| Self {
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            mean: values.iter().sum::<f64>() / values.len() as f64,
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        })
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SECOND;

    #[test]
    fn a_line_is_read_and_what_a_gpu_does_not_tell_is_left_out() {
        let sample = parse("0, 1695, 148.20, 61, 0x0000000000000004", 7).unwrap();
        let expected = Sample {
            at: 7,
            index: 0,
            clock: Some(1.695e9),
            power: Some(148.2),
            temperature: Some(61.0),
            reasons: 4,
        };
        assert_eq!(sample, expected);
        let silent = parse("1, [N/A], [N/A], 40, [N/A]", 0).unwrap();
        assert_eq!(
            (silent.clock, silent.power, silent.reasons),
            (None, None, 0)
        );
        for other in ["", "No devices were found", "a, 1, 2, 3, 0x0", "0, 1, 2, 3"] {
            assert_eq!(parse(other, 0), None, "{other}");
        }
    }

    #[test]
    fn what_held_a_gpu_back_is_named_with_its_share() {
        let sample = |second: u64, clock: f64, reasons: u64| Sample {
            at: second * SECOND,
            index: 0,
            clock: Some(clock),
            power: Some(100.0),
            temperature: None,
            reasons,
        };
        let samples: Vec<Sample> = (0..8)
            .map(|i| {
                sample(
                    i,
                    if i < 4 { 1.7e9 } else { 1.2e9 },
                    if i < 4 { 0x1 } else { 0x24 },
                )
            })
            .collect();
        let load = GpuLoad::new(0, &samples, (0, 8 * SECOND));
        assert_eq!(load.clock_hertz.unwrap().mean, 1.45e9);
        assert_eq!(load.temperature_celsius, None);
        let around = Around {
            before: 1.7e9,
            after: 1.2e9,
        };
        assert_eq!(load.clock_around, Some(around));
        assert_eq!(
            load.warning().unwrap(),
            "GPU 0 was held back: power cap in 50 % of the looks, temperature, by the driver in 50 % of the looks"
        );
        // Idle, or with clocks that somebody set, it is as fast as it was meant to be.
        let free = GpuLoad::new(0, &samples[..4], (0, 4 * SECOND));
        assert_eq!((free.warning(), free.clock_around), (None, None));
    }

    #[tokio::test]
    async fn a_program_that_lists_is_read_until_the_end() {
        let clock = Clock::start();
        assert!(GpuWatch::start("no-such-program-as-this", clock).is_none());
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("smi");
        // Two GPUs once; then it stays, as the real one does between its looks.
        let text = "#!/bin/sh\necho '0, 1500, 70.5, 55, 0x0'\necho '1, 900, 30.0, 90, 0x40'\nexec sleep 600\n";
        std::fs::write(&script, text).unwrap();
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&script, permissions).unwrap();
        let watch = GpuWatch::start(script.to_str().unwrap(), clock).unwrap();
        assert!(!watch.samples.lock().unwrap().is_empty(), "it has looked");
        while watch.samples.lock().unwrap().len() < 2 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        // The window begins after all looks.
        let now = clock.now();
        let loads = watch.end((now, now + 1));
        assert_eq!(loads.len(), 2);
        assert_eq!(loads[0].warning(), None);
        let words = loads[1].warning().unwrap();
        assert!(
            words.starts_with("GPU 1 was held back: temperature, by the hardware in 100 %"),
            "{words}"
        );
    }
}
