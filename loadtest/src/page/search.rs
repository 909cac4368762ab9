//! The page of a search for the highest rate or number of users: what was found and why it ended, every probe against its
//! level with its interval, and the probes in the order in which they were made.

use std::path::Path;

use anyhow::{Context, Result, bail};
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::Value;

use super::axis::{Axis, Scale};
use super::chart::{Chart, Form, Mark, Series};
use super::data::{Arrival, Goodput, Limits, Price, Target, Tool, milliseconds, number};
use super::rates::{self, Ladder, Tried};
use super::tagged::{Of, tagged};
use super::{cut, document};
use crate::cost::USES;
use crate::give_up::Early;
use crate::gpu_watch::GpuLoad;
use crate::results::SEARCH;
use crate::scene::Host;
use crate::search::{Over, ProbeKind, ProbeVerdict, Rejudged, StopReason};

/// The schema this page reads.
const SCHEMA: u32 = 1;

/// The parts of a search's result that the page shows.
#[derive(Debug, Clone, Deserialize)]
pub struct Search {
    schema: u32,
    kind: String,
    /// What it is called.
    #[serde(default)]
    pub name: String,
    /// Wall time of its start.
    #[serde(default)]
    pub started: String,
    #[serde(default)]
    host: Host,
    #[serde(default)]
    tool: Tool,
    target: Option<Target>,
    slo: Limits,
    /// What was raised; a search of an earlier version raised rates.
    #[serde(default)]
    pub over: Over,
    /// Requests per second; none when no rate passed, or users were raised.
    pub rate: Option<f64>,
    /// Users; none when no number of them passed, or rates were raised.
    pub users: Option<u64>,
    /// Why it ended.
    pub stop: StopReason,
    not_monotone: bool,
    price: Option<Price>,
    probes: Vec<Probe>,
}

#[derive(Debug, Clone, Deserialize)]
struct Probe {
    kind: ProbeKind,
    arrival: Arrival,
    seconds: f64,
    verdict: ProbeVerdict,
    goodput: Option<Goodput>,
    ended_early: Option<Early>,
    growing: Vec<String>,
    client_was_late: bool,
    /// None of a search of an earlier version.
    without_client_delay: Option<Rejudged>,
    #[serde(default)]
    gpus: Vec<GpuLoad>,
    offered_requests: Option<f64>,
    completed_requests: f64,
    ttft_p50: Option<f64>,
    /// None of a search of an earlier version.
    ttft_p99: Option<f64>,
    tpot_p50: Option<f64>,
    per_million_output_tokens: Option<f64>,
}

impl Search {
    /// Reads the result of a search: a file, or the one in a folder; none where it is another result.
    ///
    /// # Errors
    /// A file that cannot be read, or of another schema.
    pub fn read(place: &Path) -> Result<Option<Self>> {
        let file = match place.is_dir() {
            true => place.join(SEARCH),
            false => place.to_owned(),
        };
        if !file.is_file() {
            return Ok(None);
        }
        let of = || file.display().to_string();
        let text = std::fs::read_to_string(&file).with_context(of)?;
        let value: Value = serde_json::from_str(&text).with_context(of)?;
        if value["kind"] != "search" {
            return Ok(None);
        }
        Self::parse(value).with_context(of).map(Some)
    }

    /// Takes the result apart.
    ///
    /// # Errors
    /// What is not the result of a search.
    pub fn parse(value: Value) -> Result<Self> {
        let search: Self = serde_json::from_value(value)?;
        if search.schema != SCHEMA || search.kind != "search" {
            let Self { schema, kind, .. } = search;
            bail!("schema {schema} of `{kind}` instead of {SCHEMA} of `search`");
        }
        Ok(search)
    }

    /// The page.
    pub fn render(&self) -> String {
        let body = html! {
            (cut(self.tool.cut.as_ref()))
            (self.verdict())
            @if self.probes.iter().any(|p| self.level(p).is_some()) {
                section {
                    div class="charts" { (self.attainment()) (self.order()) }
                    p class="note" {
                        "Bars are 95 % intervals (Wilson). The top edge of the first picture is "
                        (percent(self.cap())) " or more. A probe that ended early stands at the most that it could have reached."
                    }
                }
            }
            (self.rates())
            (self.table())
            (self.details())
        };
        document(
            &match self.over {
                Over::Rate => format!("{}: search for the highest rate", self.name),
                Over::Concurrency => format!("{}: search for the most users", self.name),
            },
            self.tool.dry_run,
            &body,
        )
    }

    fn verdict(&self) -> Markup {
        let class = match (self.rate.or(self.users.map(|n| n as f64)), self.stop) {
            (Some(_), StopReason::Converged) => "good",
            (Some(_), _) => "fair",
            (None, _) => "bad",
        };
        let model = self.target.as_ref().map_or("the server", |t| &t.model);
        let is_sure = self.stop == StopReason::Converged;
        html! {
            section class={ "verdict " (class) } {
                p class="headline" {
                    @match (self.rate, self.users) {
                        (Some(rate), _) => {
                            (model) " serves " @if !is_sure { "at least " }
                            strong { (tagged(Of::Search, "rate", rate, &number(rate))) " requests a second" } " within the limits."
                        }
                        (_, Some(users)) => {
                            (model) " serves " @if !is_sure { "at least " }
                            strong { (tagged(Of::Search, "users", users as f64, &users.to_string())) @if users == 1 { " user" } @else { " users at once" } }
                            " within the limits."
                        }
                        (None, None) if self.over == Over::Concurrency => { "No number of users was found at which " (model) " keeps the limits." }
                        (None, None) => { "No rate was found at which " (model) " keeps the limits." }
                    }
                }
                p { "Limits, to be kept by " (percent(self.slo.attainment)) " of the requests: " (self.slo.words()) "." }
                p { "The search ended after " (self.probes.len()) " probes: " strong { (self.stop.words()) } "." }
                @if self.not_monotone { p { "A level failed although a higher one passed: the machine changed meanwhile." } }
            }
        }
    }

    /// What is raised, for an axis.
    fn unit(&self) -> &'static str {
        match self.over {
            Over::Rate => "requests per second",
            Over::Concurrency => "users",
        }
    }

    /// Where on the way of the search a probe stands; none of those that prepare it.
    fn level(&self, probe: &Probe) -> Option<f64> {
        let is_on_the_way = matches!(probe.kind, ProbeKind::Probe | ProbeKind::Confirmation);
        match self.over {
            Over::Rate => probe.arrival.rate(),
            Over::Concurrency => probe.arrival.users().map(|n| n as f64),
        }
        .filter(|_| is_on_the_way)
    }

    /// The largest share that is told apart: a tenth of what may miss.
    fn cap(&self) -> f64 {
        1.0 - (1.0 - self.slo.attainment) / 10.0
    }

    fn attainment(&self) -> Markup {
        let series = marks(|mark| {
            let probes = self.probes.iter().filter(|p| p.mark() == mark);
            let known = probes.filter_map(|p| Some((self.level(p)?, p.share()?)));
            known
                .map(|(level, [value, low, high])| ((level, value), (low, high)))
                .unzip()
        });
        let level = self.probes.iter().find_map(|p| self.level(p));
        let level = level.map(|level| (level, self.slo.attainment));
        let wanted = format!("{} wanted", percent(self.slo.attainment));
        let wanted = Series::new(wanted, Form::Level, 0, level.into_iter().collect());
        Chart {
            title: match self.over {
                Over::Rate => "Share of the requests that kept the limits, by rate".into(),
                Over::Concurrency => "Share of the requests that kept the limits, by users".into(),
            },
            x: Axis::new(self.unit(), Scale::Linear),
            y: Axis::new("", Scale::Percentile).up_to(self.cap()),
            series: series.into_iter().chain([wanted]).collect(),
        }
        .draw()
    }

    fn order(&self) -> Markup {
        let series = marks(|mark| {
            let probes = (1u32..).zip(&self.probes).filter(|(_, p)| p.mark() == mark);
            let points = probes.filter_map(|(n, p)| Some((f64::from(n), self.level(p)?)));
            (points.collect(), Vec::new())
        });
        Chart {
            title: match self.over {
                Over::Rate => "Requests per second of each probe".into(),
                Over::Concurrency => "Users of each probe".into(),
            },
            x: Axis::new("probes in their order", Scale::Linear),
            y: Axis::new("", Scale::Log),
            series,
        }
        .draw()
    }

    /// The model, where it is known.
    pub fn model(&self) -> &str {
        self.target.as_ref().map_or("", |target| &target.model)
    }

    /// What had to be kept.
    pub fn limits(&self) -> String {
        let share = percent(self.slo.attainment);
        format!("{} by {share} of the requests", self.slo.words())
    }

    /// How many probes there were.
    pub fn probes(&self) -> usize {
        self.probes.len()
    }

    /// Where the client ran.
    pub fn machine(&self) -> String {
        match self.host.cores {
            0 => String::new(),
            cores => format!("{}, {cores} cores", self.host.cpu),
        }
    }

    /// What the first token may take.
    pub fn ttft_limit(&self) -> Option<f64> {
        self.slo.ttft_seconds
    }

    /// What becomes of the server at higher rates.
    fn rates(&self) -> Markup {
        let ladder = self.ladder();
        html! {
            @if !ladder.tried.is_empty() {
                section {
                    h2 { @match self.over { Over::Rate => "At higher rates", Over::Concurrency => "With more users" } }
                    (rates::charts(&[ladder], self.slo.ttft_seconds))
                    (self.cost())
                }
            }
        }
    }

    /// The probes that were made to their end, by rising rates.
    pub fn ladder(&self) -> Ladder {
        let tried = self.probes.iter().filter_map(|probe| {
            let level = self.level(probe)?;
            Some(Tried {
                level: match self.over {
                    Over::Rate => probe.offered_requests.unwrap_or(level),
                    Over::Concurrency => level,
                },
                completed: probe.completed_requests,
                good: probe.goodput.as_ref()?.requests_per_second,
                ttft_p50: probe.ttft_p50,
                ttft_p99: probe.ttft_p99,
                cost: probe.per_million_output_tokens,
            })
        });
        let mut tried: Vec<Tried> = tried.collect();
        tried.sort_by(|a, b| a.level.total_cmp(&b.level));
        Ladder {
            name: self.name.clone(),
            over: self.over,
            tried,
        }
    }

    /// What a million tokens cost at the rate that was found, by the use of the machine.
    fn cost(&self) -> Markup {
        let found = self.rate.or(self.users.map(|n| n as f64));
        let at_rate = |p: &&Probe| self.level(p) == found;
        let costs = self.probes.iter().filter(at_rate);
        let costs: Vec<f64> = costs
            .filter_map(|probe| probe.per_million_output_tokens)
            .collect();
        let mean = costs.iter().sum::<f64>() / costs.len() as f64;
        html! {
            @if let (Some(price), false) = (&self.price, costs.is_empty()) {
                p {
                    "At this " @match self.over { Over::Rate => "rate", Over::Concurrency => "load" } " a million output tokens cost "
                    @for (i, share) in USES.into_iter().enumerate() {
                        @if i > 0 { ", " }
                        (number(mean / share)) " on a machine in use " (percent(share)) " of the time"
                    }
                    ", at " (number(price.per_hour)) " an hour" @if !price.note.is_empty() { " (" (price.note) ")" } "."
                }
            }
        }
    }

    fn table(&self) -> Markup {
        html! {
            section {
                h2 { "Every probe" }
                div class="wide" tabindex="0" { table {
                    thead { tr { th {} @for head in ["for", "load"] { th class="words" { (head) } }
                        @for head in ["window", "kept the limits", "first token p50", "each further p50"] { th { (head) } }
                        @for head in ["verdict", "because"] { th class="words" { (head) } } } }
                    tbody { @for (i, probe) in self.probes.iter().enumerate() {
                        tr class=(if probe.verdict == ProbeVerdict::Fail { "fail" } else { "" }) {
                            th { (i + 1) } td class="words" { (probe.purpose()) } td class="words" { (probe.arrival.brief()) } td { (number(probe.seconds)) " s" }
                            td { (probe.kept()) } td { (milliseconds(probe.ttft_p50)) } td { (milliseconds(probe.tpot_p50)) }
                            td class="words" { (probe.mark().words()) } td class="why" { (probe.why()) }
                        }
                    } }
                } }
            }
        }
    }

    fn details(&self) -> Markup {
        let host = &self.host;
        html! {
            section {
                h2 { "What was run" }
                @if let Some(command) = self.target.as_ref().and_then(|target| target.command.as_ref()) { pre { (command) } }
                @if !self.tool.command.is_empty() { pre { (self.tool.command) } }
                dl {
                    @if let Some(target) = &self.target {
                        dt { "model" } dd { (target.model) }
                        dt { "endpoint" } dd { (target.endpoint) }
                        dt { "address" } dd { (target.url) }
                    }
                    @if host.cores > 0 {
                        dt { "machine" } dd { (host.cpu) ", " (host.cores) " cores" @if host.is_servers { ", the server's too" } }
                    }
                    @if !self.started.is_empty() { dt { "started" } dd { (self.started) } }
                    dt { "loadtest" } dd { (self.tool.version) }
                }
            }
        }
    }
}

/// A series for each verdict that there is.
fn marks(points: impl Fn(Mark) -> (Vec<(f64, f64)>, Vec<(f64, f64)>)) -> Vec<Series> {
    let each = [Mark::Pass, Mark::Fail, Mark::Open].map(|mark| {
        let (points, intervals) = points(mark);
        Series {
            intervals,
            ..Series::new(mark.words(), Form::Verdict(mark), 0, points)
        }
    });
    each.into_iter().filter(|s| !s.points.is_empty()).collect()
}

fn percent(share: f64) -> String {
    format!("{} %", (share * 1e4).round() / 100.0)
}

impl Limits {
    fn words(&self) -> String {
        let limits = [
            ("first token", self.ttft_seconds),
            ("each further token", self.tpot_seconds),
            ("longest gap", self.stall_seconds),
            ("whole answer", self.e2e_seconds),
        ];
        let known = limits.into_iter().filter(|(_, limit)| limit.is_some());
        let words = known.map(|(name, limit)| format!("{name} within {}", milliseconds(limit)));
        words.collect::<Vec<_>>().join(", ")
    }
}

impl Mark {
    fn words(self) -> &'static str {
        match self {
            Self::Pass => "kept",
            Self::Fail => "not kept",
            Self::Open => "undecided",
        }
    }
}

impl Probe {
    fn mark(&self) -> Mark {
        match self.verdict {
            ProbeVerdict::Pass => Mark::Pass,
            ProbeVerdict::Fail => Mark::Fail,
            ProbeVerdict::Undecided => Mark::Open,
        }
    }

    /// The share that kept the limits and the ends of its interval.
    fn share(&self) -> Option<[f64; 3]> {
        match self.ended_early {
            Some(Early::OutOfReach(bound)) => {
                return Some([bound.attainment_at_most, 0.0, bound.attainment_at_most]);
            }
            // What was answered before says nothing about the rest.
            Some(Early::Overload(_)) => return None,
            None => {}
        }
        let share = &self.goodput.as_ref()?.attainment;
        Some([share.value?, share.low, share.high])
    }

    fn purpose(&self) -> &'static str {
        match self.kind {
            ProbeKind::Solo => "one user alone",
            ProbeKind::Saturation => "where to begin",
            ProbeKind::Probe => "the search",
            ProbeKind::Confirmation => "confirmation",
        }
    }

    fn kept(&self) -> String {
        match (&self.ended_early, self.share()) {
            (Some(Early::OutOfReach(bound)), _) => {
                format!("at most {}", percent(bound.attainment_at_most))
            }
            (_, Some([value, low, high])) => {
                let [value, low, high] = [value, low, high].map(percent);
                format!("{value} ({low} to {high})")
            }
            (_, None) => "–".into(),
        }
    }

    fn why(&self) -> String {
        let early = self
            .ended_early
            .map(|early| format!("ended early: {early}"));
        let grew = match self.growing[..] {
            [] => None,
            _ => Some(format!("{} grew", self.growing.join(" and "))),
        };
        let late = match &self.without_client_delay {
            Some(again) => Some(again.words(self.verdict)),
            None => self
                .client_was_late
                .then(|| "the client sent late".to_owned()),
        };
        let held_back = self.gpus.iter().filter_map(GpuLoad::warning);
        let all = early.into_iter().chain(grew).chain(late).chain(held_back);
        let all: Vec<String> = all.collect();
        all.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn probe(rate: f64, verdict: &str, value: f64) -> Value {
        json!({"kind": "probe", "arrival": {"kind": "poisson", "rate": rate}, "seconds": 60.0, "verdict": verdict,
               "goodput": {"requests_per_second": rate * value,
                           "attainment": {"value": value, "low": value - 0.02, "high": value}},
               "growing": [], "client_was_late": false, "completed_requests": rate * 0.9, "ttft_p50": 0.1, "tpot_p50": 0.02})
    }

    fn search(stop: &str, rate: Option<f64>) -> Value {
        let mut early = probe(4.0, "fail", 0.5);
        early["goodput"] = Value::Null;
        early["ended_early"] = json!(crate::give_up::bound(10, 200, 0.99).unwrap());
        json!({"schema": 1, "kind": "search", "name": "<b>m", "started": "2026-01-01T00:00:00Z",
               "tool": {"version": "0.1.0", "command": "loadtest search --slo ttft=1s"},
               "target": {"url": "http://h", "endpoint": "/v1/chat/completions", "model": "m"},
               "slo": {"ttft_seconds": 1.0, "tpot_seconds": 0.08, "stall_seconds": null, "e2e_seconds": null,
                       "attainment": 0.99},
               "rate": rate, "stop": stop, "not_monotone": false,
               "probes": [probe(2.0, "pass", 1.0), early, probe(2.8, "undecided", 0.985)]})
    }

    #[test]
    fn a_page_says_what_was_found_and_why_it_ended() {
        for (stop, rate, words) in [
            (
                "converged",
                Some(2.5),
                "serves <strong>RATE requests a second</strong>",
            ),
            (
                "max_probes",
                Some(2.5),
                "serves at least <strong>RATE requests a second</strong>",
            ),
            (
                "solo_fails",
                None,
                "No rate was found at which m keeps the limits",
            ),
        ] {
            let value = search(stop, rate);
            let found = Search::parse(value.clone()).unwrap();
            let page = found.render();
            let rate = r#"<data data-key="rate" data-of="search" value="2.5">2.50</data>"#;
            assert!(page.contains(&words.replace("RATE", rate)), "{page}");
            assert!(page.contains(&format!("<strong>{}</strong>", found.stop.words())));
            assert_eq!(page, Search::parse(value).unwrap().render());
            assert!(!page.contains("<b>") && !page.contains("NaN") && !page.contains("href="));
        }
    }

    #[test]
    fn every_probe_has_a_mark_of_its_verdict_and_the_limit_is_a_line() {
        let page = Search::parse(search("max_time", None)).unwrap().render();
        // In both pictures.
        for mark in ["dots pass", "dots fail", "dots open"] {
            assert_eq!(page.matches(mark).count(), 2, "{mark}");
        }
        // The share that was wanted, the limit of the first token, and everything that was asked for.
        assert_eq!(page.matches("class=\"level\"").count(), 3);
        assert_eq!(page.matches("class=\"interval\"").count(), 3);
        assert!(page.contains("at most 97.26 %") && page.contains("ended early: 10 of 200"));
        assert!(page.contains("first token within 1.00 s, each further token within 80.0 ms"));
    }

    #[test]
    fn what_is_served_is_drawn_against_what_is_asked_for_and_costs_only_where_it_is_known() {
        let mut value = search("converged", Some(2.0));
        let page = Search::parse(value.clone()).unwrap().render();
        // Two of the probes were made to their end, in two pictures.
        assert_eq!(page.matches("r=\"4.4\"").count(), 4, "{page}");
        assert!(page.contains("limit: 1.00 s") && !page.contains("Price of a million"));
        assert!(!page.contains("p99"), "a search of an earlier version");
        value["probes"][0]["ttft_p99"] = json!(0.4);
        value["probes"][2]["ttft_p99"] = Value::Null;
        let page = Search::parse(value.clone()).unwrap().render();
        assert_eq!(page.matches("r=\"3.2\"").count(), 1, "{page}");
        assert!(page.contains("<b>m, p99".replace("<b>", "&lt;b&gt;").as_str()));
        value["price"] = json!({"per_hour": 0.72, "note": "EUR, today"});
        value["probes"][0]["per_million_output_tokens"] = json!(1.5);
        let page = Search::parse(value).unwrap().render();
        assert_eq!(page.matches("r=\"4.4\"").count(), 5);
        assert!(page.contains(
            "cost 1.50 on a machine in use 100 % of the time, 3 on a machine in use 50 %"
        ));
        assert!(page.contains("at 0.7200 an hour (EUR, today)"));
    }

    #[test]
    fn other_results_are_no_searches() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Search::read(folder.path()).unwrap().is_none());
        let file = folder.path().join(SEARCH);
        std::fs::write(&file, r#"{"kind": "run"}"#).unwrap();
        assert!(Search::read(&file).unwrap().is_none());
        let mut newer = search("converged", Some(1.0));
        newer["schema"] = 2.into();
        std::fs::write(&file, newer.to_string()).unwrap();
        let error = format!("{:#}", Search::read(folder.path()).unwrap_err());
        assert!(
            error.contains("schema 2 of `search` instead of 1"),
            "{error}"
        );
    }
}
