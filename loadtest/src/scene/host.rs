//! The client's machine by its own words: `/proc`, `/sys`, and `nvidia-smi` where there is one.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep};

/// How long `nvidia-smi` may take: it wakes up the driver where nothing else has.
const SMI_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is looked at meanwhile.
const SMI_POLL: Duration = Duration::from_millis(20);
const SMI_QUERY: &str = "--query-gpu=name,driver_version,memory.total,power.limit";
const CGROUPS: &str = "/sys/fs/cgroup";

/// The client's machine, which is the server's too when `is_servers`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Host {
    /// Processor by its own name.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Memory.
    pub memory_bytes: u64,
    /// Kernel version.
    pub kernel: String,
    /// Whether the server's address is this machine's loopback.
    pub is_servers: bool,
    /// How the kernel chooses the clock of the cores, `performance` at best; empty where it does not.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub governor: String,
    /// Processes that ran or wanted to, mean over the minute before the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_before: Option<f64>,
    /// Processor time per second that the control groups of this process allow, where they limit it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_cores: Option<f64>,
    /// Memory that they allow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_memory_bytes: Option<u64>,
    /// GPUs that `nvidia-smi` sees.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<Gpu>,
}

/// A GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Gpu {
    /// Its name.
    pub name: String,
    /// Version of its driver.
    pub driver: String,
    /// Its memory.
    pub memory_bytes: Option<u64>,
    /// Power that it is held to.
    pub power_limit_watts: Option<f64>,
}

impl Host {
    /// This machine, as far as it tells.
    pub(super) async fn this(is_servers: bool) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let release = read("/proc/sys/kernel/osrelease");
        let memory = field(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
        let kibibytes = memory
            .split_whitespace()
            .next()
            .and_then(|n| n.parse().ok());
        let load = read("/proc/loadavg");
        let governor = read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
        let own = read("/proc/self/cgroup");
        let own = own.lines().find_map(|line| line.strip_prefix("0::"));
        let (container_cores, container_memory_bytes) =
            limits(Path::new(CGROUPS), own.unwrap_or("/"));
        Self {
            cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_bytes: kibibytes.unwrap_or(0u64) * 1024,
            // What follows the version names a build, not what it does.
            kernel: release
                .trim()
                .split('-')
                .next()
                .unwrap_or_default()
                .to_owned(),
            is_servers,
            governor: governor.trim().to_owned(),
            load_before: load.split(' ').next().and_then(|load| load.parse().ok()),
            container_cores,
            container_memory_bytes,
            gpus: known_gpus().await,
        }
    }
}

/// The least cores and memory that the control group `own` (version 2) and those above it allow, below `root`.
fn limits(root: &Path, own: &str) -> (Option<f64>, Option<u64>) {
    let (mut cores, mut memory): (Option<f64>, Option<u64>) = (None, None);
    let mut place = root.join(own.trim_start_matches('/'));
    loop {
        let read = |name: &str| std::fs::read_to_string(place.join(name)).unwrap_or_default();
        if let Some(limit) = quota(&read("cpu.max")) {
            cores = Some(cores.map_or(limit, |least| least.min(limit)));
        }
        if let Ok(limit) = read("memory.max").trim().parse() {
            memory = Some(memory.map_or(limit, |least: u64| least.min(limit)));
        }
        if place == root || !place.pop() || !place.starts_with(root) {
            return (cores, memory);
        }
    }
}

/// `150000 100000` are 1.5 cores, `max 100000` no limit.
fn quota(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
    (period > 0.0).then_some(quota / period)
}

/// The GPUs of this machine and their driver in words, where there are any.
pub async fn gpu() -> Option<String> {
    let gpus = known_gpus().await;
    let names: Vec<&str> = gpus.iter().map(|gpu| &*gpu.name).collect();
    let driver = &gpus.first()?.driver;
    Some(format!("{}, driver {driver}", names.join(", ")))
}

/// Asked once: a search has many runs, and asking takes seconds where no process holds the driver.
async fn known_gpus() -> Vec<Gpu> {
    static KNOWN: OnceCell<Vec<Gpu>> = OnceCell::const_new();
    let known = KNOWN.get_or_init(|| gpus("nvidia-smi", SMI_TIMEOUT));
    known.await.clone()
}

/// What `nvidia-smi` lists; nothing where there is none, or where it fails or hangs.
async fn gpus(program: &str, timeout: Duration) -> Vec<Gpu> {
    let child = Command::new(program)
        .args([SMI_QUERY, "--format=csv,noheader,nounits"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else {
        return Vec::new();
    };
    let end = Instant::now() + timeout;
    // The few lines of it fit the pipe, so it needs no reader to end.
    while matches!(child.try_wait(), Ok(None)) {
        if Instant::now() >= end {
            // It may have ended just now, which is as good.
            let _ = child.kill();
            break;
        }
        sleep(SMI_POLL).await;
    }
    match child.wait_with_output() {
        Ok(output) if output.status.success() => parse(&String::from_utf8_lossy(&output.stdout)),
        _ => Vec::new(),
    }
}

/// Lines of `name, driver, MiB, W`, where a number that a GPU does not tell is in words.
fn parse(text: &str) -> Vec<Gpu> {
    let gpu = |line: &str| {
        let mut fields = line.rsplitn(4, ", ");
        let power_limit_watts = fields.next()?.parse().ok();
        let mebibytes: Option<u64> = fields.next()?.parse().ok();
        let driver = fields.next()?.to_owned();
        let name = fields.next()?.to_owned();
        Some(Gpu {
            name,
            driver,
            memory_bytes: mebibytes.map(|n| n * 1024 * 1024),
            power_limit_watts,
        })
    };
    text.lines().filter_map(gpu).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_group_counts() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let inner = root.join("a/b");
        std::fs::create_dir_all(&inner).unwrap();
        let write = |place: &Path, name: &str, text: &str| {
            std::fs::write(place.join(name), text).unwrap();
        };
        assert_eq!(limits(root, "/a/b"), (None, None), "no files, no limits");
        write(&inner, "cpu.max", "max 100000\n");
        write(&inner, "memory.max", "max\n");
        assert_eq!(limits(root, "/a/b"), (None, None));
        write(&root.join("a"), "cpu.max", "150000 100000\n");
        write(&inner, "cpu.max", "200000 100000\n");
        write(root, "memory.max", "1073741824\n");
        assert_eq!(limits(root, "/a/b"), (Some(1.5), Some(1 << 30)));
        assert_eq!(limits(root, "/gone"), (None, Some(1 << 30)));
        assert_eq!(limits(root, "/"), (None, Some(1 << 30)));
    }

    #[test]
    fn gpus_are_told_as_far_as_they_tell() {
        let text = "NVIDIA A10, 535.129.03, 23028, 150.00\nNVIDIA GB10, 580.95.05, [N/A], [N/A]\n";
        let found = parse(text);
        let a10 = Gpu {
            name: "NVIDIA A10".into(),
            driver: "535.129.03".into(),
            memory_bytes: Some(23028 << 20),
            power_limit_watts: Some(150.0),
        };
        assert_eq!(found[0], a10);
        assert_eq!(
            (found[1].name.as_str(), found[1].memory_bytes),
            ("NVIDIA GB10", None)
        );
        assert_eq!(parse("No devices were found\n"), []);
    }

    #[tokio::test]
    async fn a_program_that_is_missing_or_fails_or_hangs_sees_none() {
        let long = Duration::from_secs(60);
        assert_eq!(gpus("no-such-program-as-this", long).await, []);
        assert_eq!(gpus("false", long).await, []);
        // `yes` fills the pipe and stays.
        assert_eq!(gpus("yes", Duration::ZERO).await, []);
    }

    #[tokio::test]
    async fn what_is_not_known_is_left_out() {
        let host = Host::this(true).await;
        assert!(host.cores > 0 && host.memory_bytes > 0 && !host.kernel.is_empty());
        let told = serde_json::to_value(Host::default()).unwrap();
        assert_eq!(told.as_object().unwrap().len(), 5, "{told}");
        let older: Host = serde_json::from_value(told).unwrap();
        assert_eq!(older, Host::default());
    }
}
