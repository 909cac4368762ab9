//! How the error budget burns.

use super::super::panels::{Board, Form, Row};
use super::super::rules::{self, ERRORS, SLOW_TTFT};
use super::panel;

/// The board.
pub fn board() -> Board {
    let windows = |slo: &rules::Slo, title, advice: &str| {
        let mut drawn = panel(title, Form::Lines, 12, advice)
            .unit("percentunit")
            .limit(slo.budget);
        for window in rules::WINDOWS {
            let record = slo.record(window);
            drawn = drawn.draw(
                &format!("{window} {{{{model_name}}}}"),
                format!("{record}{{model_name=~\"$model_name\"}}"),
            );
        }
        drawn
    };
    let rate = |slo: &rules::Slo, title| {
        let mut drawn = panel(
            title,
            Form::Lines,
            12,
            "How many times faster than allowed the budget is \
            spent. 1 spends it in exactly 30 days; 14.4 pages.",
        )
        .limit(rules::FAST_BURN);
        for window in ["1h", "6h", "3d"] {
            let record = slo.record(window);
            drawn = drawn.draw(
                &format!("{window} {{{{model_name}}}}"),
                format!("{record}{{model_name=~\"$model_name\"}} / {}", slo.budget),
            );
        }
        drawn
    };
    let left = |slo: &rules::Slo, title| {
        panel(
            title,
            Form::Stat,
            6,
            "Share of the 30 days' budget that is left, from what is stored. At \
            zero: no risky change until it has recovered.",
        )
        .unit("percentunit")
        .draw(
            "{{model_name}}",
            format!(
                "1 - avg_over_time({}{{model_name=~\"$model_name\"}}[30d]) / {}",
                slo.record("1h"),
                slo.budget
            ),
        )
    };
    let reasons = panel(
        "Reasons of the last hour",
        Form::Lines,
        12,
        "What spends the error budget.",
    )
    .draw("refused: {{reason}}", rules::refused_by_reason("1h"))
    .draw("failed", rules::failed("1h"));
    Board {
        uid: "octet-slo",
        title: "octet: SLO burn",
        description: "Two promises: at most 0.5 % of requests fail or are refused for want of capacity, and at \
            most 5 % wait longer than 2.5 s for their first token.",
        rows: vec![
            Row {
                title: "Budget left",
                panels: vec![
                    left(&ERRORS, "Errors"),
                    left(&SLOW_TTFT, "Slow first tokens"),
                    panel(
                        "Alerts",
                        Form::Alerts,
                        12,
                        "What fires or is about to; each has a paragraph in \
                        deploy/prometheus/runbook.md.",
                    ),
                ],
            },
            Row {
                title: "Errors",
                panels: vec![
                    windows(
                        &ERRORS,
                        "Share of errors by window",
                        "The short windows move first; a page needs \
                        a long and a short one.",
                    ),
                    rate(&ERRORS, "Burn rate of errors"),
                    reasons,
                ],
            },
            Row {
                title: "First token",
                panels: vec![
                    windows(
                        &SLOW_TTFT,
                        "Share of slow first tokens by window",
                        "Slower than 2.5 s. Queue time on \
                        the overview says whether capacity is the reason.",
                    ),
                    rate(&SLOW_TTFT, "Burn rate of slow first tokens"),
                ],
            },
        ],
    }
}
