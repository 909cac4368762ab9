//! What the servers of a job are asked, once they are up.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Parser;

use super::halt::Stop;
use super::serve::Served;
use super::{Job, Load, Suite};
use crate::args::{Args, SearchArgs};
use crate::config::Config;
use crate::cost::Price;
use crate::repeat;
use crate::report::{Cut, Report};
use crate::results::{SEARCH, plain, write_search};
use crate::search::{SearchConfig, search};
use crate::self_test::Known;

/// What all runs of a suite say beside their own.
#[derive(Debug, Clone)]
pub struct Common {
    /// What the client can do.
    pub client: Known,
    /// What the suite leaves out.
    pub cut: Option<Cut>,
}

impl Common {
    fn apply(&self, suite: &Suite, served: &Served, config: &mut Config) {
        config.server_command = Some(served.command.clone());
        config.dry_run = suite.dry_run;
        config.self_test = self.client;
        config.cut.clone_from(&self.cut);
    }
}

/// Every load in turn; what has its results is left as it is.
pub async fn ask(
    suite: &Suite,
    job: &Job<'_>,
    served: &[Served],
    folder: &Path,
    common: &Common,
    stop: &Stop,
    tell: &mut impl FnMut(&str),
) -> Result<()> {
    for load in &job.loads {
        stop.check()?;
        if load.search {
            search_once(suite, job, load, &served[0], folder, common, tell).await?;
            continue;
        }
        let sides = configs(suite, job, load, served, common)?;
        let id = format!("{}/{}", suite.folder_name(job), load.name);
        let place = place(job, folder, load);
        let told = |report: &Report| {
            let rate = report.rates.output_tokens;
            tell(&format!("  {}: {rate:.1} tokens/s", report.name));
        };
        let goes_on = || !stop.is_asked();
        repeat::go_on(&sides, load.repeats, &place, &id, goes_on, told)
            .await
            .with_context(|| format!("the load {}", load.name))?;
        stop.check()?;
    }
    Ok(())
}

/// A comparison is one load: its folder is that of the comparison.
pub fn place(job: &Job<'_>, folder: &Path, load: &Load) -> PathBuf {
    match job.sides.len() {
        1 => folder.join(plain(&load.name)),
        _ => folder.to_owned(),
    }
}

fn configs(
    suite: &Suite,
    job: &Job<'_>,
    load: &Load,
    served: &[Served],
    common: &Common,
) -> Result<Vec<Config>> {
    // A cost is stated only of a load that has limits to keep.
    let has_limits = load.flags.contains("--slo");
    let price = suite.price().filter(|_| has_limits);
    let each = job.side_names.iter().zip(served).map(|(name, served)| {
        let name = match job.sides.len() {
            1 => format!("{name}, {}", load.name),
            _ => name.clone(),
        };
        let fixed = [
            "loadtest",
            "--quiet",
            "--seed",
            "1",
            "--url",
            &served.url,
            "--name",
            &name,
        ];
        let words = fixed.into_iter().chain(load.flags.split_whitespace());
        let mut args = Args::try_parse_from(words)?;
        args.command = format!("loadtest {}", load.flags);
        let mut config = Config::try_from(args)?;
        config.price = config.price.or_else(|| price.clone());
        config.watches_machine = true;
        common.apply(suite, served, &mut config);
        Ok(config)
    });
    each.collect::<Result<Vec<Config>>>()
        .with_context(|| format!("the load {}", load.name))
}

/// Searches for a rate, unless the result is there.
async fn search_once(
    suite: &Suite,
    job: &Job<'_>,
    load: &Load,
    served: &Served,
    folder: &Path,
    common: &Common,
    tell: &mut impl FnMut(&str),
) -> Result<()> {
    let place = place(job, folder, load);
    if place.join(SEARCH).is_file() {
        return Ok(());
    }
    let name = format!("{}, {}", job.name, load.name);
    let fixed = ["search", "--quiet", "--url", &served.url, "--name", &name];
    let words = fixed.into_iter().chain(load.flags.split_whitespace());
    let mut config = SearchArgs::try_parse_from(words)
        .map_err(anyhow::Error::from)
        .and_then(SearchConfig::try_from)
        .with_context(|| format!("the load {}", load.name))?;
    config.probe.command = format!("loadtest search {}", load.flags);
    common.apply(suite, served, &mut config.probe);
    config.probe.price = config.probe.price.or_else(|| suite.price());
    let report = search(&config, |probe| tell(&format!("  {name}: {probe}"))).await?;
    write_search(&place, &report)
}

impl Suite {
    /// What an hour of the machine costs, where it is known.
    fn price(&self) -> Option<Price> {
        let machine = self.machine.as_ref()?;
        Some(Price {
            per_hour: machine.price_per_hour?,
            note: machine.name.clone(),
        })
    }
}
