//! Random identifiers that mean nothing.

use rand::Rng;
use rand::distr::Alphanumeric;

/// `len` random letters and digits.
pub(crate) fn random(len: usize) -> String {
    rand::rng()
        .sample_iter(Alphanumeric)
        .take(len)
        .map(char::from)
        .collect()
}
