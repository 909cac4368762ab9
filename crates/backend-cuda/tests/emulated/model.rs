//! The bundled model on the emulated device and on the CPU: the same tokens and, over every type of keys and
//! values, the same bits of their log-probabilities, which depend on every logit.

use std::convert::Infallible;
use std::num::NonZeroUsize;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use backend::{
    Backend, Batch, BatchSequence, KvDtype, RowOutput, RowTask, SampleBatch, SampleRow,
    SamplingParams,
};
use backend_cpu::{CpuBackend, CpuConfig};
use backend_cuda::{CudaBackend, Precision};
use bundled::chat::{Message, Role, render_prompt};
use bundled::tokenizer::Tokenizer;
use cuda_emulation::Profile;
use engine::{Engine, EngineConfig, EngineError, EngineStatus, GenerateRequest, StreamEvent};
use metrics::Metrics;
use model::{CausalLm, Checkpoint, LoadOptions};

use crate::device::{Emulated, target};

fn load<B: Backend>(backend: B) -> model::Decoder<B> {
    load_over(KvDtype::Bf16, backend)
}

fn load_over<B: Backend>(kv_dtype: KvDtype, backend: B) -> model::Decoder<B> {
    let checkpoint = Checkpoint::from_memory(bundled::files()).expect("the bundled model");
    load_from(&checkpoint, kv_dtype, backend)
}

fn load_from<B: Backend>(
    checkpoint: &Checkpoint,
    kv_dtype: KvDtype,
    backend: B,
) -> model::Decoder<B> {
    let options = LoadOptions {
        max_model_len: None,
        kv_cache_bytes: 64 << 20,
        swap_bytes: 0,
        max_num_seqs: 10,
        kv_dtype,
    };
    model::load(checkpoint, backend, &options, &mut |_, _| {}).expect("it loads")
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
                block_table: (0..(computed + next.len()).div_ceil(32) as u32)
                    .map(|block| block * 10 + index as u32)
                    .collect(),
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

/// Ways that a clock prefers to the table's, with captured steps: the same tokens and bits.
#[test]
fn measured_ways_give_the_bits_of_the_table() {
    use backend_cuda::tuning::{Tuned, Tuning};
    let mut three: Vec<Vec<u32>> = prompts();
    three.iter_mut().for_each(|prompt| prompt.truncate(20));
    three.push(three[0][..5].to_vec());
    let backend = CudaBackend::new(Emulated::new(Profile::Fast80, 0), Precision::Int8Fast);
    let expected = answers(&mut load(backend), &three, 5);
    let mut device = Emulated::new(Profile::Fast80, 0);
    // Weights are streamed slowly.
    device.cost = |kernel| Duration::from_millis(1 + u64::from(kernel.contains("stream")));
    let (time, replays) = (Rc::clone(&device.time), Rc::clone(&device.replays));
    let tuning = Tuning {
        known: Tuned::default(),
        limit: Duration::from_millis(500),
        clock: Rc::new(move || time.get()),
    };
    let backend = CudaBackend::new(device, Precision::Int8Fast).with_graphs();
    let mut lm = load(backend.with_tuning(tuning));
    let tuned = lm.backend().tuned().expect("it was measured");
    let others: Vec<_> = tuned.others(lm.backend().part()).collect();
    assert!(
        others.iter().any(|((_, tokens), _)| *tokens == 8),
        "{tuned:?}"
    );
    assert_eq!(answers(&mut lm, &three, 5), expected);
    assert!(replays.get() > 0);
}

/// Decode steps of ten sequences run padded to sixteen rows: computed, captured, then replayed with
/// contexts that grow.
#[test]
fn replayed_steps_give_the_bits_of_computed_ones() {
    let mut ten: Vec<Vec<u32>> = prompts();
    ten.iter_mut().for_each(|prompt| prompt.truncate(20));
    for len in 3..11 {
        ten.push(ten[len % 2][..len].to_vec());
    }
    let device = || Emulated::new(Profile::Fast80, 0);
    let backend = CudaBackend::new(device(), Precision::Int8);
    let expected = answers(&mut load(backend), &ten, 6);
    let captured = device();
    let replays = Rc::clone(&captured.replays);
    let backend = CudaBackend::new(captured, Precision::Int8).with_graphs();
    let found = answers(&mut load(backend), &ten, 6);
    assert_eq!(found, expected);
    // The prompt, one computed step, one captured and run, three replayed.
    assert_eq!(replays.get(), 4);
}

/// A device that fails for good: every stream ends with an error event, the engine is dead and its
/// thread ends, which is what ends the process.
#[test]
fn a_device_that_fails_for_good_ends_the_engine() {
    let config = EngineConfig {
        max_num_seqs: 2,
        max_num_batched_tokens: Some(64),
        max_num_queued_reqs: 8,
        max_num_queued_tokens: 1 << 16,
        enable_prefix_caching: true,
        queue_timeout: Duration::from_secs(3600),
        request_timeout: Duration::from_secs(3600),
        stream_write_timeout: Duration::from_secs(3600),
    };
    let (engine, thread) = Engine::spawn(config, Metrics::new("emulated"), || {
        let device = Emulated::new(Profile::Fast80, 0);
        // Enough for the prompt and a token or two.
        device.launches_left.set(200);
        let model = load(CudaBackend::new(device, Precision::Int8));
        Ok::<_, Infallible>(Box::new(model) as Box<dyn CausalLm>)
    });
    while engine.status() == EngineStatus::Loading {
        std::thread::yield_now();
    }
    let request = GenerateRequest {
        prompt: prompts()[0].clone(),
        sampling: SamplingParams::greedy(),
        num_choices: 1,
        max_tokens: 100,
        min_tokens: 100,
        stop_token_ids: Vec::new(),
        end_token_ids: Vec::new(),
        prompt_logprobs: None,
        seed: 0,
        cache_salt: 0,
    };
    let mut stream = engine.submit(request).expect("room");
    let mut last = None;
    while let Some(event) = stream.blocking_recv() {
        last = Some(event);
    }
    assert!(
        matches!(last, Some(StreamEvent::Failed(EngineError::StepFailed))),
        "{last:?}"
    );
    thread.join().expect("no panic").expect("it was loaded");
    assert_eq!(engine.status(), EngineStatus::Dead);
}

#[test]
fn answers_are_the_cpus_token_for_token_and_bit_for_bit() {
    let prompts = prompts();
    for (precision, cpu, order) in [
        (Precision::Int8, backend_cpu::Precision::Int8, 0),
        (Precision::Int8Fast, backend_cpu::Precision::Int8Fast, 1),
        (
            Precision::Int8Guarded,
            backend_cpu::Precision::Int8Guarded,
            0,
        ),
        (Precision::Int8Blocks, backend_cpu::Precision::Int8Blocks, 1),
    ] {
        let config = CpuConfig {
            threads: NonZeroUsize::new(1),
            precision: cpu,
            isa: None,
        };
        for kv_dtype in [KvDtype::F32, KvDtype::Bf16, KvDtype::Int8] {
            let cpu = CpuBackend::new(config.clone()).expect("a CPU");
            let expected = answers(&mut load_over(kv_dtype, cpu), &prompts, 12);
            let emulated = target(Profile::Fast80, order, precision);
            let found = answers(&mut load_over(kv_dtype, emulated), &prompts, 12);
            assert_eq!(found, expected, "{precision:?} over {kv_dtype:?}");
        }
    }
}

/// Mixtures of experts: routers in floats, chosen rows gathered, and their products summed in the CPU's order.
#[test]
fn a_mixture_of_experts_answers_as_on_the_cpu_to_the_bit() {
    for fixture in ["mixtral", "qwen3-moe"] {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(fixture);
        let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures");
        std::fs::create_dir_all(&folder).expect("a folder");
        for (from, to) in [
            ("model.safetensors", "model.safetensors"),
            ("tokenizer.json", "tokenizer.json"),
            ("default.tf5.json", "config.json"),
        ] {
            let from = committed.join(fixture).join(from);
            std::fs::copy(from, folder.join(to)).expect("the fixture is committed");
        }
        let checkpoint = Checkpoint::open(&folder).expect("it opens");
        let prompts = [vec![1, 5, 9, 13, 17, 21, 2], vec![3, 8, 4]];
        for (precision, cpu) in [
            (Precision::Int8, backend_cpu::Precision::Int8),
            (Precision::Int8Blocks, backend_cpu::Precision::Int8Blocks),
        ] {
            let config = CpuConfig {
                threads: NonZeroUsize::new(1),
                precision: cpu,
                isa: None,
            };
            let cpu = CpuBackend::new(config).expect("a CPU");
            let expected = answers(&mut load_from(&checkpoint, KvDtype::Bf16, cpu), &prompts, 6);
            // Their steps read results on the host, so that none of them is captured.
            let emulated = target(Profile::Fast80, 0, precision).with_graphs();
            let found = answers(
                &mut load_from(&checkpoint, KvDtype::Bf16, emulated),
                &prompts,
                6,
            );
            assert_eq!(found, expected, "{fixture} in {precision:?}");
        }
    }
}
