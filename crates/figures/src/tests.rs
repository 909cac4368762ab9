//! The committed pictures are those of the bundled model, and they show what the page says.

use std::path::Path;

use backend::{Batch, BatchSequence, KvDtype, ReferenceBackend};
use model::{Checkpoint, LoadOptions};
use quant::{Granularity, Quantised};

use crate::measure::Mode;
use crate::tap::Tap;
use crate::{KINDS, Study, granularities};

/// The committed form of a picture.
fn committed(name: &str) -> String {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/images");
    let path = docs.join(name).with_extension("svg");
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A picture in pieces: what is not a number, and the numbers.
fn pieces(svg: &str) -> (Vec<&str>, Vec<f64>) {
    let is_digit = |c: char| c.is_ascii_digit() || c == '.';
    let words = svg.split(is_digit).filter(|word| !word.is_empty());
    let numbers = svg.split(|c| !is_digit(c)).filter_map(|n| n.parse().ok());
    (words.collect(), numbers.collect())
}

/// A tenth of a point more or less is left to the exponential functions of other machines.
fn assert_same(name: &str, drawn: &str) {
    let committed = committed(name);
    let ((words, numbers), (expected_words, expected)) = (pieces(drawn), pieces(&committed));
    let hint = "`cargo xtask figures` draws it again";
    assert_eq!(words, expected_words, "{name} has changed; {hint}");
    for (number, expected) in numbers.iter().zip(&expected) {
        let change = (number - expected).abs();
        assert!(
            change < 1.0,
            "{name}: {number} where {expected} was; {hint}"
        );
    }
}

#[test]
fn the_committed_pictures_are_those_of_the_bundled_model() {
    assert_same("granularity", &granularities());
    let study = Study::bundled().expect("the model is part of the program");
    for (name, picture) in study.pictures() {
        assert_same(&format!("bundled-{name}"), &picture);
        assert!(
            picture.len() < 300_000,
            "{name} has {} bytes",
            picture.len()
        );
    }
    let again = Study::bundled().expect("once more");
    assert_eq!(
        study.pictures(),
        again.pictures(),
        "the same bytes each time"
    );
}

/// What the page says of the modes.
#[test]
fn finer_scales_are_better_where_there_are_outliers() {
    let study = Study::bundled().expect("the model is part of the program");
    let place = |mode| Mode::ALL.iter().position(|m| *m == mode).expect("listed");
    let [alone, blocks, groups, token] = [
        Mode::WeightsAlone,
        Mode::Blocks,
        Mode::Groups,
        Mode::PerToken,
    ]
    .map(place);
    let last = KINDS.len() - 1;
    for product in study.products.iter().skip(last).step_by(KINDS.len()) {
        let snr = product.snr_db;
        let order = [snr[token], snr[groups], snr[blocks], snr[alone]];
        assert!(order.is_sorted(), "{order:?}");
        assert!(product.outlier_ratio() > 5.0);
    }
}

#[test]
fn looking_changes_nothing() {
    let checkpoint = Checkpoint::from_memory(bundled::files()).expect("part of the program");
    let options = LoadOptions {
        max_model_len: Some(32),
        kv_cache_bytes: 1 << 24,
        swap_bytes: 0,
        max_num_seqs: 1,
        kv_dtype: KvDtype::F32,
    };
    let batch = Batch {
        token_ids: (3..20).collect(),
        sequences: vec![BatchSequence {
            num_tokens: 17,
            num_computed_tokens: 0,
            block_table: vec![0],
        }],
        logit_rows: vec![16],
        copies: Vec::new(),
    };
    let mut tapped = model::load(&checkpoint, Tap::default(), &options, &mut |_, _| {})
        .expect("the model loads");
    let mut plain = model::load(&checkpoint, ReferenceBackend, &options, &mut |_, _| {})
        .expect("the model loads");
    let (logits, _) = tapped.logits(&batch).expect("a valid batch");
    assert_eq!(logits, plain.logits(&batch).expect("a valid batch").0);
    // Four in each of six layers, and the head.
    assert_eq!(tapped.backend().products.len(), 25);
}

/// The worked example of the page.
#[test]
fn five_numbers_in_8_bits() {
    for (x, scale, expected) in [
        (
            [0.9, -0.31, 0.04, -1.27, 0.505],
            0.01,
            [90, -31, 4, -127, 50],
        ),
        ([12.7, -0.31, 0.04, -1.27, 0.505], 0.1, [127, -3, 0, -13, 5]),
    ] {
        let q = Quantised::new(&x, 1, 5, Granularity::Row).expect("finite");
        assert_eq!(q.values(), expected);
        assert!((q.scales()[0] - scale).abs() < 1e-6, "{:?}", q.scales());
    }
}
