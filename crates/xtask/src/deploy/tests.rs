use std::collections::BTreeSet;

use regex::Regex;
use serde_json::Value;

use super::panels::Form;
use super::promql::Catalogue;
use super::{boards, check, deploy};

/// Families that no board draws, and why.
const UNDRAWN: &[(&str, &str)] = &[
    (
        "octet_cache_config_info",
        "labels only; read by endpoint pickers",
    ),
    (
        "process_start_time_seconds",
        "marks restarts and alerts on them",
    ),
    (
        "process_virtual_memory_bytes",
        "mapped files make it meaningless",
    ),
];

fn expressions() -> Vec<String> {
    let catalogue = Catalogue::new();
    let boards = boards::boards(&catalogue).expect("every panel names a metric of its kind");
    let panels = boards.into_iter().flat_map(|board| board.rows);
    let panels = panels.flat_map(|row| row.panels);
    panels
        .flat_map(|panel| panel.targets)
        .map(|target| target.expr)
        .collect()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(deploy(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn committed_boards_and_rules_are_the_generated_ones() {
    check().expect("nothing is stale");
}

#[test]
fn every_metric_is_drawn_and_every_expression_names_metrics() {
    let catalogue = Catalogue::new();
    let mut used = BTreeSet::new();
    for expression in expressions() {
        used.extend(catalogue.check(&expression).expect("a valid expression"));
    }
    used.extend(UNDRAWN.iter().map(|(name, _)| (*name).to_owned()));
    for family in catalogue.families() {
        assert!(
            used.contains(&family.name),
            "no board draws {}",
            family.name
        );
    }
    for (name, _) in UNDRAWN {
        catalogue.family(name).expect("the list names metrics");
    }
}

#[test]
fn hand_written_files_name_only_metrics_that_exist() {
    let catalogue = Catalogue::new();
    let files = ["prometheus/rules/octet.yml", "prometheus/runbook.md"];
    for path in files {
        catalogue
            .check(&read(path))
            .unwrap_or_else(|error| panic!("{path}: {error:#}"));
    }
}

#[test]
fn wrong_names_labels_and_edges_are_found() {
    let catalogue = Catalogue::new();
    for (expression, is_right) in [
        (
            "rate(octet_generation_tokens_total{model_name=\"m\"}[1m])",
            true,
        ),
        ("octet_generated_tokens_total", false),
        ("octet_requests_running{phase=\"decode\"}", false),
        ("sum by (phase) (octet_requests_running)", false),
        ("sum by (phase) (octet_step_tokens_sum)", true),
        ("octet_time_to_first_token_seconds", false),
        ("octet_time_to_first_token_seconds_bucket{le=\"2.5\"}", true),
        ("octet_time_to_first_token_seconds_bucket{le=\"2\"}", false),
        (
            "octet_time_to_first_token_seconds_bucket{le=\"3.5\"}",
            false,
        ),
        // Prometheus 3 spells this edge 1.0.
        ("octet_time_to_first_token_seconds_bucket{le=\"1\"}", false),
        ("model:octet_sli_errors:ratio_rate5m", true),
    ] {
        assert_eq!(
            catalogue.check(expression).is_ok(),
            is_right,
            "{expression}"
        );
    }
    assert!(
        catalogue.rate("requests_running", "", "").is_err(),
        "a gauge has no rate"
    );
    assert!(catalogue.quantile(0.5, "requests_total").is_err());
}

#[test]
fn boards_are_whole() {
    let catalogue = Catalogue::new();
    let mut uids = BTreeSet::new();
    let variables = Regex::new(r"\$\{?([a-z_]+)").expect("a pattern");
    for board in boards::boards(&catalogue).expect("boards") {
        assert!(uids.insert(board.uid), "{} twice", board.uid);
        let panels = board.rows.iter().flat_map(|row| &row.panels);
        for panel in panels {
            assert!(
                !panel.title.is_empty() && panel.advice.ends_with('.'),
                "{}",
                panel.title
            );
            assert_eq!(
                panel.targets.is_empty(),
                panel.form == Form::Alerts,
                "{}",
                panel.title
            );
        }
        let json = board.json().expect("a board");
        let panels = json["panels"].as_array().expect("a list");
        let ids: BTreeSet<u64> = panels
            .iter()
            .filter_map(|panel| panel["id"].as_u64())
            .collect();
        assert_eq!(ids.len(), panels.len(), "ids are unique");
        let mut cells = BTreeSet::new();
        for panel in panels {
            for cell in cells_of(&panel["gridPos"]) {
                assert!(
                    cell.0 < 24 && cells.insert(cell),
                    "{} overlaps",
                    panel["title"]
                );
            }
        }
        let text = json.to_string();
        for name in variables.captures_iter(&text) {
            let known = [
                "datasource",
                "model_name",
                "instance",
                "__rate_interval",
                "__all",
            ];
            assert!(known.contains(&&name[1]), "{} is not set", &name[1]);
        }
    }
}

fn cells_of(place: &Value) -> Vec<(u64, u64)> {
    let number = |name: &str| place[name].as_u64().expect("a place");
    let (x, y, w, h) = (number("x"), number("y"), number("w"), number("h"));
    let column = move |column| (y..y + h).map(move |line| (column, line));
    (x..x + w).flat_map(column).collect()
}

#[test]
fn every_alert_has_a_paragraph_and_can_fire() {
    let rules: Value = yaml_serde::from_str(&read("prometheus/rules/octet.yml")).expect("YAML");
    let runbook = read("prometheus/runbook.md");
    let tests = read("prometheus/tests/octet.yml") + &read("prometheus/tests/octet-slow.yml");
    let factors = Regex::new(r"> ([0-9.]+) \* ([0-9.]+)").expect("a pattern");
    let groups = rules["groups"].as_array().expect("groups");
    for rule in groups
        .iter()
        .flat_map(|group| group["rules"].as_array().expect("rules"))
    {
        let Some(name) = rule["alert"].as_str() else {
            continue;
        };
        assert!(
            runbook.contains(&format!("\n## {name}\n")),
            "the runbook lacks {name}"
        );
        let anchor = rule["annotations"]["runbook"].as_str().expect("a link");
        assert!(
            anchor.ends_with(&format!("runbook.md#{}", name.to_lowercase())),
            "{anchor}"
        );
        // One case that fires and one that does not.
        assert!(
            tests.matches(&format!("alertname=\"{name}\",")).count() >= 2,
            "{name} lacks cases"
        );
        // A share never exceeds 1: a threshold above it could never be crossed.
        for found in factors.captures_iter(rule["expr"].as_str().expect("an expression")) {
            let product: f64 = found[1].parse::<f64>().unwrap() * found[2].parse::<f64>().unwrap();
            assert!(product < 1.0, "{name} can never fire");
        }
    }
}

#[test]
fn compose_mounts_what_exists_and_gives_answers_time_to_end() {
    let compose: Value = yaml_serde::from_str(&read("docker/compose.yaml")).expect("YAML");
    let services = compose["services"].as_object().expect("services");
    for (name, service) in services {
        for volume in service["volumes"].as_array().into_iter().flatten() {
            let volume = volume.as_str().expect("a volume is a text");
            let (source, _) = volume.split_once(':').expect("source and target");
            let is_there = match source.strip_prefix('.') {
                Some(_) => deploy("docker").join(source).exists(),
                None => compose["volumes"].get(source).is_some(),
            };
            assert!(is_there, "{name} mounts {source}, which does not exist");
        }
        for port in service["ports"].as_array().into_iter().flatten() {
            let port = port.as_str().expect("a port is a text");
            assert!(
                port.starts_with("127.0.0.1:"),
                "{name} is open to everybody: {port}"
            );
        }
        assert!(
            service["mem_limit"].is_string(),
            "{name} may take all memory"
        );
    }
    let octet = &services["octet"];
    let grace = octet["stop_grace_period"].as_str().expect("a time");
    let grace: u32 = grace.trim_end_matches('s').parse().expect("seconds");
    let drain = octet["environment"]["OCTET_SHUTDOWN_TIMEOUT"].as_str();
    let drain: u32 = drain.expect("a time").parse().expect("seconds");
    assert!(grace >= drain + 5, "running answers would be cut");
}

#[test]
fn the_image_runs_without_root_and_without_a_shell() {
    let image = read("docker/Dockerfile");
    let runtime = image.rsplit("\nFROM ").next().expect("a last stage");
    for (word, at_least) in [
        ("USER 10001", 1),
        ("ENTRYPOINT [", 1),
        ("STOPSIGNAL SIGTERM", 1),
    ] {
        assert_eq!(runtime.matches(word).count(), at_least, "{word}");
    }
    assert!(runtime.contains("CMD [\"/usr/local/bin/octet\", \"health\"]"));
    assert!(
        !runtime.contains("\nRUN "),
        "the runtime has no shell to run anything"
    );
    assert!(image.contains("--locked"));
}

#[test]
fn the_unit_waits_longer_than_a_drain() {
    let unit = read("systemd/octet.service");
    let seconds = |name: &str| -> u32 {
        let line = unit
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name}=")));
        line.unwrap_or_else(|| panic!("{name} is missing"))
            .parse()
            .expect("seconds")
    };
    // The default of --shutdown-timeout, and the time to close connections.
    assert!(seconds("TimeoutStopSec") >= 30 + 5);
    assert!(seconds("WatchdogSec") > 5);
}
