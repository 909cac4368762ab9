//! The 8-bit copy of a checkpoint: the same bits as quantising while loading, and what is refused.

use std::path::Path;

use backend::RowOutput;
use backend_cpu::{CpuBackend, CpuConfig, Precision};
use model::{CausalLm, Checkpoint, load, quantize};
use serde_json::json;

use crate::families::greedy;
use crate::golden::CASES;
use crate::support::{Span, batch, checkpoint_dir, edit_tensors, fixtures, options};

/// Bits of the best token's log-probability after every position, which depend on all logits.
fn bits(dir: &Path, max_model_len: Option<usize>, precision: Precision) -> Vec<(u32, u32)> {
    let config = CpuConfig {
        precision,
        ..CpuConfig::default()
    };
    let target = CpuBackend::new(config).expect("the CPU target starts");
    let checkpoint = Checkpoint::open(dir).expect("opens");
    let loaded = load(&checkpoint, target, &options(max_model_len), &mut |_, _| {});
    let mut decoder = loaded.expect("loads");
    let ids: Vec<u32> = (0..16).map(|i| (7 * i * i + 3 * i + 5) % 90).collect();
    let batch = batch(&[Span {
        tokens: &ids,
        start: 0,
        first_block: 0,
    }]);
    let samples = greedy(ids.len(), decoder.info().vocab_size);
    let output = decoder.forward(&batch, &samples).expect("the step runs");
    let token = |row: &RowOutput| match row {
        RowOutput::Token(found) => (found.token_id, found.logprob.to_bits()),
        _ => panic!("logits are not finite"),
    };
    output.rows.iter().map(token).collect()
}

/// Families whose loaders multiply matrices with a factor: before they are quantised while loading,
/// after it in a copy, which rounds differently.
const SCALED: &[&str] = &["gemma", "gemma2", "gemma3", "granite"];

#[test]
fn a_copy_computes_the_same_bits_as_quantising_while_loading() {
    for (name, case, max_model_len) in CASES.iter().filter(|(name, ..)| *name != "gpt2") {
        let dir = checkpoint_dir(name, &format!("{case}.tf5.json"));
        let folder = tempfile::tempdir().expect("a folder");
        let copy = folder.path().join("copy");
        let mut last = (0, 1);
        let written = quantize(dir.path(), &copy, &mut |done, total| last = (done, total));
        let written = written.expect("it is a float checkpoint");
        assert!(written.matrices > 3 && last.0 == last.1, "{name} {case}");
        assert!(written.bytes_after < written.bytes_before, "{name} {case}");
        assert!(copy.join("tokenizer.json").exists());
        assert!(Checkpoint::open(&copy).expect("opens").is_int8());
        for precision in [Precision::Int8, Precision::Int8Fast] {
            let expected = bits(dir.path(), *max_model_len, precision);
            let found = bits(&copy, *max_model_len, precision);
            if !SCALED.contains(name) {
                assert_eq!(found, expected, "{name} {case} {precision}");
            }
            for (found, expected) in found.iter().zip(&expected) {
                let [found, expected] = [found, expected].map(|(_, bits)| f32::from_bits(*bits));
                assert!((found - expected).abs() < 0.1, "{name} {case} {precision}");
            }
        }
        let again = quantize(&copy, &folder.path().join("again"), &mut |_, _| {});
        let error = again.expect_err("8 bits already").to_string();
        assert!(error.contains("quantised already"), "{error}");
        let error = quantize(dir.path(), &copy, &mut |_, _| {}).expect_err("not empty");
        assert!(error.to_string().contains("is not empty"), "{error}");
    }
}

#[test]
fn what_cannot_be_copied_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let refusal = |input: &Path| {
        let error = quantize(input, &out, &mut |_, _| {}).expect_err("refused");
        let left = std::fs::read_dir(folder.path()).expect("readable").count();
        assert_eq!(left, 0, "{error}");
        error.to_string()
    };
    let text = refusal(&fixtures().join("gguf/llama.gguf"));
    assert!(text.contains("GGUF"), "{text}");
    let dir = checkpoint_dir("gpt2", "default.tf5.json");
    let text = refusal(dir.path());
    assert!(text.contains("gpt2"), "{text}");
    let dir = checkpoint_dir("llama", "default.tf5.json");
    edit_tensors(dir.path(), |tensors| {
        for (name, _, _, data) in tensors.iter_mut() {
            if name.ends_with("layers.0.mlp.up_proj.weight") {
                data[..4].copy_from_slice(&f32::NAN.to_le_bytes());
            }
        }
    });
    let text = refusal(dir.path());
    assert!(text.contains("up_proj.weight: holds"), "{text}");
    crate::support::edit_config(dir.path(), &json!({"model_type": null}));
    assert!(refusal(dir.path()).contains("model_type"));
}
