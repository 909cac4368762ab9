//! A written copy against the library that defines its format: what it made of one is in
//! `tests/fixtures/copy.json`, which `open_copy.py` beside it wrote.

use sha2::{Digest, Sha256};

use super::*;
use crate::Checkpoint;

fn json_of(path: &Path) -> Value {
    let text = fs::read(path).expect("the file is there");
    serde_json::from_slice(&text).expect("valid JSON")
}

/// Whether everything in `written` is in `read`, too.
fn is_kept(written: &Value, read: &Value) -> bool {
    match (written, read) {
        (Value::Object(written), Value::Object(read)) => {
            let kept = |(key, value): (&String, &Value)| {
                read.get(key).is_some_and(|found| is_kept(value, found))
            };
            written.iter().all(kept)
        }
        _ => written == read,
    }
}

#[test]
fn the_library_of_the_format_reads_settings_and_matrices_as_they_were_meant() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let expected = json_of(&fixtures.join("copy.json"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (input, output) = (folder.path().join("in"), folder.path().join("out"));
    fs::create_dir(&input).expect("writable");
    for (from, to) in [
        ("default.tf5.json", CONFIG),
        ("model.safetensors", WEIGHTS),
        ("tokenizer.json", "tokenizer.json"),
    ] {
        fs::copy(fixtures.join("llama").join(from), input.join(to)).expect("writable");
    }
    quantize(&input, &output, &mut |_, _| {}).expect("it is a float checkpoint");

    let written = &json_of(&output.join(CONFIG))["quantization_config"];
    assert!(is_kept(written, &expected["config"]), "{written:#}");
    let mut changed = written.clone();
    changed["config_groups"]["group_0"]["weights"]["strategy"] = json!("tensor");
    assert!(!is_kept(&changed, &expected["config"]));

    let copy = Checkpoint::open(&output).expect("it opens");
    let mut names = copy.source().names();
    names.sort();
    let (mut hash, mut matrices) = (Sha256::new(), 0);
    for name in names {
        let data = copy.source().read(&name).expect("it is read");
        if let WeightData::Int8(_) = data {
            let bytes = data.into_f32().into_iter().flat_map(f32::to_le_bytes);
            hash.update(bytes.collect::<Vec<u8>>());
            matrices += 1;
        }
    }
    let hash: String = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(
        (json!(matrices), json!(hash)),
        (expected["matrices"].clone(), expected["sha256"].clone())
    );
}
