//! What the engine, its process and its GPU do.

use anyhow::Result;

use super::super::panels::{Board, Form, Panel, Row};
use super::super::promql::Catalogue;
use super::{heatmap, panel, quantiles, rates, unit};

/// The board.
pub fn board(c: &Catalogue) -> Result<Board> {
    Ok(Board {
        uid: "octet-engine",
        title: "octet: engine internals",
        description: "Where a step's time goes, and what the process uses.",
        rows: vec![steps(c)?, cache(c)?, embeddings(c)?, process(c)?, gpu()],
    })
}

fn steps(c: &Catalogue) -> Result<Row> {
    let by_phase = |title, name: &str, advice: &str| -> Result<Panel> {
        Ok(panel(title, Form::Lines, 8, advice)
            .unit(unit(name))
            .draw("{{phase}}", c.mean(name, "phase")?))
    };
    let computed = panel("Tokens computed per token used", Form::Lines, 8, "Tokens that steps computed over \
        prompt and generated tokens, those from the cache left out. Above 1: preempted sequences are computed again.")
        .draw(
            "computed / used",
            format!(
                "{}\n/\n({} + {} - {})",
                c.histogram_rate("step_tokens", "_sum", "")?,
                c.rate("prompt_tokens_total", "", "")?,
                c.rate("generation_tokens_total", "", "")?,
                c.rate("prompt_tokens_cached_total", "", "")?,
            ),
        );
    Ok(Row {
        title: "Steps",
        panels: vec![
            heatmap(
                c,
                "Step time",
                "step_duration_seconds",
                "Bands are phases. All slower at once: the \
                  machine is shared, throttled or swapping.",
            )?,
            by_phase(
                "Mean step time",
                "step_duration_seconds",
                "Decode is bound by memory bandwidth, prefill \
                  by arithmetic.",
            )?,
            rates(
                c,
                "Steps",
                "engine_steps_total",
                "",
                "Steps per second. Zero while requests run is a \
                  stalled engine, which an alert reports.",
            )?,
            by_phase(
                "Tokens per step",
                "step_tokens",
                "Prefill should come near --max-num-batched-tokens \
                  under load.",
            )?,
            by_phase(
                "Sequences per step",
                "step_batch_size",
                "Throughput grows with it until arithmetic is \
                  the limit.",
            )?,
            computed,
            quantiles(
                c,
                "Prefill",
                "request_prefill_time_seconds",
                "From the first step to the first token: \
                  prompt length over prefill speed.",
            )?,
            quantiles(
                c,
                "Decode",
                "request_decode_time_seconds",
                "From the first token to the last.",
            )?,
            panel(
                "Heartbeat",
                Form::Lines,
                8,
                "Age of the engine thread's last turn. Longer than the longest \
                  step: it hangs, and the watchdog will end the process.",
            )
            .unit("s")
            .draw(
                "{{instance}}",
                c.max("engine_heartbeat_age_seconds", "instance")?,
            ),
        ],
    })
}

fn cache(c: &Catalogue) -> Result<Row> {
    let blocks = panel(
        "Blocks",
        Form::Lines,
        8,
        "Blocks of 32 tokens in use, and all. Used blocks that do \
        not fall when nothing runs would be a leak: please report it.",
    )
    .draw("used", c.gauge("kv_cache_blocks_used", "")?)
    .draw("all", c.gauge("kv_cache_blocks", "")?);
    let faults = panel(
        "Recoveries and panics",
        Form::Lines,
        8,
        "Failed steps that were recovered from, and \
        panics caught elsewhere. Both should stay at zero: the log has the reason.",
    )
    .draw("recoveries", c.rate("engine_restarts_total", "", "")?)
    .draw("panics", c.rate("panics_total", "", "")?);
    let running = panel(
        "What runs",
        Form::Stat,
        8,
        "Version, device and precision. More than one line for \
        long: an update did not finish.",
    )
    .draw(
        "{{version}} {{commit}} {{device}} {{quantization}}",
        c.gauge("build_info", "version, commit, device, quantization")?,
    );
    Ok(Row {
        title: "Cache and faults",
        panels: vec![blocks, faults, running],
    })
}

fn embeddings(c: &Catalogue) -> Result<Row> {
    let requests = panel(
        "Embedding requests",
        Form::Lines,
        8,
        "Computed and waiting. Always waiting: more requests than the machine can embed.",
    )
    .draw("running", c.gauge("embedding_requests_running", "")?)
    .draw("waiting", c.gauge("embedding_requests_waiting", "")?);
    let batch = panel(
        "Mean batch",
        Form::Lines,
        8,
        "Texts of a batch, and their tokens with padding. One text at a time: clients \
        should send lists.",
    )
    .draw("texts", c.mean("embedding_batch_size", "")?)
    .draw("tokens", c.mean("embedding_batch_tokens", "")?);
    Ok(Row {
        title: "Embeddings",
        panels: vec![
            requests,
            rates(
                c,
                "Texts",
                "embedding_inputs_total",
                "",
                "Texts embedded per second.",
            )?,
            quantiles(
                c,
                "Wait for the first batch",
                "embedding_queue_time_seconds",
                "Grows before requests are refused.",
            )?,
            quantiles(
                c,
                "Batch time",
                "embedding_batch_duration_seconds",
                "Longer than usual: the threads of the language model, or other programs, \
                  take the cores.",
            )?,
            batch,
        ],
    })
}

fn process(c: &Catalogue) -> Result<Row> {
    let by_instance = |title, name: &str, unit, advice: &str| -> Result<Panel> {
        Ok(panel(title, Form::Lines, 8, advice)
            .unit(unit)
            .draw("{{instance}}", c.max(name, "instance")?))
    };
    let cpu = panel(
        "CPU",
        Form::Lines,
        8,
        "Cores in use. Below --threads while requests run: the machine is \
        shared or a limit of its group bites.",
    )
    .draw(
        "{{instance}}",
        c.rate("process_cpu_seconds_total", "", "instance")?,
    );
    let files = panel(
        "Open files",
        Form::Lines,
        8,
        "Connections, mostly. Near the limit: raise LimitNOFILE.",
    )
    .draw("open {{instance}}", c.max("process_open_fds", "instance")?)
    .draw("limit {{instance}}", c.max("process_max_fds", "instance")?);
    Ok(Row {
        title: "Process",
        panels: vec![
            cpu,
            by_instance(
                "Memory",
                "process_resident_memory_bytes",
                "bytes",
                "Weights, cache and buffers: \
                  constant after the start. Growing is a leak: please report it.",
            )?,
            files,
            by_instance(
                "Threads",
                "process_threads",
                "short",
                "Constant after the start.",
            )?,
            panel(
                "HTTP in flight",
                Form::Lines,
                8,
                "Requests being answered, by route.",
            )
            .draw(
                "{{endpoint}}",
                c.gauge("http_requests_in_flight", "endpoint")?,
            ),
            rates(
                c,
                "Connections held back",
                "connections_rejected_total",
                "",
                "Times that a connection had \
                  to wait because as many as allowed were open: clients leak them, or a proxy should pool them.",
            )?,
        ],
    })
}

/// Series of NVIDIA's exporter; empty where none is scraped.
fn gpu() -> Row {
    let dcgm = |title, series: &str, unit, advice: &str| {
        panel(title, Form::Lines, 8, advice)
            .unit(unit)
            .draw("{{gpu}}", format!("max by (gpu) (DCGM_FI_DEV_{series})"))
    };
    Row {
        title: "GPU (dcgm-exporter)",
        panels: vec![
            dcgm(
                "GPU memory",
                "FB_USED",
                "decmbytes",
                "Constant after the start.",
            ),
            dcgm(
                "GPU power",
                "POWER_USAGE",
                "watt",
                "At the cap: clocks fall, and speed with them.",
            ),
            dcgm(
                "SM clock",
                "SM_CLOCK",
                "rotmhz",
                "Falling under load: heat or the power cap.",
            ),
            dcgm(
                "GPU temperature",
                "GPU_TEMP",
                "celsius",
                "Above the card's limit it throttles.",
            ),
            dcgm(
                "Xid",
                "XID_ERRORS",
                "short",
                "Code of the last error. Any new one: read the kernel log.",
            ),
            dcgm(
                "GPU utilisation",
                "GPU_UTIL",
                "percent",
                "High at any load, so it says little.",
            ),
        ],
    }
}
