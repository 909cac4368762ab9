//! The three Grafana boards: what is served, what the engine does, how the error budget burns. Each
//! panel names a metric of the catalogue and says what to do when it moves.

use anyhow::Result;

use super::Generated;
use super::panels::{Board, Form, Panel, Row, Target};
use super::promql::Catalogue;
use super::rules::{self, ERRORS, SLOW_TTFT};

/// The files of all boards.
pub fn files() -> Result<Vec<Generated>> {
    let catalogue = Catalogue::new();
    let boards = boards(&catalogue)?;
    let rows = boards.iter().flat_map(|board| &board.rows);
    for target in rows
        .flat_map(|row| &row.panels)
        .flat_map(|panel| &panel.targets)
    {
        catalogue.check(&target.expr)?;
    }
    let paths = [
        "deploy/grafana/dashboards/serving-overview.json",
        "deploy/grafana/dashboards/engine-internals.json",
        "deploy/grafana/dashboards/slo-burn.json",
    ];
    let file = |(path, board): (&'static str, Board)| {
        let text = serde_json::to_string_pretty(&board.json()?)? + "\n";
        Ok(Generated { path, text })
    };
    paths.into_iter().zip(boards).map(file).collect()
}

/// The boards themselves.
pub fn boards(c: &Catalogue) -> Result<[Board; 3]> {
    Ok([overview(c)?, internals(c)?, burn()])
}

/// Grafana's unit for a metric, from the unit in its name.
fn unit(name: &str) -> &'static str {
    match name {
        _ if name.contains("_seconds") || name.ends_with("latency") => "s",
        _ if name.ends_with("_ratio") => "percentunit",
        _ if name.ends_with("_bytes") => "bytes",
        _ => "short",
    }
}

fn panel(title: &'static str, form: Form, width: u64, advice: &str) -> Panel {
    Panel {
        title,
        advice: advice.to_owned(),
        form,
        unit: "short",
        width,
        targets: Vec::new(),
        limit: None,
    }
}

impl Panel {
    fn unit(mut self, unit: &'static str) -> Self {
        self.unit = unit;
        self
    }

    fn limit(mut self, limit: f64) -> Self {
        self.limit = Some(limit);
        self
    }

    fn draw(mut self, legend: &str, expr: impl Into<String>) -> Self {
        self.targets.push(Target {
            expr: expr.into(),
            legend: legend.to_owned(),
        });
        self
    }
}

/// A gauge as one number.
fn stat(c: &Catalogue, title: &'static str, name: &str, advice: &str) -> Result<Panel> {
    Ok(panel(title, Form::Stat, 4, advice)
        .unit(unit(name))
        .draw("", c.gauge(name, "")?))
}

/// Quantiles of a histogram over time.
fn quantiles(c: &Catalogue, title: &'static str, name: &str, advice: &str) -> Result<Panel> {
    let mut drawn = panel(title, Form::Lines, 8, advice).unit(unit(name));
    for (q, legend) in [(0.5, "p50"), (0.95, "p95"), (0.99, "p99")] {
        drawn = drawn.draw(legend, c.quantile(q, name)?);
    }
    Ok(drawn)
}

/// All buckets of a histogram over time.
fn heatmap(c: &Catalogue, title: &'static str, name: &str, advice: &str) -> Result<Panel> {
    Ok(panel(title, Form::Heatmap, 8, advice)
        .unit(unit(name))
        .draw("{{le}}", c.buckets(name)?))
}

/// The growth of a counter over time, a line for each value of `by`.
fn rates(c: &Catalogue, title: &'static str, name: &str, by: &str, advice: &str) -> Result<Panel> {
    let legend = if by.is_empty() {
        title.to_owned()
    } else {
        let labels: Vec<String> = by
            .split(", ")
            .map(|label| format!("{{{{{label}}}}}"))
            .collect();
        labels.join(" ")
    };
    Ok(panel(title, Form::Stacked, 8, advice)
        .unit("ops")
        .draw(&legend, c.rate(name, "", by)?))
}

fn overview(c: &Catalogue) -> Result<Board> {
    Ok(Board {
        uid: "octet-serving",
        title: "octet: serving overview",
        description: "What users get, and whether the servers keep up.",
        rows: vec![now(c)?, users(c)?, load(c)?, capacity(c)?],
    })
}

fn now(c: &Catalogue) -> Result<Row> {
    let errors = panel(
        "Error ratio",
        Form::Stat,
        4,
        "Requests that ended in an error or were refused, of all. Open the SLO board and see which \
         reason leads.",
    )
    .unit("percentunit")
    .limit(ERRORS.budget)
    .draw(
        "",
        format!(
            "max({}{{model_name=~\"$model_name\"}})",
            ERRORS.record("5m")
        ),
    );
    let tokens = panel(
        "Generated tokens per second",
        Form::Stat,
        4,
        "Of all servers together. Falling while requests wait: see the engine board.",
    )
    .draw("", c.rate("generation_tokens_total", "", "")?);
    let up = panel(
        "Scraped",
        Form::Stat,
        4,
        "Servers that Prometheus reaches. Fewer than expected: look at the process and the network.",
    )
    .draw("", "sum(up{job=\"octet\",instance=~\"$instance\"})");
    Ok(Row {
        title: "Now",
        panels: vec![
            up,
            stat(
                c,
                "Ready",
                "ready",
                "Servers that answer requests. The rest load, drain or are dead: \
                 `/health` says which.",
            )?,
            stat(
                c,
                "Running",
                "requests_running",
                "Sequences being computed.",
            )?,
            stat(
                c,
                "Waiting",
                "requests_waiting",
                "Requests in queues. Above zero for minutes: add a \
                 server, or raise --max-num-seqs where memory allows.",
            )?,
            tokens,
            errors,
        ],
    })
}

fn users(c: &Catalogue) -> Result<Row> {
    Ok(Row {
        title: "Users",
        panels: vec![
            rates(
                c,
                "Answers",
                "requests_total",
                "code",
                "By status. 429: clients come faster than \
                  the servers compute. 503: loading, draining or a full queue. 5xx otherwise: read the log.",
            )?,
            rates(
                c,
                "Ends",
                "requests_finished_total",
                "finish_reason",
                "Why answers ended. `error` should \
                  stay at zero; `cancelled` growing means that users give up.",
            )?,
            rates(
                c,
                "Retries",
                "request_retries_total",
                "",
                "Requests that a client sent again. They add \
                  to an overload: check the clients' backoff.",
            )?,
            quantiles(
                c,
                "Time to first token",
                "time_to_first_token_seconds",
                "Queue plus prefill. Compare \
                  with the queue time below: if that is small, prompts are long or steps are slow.",
            )?,
            heatmap(
                c,
                "Time to first token, all",
                "time_to_first_token_seconds",
                "Two bands are two kinds of \
                  prompts, or cache hits and misses.",
            )?,
            quantiles(
                c,
                "Time between tokens",
                "inter_token_latency_seconds",
                "What a reader feels. Grows with \
                  the batch and with long prompts in it: lower --max-num-batched-tokens.",
            )?,
            quantiles(
                c,
                "Mean time per token",
                "request_time_per_output_token_seconds",
                "Per answer, after its \
                  first token: a slow p99 here is a slow answer, not a single stall.",
            )?,
            quantiles(
                c,
                "Whole request",
                "e2e_request_latency_seconds",
                "Mostly the length of the answer: read \
                  it beside the lengths below.",
            )?,
            quantiles(
                c,
                "HTTP answers",
                "http_request_duration_seconds",
                "All routes, from the head of the \
                  request to the last byte of the answer.",
            )?,
        ],
    })
}

fn load(c: &Catalogue) -> Result<Row> {
    let tokens = panel(
        "Tokens",
        Form::Lines,
        8,
        "Prompt and generated tokens per second. Many prompt \
        tokens per generated one: the prefix cache matters more than decoding.",
    )
    .draw("prompt", c.rate("prompt_tokens_total", "", "")?)
    .draw(
        "prompt, from the cache",
        c.rate("prompt_tokens_cached_total", "", "")?,
    )
    .draw("generated", c.rate("generation_tokens_total", "", "")?);
    Ok(Row {
        title: "Load",
        panels: vec![
            quantiles(
                c,
                "Queue time",
                "request_queue_time_seconds",
                "From admission to the first step. The \
                  first sign of too few servers.",
            )?,
            rates(
                c,
                "Refused",
                "requests_rejected_total",
                "reason",
                "`queue_*`: overload. `context_length`: \
                  clients send more than the model takes. `draining`: the proxy still sends to a server that leaves.",
            )?,
            tokens,
            heatmap(
                c,
                "Prompt length",
                "request_prompt_tokens",
                "A band that moves up makes every first token \
                  slower.",
            )?,
            heatmap(
                c,
                "Answer length",
                "request_generation_tokens",
                "A band that moves up needs more cache.",
            )?,
            heatmap(
                c,
                "Asked limit",
                "request_max_tokens",
                "The limits that clients ask for; far above the \
                  answers, they only cost admission.",
            )?,
            rates(
                c,
                "Ignored fields",
                "ignored_params_total",
                "param",
                "Request fields without effect here: \
                  a client expects something that it does not get.",
            )?,
        ],
    })
}

fn capacity(c: &Catalogue) -> Result<Row> {
    let usage = panel(
        "KV cache in use",
        Form::Lines,
        8,
        "Full is fine while nothing waits. Full while \
        requests wait: more --kv-cache-memory, or another server.",
    )
    .unit("percentunit")
    .draw("{{instance}}", c.max("kv_cache_usage_ratio", "instance")?);
    let hits = panel("Prefix cache hits", Form::Lines, 8, "Share of prompt tokens found in the cache. A \
        drop after a change of prompts is expected; a drop alone means that balancing spreads conversations.")
        .unit("percentunit")
        .draw(
            "hits",
            format!(
                "{}\n/\n{}",
                c.rate("prefix_cache_hits_total", "", "")?,
                c.rate("prefix_cache_queries_total", "", "")?
            ),
        );
    Ok(Row {
        title: "Capacity",
        panels: vec![
            usage,
            hits,
            rates(
                c,
                "Preemptions",
                "preemptions_total",
                "",
                "Sequences put back for want of memory and \
                  computed again. Steady: lower --max-num-seqs or give the cache more.",
            )?,
        ],
    })
}

fn internals(c: &Catalogue) -> Result<Board> {
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

fn burn() -> Board {
    let windows = |slo: &rules::Slo, title, advice: &str| {
        let mut drawn = panel(title, Form::Lines, 12, advice)
            .unit("percentunit")
            .limit(slo.budget);
        for window in rules::WINDOWS {
            let record = slo.record(window);
            drawn = drawn.draw(
                &format!("{window} {{{{model_name}}}}"),
                format!("{record}{{model_name=~\"$model_name\"}}"),
            );
        }
        drawn
    };
    let rate = |slo: &rules::Slo, title| {
        let mut drawn = panel(
            title,
            Form::Lines,
            12,
            "How many times faster than allowed the budget is \
            spent. 1 spends it in exactly 30 days; 14.4 pages.",
        )
        .limit(rules::FAST_BURN);
        for window in ["1h", "6h", "3d"] {
            let record = slo.record(window);
            drawn = drawn.draw(
                &format!("{window} {{{{model_name}}}}"),
                format!("{record}{{model_name=~\"$model_name\"}} / {}", slo.budget),
            );
        }
        drawn
    };
    let left = |slo: &rules::Slo, title| {
        panel(
            title,
            Form::Stat,
            6,
            "Share of the 30 days' budget that is left, from what is stored. At \
            zero: no risky change until it has recovered.",
        )
        .unit("percentunit")
        .draw(
            "{{model_name}}",
            format!(
                "1 - avg_over_time({}{{model_name=~\"$model_name\"}}[30d]) / {}",
                slo.record("1h"),
                slo.budget
            ),
        )
    };
    let reasons = panel(
        "Reasons of the last hour",
        Form::Lines,
        12,
        "What spends the error budget.",
    )
    .draw("refused: {{reason}}", rules::refused_by_reason("1h"))
    .draw("failed", rules::failed("1h"));
    Board {
        uid: "octet-slo",
        title: "octet: SLO burn",
        description: "Two promises: at most 0.5 % of requests fail or are refused for want of capacity, and at \
            most 5 % wait longer than 2.5 s for their first token.",
        rows: vec![
            Row {
                title: "Budget left",
                panels: vec![
                    left(&ERRORS, "Errors"),
                    left(&SLOW_TTFT, "Slow first tokens"),
                    panel(
                        "Alerts",
                        Form::Alerts,
                        12,
                        "What fires or is about to; each has a paragraph in \
                        deploy/prometheus/runbook.md.",
                    ),
                ],
            },
            Row {
                title: "Errors",
                panels: vec![
                    windows(
                        &ERRORS,
                        "Share of errors by window",
                        "The short windows move first; a page needs \
                        a long and a short one.",
                    ),
                    rate(&ERRORS, "Burn rate of errors"),
                    reasons,
                ],
            },
            Row {
                title: "First token",
                panels: vec![
                    windows(
                        &SLOW_TTFT,
                        "Share of slow first tokens by window",
                        "Slower than 2.5 s. Queue time on \
                        the overview says whether capacity is the reason.",
                    ),
                    rate(&SLOW_TTFT, "Burn rate of slow first tokens"),
                ],
            },
        ],
    }
}
