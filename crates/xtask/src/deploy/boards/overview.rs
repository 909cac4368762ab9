//! What is served: for whoever looks first.

use anyhow::Result;

use super::super::panels::{Board, Form, Row};
use super::super::promql::Catalogue;
use super::super::rules::ERRORS;
use super::{heatmap, panel, quantiles, rates, stat};

/// The board.
pub fn board(c: &Catalogue) -> Result<Board> {
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
