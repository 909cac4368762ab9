//! Checkpoints of 8-bit integers: the values that the formats' own tools widen them to, the integers as
//! they are on the CPU target, and what is refused. The files are made by `fixtures/make_quantised.py`.

use std::path::Path;

use backend::ReferenceBackend;
use model::{Checkpoint, load};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use crate::golden::{TOLERANCE, error, expected};
use crate::support::{
    Stored, checkpoint_dir, edit_config, edit_tensors, logits_in_chunks, options, reference, write,
};

const CASES: &[&str] = &[
    "ct-channel",
    "ct-tensor",
    "ct-group",
    "ct-asymmetric",
    "ct-packed",
    "ct-packed-group",
    "bitsandbytes",
    "gptq",
    "gptq-v2-group",
    "gptq-desc-act",
];

const Q: &str = "model.layers.0.self_attn.q_proj";

fn folder(case: &str) -> tempfile::TempDir {
    checkpoint_dir(&format!("quantised/{case}"), "config.json")
}

/// Puts fields into the settings of quantisation.
fn edit_quantization(dir: &Path, edit: impl FnOnce(&mut Value)) {
    let text = std::fs::read(dir.join("config.json")).expect("readable");
    let mut config: Value = serde_json::from_slice(&text).expect("JSON");
    edit(&mut config["quantization_config"]);
    write(dir, "config.json", config.to_string());
}

fn distance(dir: &Path, case: &str) -> f32 {
    let expected = expected(&format!("quantised/{case}"), "default");
    let mut decoder = reference(dir, None);
    let found = logits_in_chunks(&mut decoder, &expected.ids, expected.ids.len());
    error(&found, &expected.logits)
}

/// Why a folder does not load; nothing when it does.
fn refusal(dir: &Path) -> Option<String> {
    let checkpoint = match Checkpoint::open(dir) {
        Ok(checkpoint) => checkpoint,
        Err(error) => return Some(error.to_string()),
    };
    let target = ReferenceBackend;
    let loaded = load(&checkpoint, target, &options(None), &mut |_, _| {});
    loaded.err().map(|error| error.to_string())
}

#[test]
fn logits_equal_those_of_the_tools_own_values() {
    for case in CASES {
        let dir = folder(case);
        let checkpoint = Checkpoint::open(dir.path()).expect("opens");
        assert!(checkpoint.is_int8(), "{case}");
        let distance = distance(dir.path(), case);
        assert!(distance < TOLERANCE, "{case}: {distance:e}");
    }
}

#[test]
fn spellings_that_mean_the_same() {
    let case = "ct-channel";
    let group = |key: &'static str, value: Value| {
        move |settings: &mut Value| settings["config_groups"]["group_0"][key] = value
    };
    type Edit = Box<dyn FnOnce(&mut Value)>;
    let edits: Vec<(&str, Edit)> = vec![
        (
            "unnamed method",
            Box::new(|s| {
                s.as_object_mut().expect("fields").remove("quant_method");
            }),
        ),
        (
            "pattern to ignore",
            Box::new(|s| s["ignore"] = json!(["re:.*lm_head"])),
        ),
        ("nothing to ignore", Box::new(|s| s["ignore"] = json!([]))),
        (
            "preset",
            Box::new(|s| s["config_groups"] = json!({"W8A8": ["Linear"]})),
        ),
        (
            "names",
            Box::new(group("targets", json!(["re:model.layers", "Unknown"]))),
        ),
        (
            "format of the group",
            Box::new(|s| {
                s["format"] = json!("mixed-precision");
                s["config_groups"]["group_0"]["format"] = json!("int-quantized");
            }),
        ),
        (
            "naive",
            Box::new(|s| s["format"] = json!("naive-quantized")),
        ),
        (
            "order of activations",
            Box::new(|s| {
                s["config_groups"]["group_0"]["weights"]["actorder"] = json!("weight");
                s["config_groups"]["group_0"]["weights"]["group_size"] = json!(-1);
            }),
        ),
        (
            "dense",
            Box::new(|s| s["sparsity_config"] = json!({"format": "dense"})),
        ),
        (
            "twice the same",
            Box::new(|s| {
                s["config_groups"]["group_1"] = s["config_groups"]["group_0"].clone();
            }),
        ),
    ];
    for (what, edit) in edits {
        let dir = folder(case);
        edit_quantization(dir.path(), edit);
        let distance = distance(dir.path(), case);
        assert!(distance < TOLERANCE, "{what}: {distance:e}");
    }
    let dir = folder(case);
    let text = std::fs::read(dir.path().join("config.json")).expect("readable");
    let mut config: Value = serde_json::from_slice(&text).expect("JSON");
    config["compression_config"] = config["quantization_config"].take();
    write(dir.path(), "config.json", config.to_string());
    assert!(distance(dir.path(), case) < TOLERANCE, "the old key");
}

#[test]
fn scales_of_every_shape_and_caches_scales() {
    let dir = folder("ct-channel");
    edit_tensors(dir.path(), |tensors| {
        for (name, _, shape, _) in tensors.iter_mut() {
            if name.ends_with("weight_scale") {
                shape.pop();
            }
        }
        tensors.push((format!("{Q}.k_scale"), Dtype::F32, vec![1], vec![0; 4]));
    });
    edit_quantization(dir.path(), |s| {
        s["kv_cache_scheme"] = json!({"num_bits": 8})
    });
    assert!(distance(dir.path(), "ct-channel") < TOLERANCE);
}

/// Integers and scales that are their own floats, quantised with the scales beside them.
#[test]
fn frozen_floats_are_quantised_with_their_scales() {
    let dir = folder("ct-tensor");
    edit_tensors(dir.path(), |tensors| {
        let scales: Vec<(String, f32)> = tensors
            .iter()
            .filter(|(name, ..)| name.ends_with("weight_scale"))
            .map(|(name, _, _, data)| {
                let bytes = data.first_chunk::<4>().expect("one scale");
                (name.replace("_scale", ""), f32::from_le_bytes(*bytes))
            })
            .collect();
        for (name, dtype, _, data) in tensors.iter_mut() {
            if let Some((_, scale)) = scales.iter().find(|(known, _)| known == name) {
                *dtype = Dtype::F32;
                *data = data
                    .iter()
                    .flat_map(|q| {
                        let w = f32::from(q.cast_signed()) * scale;
                        // A little off the grid: the scale beside it brings it back.
                        (w + 0.3 * scale).to_le_bytes()
                    })
                    .collect();
            }
        }
    });
    edit_quantization(dir.path(), |s| s["quantization_status"] = json!("frozen"));
    let distance = distance(dir.path(), "ct-tensor");
    // The largest integers stay, all others are rounded back.
    assert!(distance < TOLERANCE, "{distance:e}");
}

fn find<'a>(tensors: &'a mut [Stored], name: &str) -> &'a mut Stored {
    tensors
        .iter_mut()
        .find(|(known, ..)| known == name)
        .expect("the fixture has it")
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    type Edit = fn(&mut Vec<Stored>);
    let cases: &[(&str, Edit, &str)] = &[
        (
            "ct-channel",
            |t| t.retain(|(name, ..)| *name != format!("{Q}.weight_scale")),
            "q_proj.weight_scale: is missing beside integers",
        ),
        (
            "ct-tensor",
            |t| find(t, &format!("{Q}.weight_scale")).3 = f32::NAN.to_le_bytes().to_vec(),
            "q_proj.weight_scale: holds NaN",
        ),
        (
            "ct-tensor",
            |t| find(t, &format!("{Q}.weight_scale")).3 = (-1f32).to_le_bytes().to_vec(),
            "q_proj.weight_scale: holds -1",
        ),
        (
            "ct-channel",
            |t| {
                let scale = find(t, &format!("{Q}.weight_scale"));
                scale.2 = vec![2, 1];
                scale.3.truncate(4);
            },
            "q_proj.weight_scale: has 2 elements, expected 1 or 48",
        ),
        (
            "ct-channel",
            |t| t.push((format!("{Q}.weight_extra"), Dtype::F32, vec![1], vec![0; 4])),
            "q_proj.weight_extra: is not used by this architecture",
        ),
        (
            "ct-channel",
            |t| t.push((format!("{Q}.input_scale"), Dtype::F32, vec![1], vec![0; 4])),
            "q_proj.input_scale: is not used by this architecture",
        ),
        (
            "ct-packed",
            |t| find(t, &format!("{Q}.weight_shape")).3[8] = 49,
            "q_proj.weight_packed: has type I32 and shape [48, 12] for 8-bit weights [48, 49]",
        ),
        (
            "ct-packed",
            |t| t.retain(|(name, ..)| *name != format!("{Q}.weight_shape")),
            "q_proj.weight_shape: is not two sizes",
        ),
        (
            "bitsandbytes",
            |t| t.retain(|(name, ..)| *name != format!("{Q}.SCB")),
            "q_proj.weight: is stored as I8 without the row maxima SCB",
        ),
        (
            "bitsandbytes",
            |t| find(t, &format!("{Q}.weight_format")).3 = vec![2],
            "q_proj.weight_format: is 2 (col_turing)",
        ),
        (
            "gptq",
            |t| t.retain(|(name, ..)| *name != format!("{Q}.qzeros")),
            "q_proj.qzeros: is missing",
        ),
        (
            "gptq-v2-group",
            |t| find(t, &format!("{Q}.g_idx")).3[0] = 9,
            "q_proj.g_idx: names a group outside 0 to 3",
        ),
    ];
    for (case, edit, expected) in cases {
        let dir = folder(case);
        edit_tensors(dir.path(), edit);
        let refusal = refusal(dir.path()).expect(expected);
        assert!(refusal.contains(expected), "{refusal}");
    }
}

#[test]
fn settings_that_mean_something_else_are_refused_by_name() {
    let weights = "/config_groups/group_0/weights";
    let cases = [
        (
            "ct-channel",
            "/quant_method",
            json!("awq"),
            "awq is not supported",
        ),
        (
            "ct-channel",
            "/quant_method",
            json!("torchao"),
            "torchao is not supported",
        ),
        (
            "ct-channel",
            "/quant_method",
            json!("quanto"),
            "quanto is not supported",
        ),
        (
            "ct-channel",
            "/quant_method",
            json!("eetq"),
            "eetq is not supported",
        ),
        (
            "ct-channel",
            "/quant_method",
            json!("hqq"),
            "hqq is not supported",
        ),
        ("ct-channel", "/quant_method", json!("fp8"), "8-bit floats"),
        (
            "ct-channel",
            "/quant_method",
            json!("new"),
            "new is not supported: it is unknown",
        ),
        (
            "ct-channel",
            "/format",
            json!("float-quantized"),
            "float-quantized is not supported",
        ),
        (
            "ct-channel",
            "/format",
            json!("marlin-24"),
            "marlin-24 is not supported",
        ),
        (
            "ct-channel",
            "/quantization_status",
            json!("calibration"),
            "calibration is not supported",
        ),
        (
            "ct-channel",
            "/ignore",
            json!(["lm_head", Q]),
            "quantization_config ignores it",
        ),
        (
            "ct-channel",
            "/ignore",
            json!(["re:("]),
            "ignore holds the pattern",
        ),
        (
            "ct-channel",
            "/sparsity_config",
            json!({"format": "sparse-bitmask"}),
            "sparse-bitmask",
        ),
        (
            "ct-channel",
            "/transform_config",
            json!({"config_groups": {"u": {}}}),
            "a rotation",
        ),
        (
            "ct-channel",
            "/config_groups/group_0/targets",
            json!(["model.embed_tokens"]),
            "quantization_config quantises it",
        ),
        (
            "ct-channel",
            "/config_groups/group_1",
            json!({"targets": ["Linear"], "weights": null}),
            "in two groups with different schemes",
        ),
        (
            "ct-channel",
            "/config_groups/group_0/output_activations",
            json!({"num_bits": 8}),
            "output_activations",
        ),
        (
            "ct-channel",
            &format!("{weights}/num_bits"),
            json!(4),
            "weights.num_bits = 4 is not supported",
        ),
        (
            "ct-channel",
            &format!("{weights}/num_bits"),
            json!({"q_proj": 8}),
            "num_bits",
        ),
        (
            "ct-channel",
            &format!("{weights}/type"),
            json!("float"),
            "float is not supported",
        ),
        (
            "ct-channel",
            &format!("{weights}/strategy"),
            json!("block"),
            "block is not supported",
        ),
        (
            "ct-channel",
            &format!("{weights}/dynamic"),
            json!(true),
            "dynamic",
        ),
        (
            "ct-channel",
            &format!("{weights}/surprise"),
            json!(1),
            "weights.surprise",
        ),
        (
            "ct-packed",
            "/format",
            json!("int-quantized"),
            "is packed, but the format",
        ),
        ("bitsandbytes", "/load_in_4bit", json!(true), "load_in_4bit"),
        ("gptq", "/bits", json!(4), "bits = 4 is not supported"),
        (
            "gptq",
            "/checkpoint_format",
            json!("marlin"),
            "marlin is not supported",
        ),
        ("gptq", "/group_size", json!(0), "group_size"),
    ];
    for (case, pointer, value, expected) in cases {
        let dir = folder(case);
        edit_quantization(dir.path(), |settings| {
            let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
            settings.pointer_mut(parent).expect("it is there")[key] = value;
        });
        let refusal = refusal(dir.path()).expect(expected);
        assert!(refusal.contains(expected), "{refusal}");
    }
}

#[test]
fn integers_without_settings_are_refused() {
    let dir = folder("ct-channel");
    edit_config(dir.path(), &json!({"quantization_config": null}));
    let refusal = refusal(dir.path()).expect("I8 without settings");
    assert!(refusal.contains("has type I8"), "{refusal}");
}

#[test]
fn the_way_out_is_named_where_nothing_can_be_read() {
    let dir = folder("ct-channel");
    std::fs::rename(
        dir.path().join("tokenizer.json"),
        dir.path().join("tokenizer.model"),
    )
    .expect("renamed");
    let text = refusal(dir.path()).expect("no tokenizer");
    assert!(
        text.contains("AutoTokenizer") && text.contains("GGUF"),
        "{text}"
    );
    std::fs::rename(
        dir.path().join("model.safetensors"),
        dir.path().join("pytorch_model.bin"),
    )
    .expect("renamed");
    let text = refusal(dir.path()).expect("pickles");
    assert!(text.contains("save_pretrained"), "{text}");
}
