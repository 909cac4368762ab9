//! The crate from outside: checkpoints in, logits and text files out.

mod families;
mod golden;
mod hub;
mod int8;
mod known_bugs;
mod malformed;
mod quantised;
mod quantize;
mod sentencepiece;
mod smollm2;
mod split;
mod support;
