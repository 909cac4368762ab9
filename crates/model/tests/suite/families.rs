//! What tells one family's equations from another's: that each setting and each tensor shows in the
//! golden logits, which layouts of the same weights are the same model, and what is refused.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use backend::{ReferenceBackend, RowOutput, RowTask, SampleBatch, SampleRow, SamplingParams};
use backend_cpu::{CpuBackend, CpuConfig, Precision};
use model::{CausalLm, Checkpoint, Prompt, load};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use crate::golden::{CASES, TOLERANCE, error, expected};
use crate::support::{
    Span, Stored, argmax, batch, checkpoint_dir, edit_config, edit_tensors, logits_in_chunks,
    options, reference, write,
};

/// The distance between the golden logits and what a folder gives.
pub fn distance(dir: &Path, name: &str, case: &str) -> f32 {
    let expected = expected(name, case);
    let mut decoder = reference(dir, None);
    let found = logits_in_chunks(&mut decoder, &expected.ids, expected.ids.len());
    error(&found, &expected.logits)
}

/// Why a fixture does not load after `edit`; nothing when it does.
fn refusal(name: &str, case: &str, edit: impl FnOnce(&Path)) -> Option<String> {
    let dir = checkpoint_dir(name, &format!("{case}.tf5.json"));
    edit(dir.path());
    let checkpoint = match Checkpoint::open(dir.path()) {
        Ok(checkpoint) => checkpoint,
        Err(error) => return Some(error.to_string()),
    };
    load(
        &checkpoint,
        ReferenceBackend,
        &options(None),
        &mut |_, _| {},
    )
    .err()
    .map(|error| error.to_string())
}

fn rope_theta(theta: f64) -> Value {
    json!({"rope_parameters": {"rope_type": "default", "rope_theta": theta}})
}

fn share(share: f64) -> Value {
    json!({"rope_parameters":
        {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": share}})
}

#[test]
fn every_setting_shows_in_the_logits() {
    let cases = [
        (
            "gpt-neox",
            "parallel",
            json!({"use_parallel_residual": false}),
        ),
        (
            "gpt-neox",
            "sequential",
            json!({"use_parallel_residual": null}),
        ),
        ("gpt-neox", "parallel", json!({"hidden_act": "gelu_new"})),
        ("gpt-neox", "tanh", json!({"hidden_act": null})),
        ("gpt-neox", "parallel", json!({"layer_norm_eps": 1e-4})),
        ("gpt-neox", "parallel", share(0.4)),
        ("gpt2", "default", json!({"activation_function": "gelu"})),
        ("gpt2", "unscaled", json!({"activation_function": null})),
        ("gpt2", "default", json!({"layer_norm_epsilon": 1e-4})),
        ("gpt2", "unscaled", json!({"scale_attn_weights": null})),
        (
            "gpt2",
            "by-layer",
            json!({"scale_attn_by_inverse_layer_idx": null}),
        ),
        ("stablelm", "sequential", share(0.4)),
        ("stablelm", "sequential", json!({"layer_norm_eps": 1e-4})),
        ("stablelm", "sequential", json!({"hidden_act": "gelu"})),
        ("gptj", "default", json!({"rotary_dim": 10})),
        ("gptj", "default", json!({"rotary_dim": null})),
        ("gptj", "default", json!({"activation_function": "gelu"})),
        ("phi", "default", json!({"hidden_act": "gelu"})),
        ("phi", "default", json!({"rope_parameters": null})),
        ("phi-qk-norm", "default", json!({"layer_norm_eps": 1e-4})),
        ("phi3", "window", json!({"sliding_window": 12})),
        ("phi3", "window", json!({"sliding_window": null})),
        ("phi3", "window", json!({"rms_norm_eps": 1e-4})),
        ("phi3", "window", json!({"hidden_act": "gelu"})),
        ("phi3", "window", rope_theta(20_000.0)),
        (
            "phi3",
            "long",
            json!({"original_max_position_embeddings": 64}),
        ),
        (
            "phi3",
            "long",
            json!({"original_max_position_embeddings": 17}),
        ),
        ("gemma", "default", json!({"rms_norm_eps": 1e-4})),
        ("gemma", "default", json!({"norm_offset": 0.0})),
        ("gemma2", "default", json!({"sliding_window": 8})),
        ("gemma2", "default", json!({"attn_logit_softcapping": null})),
        (
            "gemma2",
            "default",
            json!({"final_logit_softcapping": null}),
        ),
        ("gemma2", "default", json!({"query_pre_attn_scalar": 20})),
        ("gemma2", "default", json!({"hidden_activation": "gelu"})),
        ("gemma2", "epsilon", json!({"rms_norm_eps": 9e-3})),
        (
            "gemma2",
            "default",
            json!({"layer_types":
                ["full_attention", "sliding_attention", "full_attention"]}),
        ),
        ("gemma3", "default", json!({"sliding_window": 8})),
        ("gemma3", "default", json!({"rms_norm_eps": 1e-4})),
        (
            "gemma3",
            "default",
            json!({"rope_parameters": null, "rope_theta": 1e6}),
        ),
        (
            "gemma3",
            "default",
            json!({"layer_types": null, "sliding_window_pattern": 2}),
        ),
        ("gemma3", "default", json!({"query_pre_attn_scalar": 20})),
        ("falcon", "default", json!({"activation": "gelu_new"})),
        ("falcon", "default", json!({"layer_norm_epsilon": 1e-4})),
        ("falcon", "default", rope_theta(9e3)),
        ("falcon-grouped", "two-norms", json!({"ordered_qkv": true})),
        ("falcon-one-norm", "default", json!({"ordered_qkv": true})),
        ("falcon-sequential", "default", json!({"ordered_qkv": true})),
        ("gpt-neox", "parallel", json!({"ordered_qkv": true})),
        ("olmo2", "default", json!({"rms_norm_eps": 1e-4})),
        ("olmo2", "default", rope_theta(10_000.0)),
        ("smollm3", "default", json!({"no_rope_layers": [1, 1, 1]})),
        ("smollm3", "default", json!({"no_rope_layers": [0, 1, 0]})),
        (
            "smollm3",
            "default",
            json!({"no_rope_layers": null, "no_rope_layer_interval": null}),
        ),
        ("smollm3", "default", rope_theta(2e6)),
        ("mixtral", "default", json!({"num_experts_per_tok": 3})),
        ("mixtral", "default", json!({"norm_topk_prob": false})),
        ("mixtral", "default", json!({"rms_norm_eps": 1e-4})),
        ("qwen3-moe", "default", json!({"norm_topk_prob": true})),
        ("qwen3-moe", "normalised", json!({"norm_topk_prob": null})),
        ("qwen3-moe", "default", json!({"num_experts_per_tok": 2})),
        ("granite", "default", json!({"embedding_multiplier": 1.0})),
        ("granite", "default", json!({"attention_multiplier": null})),
        ("granite", "default", json!({"residual_multiplier": null})),
        ("granite", "default", json!({"logits_scaling": 0.2})),
        ("granite", "default", json!({"rms_norm_eps": 1e-3})),
    ];
    for (name, case, fields) in cases {
        let dir = checkpoint_dir(name, &format!("{case}.tf5.json"));
        edit_config(dir.path(), &fields);
        let distance = distance(dir.path(), name, case);
        assert!(distance > TOLERANCE, "{name} {case} {fields}: {distance:e}");
    }
}

#[test]
fn every_tensor_shows_in_the_logits() {
    for (name, case) in [
        ("llama", "default"),
        ("mistral", "window"),
        ("qwen2", "window"),
        ("qwen3", "default"),
        ("gpt-neox", "parallel"),
        ("gpt-neox", "sequential"),
        ("gpt2", "default"),
        ("stablelm", "sequential"),
        ("stablelm-parallel", "default"),
        ("gptj", "default"),
        ("phi", "default"),
        ("phi-qk-norm", "default"),
        ("phi3", "window"),
        ("gemma", "default"),
        ("gemma2", "default"),
        ("gemma3", "default"),
        ("falcon", "default"),
        ("falcon-grouped", "two-norms"),
        ("falcon-sequential", "default"),
        ("olmo2", "default"),
        ("smollm3", "default"),
        ("granite", "default"),
        ("mixtral", "default"),
        ("qwen3-moe", "normalised"),
    ] {
        let (mut names, mut silent) = (Vec::new(), Vec::new());
        let config = format!("{case}.tf5.json");
        edit_tensors(checkpoint_dir(name, &config).path(), |tensors| {
            names.extend(tensors.iter().map(|tensor| tensor.0.clone()));
        });
        for tensor in names {
            let dir = checkpoint_dir(name, &config);
            // Every second element goes: a part of whatever is fused, and half of each norm.
            edit_tensors(dir.path(), |tensors| {
                let found = tensors.iter_mut().find(|stored| stored.0 == tensor);
                let data = &mut found.expect("the name was listed").3;
                for element in data.as_chunks_mut::<4>().0 {
                    element[2..].fill(0);
                }
            });
            if distance(dir.path(), name, case) <= TOLERANCE {
                silent.push(tensor);
            }
        }
        // An expert that no token of the golden text chooses shows nowhere: three tensors each.
        let chosen = silent.iter().find(|tensor| !tensor.contains(".experts."));
        assert_eq!(chosen, None, "{name} {case}");
        assert!(silent.len() <= 6, "{name} {case}: {silent:?}");
    }
}

#[test]
fn missing_and_surplus_tensors_are_named() {
    for (name, case, tensor) in [
        (
            "gpt-neox",
            "parallel",
            "gpt_neox.layers.1.attention.query_key_value.bias",
        ),
        (
            "gpt-neox",
            "parallel",
            "gpt_neox.layers.1.attention.dense.bias",
        ),
        (
            "gpt-neox",
            "parallel",
            "gpt_neox.layers.1.mlp.dense_4h_to_h.bias",
        ),
        (
            "gpt-neox",
            "sequential",
            "gpt_neox.layers.3.post_attention_layernorm.bias",
        ),
        ("gpt2", "default", "transformer.h.2.attn.c_attn.bias"),
        ("gpt2", "default", "transformer.h.0.mlp.c_proj.bias"),
        ("gpt2", "default", "transformer.wpe.weight"),
        (
            "stablelm",
            "sequential",
            "model.layers.0.self_attn.v_proj.bias",
        ),
        ("stablelm", "sequential", "model.norm.bias"),
        (
            "stablelm-parallel",
            "default",
            "model.layers.0.self_attn.q_layernorm.norms.3.weight",
        ),
        ("gptj", "default", "lm_head.bias"),
        ("phi", "default", "lm_head.bias"),
        ("phi", "default", "model.layers.3.self_attn.dense.bias"),
    ] {
        let found = refusal(name, case, |dir| {
            edit_tensors(dir, |tensors| tensors.retain(|stored| stored.0 != tensor));
        });
        assert_eq!(
            found,
            Some(format!("tensor {tensor}: is missing")),
            "{name}"
        );
    }
    for (name, case, fields, expected) in [
        (
            "stablelm",
            "sequential",
            json!({"use_parallel_residual": true}),
            "model.layers.0.post_attention_layernorm.bias: is not used",
        ),
        (
            "stablelm-parallel",
            "default",
            json!({"qk_layernorm": false}),
            "k_layernorm.norms.0.weight: is not used",
        ),
        (
            "stablelm-parallel",
            "default",
            json!({"use_parallel_residual": false}),
            "post_attention_layernorm.weight: is missing",
        ),
        (
            "phi-qk-norm",
            "default",
            json!({"qk_layernorm": null}),
            "is not used",
        ),
    ] {
        let found = refusal(name, case, |dir| edit_config(dir, &fields));
        assert!(
            found.as_ref().is_some_and(|found| found.contains(expected)),
            "{found:?}"
        );
    }
}

#[test]
fn what_is_not_computed_is_refused() {
    for (name, case, fields, expected) in [
        (
            "gpt-neox",
            "parallel",
            json!({"hidden_act": "quick_gelu"}),
            "hidden_act = quick_gelu",
        ),
        (
            "gpt-neox",
            "parallel",
            json!({"num_attention_heads": 7}),
            "heads do not divide",
        ),
        (
            "gpt-neox",
            "parallel",
            json!({"head_dim": 24}),
            "does not share out the hidden size",
        ),
        (
            "gpt-neox",
            "parallel",
            share(0.25),
            "gives 5 rotated features",
        ),
        // A quarter turns where nothing is said.
        (
            "gpt-neox",
            "parallel",
            json!({"rope_parameters": null}),
            "gives 5 rotated features",
        ),
        (
            "stablelm",
            "sequential",
            json!({"rope_parameters": null}),
            "gives 5 rotated features",
        ),
        (
            "gpt2",
            "default",
            json!({"add_cross_attention": true}),
            "add_cross_attention = true",
        ),
        (
            "gpt2",
            "default",
            json!({"activation_function": "mish"}),
            "activation_function = mish",
        ),
        (
            "gpt2",
            "default",
            json!({"n_positions": 65}),
            "has 64 rows for 65 positions",
        ),
        (
            "gpt2",
            "default",
            json!({"n_positions": 63}),
            "has 64 rows for 63 positions",
        ),
        (
            "gptj",
            "default",
            json!({"rotary_dim": 22}),
            "gives 22 rotated features",
        ),
        (
            "phi",
            "default",
            json!({"model_type": "phi-msft"}),
            "phi-msft is not supported",
        ),
    ] {
        let found = refusal(name, case, |dir| edit_config(dir, &fields));
        assert!(
            found.as_ref().is_some_and(|found| found.contains(expected)),
            "{name} {fields}: {found:?}"
        );
    }
}

#[test]
fn positions_without_a_row_are_refused() {
    let dir = checkpoint_dir("gpt2", "default.tf5.json");
    let checkpoint = Checkpoint::open(dir.path()).expect("the checkpoint opens");
    let longer = options(Some(65));
    let error = load(&checkpoint, ReferenceBackend, &longer, &mut |_, _| {})
        .err()
        .expect("the table has 64 rows");
    assert_eq!(
        error.to_string(),
        "a context of 65 tokens exceeds the model's 64"
    );
}

#[test]
fn layouts_of_the_same_gpt2_are_the_same_model() {
    let bare = |tensors: &mut Vec<Stored>| {
        for stored in tensors {
            stored.0 = stored.0.replace("transformer.", "");
        }
    };
    let rows_as_outputs = |tensors: &mut Vec<Stored>| {
        for stored in tensors {
            if ["c_attn.weight", "c_proj.weight", "c_fc.weight"]
                .iter()
                .any(|end| stored.0.ends_with(end))
            {
                transpose(stored);
            }
        }
    };
    for (what, nano) in [("without prefix", false), ("of nanoGPT", true)] {
        let dir = checkpoint_dir("gpt2", "default.tf5.json");
        edit_tensors(dir.path(), |tensors| match nano {
            true => rows_as_outputs(tensors),
            false => bare(tensors),
        });
        let distance = distance(dir.path(), "gpt2", "default");
        assert!(distance < TOLERANCE, "{what}: {distance:e}");
    }
}

#[test]
fn stored_masks_and_frequencies_mean_nothing() {
    for (name, case, layer) in [
        ("gpt-neox", "parallel", "gpt_neox.layers.0.attention"),
        ("gpt2", "default", "transformer.h.0.attn"),
        ("gptj", "default", "transformer.h.0.attn"),
    ] {
        let dir = checkpoint_dir(name, &format!("{case}.tf5.json"));
        edit_tensors(dir.path(), |tensors| {
            let buffer = |part: &str, dtype, shape: &[usize], bytes| {
                (
                    format!("{layer}.{part}"),
                    dtype,
                    shape.to_vec(),
                    vec![1; bytes],
                )
            };
            tensors.push(buffer("bias", Dtype::BOOL, &[1, 1, 8, 8], 64));
            tensors.push(buffer("masked_bias", Dtype::F32, &[], 4));
            tensors.push(buffer("rotary_emb.inv_freq", Dtype::F32, &[3], 12));
        });
        let distance = distance(dir.path(), name, case);
        assert!(distance < TOLERANCE, "{name}: {distance:e}");
    }
}

#[test]
fn the_text_part_of_a_model_with_images_is_the_same_model() {
    for prefixes in [
        ["language_model.model.", "vision_tower."],
        ["model.language_model.", "model.multi_modal_projector."],
    ] {
        let dir = checkpoint_dir("gemma3", "default.tf5.json");
        edit_tensors(dir.path(), |tensors| {
            for stored in &mut *tensors {
                stored.0 = stored.0.replace("model.", prefixes[0]);
            }
            let name = format!("{}patches.weight", prefixes[1]);
            tensors.push((name, Dtype::F32, vec![1], vec![0; 4]));
        });
        let text: Value = serde_json::from_slice(
            &std::fs::read(dir.path().join("config.json")).expect("readable"),
        )
        .expect("JSON");
        let whole = json!({"model_type": "gemma3", "text_config": text, "eos_token_id": [2, 3]});
        write(dir.path(), "config.json", whole.to_string());
        let distance = distance(dir.path(), "gemma3", "default");
        assert!(distance < TOLERANCE, "{prefixes:?}: {distance:e}");
    }
}

#[test]
fn a_tied_head_that_is_stored_again_is_not_used() {
    let dir = checkpoint_dir("falcon", "default.tf5.json");
    edit_tensors(dir.path(), |tensors| {
        tensors.push(("lm_head.weight".into(), Dtype::F32, vec![1], vec![0; 4]));
    });
    let distance = distance(dir.path(), "falcon", "default");
    assert!(distance < TOLERANCE, "{distance:e}");
}

#[test]
fn a_gpt2_may_have_no_bias_at_all() {
    // Biases of zero and no biases are the same model.
    let ids: Vec<u32> = (0..20).collect();
    let [zeros, none] = [false, true].map(|drop| {
        let dir = checkpoint_dir("gpt2", "default.tf5.json");
        edit_tensors(dir.path(), |tensors| {
            tensors.retain(|stored| !drop || !stored.0.ends_with(".bias"));
            for stored in tensors
                .iter_mut()
                .filter(|stored| stored.0.ends_with(".bias"))
            {
                stored.3.fill(0);
            }
        });
        logits_in_chunks(&mut reference(dir.path(), None), &ids, ids.len())
    });
    assert_eq!(zeros, none);
}

#[test]
fn the_cpu_target_computes_every_family() {
    for (name, case, max_model_len) in CASES {
        let expected = expected(name, case);
        let dir = checkpoint_dir(name, &format!("{case}.tf5.json"));
        let checkpoint = Checkpoint::open(dir.path()).expect("the checkpoint opens");
        let backend = CpuBackend::new(CpuConfig {
            threads: NonZeroUsize::new(2),
            precision: Precision::F32,
            isa: None,
        })
        .expect("the CPU target starts");
        let mut decoder = load(
            &checkpoint,
            backend,
            &options(*max_model_len),
            &mut |_, _| {},
        )
        .expect("the checkpoint loads");
        let batch = batch(&[Span {
            tokens: &expected.ids,
            start: 0,
            first_block: 0,
        }]);
        let vocab_size = decoder.info().vocab_size;
        let samples = greedy(expected.ids.len(), vocab_size);
        let output = decoder.forward(&batch, &samples).expect("the step runs");
        let width = decoder.info().logit_width;
        for (row, logits) in output.rows.iter().zip(expected.logits.chunks(width)) {
            let RowOutput::Token(found) = row else {
                panic!("logits are not finite")
            };
            let best = argmax(logits, vocab_size);
            let sum: f32 = logits[..vocab_size].iter().map(|x| x.exp()).sum();
            let logprob = logits[best as usize] - sum.ln();
            assert_eq!(found.token_id, best, "{name} {case}");
            let error = (found.logprob - logprob).abs();
            assert!(error < 1e-3, "{name} {case}: {error:e}");
        }
    }
}

/// Asks for the best token after each of so many positions.
pub fn greedy(positions: usize, vocab_size: usize) -> SampleBatch {
    SampleBatch {
        rows: (0..positions).map(greedy_row).collect(),
        vocab_size,
    }
}

fn greedy_row(position: usize) -> SampleRow {
    SampleRow {
        params: Arc::new(SamplingParams::greedy()),
        task: RowTask::Draw,
        seed: 0,
        position: position as u32 + 1,
        counts: Vec::new(),
        banned: Arc::from([]),
    }
}

#[test]
fn tuned_models_without_template_get_their_familys() {
    let dolly = ["### End", "### Instruction:", "### Response:\n"];
    let openassistant = ["<|prompter|>", "<|system|>", "<|assistant|>"];
    let stablelm = ["<|SYSTEM|>", "<|USER|>", "<|ASSISTANT|>"];
    let template = json!({"chat_template": "{{ messages[-1].content }}", "eos_token": "w2"});
    let plain = json!({"eos_token": {"content": "w2"}});
    // The configuration of the fixture ends at 2; added tokens have ids from 90 on.
    for (tokens, settings, expected, ends) in [
        (&dolly[..], &plain, Some("Dolly"), &[2, 90][..]),
        (&openassistant, &plain, Some("OpenAssistant"), &[2]),
        (
            &stablelm,
            &plain,
            Some("StableLM tuned alpha"),
            &[2, 90, 91, 92],
        ),
        (&[], &plain, None, &[2]),
        (&openassistant[..2], &plain, None, &[2]),
        (&dolly, &template, None, &[2]),
    ] {
        let dir = checkpoint_dir("gpt-neox", "parallel.tf5.json");
        let path = dir.path().join("tokenizer.json");
        let text = std::fs::read(&path).expect("the fixture has a tokenizer");
        let mut tokenizer: Value = serde_json::from_slice(&text).expect("JSON");
        let added = tokens.iter().zip(90..);
        tokenizer["added_tokens"] = added
            .map(|(content, id)| json!({"id": id, "content": content, "special": true}))
            .collect();
        write(dir.path(), "tokenizer.json", tokenizer.to_string());
        write(dir.path(), "tokenizer_config.json", settings.to_string());
        let checkpoint = Checkpoint::open(dir.path()).expect("the checkpoint opens");
        let text = checkpoint.text();
        let expected = Prompt::all()
            .iter()
            .find(|prompt| Some(prompt.name) == expected)
            .map(|prompt| prompt.template)
            .or(settings["chat_template"].as_str());
        let found = text.chat_templates.first().map(|(_, source)| &source[..]);
        assert_eq!(found, expected, "{tokens:?}");
        assert_eq!(text.eos_token_ids, ends, "{tokens:?}");
    }
}

fn transpose((_, _, shape, data): &mut Stored) {
    let [rows, columns] = shape[..] else {
        panic!("a matrix")
    };
    // Two bytes an element.
    let turned = (0..columns).flat_map(|column| {
        (0..rows).flat_map(move |row| {
            let start = 2 * (row * columns + column);
            [start, start + 1]
        })
    });
    *data = turned.map(|byte| data[byte]).collect();
    shape.reverse();
}
