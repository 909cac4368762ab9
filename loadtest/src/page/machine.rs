//! What was seen of the machine around a run: memory read before and after it, GPUs during it.

use maud::{Markup, html};

use super::data::{Run, number};
use super::tagged::{Of, tagged};
use crate::calibration::Around;
use crate::gpu_watch::{GpuLoad, Range};

/// Entries for a list of facts; nothing of a run that did not look.
pub fn facts(of: Of, run: &Run) -> Markup {
    let memory = run.calibration.as_ref();
    let memory = memory.and_then(|seen| seen.memory_read_bytes_per_second);
    html! {
        @if let Some(Around { before, after }) = memory {
            dt { "memory read by all cores" }
            dd { (gigabytes(of, "before", before)) " before, " (gigabytes(of, "after", after)) " after" }
        }
        @for (i, gpu) in run.gpus.iter().enumerate() {
            dt { "GPU " (gpu.index) ", once a second" }
            dd { (seen(of, i, gpu)) }
        }
    }
}

fn gigabytes(of: Of, when: &str, rate: f64) -> Markup {
    let key = format!("calibration.memory_read_bytes_per_second.{when}");
    tagged(of, &key, rate, &format!("{} GB/s", number(rate / 1e9)))
}

fn seen(of: Of, i: usize, gpu: &GpuLoad) -> Markup {
    let range = |key: &str, unit: &str, scale: f64, range: Option<Range>| {
        html! { @if let Some(Range { min, mean, max }) = range {
            (tagged(of, &format!("gpus.{i}.{key}.mean"), mean, &format!("{} {unit}", number(mean / scale))))
            " (" (number(min / scale)) " to " (number(max / scale)) "), "
        } }
    };
    html! {
        (range("clock_hertz", "MHz", 1e6, gpu.clock_hertz))
        (range("power_watts", "W", 1.0, gpu.power_watts))
        (range("temperature_celsius", "°C", 1.0, gpu.temperature_celsius))
        @if gpu.throttled.is_empty() { "never held back" } @else {
            "held back by " @for (i, (name, share)) in gpu.throttled.iter().enumerate() {
                @if i > 0 { "; " } (name) " in " (number(share * 100.0)) " % of the looks"
            }
        }
    }
}
