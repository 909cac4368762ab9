//! The bundled model on the emulated device and on the CPU: the same tokens and the same bits of their
//! log-probabilities, which depend on every logit.

use std::num::NonZeroUsize;
use std::sync::Arc;

use backend::{
    Backend, Batch, BatchSequence, KvDtype, RowOutput, RowTask, SampleBatch, SampleRow,
    SamplingParams,
};
use backend_cpu::{CpuBackend, CpuConfig};
use backend_cuda::Precision;
use bundled::chat::{Message, Role, render_prompt};
use bundled::tokenizer::Tokenizer;
use cuda_emulation::Profile;
use model::{CausalLm, Checkpoint, LoadOptions};

use crate::device::Target;

fn load<B: Backend>(backend: B) -> model::Decoder<B> {
    let checkpoint = Checkpoint::from_memory(bundled::files()).expect("the bundled model");
    let options = LoadOptions {
        max_model_len: Some(256),
        kv_cache_bytes: 64 << 20,
        max_num_seqs: 2,
        kv_dtype: KvDtype::Bf16,
    };
    model::load(&checkpoint, backend, &options, &mut |_, _| {}).expect("it loads")
}

fn prompts() -> Vec<Vec<u32>> {
    let file = bundled::files().iter().find(|f| f.0 == "tokenizer.json");
    let text = std::str::from_utf8(file.expect("bundled").1).expect("JSON is UTF-8");
    let tokenizer = Tokenizer::from_json(text).expect("the trainer wrote it");
    ["What is 3 + 4?", "Spell cat."]
        .iter()
        .map(|text| tokenizer.encode(&render_prompt(&[], &[Message::new(Role::User, *text)])))
        .collect()
}

/// Greedy answers of all prompts in one batch, with log-probabilities.
fn answers(lm: &mut dyn CausalLm, prompts: &[Vec<u32>], count: usize) -> Vec<(u32, u32)> {
    let params = Arc::new(SamplingParams::greedy());
    let mut sequences: Vec<(usize, Vec<u32>)> = prompts.iter().map(|p| (0, p.clone())).collect();
    let mut answers = Vec::new();
    for _ in 0..count {
        let mut batch = Batch::default();
        let mut samples = SampleBatch {
            rows: Vec::new(),
            vocab_size: lm.info().vocab_size,
        };
        for (index, (computed, next)) in sequences.iter().enumerate() {
            batch.token_ids.extend(next);
            batch.sequences.push(BatchSequence {
                num_tokens: next.len(),
                num_computed_tokens: *computed,
                block_table: (0..8).map(|b| b * 2 + index as u32).collect(),
            });
            batch.logit_rows.push(batch.token_ids.len() - 1);
            samples.rows.push(SampleRow {
                params: Arc::clone(&params),
                task: RowTask::Draw,
                seed: 0,
                position: 0,
                counts: Vec::new(),
                banned: Arc::from([]),
            });
        }
        let output = lm.forward(&batch, &samples).expect("a step");
        for ((computed, next), row) in sequences.iter_mut().zip(output.rows) {
            let RowOutput::Token(sampled) = row else {
                panic!("logits are not finite");
            };
            answers.push((sampled.token_id, sampled.logprob.to_bits()));
            *computed += next.len();
            *next = vec![sampled.token_id];
        }
    }
    answers
}

#[test]
fn answers_are_the_cpus_token_for_token_and_bit_for_bit() {
    let prompts = prompts();
    for (precision, cpu, order) in [
        (Precision::Int8, backend_cpu::Precision::Int8, 0),
        (Precision::Int8Fast, backend_cpu::Precision::Int8Fast, 1),
    ] {
        let config = CpuConfig {
            threads: NonZeroUsize::new(1),
            precision: cpu,
            isa: None,
        };
        let mut on_cpu = load(CpuBackend::new(config).expect("a CPU"));
        let expected = answers(&mut on_cpu, &prompts, 12);
        let mut emulated = load(Target::new(Profile::Fast80, order, precision).0);
        let found = answers(&mut emulated, &prompts, 12);
        assert_eq!(found, expected, "{precision:?}");
    }
}
