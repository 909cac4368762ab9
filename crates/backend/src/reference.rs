//! The reference target: plain loops over `Vec<f32>`, the oracle every other target is compared with.
