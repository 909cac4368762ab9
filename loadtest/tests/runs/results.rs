//! What is left on the disk.

use crate::fake::{Behaviour, FakeServer, MetricsPage};
use loadtest::page;
use loadtest::repeat;
use loadtest::report::Report;

use crate::{config, measure};

#[tokio::test]
async fn the_json_file_holds_the_report() {
    let server = FakeServer::start(&[Behaviour::Ok], MetricsPage::Honest).await;
    let report = measure(&server, "--requests 6 --output-tokens 8").await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.json");
    loadtest::results::write_json(&path, &report).unwrap();
    let json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!((&json["schema"], &json["kind"]), (&1.into(), &"run".into()));
    assert_eq!(json["outcomes"]["ok"]["count"], 6);
    assert_eq!(json["load"]["arrival"]["kind"], "closed");
    assert_eq!(json["server"]["checks"][0]["verdict"], "pass");
    assert!(json["latency"]["ttft"]["p50"].is_number() && json["latency"]["ttft"]["p99"].is_null());
    let names: Vec<String> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names, ["run.json"], "no partial file stays");
}

/// A folder of repeats: every file a reader expects, an interval on its page, the same bytes when drawn
/// again, and an index that leads there.
#[tokio::test]
async fn repeats_make_a_folder_with_a_page_and_an_index() {
    let server = FakeServer::start(&[Behaviour::Ok], MetricsPage::Honest).await;
    let folder = tempfile::tempdir().unwrap();
    let config = config(
        &server,
        "--requests 6 --output-tokens 8 --name twice --seed 5",
    );
    let mut told = 0;
    let (made, reports) = repeat::run(&[config], 2, folder.path(), |_| told += 1)
        .await
        .unwrap();
    assert_eq!((told, reports.len()), (2, 2));
    let seeds: Vec<u64> = reports.iter().map(|report| report.load.seed).collect();
    assert_eq!(seeds, [5, 6], "each repeat draws anew");
    for run in ["1", "2"] {
        let lines = std::fs::read_to_string(made.join(run).join("requests.jsonl")).unwrap();
        let first: serde_json::Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
        assert_eq!(lines.lines().count(), 6);
        assert_eq!(
            (&first["phase"], &first["outcome"]),
            (&"measured".into(), &"ok".into())
        );
        assert_eq!(
            (&first["plan"], &first["output_tokens"]),
            (&0.into(), &8.into())
        );
        let gaps = first["gaps"].as_array().unwrap().iter();
        assert_eq!(gaps.map(|gap| gap[1].as_u64().unwrap()).sum::<u64>(), 7);
        assert!(made.join(run).join("report.html").is_file());
        let read = |name: &str| std::fs::read_to_string(made.join(run).join(name)).unwrap();
        let scrapes = read("metrics.jsonl");
        let scrape: serde_json::Value =
            serde_json::from_str(scrapes.lines().next().unwrap()).unwrap();
        assert!(scrape["rtt"].is_u64() && scrape["series"]["running"].is_number());
        assert!(scrape["t"].is_i64(), "{scrape}");
        let tokens = |text: &str| loadtest::scrape::Snapshot::parse(text).unwrap();
        let [before, after] =
            ["metrics-before.txt", "metrics-after.txt"].map(|name| tokens(&read(name)));
        let name = "octet_generation_tokens_total";
        let grown = after.value(name, &[]).unwrap() - before.value(name, &[]).unwrap();
        assert_eq!(grown, 48.0, "six answers of eight tokens");
        assert!(
            read("workload.toml").contains(&format!("--seed {}", [5, 6][usize::from(run == "2")]))
        );
    }
    let page = std::fs::read_to_string(made.join("report.html")).unwrap();
    assert!(page.contains("2 of 2 runs count") && page.contains("95 % over 2 runs"));
    assert!(
        page.contains("href=\"1/report.html\"") && page.contains("all runs in one histogram of 84")
    );
    let again = folder.path().join("again.html");
    page::write(std::slice::from_ref(&made), &again).unwrap();
    let again = std::fs::read_to_string(again).unwrap();
    let name = made.file_name().unwrap().to_str().unwrap();
    assert_eq!(again.replace(&format!("{name}/"), ""), page);
    page::index::write(folder.path()).unwrap();
    let index = std::fs::read_to_string(folder.path().join("index.html")).unwrap();
    assert!(
        index.contains(&format!("<a href=\"{name}/report.html\">twice</a>")),
        "{index}"
    );
    page::index::write(folder.path()).unwrap();
    assert_eq!(
        std::fs::read_to_string(folder.path().join("index.html")).unwrap(),
        index
    );
    let json = std::fs::read(folder.path().join("index.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(
        (&json["results"][0]["runs"], &json["results"][0]["verdict"]),
        (&2.into(), &"warning".into())
    );
    assert!(json["results"][0]["output_tokens_per_second"]["plus_minus"].is_number());
}

#[tokio::test]
async fn two_servers_are_compared_by_turns() {
    let (first, second) = (
        FakeServer::start(&[Behaviour::Ok], MetricsPage::Honest).await,
        FakeServer::start(&[Behaviour::Ok], MetricsPage::Honest).await,
    );
    let sides = [
        config(&first, "--requests 6 --output-tokens 4 --name old"),
        config(&second, "--requests 6 --output-tokens 4 --name new"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let mut order = Vec::new();
    let tell = |report: &Report| order.push(report.name.clone());
    let (made, _) = repeat::run(&sides, 2, folder.path(), tell).await.unwrap();
    assert_eq!(order, ["old", "new", "new", "old"]);
    let page = std::fs::read_to_string(made.join("report.html")).unwrap();
    assert!(page.contains("Too few runs to tell old from new"), "{page}");
    assert!(page.contains("2 pairs of runs made by turns") && !page.contains("Not comparable"));
    assert!(
        page::summary(&made)
            .unwrap()
            .starts_with("new against old, times as fast:")
    );
    page::index::write(folder.path()).unwrap();
    let index = std::fs::read_to_string(folder.path().join("index.html")).unwrap();
    assert_eq!(index.matches(">compared</a>").count(), 2, "{index}");
}
