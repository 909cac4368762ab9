//! The training run: data stream, batches over threads, schedule, adaptive mix, log and checkpoints.

use std::io::Write;
use std::path::PathBuf;
use std::thread;
use std::time::Instant;

use super::checkpoint::Checkpoint;
use super::decode::{Score, score};
use super::error::{Error, Result};
use super::model::{Row, Shape, init, loss_and_gradient};
use super::ops::RopeTable;
use super::optimizer::Optimizer;
use crate::chat::render;
use crate::dataset::{conversation, held_out, probe};
use crate::prng::Prng;
use crate::skills::Skill;
use crate::tokenizer::Tokenizer;
use crate::words::Split;

/// Tokens of a document at most.
const DOCUMENT: usize = 1024;
/// Tokens of a packed row, unless one document alone is longer.
const ROW: usize = 512;
/// Steps of rising learning rate.
const WARM_UP: f64 = 60.0;
/// Share of the budget after which the rate falls to zero, linearly.
const DECAY_FROM: f64 = 0.5;
/// Steps between two measurements of the skills on fresh training content.
const PROBE_EVERY: u64 = 60;
/// Prompts of each skill in such a measurement.
const PROBES: usize = 12;
/// The least a mastered skill weighs in the mix, in units of error.
const FLOOR: f64 = 0.06;
/// How fast the moving average of the weights follows.
const AVERAGE: f32 = 0.99;

/// What a run is told.
pub struct Config {
    /// Where the checkpoint lives.
    pub directory: PathBuf,
    /// Go on from the checkpoint there.
    pub resume: bool,
    /// Minutes of training over all runs; the schedule ends there.
    pub minutes: f64,
    /// Workers that share a batch.
    pub threads: usize,
    /// Tokens of one step.
    pub batch_tokens: usize,
    /// Minutes between checkpoints.
    pub save_minutes: f64,
}

/// Trains until the budget is spent, writing one line of log per measurement to `log`.
pub fn train(config: &Config, tokenizer: &Tokenizer, log: &mut dyn Write) -> Result<()> {
    let shape = Shape::bundled(tokenizer.len());
    let mut state = if config.resume {
        Checkpoint::load(&config.directory)?
    } else {
        fresh(&shape)
    };
    let (found, expected) = (state.params.len(), shape.num_params());
    if found != expected {
        return Err(Error::OtherShape { found, expected });
    }
    let rope = RopeTable::new(shape.context, shape.head_dim());
    let (started, before) = (Instant::now(), state.seconds);
    let mut saved = Instant::now();
    let mut loss = 0.0;
    while state.seconds < config.minutes * 60.0 {
        let rows = batch(&mut state, tokenizer, config.batch_tokens);
        let (step_loss, grad) = gradient(&shape, &state.params, &rows, &rope, config.threads);
        let rate = schedule(
            state.seconds / (config.minutes * 60.0),
            state.optimizer.steps,
        );
        state.optimizer.step(
            &shape,
            &mut state.params,
            &grad,
            rate as f32,
            config.threads,
        );
        state
            .average
            .iter_mut()
            .zip(&state.params)
            .for_each(|(a, p)| *a = AVERAGE * *a + (1.0 - AVERAGE) * p);
        state.tokens += rows.iter().map(|r| r.tokens.len() as u64).sum::<u64>();
        state.seconds = before + started.elapsed().as_secs_f64();
        loss = if loss == 0.0 {
            step_loss
        } else {
            0.95 * loss + 0.05 * step_loss
        };
        if state.optimizer.steps.is_multiple_of(PROBE_EVERY) {
            measure(&shape, tokenizer, &mut state);
            let errors: Vec<String> = Skill::ALL
                .iter()
                .zip(&state.errors)
                .map(|(s, e)| format!("{} {:.2}", s.name(), e))
                .collect();
            writeln!(
                log,
                "step {} tokens {} seconds {:.0} loss {loss:.3} rate {rate:.2} errors: {}",
                state.optimizer.steps,
                state.tokens,
                state.seconds,
                errors.join(", ")
            )?;
        }
        if saved.elapsed().as_secs_f64() > config.save_minutes * 60.0 {
            state.save(&config.directory)?;
            let prompts: Vec<_> = held_out().into_iter().step_by(9).collect();
            writeln!(
                log,
                "held-out sample: {}",
                report(&score(&shape, &state.average, tokenizer, &prompts))
            )?;
            saved = Instant::now();
        }
    }
    state.save(&config.directory)
}

fn fresh(shape: &Shape) -> Checkpoint {
    let params = init(shape, 1);
    Checkpoint {
        average: params.clone(),
        optimizer: Optimizer::new(params.len()),
        params,
        prng: 2,
        tokens: 0,
        seconds: 0.0,
        errors: vec![1.0; Skill::ALL.len()],
    }
}

/// Factor of the learning rate at a share of the budget.
fn schedule(progress: f64, steps: u64) -> f64 {
    let warm = ((steps + 1) as f64 / WARM_UP).min(1.0);
    warm * ((1.0 - progress) / (1.0 - DECAY_FROM)).clamp(0.0, 1.0)
}

/// The percentage of each skill and of all, on one line.
pub fn report(score: &Score) -> String {
    let percent = |(right, all): (usize, usize)| 100.0 * right as f64 / all.max(1) as f64;
    let skills: Vec<String> = Skill::ALL
        .iter()
        .zip(score)
        .map(|(skill, s)| format!("{} {:.1}", skill.name(), percent(*s)))
        .collect();
    let total = score
        .iter()
        .fold((0, 0), |sum, s| (sum.0 + s.0, sum.1 + s.1));
    format!(
        "{:.1} % of {} right: {}",
        percent(total),
        total.1,
        skills.join(", ")
    )
}

/// Error rates on fresh training content, never on the held-out set.
fn measure(shape: &Shape, tokenizer: &Tokenizer, state: &mut Checkpoint) {
    let mut prng = Prng::new(state.prng ^ 0x5EED);
    let prompts: Vec<_> = Skill::ALL
        .iter()
        .flat_map(|skill| {
            (0..PROBES)
                .map(|_| probe(*skill, &mut prng, Split::Train))
                .collect::<Vec<_>>()
        })
        .collect();
    for (error, (right, all)) in
        state
            .errors
            .iter_mut()
            .zip(score(shape, &state.params, tokenizer, &prompts))
    {
        *error = 0.5 * *error + 0.5 * (1.0 - right as f64 / all as f64);
    }
}

/// Draws a skill with weight by error.
fn draw(prng: &mut Prng, errors: &[f64]) -> Skill {
    let total: f64 = errors.iter().map(|e| e + FLOOR).sum();
    let mut at = prng.unit() * total;
    for (skill, error) in Skill::ALL.iter().zip(errors) {
        at -= error + FLOOR;
        if at < 0.0 {
            return *skill;
        }
    }
    Skill::Other
}

/// Rows of whole conversations with about `tokens` tokens in all.
fn batch(state: &mut Checkpoint, tokenizer: &Tokenizer, tokens: usize) -> Vec<Row> {
    let mut prng = Prng::new(state.prng);
    let mut rows = vec![Row::default()];
    let mut filled = 0;
    while filled < tokens {
        let skill = draw(&mut prng, &state.errors);
        let sample = conversation(skill, &mut prng, |prng| draw(prng, &state.errors), 2000);
        let mut document = Row::default();
        for piece in render(&sample.tools, &sample.messages) {
            let ids = tokenizer.encode(&piece.text);
            if piece.learned {
                let at = document.tokens.len() - 1;
                document
                    .targets
                    .extend(ids.iter().enumerate().map(|(i, id)| (at + i, *id)));
            }
            document.tokens.extend(ids);
        }
        let len = document.tokens.len();
        if len > DOCUMENT {
            continue;
        }
        filled += len;
        if rows.last().is_none_or(|row| row.tokens.len() + len > ROW) {
            rows.push(Row::default());
        }
        let row = rows.last_mut().expect("there is always an open row");
        let start = row.tokens.len();
        row.targets
            .extend(document.targets.iter().map(|(at, id)| (start + at, *id)));
        row.tokens.extend(document.tokens);
        row.lengths.push(len);
    }
    state.prng = prng.state();
    rows
}

/// Mean loss per learned token and its gradient, rows shared among threads.
fn gradient(
    shape: &Shape,
    params: &[f32],
    rows: &[Row],
    rope: &RopeTable,
    threads: usize,
) -> (f64, Vec<f32>) {
    let learned = rows
        .iter()
        .map(|row| row.targets.len())
        .sum::<usize>()
        .max(1);
    let scale = 1.0 / learned as f32;
    let shares = share(rows, threads);
    let work = |worker: usize| {
        let mut grad = vec![0.0; params.len()];
        let loss: f64 = shares[worker]
            .iter()
            .map(|row| loss_and_gradient(shape, params, row, rope, scale, &mut grad))
            .sum();
        (loss, grad)
    };
    let (mut loss, mut grad) = (0.0, Vec::new());
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads)
            .map(|worker| scope.spawn(move || work(worker)))
            .collect();
        (loss, grad) = work(0);
        for other in others {
            let (more, part) = other.join().expect("a worker does not panic");
            loss += more;
            grad.iter_mut().zip(&part).for_each(|(g, p)| *g += p);
        }
    });
    (loss / learned as f64, grad)
}

/// Deals rows out, the longest first and each to the worker with the fewest tokens so far.
fn share(rows: &[Row], workers: usize) -> Vec<Vec<&Row>> {
    let mut longest: Vec<&Row> = rows.iter().collect();
    longest.sort_by_key(|row| std::cmp::Reverse(row.tokens.len()));
    let mut shares: Vec<(usize, Vec<&Row>)> = vec![(0, Vec::new()); workers];
    for row in longest {
        let least = shares.iter_mut().min_by_key(|(tokens, _)| *tokens);
        let (tokens, share) = least.expect("at least one worker");
        *tokens += row.tokens.len();
        share.push(row);
    }
    shares.into_iter().map(|(_, share)| share).collect()
}
