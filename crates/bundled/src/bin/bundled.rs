//! Makes the bundled model: `tokenizer`, `train`, `score` and `export`, or `all` of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bundled::dataset::held_out;
use bundled::tokenizer::Tokenizer;
use bundled::train::checkpoint::Checkpoint;
use bundled::train::decode::{answers, score};
use bundled::train::export::export;
use bundled::train::model::Shape;
use bundled::train::run::{Config, report, train};
use clap::{Args, Parser, Subcommand};

/// Seed of the sample that the vocabulary is counted on.
const TOKENIZER_SEED: u64 = 1;

#[derive(Parser)]
#[command(about = "Make the bundled model")]
struct Cli {
    /// Directory of the run: tokenizer and checkpoint
    #[arg(long, default_value = "target/bundled-run", global = true)]
    run: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the vocabulary
    Tokenizer,
    /// Train, or go on training
    Train(TrainArgs),
    /// Decode the held-out set and print the score
    Score {
        /// Print every wrong answer beside the right one
        #[arg(long)]
        wrong: bool,
    },
    /// Write the model in the Hugging Face layout
    Export {
        /// Where to
        #[arg(long, default_value = "crates/bundled/model")]
        to: PathBuf,
    },
    /// Build the vocabulary, train, score and export
    All(TrainArgs),
}

#[derive(Args)]
struct TrainArgs {
    /// Minutes of training in all, over every resumed run
    #[arg(long, default_value_t = 90.0)]
    minutes: f64,
    /// Workers
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Tokens of one step
    #[arg(long, default_value_t = 4096)]
    batch_tokens: usize,
    /// Minutes between checkpoints
    #[arg(long, default_value_t = 5.0)]
    save_minutes: f64,
    /// Go on from the checkpoint in the run's directory
    #[arg(long)]
    resume: bool,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    match &cli.command {
        Command::Tokenizer => build_tokenizer(&cli.run),
        Command::Train(args) => run_training(&cli.run, args),
        Command::Score { wrong } => print_score(&cli.run, *wrong),
        Command::Export { to } => write_model(&cli.run, to),
        Command::All(args) => {
            build_tokenizer(&cli.run)?;
            run_training(&cli.run, args)?;
            print_score(&cli.run, false)?;
            write_model(&cli.run, Path::new("crates/bundled/model"))
        }
    }
}

fn build_tokenizer(run: &Path) -> Result<()> {
    fs::create_dir_all(run)?;
    let tokenizer = Tokenizer::build(TOKENIZER_SEED);
    fs::write(run.join("tokenizer.json"), tokenizer.to_json().to_string())?;
    Ok(())
}

fn load_tokenizer(run: &Path) -> Result<Tokenizer> {
    let text =
        fs::read_to_string(run.join("tokenizer.json")).context("run `bundled tokenizer` first")?;
    Tokenizer::from_json(&text).context("tokenizer.json was not written by this program")
}

fn run_training(run: &Path, args: &TrainArgs) -> Result<()> {
    let config = Config {
        directory: run.to_owned(),
        resume: args.resume,
        minutes: args.minutes,
        threads: args.threads.max(1),
        batch_tokens: args.batch_tokens,
        save_minutes: args.save_minutes,
    };
    Ok(train(&config, &load_tokenizer(run)?, &mut io::stdout())?)
}

#[expect(clippy::print_stdout, reason = "the score is what this command is for")]
fn print_score(run: &Path, wrong: bool) -> Result<()> {
    let (tokenizer, state) = (load_tokenizer(run)?, Checkpoint::load(run)?);
    let shape = Shape::bundled(tokenizer.len());
    for (name, params) in [("average", &state.average), ("last", &state.params)] {
        println!(
            "{name}: {}",
            report(&score(&shape, params, &tokenizer, &held_out()))
        );
    }
    if wrong {
        let prompts = held_out();
        let answers = answers(&shape, &state.average, &tokenizer, &prompts);
        for (prompt, answer) in prompts.iter().zip(answers) {
            if answer.as_ref() != Some(&prompt.answer) {
                let asked = prompt.messages.last().map(|message| &message.content);
                let skill = prompt.skill.name();
                println!(
                    "{skill}: {asked:?}\n  right {:?}\n  said  {answer:?}",
                    prompt.answer
                );
            }
        }
    }
    Ok(())
}

fn write_model(run: &Path, to: &Path) -> Result<()> {
    let (tokenizer, state) = (load_tokenizer(run)?, Checkpoint::load(run)?);
    let shape = Shape::bundled(tokenizer.len());
    Ok(export(to, &shape, &state.average, &tokenizer)?)
}
