//! Where log lines go: standard error, as text or JSON.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::args::LogFormatArg;

/// Installs the process-wide subscriber.
///
/// # Errors
/// When the filter does not parse.
pub fn init(filter: &str, format: LogFormatArg) -> anyhow::Result<()> {
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
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormatArg::Text => builder.with_target(false).init(),
        LogFormatArg::Json => builder.json().init(),
    }
    Ok(())
}
