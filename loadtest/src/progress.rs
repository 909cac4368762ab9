//! What is shown while a run goes on: a bar on a terminal, plain lines elsewhere, both on standard
//! error so that standard output holds the report alone.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::clock::seconds;
use crate::config::Config;
use crate::driver::Run;

const BAR_INTERVAL: Duration = Duration::from_millis(200);
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// What the end of a run is measured by.
#[derive(Debug, Clone, Copy)]
enum Goal {
    Requests(u64),
    Seconds(f64),
}

/// Shows the progress of `run` until dropped or aborted.
pub async fn show(run: Arc<Run>, config: &Config) {
    let goal = match (config.duration, config.requests) {
        (_, Some(requests)) => Goal::Requests(requests),
        (Some(duration), None) => Goal::Seconds(duration.as_secs_f64()),
        (None, None) => return,
    };
    if config.quiet {
        return;
    }
    if std::io::stderr().is_terminal() {
        bar(&run, goal).await;
    } else {
        lines(&run, goal).await;
    }
}

async fn bar(run: &Run, goal: Goal) {
    let length = match goal {
        Goal::Requests(requests) => requests,
        Goal::Seconds(seconds) => (seconds * 10.0) as u64,
    };
    let style = ProgressStyle::with_template("{bar:40} {percent:>3} %  {elapsed}  {msg}")
        .expect("the template is valid");
    let bar = Cleared(ProgressBar::new(length).with_style(style));
    let mut ticks = tokio::time::interval(BAR_INTERVAL);
    loop {
        ticks.tick().await;
        let position = match goal {
            Goal::Requests(_) => run.counts().measured.load(Ordering::Relaxed),
            Goal::Seconds(_) => (elapsed(run) * 10.0) as u64,
        };
        bar.0.set_position(position.min(length));
        bar.0.set_message(message(run));
    }
}

/// Removes the bar from the terminal when the display ends.
struct Cleared(ProgressBar);

impl Drop for Cleared {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

async fn lines(run: &Run, goal: Goal) {
    let mut ticks = tokio::time::interval(LINE_INTERVAL);
    // The first tick is immediate and there is nothing to tell yet.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let line = match goal {
            Goal::Requests(requests) => {
                format!(
                    "{} of {requests} requests, {}",
                    run.counts().measured.load(Ordering::Relaxed),
                    message(run)
                )
            }
            Goal::Seconds(seconds) => {
                format!("{:.0} of {seconds:.0} s, {}", elapsed(run), message(run))
            }
        };
        // A closed standard error is no reason to end the measurement.
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}

/// Seconds since the window opened.
fn elapsed(run: &Run) -> f64 {
    run.window()
        .start()
        .map_or(0.0, |start| seconds(run.clock.now().saturating_sub(start)))
}

fn message(run: &Run) -> String {
    let counts = run.counts();
    let [ended, failed, tokens] = [&counts.ended, &counts.failed, &counts.output_tokens]
        .map(|counter| counter.load(Ordering::Relaxed));
    format!("{ended} ended, {failed} failed, {tokens} tokens")
}
