//! Where log lines go: standard error, as text or JSON.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::args::LogFormatArg;

/// Installs the process-wide subscriber.
///
/// # Errors
/// When the filter does not parse.
pub fn init(filter: &str, format: LogFormatArg) -> anyhow::Result<()> {
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
