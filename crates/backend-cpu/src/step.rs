//! One batch's columns, kept from step to step so that their memory is reused.

use backend::{BLOCK_SIZE, Batch};
use kernels_cpu::{QUERY_TILE, QueryTile};

/// Ids, positions, slots and block tables of one batch.
#[derive(Debug, Default)]
pub struct CpuStep {
    pub(crate) token_ids: Vec<usize>,
    pub(crate) positions: Vec<usize>,
    pub(crate) slots: Vec<usize>,
    pub(crate) logit_rows: Vec<usize>,
    /// The block tables of all sequences, one after the other.
    pub(crate) block_tables: Vec<u32>,
    /// Runs of tokens that attention takes together.
    pub(crate) tiles: Vec<QueryTile>,
}

impl CpuStep {
    /// Replaces everything by the columns of `batch`.
    pub(crate) fn fill(&mut self, batch: &Batch) {
        refill(
            &mut self.token_ids,
            batch.token_ids.iter().map(|id| *id as usize),
        );
        refill(&mut self.positions, batch.positions());
        refill(&mut self.slots, batch.slots());
        refill(&mut self.logit_rows, batch.logit_rows.iter().copied());
        self.block_tables.clear();
        self.tiles.clear();
        let mut first_row = 0;
        for sequence in &batch.sequences {
            let first_block = self.block_tables.len();
            let end = sequence.num_computed_tokens + sequence.num_tokens;
            let blocks = &sequence.block_table[..end.div_ceil(BLOCK_SIZE)];
            self.block_tables.extend_from_slice(blocks);
            for offset in (0..sequence.num_tokens).step_by(QUERY_TILE) {
                self.tiles.push(QueryTile {
                    first_row: first_row + offset,
                    num_tokens: QUERY_TILE.min(sequence.num_tokens - offset),
                    first_position: sequence.num_computed_tokens + offset,
                    first_block,
                });
            }
            first_row += sequence.num_tokens;
        }
    }
}

fn refill<T>(column: &mut Vec<T>, values: impl Iterator<Item = T>) {
    column.clear();
    column.extend(values);
}

#[cfg(test)]
mod tests {
    use super::*;
    use backend::BatchSequence;

    #[test]
    fn tiles_cover_the_tokens_and_point_to_their_blocks() {
        let sequence = |num_tokens, num_computed_tokens, block_table| BatchSequence {
            num_tokens,
            num_computed_tokens,
            block_table,
        };
        let batch = Batch {
            token_ids: (0..20).collect(),
            sequences: vec![sequence(19, 20, vec![4, 2, 9]), sequence(1, 0, vec![7])],
            logit_rows: vec![18, 19, 19],
            copies: vec![],
        };
        let mut step = CpuStep::default();
        for _ in 0..2 {
            step.fill(&batch);
            assert_eq!(
                step.block_tables,
                [4, 2, 7],
                "the third block is not reached"
            );
            let tiles: Vec<_> = step
                .tiles
                .iter()
                .map(|t| (t.first_row, t.num_tokens, t.first_position, t.first_block))
                .collect();
            assert_eq!(
                tiles,
                [(0, 8, 20, 0), (8, 8, 28, 0), (16, 3, 36, 0), (19, 1, 0, 2)]
            );
            assert_eq!(step.slots[0], 4 * BLOCK_SIZE + 20);
            assert_eq!(step.slots[19], 7 * BLOCK_SIZE);
            assert_eq!(step.logit_rows, [18, 19, 19]);
        }
    }
}
