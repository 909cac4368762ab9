//! 8-bit forms of activations, and the shelves that their memory returns to.

use std::cell::RefCell;
use std::rc::Rc;

use backend::{BackendError, Result};
use kernels_cpu::{QuantisedRows, RowLayout};
use quant::Granularity;

/// The 8-bit form of a tensor; its memory goes back to its shelf when dropped.
#[derive(Debug)]
pub(crate) struct Twin {
    /// Taken out in `drop` only.
    rows: Option<QuantisedRows>,
    shelves: Rc<TwinShelves>,
}

/// Free memory by size: entry `i` holds `2^i` words.
#[derive(Debug, Default)]
pub(crate) struct TwinShelves(RefCell<Vec<Vec<QuantisedRows>>>);

impl TwinShelves {
    /// Rows with arbitrary contents; `allocated` is told when the memory is new.
    pub(crate) fn take(
        shelves: &Rc<Self>,
        num_rows: usize,
        layout: RowLayout,
        allocated: impl FnOnce(),
    ) -> Result<Twin> {
        let class = class_of(num_rows.saturating_mul(layout.row_words()));
        let free = shelves.0.borrow_mut().get_mut(class).and_then(Vec::pop);
        let fitting = free.and_then(|mut rows| rows.reuse(num_rows, layout).then_some(rows));
        let rows = match fitting {
            Some(rows) => rows,
            None => {
                allocated();
                QuantisedRows::new(num_rows, layout).ok_or(BackendError::OutOfMemory {
                    requested: num_rows.saturating_mul(4 * layout.row_words()),
                    purpose: "8-bit activations",
                })?
            }
        };
        Ok(Twin {
            rows: Some(rows),
            shelves: Rc::clone(shelves),
        })
    }
}

/// The shelf of this many words.
fn class_of(words: usize) -> usize {
    words.max(1).ilog2() as usize + usize::from(!words.is_power_of_two())
}

impl Twin {
    pub(crate) fn rows(&self) -> &QuantisedRows {
        self.rows.as_ref().expect("present until drop")
    }

    pub(crate) fn rows_mut(&mut self) -> &mut QuantisedRows {
        self.rows.as_mut().expect("present until drop")
    }

    pub(crate) fn granularity(&self) -> Granularity {
        self.rows().layout().granularity()
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        let rows = self.rows.take().expect("present until drop");
        let class = class_of(rows.words().len());
        let mut shelves = self.shelves.0.borrow_mut();
        if shelves.len() <= class {
            shelves.resize_with(class + 1, Vec::new);
        }
        shelves[class].push(rows);
    }
}
