//! One batch's columns on the device, and what the host must know of them to check and plan.

use std::rc::Rc;

use backend::{BLOCK_SIZE, Batch, Result};

use crate::device::{Arg, Device};
use crate::graphs::{Graphs, Key};

/// Keys whose part of an attention is closed and merged in order.
pub(crate) const SPLIT: usize = 256;
/// Tokens of one query tile at most.
const QUERY_TILE: usize = 8;

/// Ids, positions, slots, block tables and query tiles of one batch.
pub struct CudaStep<D: Device> {
    words: Rc<D::Buffer>,
    starts: [usize; 6],
    pub(crate) num_tokens: usize,
    pub(crate) num_logit_rows: usize,
    pub(crate) num_tiles: usize,
    pub(crate) max_token: usize,
    pub(crate) max_position: usize,
    pub(crate) max_logit_row: usize,
    pub(crate) max_block: usize,
    /// First and last split of all tokens without a window.
    pub(crate) max_split: usize,
    /// The shape of a step that may be replayed; its rows are padded.
    pub(crate) key: Option<Key>,
    /// Rows of logits that the batch wants.
    pub(crate) num_wanted: usize,
}

/// The slot of a padding row: the kernels store nothing there.
const NO_SLOT: usize = u32::MAX as usize;

/// The columns, in the order in which they lie.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Column {
    Tokens,
    Positions,
    Slots,
    LogitRows,
    Tiles,
    /// Last, because its length differs between steps of one shape.
    Tables,
}

impl<D: Device> CudaStep<D> {
    /// Brings a valid batch to the device in one copy.
    pub(crate) fn new(device: &D, batch: &Batch, graphs: Option<&mut Graphs<D>>) -> Result<Self> {
        let key = graphs.as_ref().and_then(|_| Key::of(batch));
        let mut tables: Vec<usize> = Vec::new();
        let mut tiles: Vec<usize> = Vec::new();
        let mut first_row = 0;
        for sequence in &batch.sequences {
            let table = tables.len();
            let end = sequence.num_computed_tokens + sequence.num_tokens;
            let blocks = &sequence.block_table[..end.div_ceil(BLOCK_SIZE)];
            tables.extend(blocks.iter().map(|block| *block as usize));
            for offset in (0..sequence.num_tokens).step_by(QUERY_TILE) {
                let num_tokens = QUERY_TILE.min(sequence.num_tokens - offset);
                let position = sequence.num_computed_tokens + offset;
                tiles.extend([first_row + offset, num_tokens, position, table]);
            }
            first_row += sequence.num_tokens;
        }
        let mut tokens: Vec<usize> = batch.token_ids.iter().map(|id| *id as usize).collect();
        let mut positions: Vec<usize> = batch.positions().collect();
        let mut slots: Vec<usize> = batch.slots().collect();
        let mut logit_rows = batch.logit_rows.clone();
        for row in tokens.len()..key.map_or(0, |key| key.rows) {
            tokens.push(0);
            positions.push(0);
            slots.push(NO_SLOT);
            logit_rows.push(row);
            tiles.extend([row, 1, 0, tables.len()]);
            tables.push(0);
        }
        let columns = [&tokens, &positions, &slots, &logit_rows, &tiles, &tables];
        let mut bytes = Vec::new();
        let mut starts = [0; 6];
        for (start, column) in starts.iter_mut().zip(columns) {
            // Aligned for sixteen-byte loads of tiles.
            bytes.resize(bytes.len().next_multiple_of(16), 0);
            *start = bytes.len();
            bytes.extend(column.iter().flat_map(|x| (*x as u32).to_le_bytes()));
        }
        let words = match (graphs, key) {
            (Some(graphs), Some(key)) => {
                let most = starts[Column::Tables as usize] + key.num_blocks() * 4;
                graphs.columns(device, key, most)?
            }
            _ => Rc::new(device.scratch(bytes.len().max(16), "the step's columns")?),
        };
        device.upload(&words, 0, &bytes)?;
        let max = |column: &[usize]| column.iter().copied().max().unwrap_or(0);
        Ok(Self {
            words,
            starts,
            num_tokens: tokens.len(),
            num_logit_rows: logit_rows.len(),
            num_tiles: tiles.len() / 4,
            max_token: max(&tokens),
            max_position: max(&positions),
            max_logit_row: max(&logit_rows),
            max_block: max(&tables),
            max_split: key.map_or(max(&positions) / SPLIT, |key| key.splits - 1),
            key,
            num_wanted: batch.logit_rows.len(),
        })
    }

    /// A column as a kernel's argument.
    pub(crate) fn arg(&self, column: Column) -> Arg<'_, D::Buffer> {
        Arg::Buffer(&self.words, self.starts[column as usize])
    }
}
