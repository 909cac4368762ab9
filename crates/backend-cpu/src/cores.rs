//! What the operating system says of the processor: its name, and how many physical cores this
//! process may use.

use std::collections::BTreeSet;
use std::fs;
use std::thread::available_parallelism;

/// Physical cores inside the affinity mask, and no more than the control group's share of time.
pub(crate) fn physical_cores() -> usize {
    let logical = available_parallelism().map_or(1, usize::from);
    let siblings: Option<BTreeSet<String>> = allowed_cpus().and_then(|cpus| {
        let list = |cpu: &usize| {
            let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
            fs::read_to_string(path).ok()
        };
        cpus.iter().map(list).collect()
    });
    siblings.map_or(logical, |siblings| siblings.len().clamp(1, logical))
}

/// The processor's own name.
pub(crate) fn model_name() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map(|(_, name)| name.trim());
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), str::to_owned)
}

fn allowed_cpus() -> Option<Vec<usize>> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    parse_cpu_list(list.trim())
}

/// Parses `0-3,8,10-11`.
fn parse_cpu_list(list: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cpus.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_parse() {
        for (list, expected) in [
            ("0", Some(vec![0])),
            ("0-3,8,10-11", Some(vec![0, 1, 2, 3, 8, 10, 11])),
            ("", None),
            ("a-b", None),
        ] {
            assert_eq!(parse_cpu_list(list), expected, "{list:?}");
        }
    }

    #[test]
    fn there_is_a_core_and_a_name() {
        let logical = available_parallelism().map_or(1, usize::from);
        assert!((1..=logical).contains(&physical_cores()));
        assert!(!model_name().is_empty());
    }
}
