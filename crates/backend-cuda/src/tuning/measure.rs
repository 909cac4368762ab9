//! Times of products on the device, with the weights of the model in turn.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use backend::{BackendError, Result};

use super::{BUCKETS, Entry, Problem, Tuned, Way, candidates, median, pick};
use crate::device::Device;
use crate::linear::{CudaLinear, Products, Store};
use crate::pack::padded;
use crate::tensor::{CudaTensor, Element, Form, Twin};

/// A time that only grows.
pub type Clock = Rc<dyn Fn() -> Duration>;

/// How ways are measured.
#[derive(Clone)]
pub struct Tuning {
    /// What was measured before.
    pub known: Tuned,
    /// How long measuring may take; what does not fit into it is left to the table.
    pub limit: Duration,
    /// What times are read from.
    pub clock: Clock,
}

impl Tuning {
    /// By the machine's clock, for at most two seconds.
    #[must_use]
    pub fn new(known: Tuned) -> Self {
        let start = Instant::now();
        Self {
            known,
            limit: Duration::from_secs(2),
            clock: Rc::new(move || start.elapsed()),
        }
    }
}

/// How often every way is measured, each time after the others.
const ROUNDS: usize = 3;
/// A round repeats a product until it takes so long, and so often at most.
const ROUND: Duration = Duration::from_micros(500);
const MAX_REPEATS: usize = 32;
/// Matrices of a shape that are multiplied in turn, so that none stays in the device's caches.
const MAX_SAMPLES: usize = 32;
/// Outputs that a step has room for.
const MAX_OUTPUT_BYTES: usize = 256 << 20;

/// A matrix of the model: its weights, shared, without its bias.
pub(crate) type Sample<D> = CudaLinear<D>;

/// The matrices of a model by what is measured once.
pub(crate) struct Samples<D: Device>(BTreeMap<Problem, Vec<Sample<D>>>);

impl<D: Device> Samples<D> {
    pub fn add(&mut self, linear: &CudaLinear<D>) {
        if let Some((problem, sample)) = linear.sample() {
            let samples = self.0.entry(problem).or_default();
            if samples.len() < MAX_SAMPLES {
                samples.push(sample);
            }
        }
    }
}

/// Gathers matrices while a model is loaded, then measures.
pub(crate) struct Tuner<D: Device> {
    tuning: Tuning,
    pub samples: Samples<D>,
}

impl<D: Device> Tuner<D> {
    pub fn new(tuning: Tuning) -> Self {
        Self {
            tuning,
            samples: Samples(BTreeMap::new()),
        }
    }

    /// Measures what is not known, few tokens first, and tells the products what to do.
    ///
    /// # Errors
    /// When the device fails. A lack of memory leaves a product to the table.
    pub fn run(self, device: &D, products: &mut Products<D>) -> Result<Tuned> {
        let Tuning {
            known: mut tuned,
            limit,
            clock,
        } = self.tuning;
        (tuned.num_measured, tuned.num_known, tuned.num_left) = (0, 0, 0);
        let part = products.part(device);
        let start = clock();
        // Of a product of the bucket before, in microseconds.
        let mut last: BTreeMap<Problem, f64> = BTreeMap::new();
        for (index, tokens) in BUCKETS.into_iter().enumerate() {
            for (problem, samples) in &self.samples.0 {
                let ways = candidates(problem, tokens, part);
                let known = tuned.entries.get(&(*problem, tokens));
                if let Some(entry) = known.filter(|entry| ways.contains(&entry.way)) {
                    tuned.num_known += 1;
                    last.insert(*problem, entry.micros);
                    continue;
                }
                if ways.len() < 2 || problem.outputs * tokens * 4 > MAX_OUTPUT_BYTES {
                    continue;
                }
                let left = limit.saturating_sub(clock() - start);
                let growth = tokens as f64 / BUCKETS[index.saturating_sub(1)] as f64;
                let expected = last.get(problem).unwrap_or(&0.0) * growth * 1e-6;
                let rounds = match left.as_secs_f64() > 2.0 * expected {
                    true => times(device, products, samples, tokens, &ways, (&clock, left))?,
                    false => None,
                };
                let Some(rounds) = rounds else {
                    tuned.num_left += 1;
                    // Larger ones take longer still.
                    last.insert(*problem, f64::INFINITY);
                    continue;
                };
                let entry = Entry::new(&ways, &rounds);
                last.insert(*problem, entry.table_micros);
                tuned.entries.insert((*problem, tokens), entry);
                tuned.num_measured += 1;
            }
        }
        tuned.now_took = clock() - start;
        tuned.took += tuned.now_took;
        for problem in self.samples.0.keys() {
            for tokens in BUCKETS {
                let entry = tuned.entries.get(&(*problem, tokens));
                // The table divides K by the tokens at hand, which is finer than by a bucket.
                let ways = candidates(problem, tokens, part);
                let other = entry.filter(|e| ways.contains(&e.way) && e.way != ways[0]);
                if let Some(entry) = other {
                    products.tuned.insert(*problem, tokens, entry.way);
                }
            }
        }
        Ok(tuned)
    }
}

/// The same, or none where memory does not suffice.
fn times<D: Device>(
    device: &D,
    products: &mut Products<D>,
    samples: &[Sample<D>],
    tokens: usize,
    ways: &[Way],
    time: (&Clock, Duration),
) -> Result<Option<Vec<Vec<f64>>>> {
    let ways: Vec<Option<Way>> = ways.iter().copied().map(Some).collect();
    match measure(device, products, samples, tokens, &ways, time) {
        Err(BackendError::OutOfMemory { .. }) => Ok(None),
        other => other,
    }
}

/// Microseconds of a product of so many tokens in some ways (none: the only one), round by round; nothing where
/// that takes longer than `left`. Products are repeated by a graph, so that launches cost nothing.
pub(crate) fn measure<D: Device>(
    device: &D,
    products: &mut Products<D>,
    samples: &[Sample<D>],
    tokens: usize,
    ways: &[Option<Way>],
    (clock, left): (&Clock, Duration),
) -> Result<Option<Vec<Vec<f64>>>> {
    let Some(first) = samples.first() else {
        return Ok(None);
    };
    let x = rows(device, first, tokens)?;
    let y = outputs(device, tokens, first.outputs)?;
    let mut multiply = |turn: usize, way: Option<Way>| {
        let sample = &samples[turn % samples.len()];
        sample.multiply(device, products, way, &x, &y, Store::Replace)
    };
    // The first loads the kernels and takes their memory.
    multiply(0, ways[0])?;
    device.synchronize()?;
    let start = clock();
    multiply(1, ways[0])?;
    device.synchronize()?;
    let once = clock() - start;
    let round = once.max(ROUND.min(once * MAX_REPEATS as u32));
    if once + (once + round * (ROUNDS as u32 + 1)) * ways.len() as u32 > left {
        return Ok(None);
    }
    let repeats = ROUND.as_nanos() / once.as_nanos().max(1);
    let repeats = (repeats as usize).clamp(1, MAX_REPEATS);
    let mut graphs = Vec::new();
    for way in ways {
        multiply(0, *way)?;
        device.synchronize()?;
        device.begin_capture()?;
        let noted = (0..repeats).try_for_each(|turn| multiply(turn, *way));
        let graph = device.end_capture()?;
        noted?;
        device.replay(&graph)?;
        device.synchronize()?;
        graphs.push(graph);
    }
    let mut rounds = vec![Vec::new(); ways.len()];
    for _ in 0..ROUNDS {
        for (graph, times) in graphs.iter().zip(&mut rounds) {
            let start = clock();
            device.replay(graph)?;
            device.synchronize()?;
            times.push((clock() - start).as_secs_f64() * 1e6 / repeats as f64);
        }
    }
    Ok(Some(rounds))
}

/// The way of a matrix that is alone measured, and its microseconds.
pub(crate) fn fastest<D: Device>(
    device: &D,
    products: &mut Products<D>,
    linear: &CudaLinear<D>,
    tokens: usize,
) -> Result<(Option<Way>, f64)> {
    let tuning = Tuning::new(Tuned::default());
    let part = products.part(device);
    let time = (&tuning.clock, Duration::MAX);
    let ways = linear.problem().map_or(vec![None], |problem| {
        let ways = candidates(&problem, tokens, part);
        ways.into_iter().map(Some).collect()
    });
    let samples = std::slice::from_ref(linear);
    let rounds = measure(device, products, samples, tokens, &ways, time)?.unwrap_or_default();
    let best = pick(&rounds);
    let micros = rounds.get(best).map_or(f64::NAN, |times| median(times));
    Ok((ways[best], micros))
}

/// Rows of zeros in the form that a matrix is multiplied with.
fn rows<D: Device>(device: &D, linear: &CudaLinear<D>, tokens: usize) -> Result<Twin<D>> {
    let zeros = |bytes| device.alloc_zeroed(bytes, "a measurement");
    let groups = match linear.form {
        Form::Int8(by) => Some(by.num_groups(linear.inputs)),
        Form::F32 | Form::F16 | Form::Bf16 => None,
    };
    Ok(Twin {
        form: linear.form,
        values: zeros(tokens * padded(linear.inputs * linear.form.size()))?,
        steps: groups
            .map(|groups| zeros(tokens * groups * 4))
            .transpose()?,
    })
}

/// Room for results that is given back afterwards.
fn outputs<D: Device>(device: &D, rows: usize, columns: usize) -> Result<CudaTensor<D>> {
    Ok(CudaTensor {
        data: Rc::new(device.alloc(rows * columns * 4, "a measurement")?),
        element: Element::F32,
        offset: 0,
        pitch: columns,
        rows,
        columns,
        packed: None,
        twin: RefCell::new(None),
    })
}
