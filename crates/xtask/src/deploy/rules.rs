//! Recording and alert rules. Two promises are watched over several windows at once, so that a fast
//! burn pages in minutes and a slow one still opens a ticket; the factors are those of Google's SRE
//! workbook.

use anyhow::Result;
use serde::Serialize;

use super::Generated;

/// Windows over which each promise is recorded.
pub const WINDOWS: &[&str] = &["5m", "30m", "1h", "2h", "6h", "3d"];
/// Burning this many times too fast over an hour pages: 2 % of a 30 days' budget.
pub const FAST_BURN: f64 = 14.4;
/// Refusals that are the service's fault; a prompt longer than the context is the client's.
const REFUSALS: &str = "queue_full|queue_tokens|queue_timeout|loading|draining";
/// Fewer events than this in the long window wake nobody.
const MIN_EVENTS: u32 = 20;

/// A promise.
pub struct Slo {
    /// Its word in the names of records.
    name: &'static str,
    /// Its words in the names of alerts.
    alert: &'static str,
    /// Share of requests that may miss it.
    pub budget: f64,
    summary: &'static str,
}

/// Requests are answered.
pub const ERRORS: Slo = Slo {
    name: "errors",
    alert: "ErrorBudgetBurn",
    budget: 0.005,
    summary: "requests fail or are refused",
};

/// The first token comes within 2.5 s.
pub const SLOW_TTFT: Slo = Slo {
    name: "slow_ttft",
    alert: "SlowFirstTokenBurn",
    budget: 0.05,
    summary: "first tokens come later than 2.5 s",
};

impl Slo {
    /// Name of the recorded share over a window.
    pub fn record(&self, window: &str) -> String {
        format!("model:octet_sli_{}:ratio_rate{window}", self.name)
    }
}

#[derive(Serialize)]
struct Rules {
    groups: Vec<Group>,
}

#[derive(Serialize)]
struct Group {
    name: &'static str,
    rules: Vec<Rule>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Rule {
    Record {
        record: String,
        expr: String,
    },
    Alert {
        alert: String,
        expr: String,
        #[serde(rename = "for")]
        wait: &'static str,
        labels: Labels,
        annotations: Annotations,
    },
}

#[derive(Serialize)]
struct Labels {
    severity: &'static str,
}

#[derive(Serialize)]
struct Annotations {
    summary: String,
    description: String,
    runbook: String,
}

/// The file of all rules.
pub fn file() -> Result<Generated> {
    let rules = Rules {
        groups: vec![
            Group {
                name: "octet-slo",
                rules: WINDOWS.iter().flat_map(|window| promises(window)).collect(),
            },
            Group {
                name: "octet-summary",
                rules: summaries(),
            },
            Group {
                name: "octet-burn",
                rules: [burns(&ERRORS), burns(&SLOW_TTFT)]
                    .into_iter()
                    .flatten()
                    .collect(),
            },
            Group {
                name: "octet-alerts",
                rules: alerts(),
            },
        ],
    };
    let text = format!(
        "# Written by `cargo xtask dashboards`; change crates/xtask/src/deploy/rules.rs instead.\n{}",
        yaml_serde::to_string(&rules)?
    );
    Ok(Generated {
        path: "deploy/prometheus/rules/octet.yml",
        text,
    })
}

fn record(name: &str, expr: String) -> Rule {
    Rule::Record {
        record: name.to_owned(),
        expr,
    }
}

/// Requests per second that were refused for want of capacity, by reason.
pub fn refused_by_reason(window: &str) -> String {
    format!(
        "sum by (model_name, reason) (rate(octet_requests_rejected_total{{reason=~\"{REFUSALS}\"}}[{window}]))"
    )
}

fn refused(window: &str) -> String {
    format!(
        "sum by (model_name) (rate(octet_requests_rejected_total{{reason=~\"{REFUSALS}\"}}[{window}]))"
    )
}

/// Requests per second that ended in an error.
pub fn failed(window: &str) -> String {
    format!(
        "sum by (model_name) (rate(octet_requests_finished_total{{finish_reason=\"error\"}}[{window}]))"
    )
}

/// The events of one window and the share of them that misses each promise. Where there are none there is no
/// share: one NaN would make an average over thirty days another.
fn promises(window: &str) -> Vec<Rule> {
    let finished = format!(
        "sum by (model_name) (rate(octet_requests_finished_total{{finish_reason!=\"cancelled\"}}[{window}]))"
    );
    let events = events(window);
    let histogram = "octet_time_to_first_token_seconds";
    vec![
        record(&events, format!("{finished}\n+ {}", refused(window))),
        record(
            &ERRORS.record(window),
            format!(
                "({}\n+ {})\n/ ({events} > 0)",
                failed(window),
                refused(window)
            ),
        ),
        record(
            &SLOW_TTFT.record(window),
            format!(
                "1 - sum by (model_name) (rate({histogram}_bucket{{le=\"2.5\"}}[{window}]))\n\
                 / (sum by (model_name) (rate({histogram}_count[{window}])) > 0)"
            ),
        ),
    ]
}

fn events(window: &str) -> String {
    format!("model:octet_sli_events:rate{window}")
}

/// What boards and autoscalers ask for often.
fn summaries() -> Vec<Rule> {
    let mut rules = Vec::new();
    for (name, histogram) in [
        ("time_to_first_token", "octet_time_to_first_token_seconds"),
        ("inter_token_latency", "octet_inter_token_latency_seconds"),
        ("queue_time", "octet_request_queue_time_seconds"),
    ] {
        for (percent, q) in [(50, 0.5), (95, 0.95), (99, 0.99)] {
            rules.push(record(
                &format!("model:octet_{name}_seconds:p{percent}_rate5m"),
                format!("histogram_quantile({q}, sum by (model_name, le) (rate({histogram}_bucket[5m])))"),
            ));
        }
    }
    let sum =
        |metric: &str, window: &str| format!("sum by (model_name) (rate({metric}[{window}]))");
    rules.push(record(
        "model:octet_generation_tokens:rate1m",
        sum("octet_generation_tokens_total", "1m"),
    ));
    rules.push(record(
        "model:octet_prefix_cache_hit:ratio_rate5m",
        format!(
            "{}\n/ {}",
            sum("octet_prefix_cache_hits_total", "5m"),
            sum("octet_prefix_cache_queries_total", "5m")
        ),
    ));
    rules.push(record(
        "model:octet_batch_size:mean_rate1m",
        format!(
            "{}\n/ {}",
            sum("octet_step_batch_size_sum", "1m"),
            sum("octet_step_batch_size_count", "1m")
        ),
    ));
    rules.push(record(
        "model:octet_requests_demand:sum",
        "sum by (model_name) (octet_requests_running + octet_requests_waiting)".to_owned(),
    ));
    rules
}

fn seconds(window: &str) -> u32 {
    let (number, unit) = window.split_at(window.len() - 1);
    let number: u32 = number.parse().expect("a window is a number and a unit");
    number
        * match unit {
            "m" => 60,
            "h" => 3600,
            _ => 86_400,
        }
}

/// A long window says that it matters, a short one that it still goes on.
fn burning(slo: &Slo, factor: f64, long: &str, short: &str) -> String {
    let budget = slo.budget;
    format!(
        "({} > {factor} * {budget}\nand {} > {factor} * {budget}\nand {} * {} > {MIN_EVENTS})",
        slo.record(long),
        slo.record(short),
        events(long),
        seconds(long)
    )
}

fn burns(slo: &Slo) -> [Rule; 2] {
    let describe = |how: &str| {
        format!(
            "{{{{ $value | humanizePercentage }}}} of the requests to {{{{ $labels.model_name }}}} miss the \
             promise, {how}."
        )
    };
    [
        alert(
            &format!("Octet{}", slo.alert),
            format!(
                "{}\nor\n{}",
                burning(slo, FAST_BURN, "1h", "5m"),
                burning(slo, 6.0, "6h", "30m")
            ),
            ("2m", "page"),
            &format!("{}, fast", slo.summary),
            &describe("which spends the budget of 30 days within five"),
        ),
        alert(
            &format!("Octet{}Slow", slo.alert),
            burning(slo, 1.0, "3d", "6h"),
            ("2m", "ticket"),
            &format!("{}, slowly", slo.summary),
            &describe("which spends the budget of 30 days before they are over"),
        ),
    ]
}

fn alert(
    name: &str,
    expr: String,
    (wait, severity): (&'static str, &'static str),
    summary: &str,
    description: &str,
) -> Rule {
    Rule::Alert {
        alert: name.to_owned(),
        expr,
        wait,
        labels: Labels { severity },
        annotations: Annotations {
            summary: summary.to_owned(),
            description: description.to_owned(),
            runbook: format!("deploy/prometheus/runbook.md#{}", name.to_lowercase()),
        },
    }
}

/// Name, expression, how long it holds and how bad it is, summary, description.
type AlertRow = (
    &'static str,
    &'static str,
    (&'static str, &'static str),
    &'static str,
    String,
);

fn alerts() -> Vec<Rule> {
    const PAGE: &str = "page";
    const TICKET: &str = "ticket";
    let instance = "{{ $labels.instance }}";
    let model = "{{ $labels.model_name }}";
    let rows: [AlertRow; 13] = [
        (
            "OctetDown",
            "up{job=\"octet\"} == 0",
            ("1m", PAGE),
            "a server cannot be scraped",
            format!("{instance} has not answered for a minute."),
        ),
        (
            "OctetAbsent",
            "absent(octet_build_info)",
            ("5m", PAGE),
            "no server is scraped",
            "Prometheus knows no octet server: the scrape configuration or all servers are gone."
                .to_owned(),
        ),
        (
            "OctetEngineStalled",
            "sum by (instance) (octet_requests_running) > 0\n\
             and sum by (instance) (rate(octet_step_duration_seconds_count[2m])) == 0",
            ("1m", PAGE),
            "requests run but no step ends",
            format!("The engine of {instance} has done no step for two minutes."),
        ),
        (
            "OctetQueueGrowing",
            "min_over_time(octet_requests_waiting[10m]) > 0\nand deriv(octet_requests_waiting[10m]) > 0",
            ("10m", TICKET),
            "the queue has grown for twenty minutes",
            format!("{{{{ $value }}}} requests at least have waited at {instance} all the time."),
        ),
        (
            "OctetRejecting",
            "sum by (model_name) (rate(octet_requests_rejected_total{reason=~\"queue_.*\"}[5m])) > 0",
            ("10m", PAGE),
            "requests are refused for want of room",
            format!("{{{{ $value | humanize }}}} requests a second to {model} are refused."),
        ),
        (
            "OctetKvCacheFull",
            "min_over_time(octet_kv_cache_usage_ratio[10m]) > 0.95\n\
             and min_over_time(octet_requests_waiting[10m]) > 0",
            ("5m", TICKET),
            "the cache is full and requests wait",
            format!("Sequences of {instance} wait for cache blocks."),
        ),
        (
            "OctetPreemptionStorm",
            "sum by (model_name) (rate(octet_preemptions_total[10m]))\n\
             > 0.5 * sum by (model_name) (rate(octet_requests_finished_total[10m]))",
            ("10m", TICKET),
            "sequences are preempted again and again",
            format!("{model}: more than one preemption for every two answers."),
        ),
        (
            "OctetRetryStorm",
            "sum by (model_name) (rate(octet_request_retries_total[10m]))\n\
             > 0.2 * sum by (model_name) (rate(octet_requests_total[10m]))",
            ("10m", TICKET),
            "clients send requests again and again",
            format!("{model}: more than a fifth of the requests are retries."),
        ),
        (
            "OctetStreamErrors",
            "sum by (model_name) (increase(octet_requests_finished_total{finish_reason=\"error\"}[10m])) > 0",
            ("0m", TICKET),
            "answers ended in an error",
            format!("{{{{ $value | humanize }}}} answers of {model} in ten minutes."),
        ),
        (
            "OctetRestarts",
            "changes(process_start_time_seconds{job=\"octet\"}[15m]) > 2",
            ("0m", PAGE),
            "a server restarts again and again",
            format!("{instance} has started {{{{ $value }}}} times in a quarter of an hour."),
        ),
        (
            "OctetFileDescriptorsHigh",
            "process_open_fds{job=\"octet\"} / process_max_fds{job=\"octet\"} > 0.8",
            ("5m", TICKET),
            "file descriptors run out",
            format!("{instance} uses {{{{ $value | humanizePercentage }}}} of its descriptors."),
        ),
        (
            "OctetMixedVersions",
            "count(count by (version, commit) (octet_build_info)) > 1",
            ("1h", TICKET),
            "different versions serve side by side",
            "{{ $value }} versions have run for an hour: an update did not finish.".to_owned(),
        ),
        (
            "GpuXid",
            "DCGM_FI_DEV_XID_ERRORS > 0\nand changes(DCGM_FI_DEV_XID_ERRORS[5m]) > 0",
            ("0m", PAGE),
            "a GPU reported an error",
            "GPU {{ $labels.gpu }} of {{ $labels.instance }} reported Xid {{ $value }}.".to_owned(),
        ),
    ];
    let rule = |(name, expr, how, summary, description): AlertRow| {
        alert(name, expr.to_owned(), how, summary, &description)
    };
    rows.into_iter().map(rule).collect()
}
