//! The report as text for a reader: the same numbers as in the JSON file, nothing computed here.

use std::fmt::{self, Display, Formatter};

use crate::arrival::Arrival;
use crate::parts::PartKind;
use crate::reconcile::{Check, Verdict};
use crate::report::{OutcomeCount, Report, RunVerdict};
use crate::slo::Share;
use crate::stats::{Percentile, Summary};

/// Prints a [`Report`] as text.
pub struct Table<'a>(pub &'a Report);

/// Prints a [`Report`] as one line among others of its kind.
pub struct Line<'a>(pub &'a Report);

impl Display for Line<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let report = self.0;
        let repeat = report.series.as_ref().map_or(1, |series| series.repeat);
        let (requests, latency) = (&report.requests, &report.latency);
        write!(
            f,
            "run {repeat}, {}: {:.1} tokens/s",
            report.name, report.rates.output_tokens
        )?;
        for (name, summary) in [("TTFT", &latency.ttft), ("TPOT", &latency.tpot)] {
            write!(f, ", {name} p50 {}", percentile(summary.p50).trim())?;
        }
        write!(f, ", {} failed, ", requests.failed)?;
        match report.verdict {
            RunVerdict::Valid => write!(f, "valid"),
            RunVerdict::Warning => write!(f, "warning: {}", report.reasons.join("; ")),
            RunVerdict::Invalid => write!(f, "invalid: {}", report.reasons.join("; ")),
        }
    }
}

impl Display for Table<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        head(f, self.0)?;
        requests(f, self.0)?;
        latency(f, self.0)?;
        parts(f, self.0)?;
        throughput(f, self.0)?;
        goodput(f, self.0)?;
        server(f, self.0)?;
        verdict(f, self.0)
    }
}

fn head(f: &mut Formatter<'_>, report: &Report) -> fmt::Result {
    let (target, load) = (&report.target, &report.load);
    writeln!(
        f,
        "{}{}, model {}",
        target.url, target.endpoint, target.model
    )?;
    write!(f, "{}", load.arrival)?;
    let (prompt, output) = (&load.prompt_tokens, &load.output_tokens);
    writeln!(
        f,
        ", seed {}, prompts {prompt}, outputs {output}",
        load.seed
    )
}

fn requests(f: &mut Formatter<'_>, report: &Report) -> fmt::Result {
    let requests = &report.requests;
    write!(f, "\nRequests  {} measured: ", requests.measured)?;
    write!(
        f,
        "{} succeeded, {} failed",
        requests.succeeded, requests.failed
    )?;
    if requests.warmup + requests.background > 0 {
        let (warmup, background) = (requests.warmup, requests.background);
        write!(f, "; {warmup} before and {background} after the window")?;
    }
    if requests.reconnects > 0 {
        write!(
            f,
            "; {} sent again on a new connection",
            requests.reconnects
        )?;
    }
    if requests.retried > 0 {
        write!(f, "; {} attempts sent again", requests.retried)?;
    }
    writeln!(f)?;
    for (class, outcome) in &report.outcomes {
        outcome_line(f, class, outcome, "")?;
    }
    for (class, outcome) in report
        .outcomes_outside
        .iter()
        .filter(|(class, _)| !class.starts_with("ok"))
    {
        outcome_line(f, class, outcome, " outside the window")?;
    }
    for (class, outcome) in &report.outcomes_retried {
        outcome_line(f, class, outcome, " sent again")?;
    }
    let lengths = &report.lengths;
    let mean = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |v| format!("{v:.1}"));
    let prompt = [
        lengths.prompt_mean,
        lengths.prompt_asked_mean,
        lengths.prompt_cached_mean,
    ]
    .map(mean);
    let output = [lengths.output_mean, lengths.output_asked_mean].map(mean);
    writeln!(
        f,
        "Lengths   mean prompt {} tokens ({} asked, {} cached),",
        prompt[0], prompt[1], prompt[2]
    )?;
    writeln!(
        f,
        "          mean output {} tokens ({} asked)",
        output[0], output[1]
    )?;
    match lengths.retokenised {
        Some(again) => writeln!(
            f,
            "          {} answers of {} tokens by usage make {} when their text is tokenised again",
            again.answers, again.by_usage, again.of_text
        ),
        None => Ok(()),
    }
}

fn outcome_line(
    f: &mut Formatter<'_>,
    class: &str,
    outcome: &OutcomeCount,
    place: &str,
) -> fmt::Result {
    let detail = match class {
        "ok_short" => "stopped before the asked length",
        "ok_empty" => "tokens, but none that a reader sees",
        _ => &outcome.first_detail,
    };
    let line = format!("  {class:<24}{:>8}{place}  {detail}", outcome.count);
    writeln!(f, "{}", line.trim_end())
}

fn latency(f: &mut Formatter<'_>, report: &Report) -> fmt::Result {
    let latency = &report.latency;
    write!(f, "\n{:<22}{:>8}", "Latency", "n")?;
    for column in ["mean", "p50", "p90", "p95", "p99", "p99.9", "max"] {
        write!(f, "{column:>10}")?;
    }
    writeln!(f)?;
    let gap = match latency.events_per_token {
        _ if latency.chunk_gap_is_itl => "ITL".to_owned(),
        Some(ratio) if ratio > 0.0 => format!("gap, {:.2} tokens each", 1.0 / ratio),
        _ => "gap between chunks".to_owned(),
    };
    let failed = report.requests.failed > 0;
    let ttfo = latency.ttfo.as_ref();
    let rows: [(&str, &Summary, bool); 13] = [
        ("TTFT", &latency.ttft, true),
        (
            "  first but reasoning",
            ttfo.unwrap_or(&latency.ttft),
            ttfo.is_some(),
        ),
        ("  from first byte", &latency.ttft_from_send, true),
        ("  with failures", &latency.ttft_with_failures, failed),
        ("TPOT", &latency.tpot, true),
        (&gap, &latency.chunk_gap, true),
        ("longest stall", &latency.longest_stall, true),
        ("end to end", &latency.e2e, true),
        ("  with failures", &latency.e2e_with_failures, failed),
        ("  per output token", &latency.normalised, true),
        ("after the text", &latency.tail, true),
        ("send lag (client)", &report.client.send_lag, true),
        ("wake lag (client)", &report.client.runtime_lag, true),
    ];
    for (name, summary, _) in rows.iter().filter(|(_, _, shown)| *shown) {
        summary_line(f, name, summary)?;
    }
    writeln!(
        f,
        "A percentile that so few samples cannot bound is printed as –."
    )
}

fn summary_line(f: &mut Formatter<'_>, name: &str, s: &Summary) -> fmt::Result {
    write!(f, "{name:<22}{:>8}", s.n)?;
    let optional = |value: Option<f64>| value.map_or(Percentile::TooFew, Percentile::Seconds);
    for value in [
        optional(s.mean),
        s.p50,
        s.p90,
        s.p95,
        s.p99,
        s.p999,
        optional(s.max),
    ] {
        write!(f, "{:>10}", percentile(value))?;
    }
    writeln!(f)
}

fn percentile(value: Percentile) -> String {
    match value {
        Percentile::TooFew => "–".into(),
        Percentile::Infinite => "∞".into(),
        Percentile::Seconds(s) if s < 1e-3 => format!("{:.0} µs", s * 1e6),
        Percentile::Seconds(s) if s < 0.1 => format!("{:.2} ms", s * 1e3),
        Percentile::Seconds(s) if s < 1.0 => format!("{:.0} ms", s * 1e3),
        Percentile::Seconds(s) => format!("{s:.2} s"),
    }
}

/// Medians of the parts of a run.
fn parts(f: &mut Formatter<'_>, report: &Report) -> fmt::Result {
    let mut last = None;
    for part in &report.parts {
        if last.replace(part.by) != Some(part.by) {
            let by = match part.by {
                PartKind::Server => "By server",
                PartKind::Content => "By content",
                PartKind::Turn => "By turn",
                PartKind::Cached => "By cached share",
            };
            writeln!(
                f,
                "\n{by:<40}{:>8}{:>12}{:>12}",
                "good", "TTFT p50", "TPOT p50"
            )?;
        }
        let median = |summary: &Summary| match summary.p50 {
            Percentile::Seconds(seconds) => format!("{:.1} ms", seconds * 1e3),
            _ => "–".to_owned(),
        };
        let good = format!("{}/{}", part.succeeded, part.requests);
        let (ttft, tpot) = (median(&part.ttft), median(&part.tpot));
        writeln!(f, "  {:<38}{good:>8}{ttft:>12}{tpot:>12}", part.name)?;
    }
    Ok(())
}

fn throughput(f: &mut Formatter<'_>, report: &Report) -> fmt::Result {
    let rates = &report.rates;
    writeln!(f, "\nThroughput over {:.2} s", report.window.seconds)?;
    let (offered, sent, completed) = (
        rates.offered_requests,
        rates.sent_requests,
        rates.completed_requests,
    );
    writeln!(
        f,
        "  requests/s   {offered:.2} offered, {sent:.2} sent, {completed:.2} completed"
    )?;
    let (output, prompt, cached) = (
        rates.output_tokens,
        rates.prompt_tokens,
        rates.cached_prompt_tokens,
    );
    writeln!(
        f,
        "  tokens/s     {output:.1} output, {prompt:.1} prompt ({cached:.1} cached), {:.1} total",
        rates.total_tokens
    )?;
    let counted = report.server.in_window.as_ref();
    if let Some(counted) = counted.and_then(|w| w.output_tokens_per_second()) {
        writeln!(
            f,
            "  server       {counted:.1} output tokens/s by its own count"
        )?;
    }
    writeln!(
        f,
        "  in flight    {:.2} mean, {} at most",
        rates.in_flight_mean, rates.in_flight_max
    )?;
    if let (Some(found), Arrival::Closed { users }) = (rates.users_by_little, report.load.arrival) {
        writeln!(
            f,
            "  Little's law {found:.2} users by answers per second and the time of one, of {users}"
        )?;
    }
    match report.client.cores {
        Some(cores) => writeln!(f, "  client       {cores:.2} cores"),
        None => Ok(()),
    }
}

fn goodput(f: &mut Formatter<'_>, report: &Report) -> fmt::Result {
    let Some(goodput) = &report.goodput else {
        return Ok(());
    };
    let (good, planned, rate) = (goodput.good, goodput.planned, goodput.requests_per_second);
    writeln!(f, "\nWithin {}", goodput.slo)?;
    writeln!(f, "  requests/s   {rate:.2}")?;
    writeln!(
        f,
        "  attainment   {good} of {planned}, {}",
        share(&goodput.attainment)
    )
}

/// A share with its interval, in percent.
pub(crate) fn share(share: &Share) -> String {
    let value = share
        .value
        .map_or_else(|| "–".to_owned(), |v| format!("{:.1}", 100.0 * v));
    format!(
        "{value} % ({:.1} to {:.1} at 95 %)",
        100.0 * share.low,
        100.0 * share.high
    )
}

fn server(f: &mut Formatter<'_>, report: &Report) -> fmt::Result {
    if let Some(reason) = &report.server.not_available {
        return writeln!(f, "\nServer counters  not available: {reason}");
    }
    writeln!(
        f,
        "\n{:<42}{:>16}{:>16}",
        "Server counters", "client", "server"
    )?;
    for check in &report.server.reconciliation.checks {
        check_line(f, check)?;
    }
    Ok(())
}

fn check_line(f: &mut Formatter<'_>, check: &Check) -> fmt::Result {
    let client = match check.client {
        (low, Some(high)) if low == high => number(low),
        (low, Some(high)) => format!("{}..{}", number(low), number(high)),
        (low, None) => format!("≥ {}", number(low)),
    };
    let server = check.server.map_or_else(|| "–".to_owned(), number);
    let verdict = match check.verdict {
        Verdict::Pass => "equal",
        Verdict::Fail => "DIFFERS",
        Verdict::Warn => "differs",
        Verdict::NotPossible => "not possible",
    };
    let verdict = if check.verdict == Verdict::Pass && check.client.1 != Some(check.client.0) {
        "within"
    } else {
        verdict
    };
    writeln!(
        f,
        "  {:<4}{:<36}{client:>16}{server:>16}  {verdict}",
        check.id, check.what
    )
}

fn number(value: f64) -> String {
    if value.fract() == 0.0 {
        format!("{value}")
    } else {
        format!("{value:.4}")
    }
}

fn verdict(f: &mut Formatter<'_>, report: &Report) -> fmt::Result {
    let word = match report.verdict {
        RunVerdict::Valid => "valid",
        RunVerdict::Warning => "valid, with warnings",
        RunVerdict::Invalid => "INVALID",
    };
    writeln!(f, "\nMeasurement {word}")?;
    for reason in &report.reasons {
        writeln!(f, "  {reason}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_printed_in_a_fitting_unit() {
        let cases = [
            (0.000_012_3, "12 µs"),
            (0.012_34, "12.34 ms"),
            (0.5, "500 ms"),
            (12.345, "12.35 s"),
        ];
        for (value, expected) in cases {
            assert_eq!(percentile(Percentile::Seconds(value)), expected);
        }
        assert_eq!(
            (
                percentile(Percentile::TooFew),
                percentile(Percentile::Infinite)
            ),
            ("–".into(), "∞".into())
        );
    }
}
