//! Relations between the numbers and names of the manifests, and between them and the server.

use std::collections::BTreeSet;

use regex::Regex;
use serde_json::Value;

use super::super::manual;
use super::super::promql::Catalogue;
use super::super::tests::read;
use super::*;

mod operators;

/// Objects of an overlay by kind and name.
struct Cluster(Vec<Value>);

impl Cluster {
    fn of(overlay: &str) -> Self {
        Self(objects(overlay).unwrap_or_else(|error| panic!("{overlay}: {error:#}")))
    }

    fn get(&self, wanted: &str) -> Option<&Value> {
        self.0.iter().find(|object| name(object) == wanted)
    }

    fn find(&self, wanted: &str) -> &Value {
        self.get(wanted).unwrap_or_else(|| panic!("no {wanted}"))
    }

    fn pod(&self) -> &Value {
        &self.find("Deployment octet")["spec"]["template"]
    }

    fn container(&self) -> &Value {
        &self.pod()["spec"]["containers"][0]
    }

    /// A variable of the server: as set, or the default of its flag.
    fn setting(&self, variable: &str) -> u64 {
        let set = list(&self.container()["env"]).find(|env| env["name"] == variable);
        let value = set.map(|env| text(&env["value"]).to_owned());
        let value = value.or_else(|| manual::default(variable));
        value
            .unwrap_or_else(|| panic!("{variable} is neither set nor has a default"))
            .parse()
            .expect("a number")
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is no text"))
}

fn number(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}

/// A duration in whole seconds or minutes.
fn seconds(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok()?;
    match unit {
        "s" => Some(number),
        "m" => Some(60 * number),
        _ => None,
    }
}

#[test]
fn running_answers_end_before_the_pod_is_killed() {
    for overlay in OVERLAYS {
        let cluster = Cluster::of(overlay);
        let grace = number(&cluster.pod()["spec"]["terminationGracePeriodSeconds"]);
        let container = cluster.container();
        let sleep = number(&container["lifecycle"]["preStop"]["sleep"]["seconds"]);
        let drain = cluster.setting("OCTET_SHUTDOWN_TIMEOUT");
        assert!(grace >= sleep + drain + 5, "{overlay}: {grace} s of grace");
        // The replica must have left every list before it refuses.
        let readiness = &container["readinessProbe"];
        let noticed = number(&readiness["periodSeconds"]) * number(&readiness["failureThreshold"]);
        assert!(
            sleep >= 10 && sleep > noticed,
            "{overlay}: {sleep} s of preStop"
        );
        if let Some(picker) = cluster.get("Deployment octet-endpoint-picker") {
            let own = &picker["spec"]["template"]["spec"]["terminationGracePeriodSeconds"];
            assert!(
                number(own) >= grace,
                "the picker leaves before its replicas"
            );
        }
    }
}

#[test]
fn probes_ask_what_the_server_answers() {
    let interface: Value = yaml_serde::from_str(&read("../openapi.yaml")).expect("YAML");
    let paths = interface["paths"].as_object().expect("paths");
    let aliases = paths.values().flat_map(|path| list(&path["x-aliases"]));
    let known: BTreeSet<&str> = paths
        .keys()
        .map(String::as_str)
        .chain(aliases.map(text))
        .collect();
    for overlay in OVERLAYS {
        let cluster = Cluster::of(overlay);
        let container = cluster.container();
        for (probe, path) in [
            ("startupProbe", "/health/ready"),
            ("readinessProbe", "/health/ready"),
            ("livenessProbe", "/health/live"),
        ] {
            let get = &container[probe]["httpGet"];
            assert_eq!(text(&get["path"]), path, "{overlay} {probe}");
            assert!(known.contains(path), "openapi.yaml lacks {path}");
            assert_eq!(text(&get["port"]), "http");
        }
        let patience = |probe: &str| {
            let probe = &container[probe];
            number(&probe["periodSeconds"]) * number(&probe["failureThreshold"])
        };
        assert!(patience("startupProbe") >= 120);
        // The service's own watchdog (systemd's is 30 s) is quicker than the cluster's.
        assert!(patience("livenessProbe") > 30);
        assert!(number(&container["readinessProbe"]["failureThreshold"]) >= 2);
    }
}

#[test]
fn ports_selectors_and_variables_meet() {
    let known = manual::variables();
    for overlay in OVERLAYS {
        let cluster = Cluster::of(overlay);
        let labels = &cluster.pod()["metadata"]["labels"];
        let deployment = &cluster.find("Deployment octet")["spec"];
        let mut selectors = vec![
            &deployment["selector"]["matchLabels"],
            &cluster.find("Service octet")["spec"]["selector"],
            &cluster.find("PodDisruptionBudget octet")["spec"]["selector"]["matchLabels"],
            &cluster.find("NetworkPolicy octet")["spec"]["podSelector"]["matchLabels"],
        ];
        let optional = ["PodMonitor octet", "InferencePool octet"];
        let found = optional.iter().filter_map(|wanted| cluster.get(wanted));
        selectors.extend(found.map(|object| &object["spec"]["selector"]["matchLabels"]));
        for selector in selectors {
            assert_eq!(selector, labels, "{overlay}");
        }
        let port = cluster.setting("OCTET_PORT");
        let container = cluster.container();
        assert_eq!(container["ports"][0]["name"], "http");
        assert_eq!(number(&container["ports"][0]["containerPort"]), port);
        if let Some(pool) = cluster.get("InferencePool octet") {
            assert_eq!(number(&pool["spec"]["targetPorts"][0]["number"]), port);
        }
        for variable in list(&container["env"]) {
            let name = text(&variable["name"]);
            assert!(
                known.contains_key(name) || name.starts_with("NVIDIA_"),
                "octet reads no {name}"
            );
            assert!(variable["value"].is_string(), "{name} is not quoted");
        }
    }
}

#[test]
fn pods_keep_to_the_restricted_policy() {
    for overlay in OVERLAYS {
        let cluster = Cluster::of(overlay);
        let deployments = cluster
            .0
            .iter()
            .filter(|object| object["kind"] == "Deployment");
        for deployment in deployments {
            let pod = &deployment["spec"]["template"]["spec"];
            assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
            assert!(number(&pod["securityContext"]["runAsUser"]) > 0);
            assert_eq!(
                pod["securityContext"]["seccompProfile"]["type"],
                "RuntimeDefault"
            );
            for container in list(&pod["containers"]) {
                let context = &container["securityContext"];
                assert_eq!(context["allowPrivilegeEscalation"], false);
                assert_eq!(context["readOnlyRootFilesystem"], true);
                assert_eq!(context["capabilities"]["drop"][0], "ALL");
                let (asked, limit) = (
                    &container["resources"]["requests"],
                    &container["resources"]["limits"],
                );
                for exact in ["memory", "nvidia.com/gpu"] {
                    assert_eq!(asked[exact], limit[exact], "{overlay}: {exact}");
                }
                assert!(limit["cpu"].is_null(), "a limit on the CPU throttles steps");
            }
            for mount in list(&pod["containers"][0]["volumeMounts"]) {
                assert_eq!(mount["readOnly"], true);
                let is_there = |volume: &Value| volume["name"] == mount["name"];
                assert!(
                    list(&pod["volumes"]).any(is_there),
                    "no volume {}",
                    mount["name"]
                );
            }
        }
    }
}

#[test]
fn replicas_may_leave_one_at_a_time() {
    for overlay in OVERLAYS {
        let cluster = Cluster::of(overlay);
        let deployment = &cluster.find("Deployment octet")["spec"];
        let kept = number(&cluster.find("PodDisruptionBudget octet")["spec"]["minAvailable"]);
        assert!(
            kept < number(&deployment["replicas"]),
            "nodes could never be drained"
        );
        let update = &deployment["strategy"]["rollingUpdate"];
        let has_gpu = !cluster.container()["resources"]["limits"]["nvidia.com/gpu"].is_null();
        assert_eq!(number(&update["maxUnavailable"]), u64::from(has_gpu));
        assert_eq!(number(&update["maxSurge"]), u64::from(!has_gpu));
    }
}

#[test]
fn scaling_follows_demand_in_our_metrics() {
    let catalogue = Catalogue::new();
    for overlay in OVERLAYS.iter().filter(|overlay| **overlay != "base") {
        let cluster = Cluster::of(overlay);
        let scaled = &cluster.find("ScaledObject octet")["spec"];
        let target = &scaled["scaleTargetRef"];
        let target = format!("{} {}", text(&target["kind"]), text(&target["name"]));
        cluster.find(&target);
        let kept = number(&cluster.find("PodDisruptionBudget octet")["spec"]["minAvailable"]);
        let (least, most) = (
            number(&scaled["minReplicaCount"]),
            number(&scaled["maxReplicaCount"]),
        );
        assert!(kept < least && least < most);
        let window = &scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"];
        let window = number(&window["stabilizationWindowSeconds"]);
        let startup = &cluster.container()["startupProbe"];
        let startup = number(&startup["periodSeconds"]) * number(&startup["failureThreshold"]);
        assert!(
            window >= 300 && window >= startup,
            "{window} s against {startup} s"
        );
        for trigger in list(&scaled["triggers"]) {
            let query = text(&trigger["metadata"]["query"]);
            let used = catalogue
                .check(query)
                .unwrap_or_else(|error| panic!("{query}: {error:#}"));
            assert!(!used.is_empty(), "{query}");
        }
        let seqs = cluster.setting("OCTET_MAX_NUM_SEQS");
        let demand: u64 = text(&scaled["triggers"][0]["metadata"]["threshold"])
            .parse()
            .expect("a number");
        assert_eq!(demand, seqs * 7 / 10);
    }
}

#[test]
fn the_picker_finds_the_metrics_it_reads() {
    let metrics = metrics::Metrics::new("model");
    metrics.set_cache_config(32, 100, "bf16");
    let exposed = metrics.render(true);
    // What the model server protocol of the inference extension asks of vLLM, and llm-d's picker reads.
    for series in [
        "vllm:num_requests_waiting{",
        "vllm:num_requests_running{",
        "vllm:kv_cache_usage_perc{",
        "vllm:cache_config_info{block_size=\"32\"",
    ] {
        assert!(exposed.contains(&format!("\n{series}")), "{series}");
    }
    assert!(exposed.contains("num_gpu_blocks=\"100\""));
    let cluster = Cluster::of("overlays/gie");
    let aliases =
        list(&cluster.container()["env"]).all(|env| env["name"] != "OCTET_METRICS_COMPAT");
    assert!(aliases, "vLLM's names are turned off");
    let pool = &cluster.find("InferencePool octet")["spec"]["endpointPickerRef"];
    let service = &cluster.find(&format!("Service {}", text(&pool["name"])))["spec"];
    assert_eq!(service["ports"][0]["port"], pool["port"]["number"]);
    let picker = &cluster.find("Deployment octet-endpoint-picker")["spec"]["template"];
    assert_eq!(service["selector"], picker["metadata"]["labels"]);
    let container = &picker["spec"]["containers"][0];
    let ports = list(&container["ports"])
        .map(|port| number(&port["containerPort"]))
        .collect::<Vec<_>>();
    let flags: Vec<&str> = list(&container["args"]).map(text).collect();
    let named = Regex::new(r"-port=(\d+)$").expect("a pattern");
    let flagged = flags
        .iter()
        .filter_map(|flag| named.captures(flag)?[1].parse().ok());
    assert_eq!(flagged.collect::<Vec<u64>>(), ports);
    for flag in ["--pool-name=octet", "--pool-namespace=octet"] {
        assert!(flags.contains(&flag), "{flag}");
    }
    let config: Value = yaml_serde::from_str(text(
        &cluster.find("ConfigMap octet-endpoint-picker")["data"]["config.yaml"],
    ))
    .expect("YAML");
    let plugins: BTreeSet<&str> = list(&config["plugins"])
        .map(|plugin| text(&plugin["type"]))
        .collect();
    for used in list(&config["schedulingProfiles"][0]["plugins"]) {
        assert!(plugins.contains(text(&used["pluginRef"])), "{used}");
    }
    let route = &cluster.find("HTTPRoute octet")["spec"]["rules"][0];
    let backend = &route["backendRefs"][0];
    cluster.find(&format!(
        "{} {}",
        text(&backend["kind"]),
        text(&backend["name"])
    ));
    let timeout = seconds(text(&route["timeouts"]["request"])).expect("a time");
    assert!(timeout > cluster.setting("OCTET_REQUEST_TIMEOUT"));
}

#[test]
fn the_picker_is_asked_what_its_health_service_knows() {
    let cluster = Cluster::of("overlays/gie");
    let picker = &cluster.find("Deployment octet-endpoint-picker")["spec"]["template"]["spec"];
    let container = &picker["containers"][0];
    let flags: Vec<&str> = list(&container["args"]).map(text).collect();
    // Of `pkg/epp/server/options.go` of the Inference Extension 1.5, which llm-d 0.8 is built on.
    for flag in &flags {
        let name = flag.split('=').next().expect("a name");
        let known = [
            "--pool-name",
            "--pool-namespace",
            "--pool-group",
            "--config-file",
            "--grpc-port",
            "--grpc-health-port",
            "--metrics-port",
        ];
        assert!(known.contains(&name), "the picker has no {name}");
    }
    // With one replica there is no election of a leader, and both probes ask the same.
    assert!(flags.iter().all(|flag| !flag.contains("leader")));
    for probe in ["readinessProbe", "livenessProbe"] {
        let asked = &container[probe]["grpc"];
        assert_eq!(
            asked["service"],
            "envoy.service.ext_proc.v3.ExternalProcessor"
        );
        let port = format!("--grpc-health-port={}", asked["port"]);
        assert!(flags.contains(&&*port), "{probe}");
    }
    let file = flags
        .iter()
        .find_map(|flag| flag.strip_prefix("--config-file="));
    let (folder, file) = file.and_then(|path| path.rsplit_once('/')).expect("a path");
    assert_eq!(container["volumeMounts"][0]["mountPath"], folder);
    let map = &picker["volumes"][0]["configMap"]["name"];
    let map = cluster.find(&format!("ConfigMap {}", text(map)));
    assert!(map["data"][file].is_string(), "the map has no {file}");
}

#[test]
fn rates_see_several_scrapes() {
    let ranges = Regex::new(r"\[(\w+)\]").expect("a pattern");
    for overlay in OVERLAYS.iter().filter(|overlay| **overlay != "base") {
        let cluster = Cluster::of(overlay);
        let scrape = &cluster.find("PodMonitor octet")["spec"]["podMetricsEndpoints"][0];
        let time = |name: &str| seconds(text(&scrape[name])).expect("a time");
        let interval = time("interval");
        assert!(time("scrapeTimeout") <= interval);
        let scaled = &cluster.find("ScaledObject octet")["spec"];
        // Asked more often than scraped, it would decide on the same numbers again.
        assert!(number(&scaled["pollingInterval"]) >= interval);
        for trigger in list(&scaled["triggers"]) {
            for range in ranges.captures_iter(text(&trigger["metadata"]["query"])) {
                let range = seconds(&range[1]).expect("a time");
                assert!(range >= 4 * interval, "{range} s of {interval} s scrapes");
            }
        }
        let rules = read("prometheus/rules/octet.yml");
        for range in ranges.captures_iter(&rules) {
            // Longer ones are in hours and days.
            let range = seconds(&range[1]);
            assert!(range.is_none_or(|range| range >= 4 * interval));
        }
    }
}

#[test]
fn patches_reach_into_named_items() {
    let mut object =
        serde_json::json!({"a": [{"name": "x", "b": 1}, {"name": "y"}], "c": [1], "d": 2});
    merge(
        &mut object,
        serde_json::json!({"a": [{"name": "x", "e": 3}, {"name": "z"}], "c": [4]}),
    );
    let wanted = serde_json::json!(
        {"a": [{"name": "x", "b": 1, "e": 3}, {"name": "y"}, {"name": "z"}], "c": [4], "d": 2}
    );
    assert_eq!(object, wanted);
}
