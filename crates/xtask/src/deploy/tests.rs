use std::collections::BTreeSet;

use regex::Regex;
use serde_json::Value;

use super::panels::Form;
use super::promql::Catalogue;
use super::{boards, check, deploy, manual};

mod pages;

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

pub fn read(path: &str) -> String {
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
    let known = manual::variables();
    let environment = octet["environment"].as_object().expect("variables");
    for (name, value) in environment {
        assert!(known.contains_key(name), "octet reads no {name}");
        assert!(value.is_string(), "{name} is not quoted");
    }
    let drain = environment.get("OCTET_SHUTDOWN_TIMEOUT");
    let drain = drain.and_then(Value::as_str).map(str::to_owned);
    let drain = drain.or_else(|| manual::default("OCTET_SHUTDOWN_TIMEOUT"));
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
    let drain = manual::default("OCTET_SHUTDOWN_TIMEOUT").expect("a default");
    let drain: u32 = drain.parse().expect("seconds");
    assert!(
        seconds("TimeoutStopSec") >= drain + 5,
        "the time to close connections"
    );
    assert!(seconds("WatchdogSec") > 5);
}

#[test]
fn start_up_files_run_the_script_and_know_what_cloud_init_knows() {
    let script = read("cloud/install.sh");
    let setting = Regex::new(r"\$(OCTET_[A-Z0-9_]+|MODELS)\b").expect("a pattern");
    for path in ["cloud/lambda-a10.yaml", "cloud/gcp-l4-t4.yaml"] {
        let text = read(path);
        assert!(text.starts_with("#cloud-config\n"), "{path}");
        let config: Value = yaml_serde::from_str(&text).expect("YAML");
        // cloud-init's schema lets unknown keys at the top pass.
        let keys: Vec<&String> = config.as_object().expect("keys").keys().collect();
        assert_eq!(keys, ["write_files", "runcmd"]);
        let [settings, installer] = &config["write_files"].as_array().expect("files")[..] else {
            panic!("{path} writes two files")
        };
        assert_eq!(installer["content"], *script);
        assert_eq!(config["runcmd"][0][0], installer["path"]);
        let settings = settings["content"].as_str().expect("a text");
        let set = settings
            .lines()
            .filter_map(|line| Some(line.split_once('=')?.0));
        let set: BTreeSet<&str> = set.collect();
        let used: BTreeSet<&str> = setting
            .captures_iter(&script)
            .filter_map(|found| Some(found.get(1)?.as_str()))
            .collect();
        assert_eq!(set, used, "{path}");
    }
    let flags = Regex::new(r"\$octet. bench (?s:.*?)\n  chmod").expect("a pattern");
    let call = flags.find(&script).expect("a call").as_str();
    for flag in Regex::new("--[a-z-]+").expect("a pattern").find_iter(call) {
        assert!(
            manual::page().contains(flag.as_str()),
            "octet has no {}",
            flag.as_str()
        );
    }
    let known = manual::variables();
    let written = Regex::new(r"(?m)^(OCTET_[A-Z_]+)=\$").expect("a pattern");
    for found in written.captures_iter(&script) {
        assert!(
            known.contains_key(&found[1]),
            "octet reads no {}",
            &found[1]
        );
    }
}

#[test]
fn compose_prometheus_and_grafana_find_each_other() {
    let yaml = |path: &str| -> Value { yaml_serde::from_str(&read(path)).expect("YAML") };
    let compose = yaml("docker/compose.yaml");
    let service = |name: &str| {
        let service = &compose["services"][name];
        assert!(service.is_object(), "compose has no {name}");
        service
    };
    let published = |name: &str| {
        let port = service(name)["ports"][0].as_str().expect("a port");
        port.rsplit(':').next().expect("a port").to_owned()
    };
    // Prometheus scrapes the server by its name and port, with the rules that are mounted.
    let inside = yaml("docker/prometheus.yml");
    let alone = yaml("prometheus/prometheus.yml");
    for same in ["rule_files", "global"] {
        assert_eq!(
            inside[same], alone[same],
            "{same} differs from prometheus.yml"
        );
    }
    let scrape = &inside["scrape_configs"][0];
    assert_eq!(scrape["job_name"], alone["scrape_configs"][0]["job_name"]);
    let target = scrape["static_configs"][0]["targets"][0].as_str();
    assert_eq!(target, Some(&*format!("octet:{}", published("octet"))));
    let mounted = |name: &str, wanted: &str| {
        let volumes = service(name)["volumes"].as_array().expect("volumes");
        let mut volumes = volumes.iter().filter_map(Value::as_str);
        assert!(
            volumes.any(|volume| volume == wanted),
            "{name} lacks {wanted}"
        );
    };
    mounted("prometheus", "../prometheus/rules:/etc/prometheus/rules:ro");
    // Grafana asks Prometheus, and reads boards where its provisioning looks for them.
    let source = &yaml("grafana/provisioning/datasources/prometheus.yml")["datasources"][0];
    let url = format!("http://prometheus:{}", published("prometheus"));
    assert_eq!(source["url"].as_str(), Some(&*url));
    let provider = &yaml("grafana/provisioning/dashboards/octet.yml")["providers"][0];
    let boards = provider["options"]["path"].as_str().expect("a folder");
    mounted("grafana", &format!("../grafana/dashboards:{boards}:ro"));
    mounted(
        "grafana",
        "../grafana/provisioning:/etc/grafana/provisioning:ro",
    );
    // What is added for GPUs is added to a service that is there.
    for (name, added) in yaml("docker/compose.cuda.yaml")["services"]
        .as_object()
        .expect("services")
    {
        service(name);
        for argument in added["build"]["args"]
            .as_object()
            .expect("arguments")
            .keys()
        {
            assert!(read("docker/Dockerfile").contains(&format!("\nARG {argument}=")));
        }
    }
}
