//! Progress on a terminal as a bar, elsewhere as a few plain lines.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Shares of the work after which a plain line is written.
const PLAIN_STEPS: u64 = 4;

/// One piece of work with a known size.
pub struct Progress {
    bar: Option<ProgressBar>,
    what: String,
    /// Plain lines written so far.
    told: u64,
}

impl Progress {
    /// Starts; `in_bytes` chooses the unit.
    pub fn new(what: &str, in_bytes: bool) -> Self {
        let style = if in_bytes {
            "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}"
        } else {
            "{msg} [{bar:30}] {pos}/{len}"
        };
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template(style).expect("the template is valid");
            let bar = ProgressBar::new(0).with_style(style.progress_chars("=> "));
            bar.set_message(what.to_owned());
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self {
            bar,
            what: what.to_owned(),
            told: 0,
        }
    }

    /// Tells how far the work is.
    pub fn set(&mut self, done: u64, total: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
            return;
        }
        let share = (done * PLAIN_STEPS)
            .checked_div(total)
            .unwrap_or(PLAIN_STEPS);
        if share > self.told {
            self.told = share;
            // Nobody may be there to read it.
            let _ = writeln!(
                std::io::stderr(),
                "{}: {} %",
                self.what,
                100 * share / PLAIN_STEPS
            );
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
