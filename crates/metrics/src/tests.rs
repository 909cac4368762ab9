use super::*;

fn names(text: &str) -> Vec<&str> {
    text.lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .map(|line| {
            line.split(' ')
                .next()
                .expect("a type line names its family")
        })
        .collect()
}

#[test]
fn every_series_exists_at_zero_before_the_first_request() {
    let metrics = Metrics::new("m");
    metrics.set_cache_config(32, 100, "f32");
    metrics.set_build_info(&BuildInfo::default());
    let text = metrics.render(true);
    for expected in [
        "octet_requests_finished_total{finish_reason=\"cancelled\",model_name=\"m\"} 0",
        "octet_requests_rejected_total{model_name=\"m\",reason=\"queue_full\"} 0",
        "octet_step_tokens_count{model_name=\"m\",phase=\"mixed\"} 0",
        "octet_kv_cache_blocks{model_name=\"m\"} 100",
        "vllm:num_requests_waiting{model_name=\"m\"} 0",
        "vllm:num_requests_running{model_name=\"m\"} 0",
        "vllm:kv_cache_usage_perc{model_name=\"m\"} 0",
        "vllm:gpu_cache_usage_perc{model_name=\"m\"} 0",
        "vllm:request_success_total{finished_reason=\"stop\",model_name=\"m\"} 0",
        "vllm:time_to_first_token_seconds_count{model_name=\"m\"} 0",
    ] {
        assert!(text.contains(expected), "missing {expected} in\n{text}");
    }
    assert!(text.contains("vllm:cache_config_info{block_size=\"32\""));
}

#[test]
fn aliases_are_off_when_not_asked_for_and_name_existing_families() {
    let metrics = Metrics::new("m");
    metrics.set_cache_config(32, 1, "f32");
    assert!(!metrics.render(false).contains("vllm:"));
    let text = metrics.render(true);
    let aliases = names(&text)
        .iter()
        .filter(|n| n.starts_with("vllm:"))
        .count();
    assert_eq!(aliases, 25, "one of the aliased families does not exist");
}

#[test]
fn the_dashboard_of_vllm_finds_its_series() {
    let text = Metrics::new("m").render(true);
    // What its example board for Grafana selects, by model, as of 2026.
    for series in [
        "e2e_request_latency_seconds_bucket",
        "e2e_request_latency_seconds_count",
        "e2e_request_latency_seconds_sum",
        "generation_tokens_total",
        "inter_token_latency_seconds_bucket",
        "inter_token_latency_seconds_count",
        "inter_token_latency_seconds_sum",
        "kv_cache_usage_perc",
        "num_requests_running",
        "num_requests_waiting",
        "prompt_tokens_total",
        "request_decode_time_seconds_sum",
        "request_generation_tokens_bucket",
        "request_max_num_generation_tokens_sum",
        "request_prefill_time_seconds_sum",
        "request_prompt_tokens_bucket",
        "request_queue_time_seconds_sum",
        "request_success_total",
        "time_to_first_token_seconds_bucket",
        "time_to_first_token_seconds_count",
        "time_to_first_token_seconds_sum",
    ] {
        let start = format!("vllm:{series}{{");
        let mut lines = text.lines().filter(|line| line.starts_with(&start));
        let is_of_the_model = lines.any(|line| line.contains("model_name=\"m\""));
        assert!(is_of_the_model, "{series} is missing");
    }
}

#[test]
fn counters_end_in_total_and_names_carry_no_colon() {
    let text = Metrics::new("m").render(false);
    for line in text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE octet_"))
    {
        let (name, kind) = line.split_once(' ').expect("a type line has two words");
        assert_eq!(
            kind == "counter",
            name.ends_with("_total"),
            "{name} is a {kind}"
        );
        assert!(!name.contains(':'));
    }
}

#[test]
fn a_handle_shares_its_series() {
    let metrics = Metrics::new("m");
    metrics.clone().generation_tokens_total.inc_by(3);
    assert_eq!(metrics.generation_tokens_total.get(), 3);
}

#[test]
fn the_catalogue_names_kinds_labels_and_edges() {
    let families = catalogue();
    let find = |name: &str| {
        let family = families.iter().find(|family| family.name == name);
        family.unwrap_or_else(|| panic!("{name} is missing"))
    };
    let tokens = find("octet_generation_tokens_total");
    assert_eq!(tokens.kind, Kind::Counter);
    assert_eq!(tokens.labels, ["model_name"]);
    let steps = find("octet_step_duration_seconds");
    assert_eq!(steps.kind, Kind::Histogram);
    assert_eq!(steps.labels, ["model_name", "phase"]);
    assert_eq!(steps.buckets, buckets::STEP);
    assert_eq!(find("process_open_fds").kind, Kind::Gauge);
    // Families whose labels are known only later are described as well.
    assert!(
        find("octet_build_info")
            .labels
            .contains(&"version".to_owned())
    );
    assert!(
        find("octet_requests_total")
            .labels
            .contains(&"code".to_owned())
    );
}
