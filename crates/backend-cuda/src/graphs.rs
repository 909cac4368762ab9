//! Decode steps as graphs: one for each number of rows and of splits, captured the second time such a step
//! runs and replayed from then on.
//!
//! Everything that differs between two steps of a shape lies in the step's columns, in a buffer that a
//! shape owns: nothing that a launch was noted with changes. Rows that a batch lacks are padded with a
//! token that stores nothing and whose logits nobody reads.

use std::collections::HashMap;
use std::rc::Rc;

use backend::{BLOCK_SIZE, Batch, Result};

use crate::device::Device;
use crate::step::SPLIT;
use crate::tensor::CudaTensor;

/// The most rows of a graph: larger steps are bound by products, not by launches.
const MAX_ROWS: usize = 64;
/// Up to here every number of rows has its own graph.
const EXACT_ROWS: usize = 8;

/// The shape of a decode step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// Rows, padding included.
    pub rows: usize,
    /// Splits of the longest sequence, rounded up to a power of two.
    pub splits: usize,
}

impl Key {
    /// The shape of a batch of single tokens that all want their logits.
    pub fn of(batch: &Batch) -> Option<Self> {
        let rows = batch.token_ids.len();
        let is_decode = batch.sequences.iter().all(|s| s.num_tokens == 1)
            && batch.logit_rows.iter().copied().eq(0..rows);
        if !is_decode || rows == 0 || rows > MAX_ROWS {
            return None;
        }
        let last = batch
            .sequences
            .iter()
            .map(|s| s.num_computed_tokens)
            .max()?;
        Some(Self {
            rows: if rows <= EXACT_ROWS {
                rows
            } else {
                rows.next_power_of_two()
            },
            splits: (last / SPLIT + 1).next_power_of_two(),
        })
    }

    /// The most blocks that all tables of such a step name.
    pub fn num_blocks(self) -> usize {
        self.rows * self.splits * (SPLIT / BLOCK_SIZE)
    }
}

enum State<D: Device> {
    /// Nothing has run yet.
    New,
    /// The kernels are loaded and the memory is there.
    Warm,
    /// Replayed from now on.
    Captured(D::Graph, CudaTensor<D>),
}

struct Shape<D: Device> {
    columns: Rc<D::Buffer>,
    state: State<D>,
}

/// The graphs of one model with one cache.
pub(crate) struct Graphs<D: Device> {
    shapes: HashMap<Key, Shape<D>>,
    /// The shape whose launches are being noted.
    capturing: Option<Key>,
    /// Whether a step reads results on the host, which no graph can.
    pub reads_host: bool,
}

impl<D: Device> Graphs<D> {
    pub fn new() -> Self {
        Self {
            shapes: HashMap::new(),
            capturing: None,
            reads_host: false,
        }
    }

    /// Forgets what names a cache that is no more.
    pub fn clear(&mut self) {
        self.shapes.clear();
    }

    /// Ends a capture whose step failed.
    pub fn abandon(&mut self, device: &D) -> Result<()> {
        if self.capturing.take().is_some() {
            device.end_capture()?;
        }
        Ok(())
    }

    /// Where the columns of a shape lie.
    pub fn columns(&mut self, device: &D, key: Key, bytes: usize) -> Result<Rc<D::Buffer>> {
        if let Some(shape) = self.shapes.get(&key) {
            return Ok(Rc::clone(&shape.columns));
        }
        let columns = Rc::new(device.alloc(bytes, "the columns of a graph")?);
        let shape = Shape {
            columns: Rc::clone(&columns),
            state: State::New,
        };
        self.shapes.insert(key, shape);
        Ok(columns)
    }

    /// Replays the shape's graph. Where there is none yet the step has to be computed, noted by the device
    /// the second time.
    pub fn replay(&mut self, device: &D, key: Key) -> Result<Option<CudaTensor<D>>> {
        let reads_host = self.reads_host;
        let Some(shape) = self.shapes.get_mut(&key) else {
            return Ok(None);
        };
        match &shape.state {
            State::New => shape.state = State::Warm,
            State::Warm if !reads_host => {
                device.begin_capture()?;
                self.capturing = Some(key);
            }
            State::Warm => {}
            State::Captured(graph, logits) => {
                device.replay(graph)?;
                return Ok(Some(logits.share(logits.rows)));
            }
        }
        Ok(None)
    }

    /// The logits of a step are asked for: runs what was noted, if it was.
    pub fn finish(&mut self, device: &D, logits: &CudaTensor<D>) -> Result<()> {
        let Some(key) = self.capturing.take() else {
            return Ok(());
        };
        let graph = device.end_capture()?;
        device.replay(&graph)?;
        if let Some(shape) = self.shapes.get_mut(&key) {
            shape.state = State::Captured(graph, logits.share(logits.rows));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backend::BatchSequence;

    fn decode(rows: usize, computed: usize) -> Batch {
        let sequence = BatchSequence {
            num_tokens: 1,
            num_computed_tokens: computed,
            block_table: vec![0; computed / BLOCK_SIZE + 1],
        };
        Batch {
            token_ids: vec![0; rows],
            sequences: vec![sequence; rows],
            logit_rows: (0..rows).collect(),
            copies: Vec::new(),
        }
    }

    #[test]
    fn shapes_are_few_and_hold_their_batches() {
        let of = |rows, computed| Key::of(&decode(rows, computed)).map(|k| (k.rows, k.splits));
        for (rows, computed, expected) in [
            (1, 0, (1, 1)),
            (8, 255, (8, 1)),
            (9, 256, (16, 2)),
            (17, 600, (32, 4)),
            (33, 0, (64, 1)),
            (64, 2047, (64, 8)),
        ] {
            assert_eq!(of(rows, computed), Some(expected), "{rows} {computed}");
            let key = Key::of(&decode(rows, computed)).expect("a shape");
            assert!(key.num_blocks() >= rows * (computed / BLOCK_SIZE + 1));
        }
        assert_eq!(of(65, 0), None, "too many rows");
        assert_eq!(of(0, 0), None);
        let mut prefill = decode(1, 0);
        prefill.token_ids.push(0);
        prefill.sequences[0].num_tokens = 2;
        assert_eq!(Key::of(&prefill), None);
        let mut inner = decode(2, 0);
        inner.logit_rows.pop();
        assert_eq!(Key::of(&inner), None, "a row whose logits nobody wants");
    }
}
