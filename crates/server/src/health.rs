//! `octet health`: asks a server whether it is ready, for health checks of images without a shell.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::args::HealthArgs;

/// A server that takes longer is not well.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Succeeds when the server answers requests.
///
/// # Errors
/// What it says instead, or that nothing answers.
pub fn run(args: &HealthArgs) -> Result<()> {
    let url = format!("http://127.0.0.1:{}/health/ready", args.port);
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(TIMEOUT))
        .http_status_as_error(false)
        .build()
        .into();
    let mut answer = agent
        .get(&url)
        .call()
        .with_context(|| format!("cannot reach {url}"))?;
    let text = answer.body_mut().read_to_string()?;
    if answer.status() != 200 {
        bail!("{url}: {} {text}", answer.status());
    }
    crate::say(&format!("{text}\n"))
}
