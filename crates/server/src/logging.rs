//! Where log lines go: standard error, as text or JSON, by a thread of their own. A reader that stops or is
//! gone costs lines and holds up nobody.

use std::io::IsTerminal;

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

use crate::args::LogFormatArg;

/// Lines that may wait for a slow reader; more are dropped.
const MAX_LINES: usize = 8192;

/// Installs the process-wide subscriber. What waits is written when the result is dropped.
///
/// # Errors
/// When the filter does not parse.
pub fn init(filter: &str, format: LogFormatArg) -> anyhow::Result<WorkerGuard> {
    // A bare word that is no level would be taken as the name of a module, and silence everything.
    let is_bare = !filter.contains(['=', ',']);
    if is_bare
        && filter
            .parse::<tracing::level_filters::LevelFilter>()
            .is_err()
    {
        anyhow::bail!("--log-level {filter} is none of error, warn, info, debug, trace, off");
    }
    let filter = EnvFilter::try_new(filter)?;
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(MAX_LINES)
        .thread_name("log")
        .finish(std::io::stderr());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .log_internal_errors(false)
        .with_writer(writer);
    match format {
        LogFormatArg::Text => builder.with_target(false).init(),
        LogFormatArg::Json => builder.json().init(),
    }
    Ok(guard)
}
