//! The names vLLM publishes, for dashboards and gateways that scrape them unconfigured.

use prometheus::proto::MetricFamily;

/// Our name without prefix, vLLM's names without prefix.
const VLLM: &[(&str, &[&str])] = &[
    ("requests_running", &["num_requests_running"]),
    ("requests_waiting", &["num_requests_waiting"]),
    ("requests_finished_total", &["request_success_total"]),
    ("requests_rejected_total", &["admission_rejections_total"]),
    ("prompt_tokens_total", &["prompt_tokens_total"]),
    ("generation_tokens_total", &["generation_tokens_total"]),
    (
        "prompt_tokens_cached_total",
        &["prompt_tokens_cached_total"],
    ),
    (
        "prefix_cache_queries_total",
        &["prefix_cache_queries_total"],
    ),
    ("prefix_cache_hits_total", &["prefix_cache_hits_total"]),
    ("preemptions_total", &["num_preemptions_total"]),
    (
        "kv_cache_usage_ratio",
        &["kv_cache_usage_perc", "gpu_cache_usage_perc"],
    ),
    ("cache_config_info", &["cache_config_info"]),
    (
        "time_to_first_token_seconds",
        &["time_to_first_token_seconds"],
    ),
    (
        "inter_token_latency_seconds",
        &["inter_token_latency_seconds"],
    ),
    (
        "request_time_per_output_token_seconds",
        &["request_time_per_output_token_seconds"],
    ),
    (
        "e2e_request_latency_seconds",
        &["e2e_request_latency_seconds"],
    ),
    (
        "request_queue_time_seconds",
        &["request_queue_time_seconds"],
    ),
    (
        "request_prefill_time_seconds",
        &["request_prefill_time_seconds"],
    ),
    (
        "request_decode_time_seconds",
        &["request_decode_time_seconds"],
    ),
    ("request_prompt_tokens", &["request_prompt_tokens"]),
    (
        "request_generation_tokens",
        // The second is the longest of a request's choices there, which is the same for one choice.
        &[
            "request_generation_tokens",
            "request_max_num_generation_tokens",
        ],
    ),
    ("request_max_tokens", &["request_params_max_tokens"]),
    ("step_tokens", &["iteration_tokens_total"]),
];

/// The same series under vLLM's names and label names.
pub(crate) fn vllm(families: &[MetricFamily]) -> Vec<MetricFamily> {
    let mut renamed = Vec::new();
    for (ours, theirs) in VLLM {
        let name = format!("octet_{ours}");
        for family in families.iter().filter(|family| family.name() == name) {
            for their in *theirs {
                renamed.push(rename(family, &format!("vllm:{their}")));
            }
        }
    }
    renamed
}

fn rename(family: &MetricFamily, name: &str) -> MetricFamily {
    let mut family = family.clone();
    family.set_name(name.to_owned());
    for metric in family.mut_metric() {
        let labels = metric.get_label().iter().cloned().map(|mut label| {
            if label.name() == "finish_reason" {
                label.set_name("finished_reason".to_owned());
            }
            label
        });
        let labels: Vec<_> = labels.collect();
        metric.set_label(labels);
    }
    family
}
