//! Bits: products against their definition, attention whole against attention in parts, and the same
//! under every check, on every architecture and in every order of threads.

use backend::conformance::TestBackend;
use backend::{
    AttentionSpec, Backend, Batch, BatchSequence, BlockCopy, HostTensor, Int8Data, KvCacheSpec,
    KvDtype, KvTypes, LinearWeight, Norm, NormKind, ReferenceBackend, WeightData,
};
use backend_cpu::{CpuBackend, CpuConfig, CpuTensor};
use backend_cuda::Precision;
use cuda_emulation::Profile;
use quant::{BLOCK, GROUP, Granularity, Quantised};

use crate::device::{Target, target};

const CHECKED: [(Profile, u32); 4] = [
    (Profile::Checked80, 0),
    (Profile::Checked80, 1),
    (Profile::Checked80, 12_345),
    (Profile::Checked75, 0),
];
const FAST: [(Profile, u32); 2] = [(Profile::Fast80, 0), (Profile::Fast75, 1)];

pub fn numbers(seed: u32, len: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

pub fn tokens(position: usize, count: usize, blocks: &[u32]) -> Batch {
    Batch {
        token_ids: vec![0; count],
        sequences: vec![BatchSequence {
            num_tokens: count,
            num_computed_tokens: position,
            block_table: blocks.to_vec(),
        }],
        logit_rows: Vec::new(),
        copies: Vec::new(),
    }
}

/// One product, replaced and then added, against `quant` on the same numbers.
pub fn check_linear(
    target: &mut Target,
    (x_by, w_by): (Granularity, Granularity),
    [m, n, k]: [usize; 3],
    case: &str,
) {
    let (x, w) = (numbers(1, m * k), numbers(2, n * k));
    let bias = (n % 2 == 0).then(|| numbers(3, n));
    // One group is a whole row.
    let w_by = match w_by.num_groups(k) {
        1 => Granularity::Row,
        _ => w_by,
    };
    let w = Quantised::new(&w, n, k, w_by).expect("finite");
    let expected = {
        let x = Quantised::new(&x, m, k, x_by).expect("finite");
        quant::linear(&x, &w, bias.as_deref()).expect("fits")
    };
    // As a checkpoint stores them: the integers are taken as they are.
    let stored = WeightData::Int8(Int8Data {
        values: w.values().to_vec(),
        scales: w.scales().to_vec(),
        columns: k,
        group_len: w_by.group_len(k),
    });
    let weight = HostTensor::new(n, k, stored).expect("a matrix");
    let weight = LinearWeight::new(weight, bias).expect("a bias");
    let linear = target.load_linear(weight).expect("memory");
    let step = target.begin_step(&tokens(0, m, &[0; 16])).expect("a step");
    let x = target.upload(m, k, &x);
    for again in 0..2 {
        let y = target.linear(&x, &linear, &step).unwrap_or_else(|error| {
            panic!("{case} [{m}, {n}, {k}] launch {again}: {error}");
        });
        let found = target.read(&y);
        assert_eq!(
            bits(&found),
            bits(&expected),
            "{case} [{m}, {n}, {k}] launch {again}"
        );
    }
    let residual = numbers(4, m * n);
    let mut sum = target.upload(m, n, &residual);
    target
        .linear_add(&mut sum, &x, &linear, &step)
        .expect("fits");
    let expected: Vec<f32> = residual.iter().zip(expected).map(|(r, y)| r + y).collect();
    assert_eq!(
        bits(&target.read(&sum)),
        bits(&expected),
        "{case} [{m}, {n}, {k}] added"
    );
}

/// Every kernel of the 8-bit product, its tails in tokens, channels and K, and K divided among blocks.
const SHAPES: [[usize; 3]; 22] = [
    [1, 16, 64],
    [1, 5, 7],
    [7, 33, 129],
    [8, 17, 300],
    [9, 16, 128],
    [15, 40, 64],
    [16, 48, 192],
    [17, 64, 64],
    [31, 65, 200],
    [32, 63, 256],
    [33, 70, 100],
    [63, 16, 384],
    [64, 130, 64],
    [65, 128, 130],
    [127, 20, 320],
    [128, 129, 64],
    [129, 8, 700],
    [130, 140, 128],
    [20, 40, 512],
    [40, 64, 640],
    [3, 16, 4500],
    [13, 20, 8200],
];

/// Precisions with what shares a scale in activations and in weights.
pub const FORMS: [(Precision, Granularity, Granularity); 6] = {
    use Granularity::{Groups, Row};
    [
        (Precision::Int8, Groups(GROUP), Row),
        (Precision::Int8Fast, Row, Row),
        (Precision::Int8Guarded, Groups(GROUP), Groups(GROUP)),
        (Precision::Int8, Groups(64), Groups(64)),
        (Precision::Int8Blocks, Groups(BLOCK), Groups(BLOCK)),
        (Precision::Int8Blocks, Groups(BLOCK), Row),
    ]
};

#[test]
fn products_follow_the_definition() {
    for (profile, order) in FAST {
        for (precision, x_by, w_by) in FORMS {
            let mut target = target(profile, order, precision);
            for shape in SHAPES {
                let case = format!("{profile:?} {precision:?} {w_by:?}");
                check_linear(&mut target, (x_by, w_by), shape, &case);
            }
        }
    }
}

#[test]
fn products_pass_every_check() {
    for (profile, order) in CHECKED {
        for (index, (precision, x_by, w_by)) in FORMS.into_iter().enumerate() {
            // Every order over the first two; the others differ from them in their scales.
            if index > 1 && order > 0 {
                continue;
            }
            let mut target = target(profile, order, precision);
            for shape in &SHAPES[..20] {
                let case = format!("{profile:?} order {order} {precision:?} {w_by:?}");
                check_linear(&mut target, (x_by, w_by), *shape, &case);
            }
        }
    }
}

/// NaN and infinities poison their own row, or group, and nothing else.
#[test]
fn what_is_not_finite_surfaces() {
    for (precision, ..) in FORMS {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut target = target(Profile::Checked80, 0, precision);
            let (m, n, k) = (3, 20, 300);
            let weight = HostTensor::new(n, k, WeightData::F32(numbers(2, n * k)));
            let weight = LinearWeight::new(weight.expect("a matrix"), None).expect("no bias");
            let linear = target.load_linear(weight).expect("memory");
            let step = target.begin_step(&tokens(0, m, &[0])).expect("a step");
            let clean = numbers(1, m * k);
            let mut x = clean.clone();
            x[k + 290] = bad;
            let [clean, y] = [clean, x].map(|x| {
                let x = target.upload(m, k, &x);
                let y = target.linear(&x, &linear, &step).expect("fits");
                target.read(&y)
            });
            assert!(y[n..2 * n].iter().all(|y| y.is_nan()), "{bad}");
            assert_eq!(bits(&y[..n]), bits(&clean[..n]), "{bad}");
            assert_eq!(bits(&y[2 * n..]), bits(&clean[2 * n..]), "{bad}");
        }
    }
}

/// A product with 16-bit weights gives a row the same bits in every tile.
#[test]
fn sixteen_bit_products_pass_every_check() {
    let checked = [
        (Profile::Checked80, 0, Precision::F16),
        (Profile::Checked80, 1, Precision::Bf16),
        (Profile::Checked75, 3, Precision::F16),
        (Profile::Checked80, 12_345, Precision::W8A16),
        (Profile::Checked75, 0, Precision::W8A16),
    ];
    for (profile, order, precision) in checked {
        let mut target = target(profile, order, precision);
        let (n, k) = (70, 100);
        let weight = HostTensor::new(n, k, WeightData::F32(numbers(2, n * k)));
        let weight = LinearWeight::new(weight.expect("a matrix"), Some(numbers(3, n)));
        let linear = target.load_linear(weight.expect("a bias")).expect("memory");
        let x = numbers(1, 70 * k);
        let mut run = |rows: usize| {
            let step = target
                .begin_step(&tokens(0, rows, &[0; 3]))
                .expect("a step");
            let x = target.upload(rows, k, &x[..rows * k]);
            let y = target.linear(&x, &linear, &step).expect("fits");
            target.read(&y)
        };
        let all = run(70);
        for rows in [1, 16, 17, 64] {
            assert_eq!(
                bits(&run(rows)),
                bits(&all[..rows * n]),
                "{precision:?} {rows}"
            );
        }
    }
}

/// 16-bit activations with 8-bit weights: of whole numbers every sum is exact in any order, so the bits are those of
/// the definition, group by group.
#[test]
fn products_of_whole_numbers_with_8_bit_weights_are_exact() {
    let shapes = [
        [1, 5, 7],
        [7, 33, 129],
        [16, 16, 64],
        [17, 40, 100],
        [63, 70, 320],
        [65, 20, 200],
        [130, 64, 96],
    ];
    use Granularity::{Groups, Row};
    for (profile, order) in CHECKED {
        let mut target = target(profile, order, Precision::W8A16);
        for (index, [m, n, k]) in shapes.into_iter().enumerate() {
            for w_by in [Row, Groups(GROUP), Groups(64), Groups(BLOCK)] {
                // Every kind of group forwards; one of them for each shape otherwise.
                if order > 0 && w_by != [Row, Groups(64), Groups(BLOCK)][index % 3] {
                    continue;
                }
                check_w8a16(
                    &mut target,
                    w_by,
                    [m, n, k],
                    &format!("{profile:?} {w_by:?}"),
                );
            }
        }
    }
}

fn check_w8a16(target: &mut Target, w_by: Granularity, [m, n, k]: [usize; 3], case: &str) {
    let w_by = match w_by.num_groups(k) {
        1 => Granularity::Row,
        _ => w_by,
    };
    let x: Vec<f32> = numbers(1, m * k)
        .iter()
        .map(|x| (x * 40.0).round())
        .collect();
    // -128 too: checkpoints have it.
    let integers = numbers(2, n * k)
        .iter()
        .map(|w| (w * 128.0).floor() as i8)
        .collect();
    let (len, groups) = (w_by.group_len(k), w_by.num_groups(k));
    let stored = Int8Data {
        values: integers,
        scales: numbers(3, n * groups)
            .iter()
            .map(|s| s.abs() + 0.01)
            .collect(),
        columns: k,
        group_len: len,
    };
    let bias = numbers(4, n);
    let mut expected = Vec::with_capacity(m * n);
    for (row, channel) in (0..m).flat_map(|row| (0..n).map(move |channel| (row, channel))) {
        let mut t = 0.0f32;
        for group in 0..groups {
            let columns = group * len..((group + 1) * len).min(k);
            let sum: i64 = columns
                .map(|c| x[row * k + c] as i64 * i64::from(stored.values[channel * k + c]))
                .sum();
            t = (sum as f32).mul_add(stored.scales[channel * groups + group], t);
        }
        expected.push(t + bias[channel]);
    }
    let weight = HostTensor::new(n, k, WeightData::Int8(stored)).expect("a matrix");
    let linear = LinearWeight::new(weight, Some(bias)).expect("a bias");
    let linear = target.load_linear(linear).expect("memory");
    let step = target.begin_step(&tokens(0, m, &[0; 8])).expect("a step");
    let mut sum = target.upload(m, n, &numbers(5, m * n));
    let x = target.upload(m, k, &x);
    let y = target.linear(&x, &linear, &step);
    let y = y.unwrap_or_else(|error| panic!("{case} [{m}, {n}, {k}]: {error}"));
    assert_eq!(
        bits(&target.read(&y)),
        bits(&expected),
        "{case} [{m}, {n}, {k}]"
    );
    target
        .linear_add(&mut sum, &x, &linear, &step)
        .expect("fits");
    let sums = numbers(5, m * n).into_iter().zip(expected);
    let expected: Vec<f32> = sums.map(|(r, y)| r + y).collect();
    assert_eq!(
        bits(&target.read(&sum)),
        bits(&expected),
        "{case} [{m}, {n}, {k}] added"
    );
}

struct Case {
    heads: (usize, usize),
    head_dim: usize,
    window: Option<usize>,
    soft_cap: Option<f32>,
    types: KvTypes,
}

const F32: KvTypes = both(KvDtype::F32);
const BF16: KvTypes = both(KvDtype::Bf16);
const INT8: KvTypes = both(KvDtype::Int8);
/// What layers with a large bias of keys have beside 8 bits.
const INT8_VALUES: KvTypes = KvTypes {
    keys: KvDtype::Bf16,
    values: KvDtype::Int8,
};

const fn both(dtype: KvDtype) -> KvTypes {
    KvTypes {
        keys: dtype,
        values: dtype,
    }
}

/// Stores `total` tokens and attends from the last `queries`; the step has one sequence.
fn attend<B: TestBackend>(target: &mut B, case: &Case, total: usize, queries: usize) -> Vec<f32> {
    attend_and_read(target, case, [total, queries], B::read)
}

fn attend_and_read<B: Backend>(
    target: &mut B,
    case: &Case,
    [total, queries]: [usize; 2],
    read: impl Fn(&mut B, &B::Tensor) -> Vec<f32>,
) -> Vec<f32> {
    let (heads, kv_heads) = case.heads;
    let (q_width, kv_width) = (heads * case.head_dim, kv_heads * case.head_dim);
    let num_blocks = total.div_ceil(32) + 2;
    let spec = KvCacheSpec {
        num_kv_heads: kv_heads,
        head_dim: case.head_dim,
        num_blocks,
        num_host_blocks: 0,
        layers: vec![case.types; 2],
    };
    let mut cache = target.alloc_kv_cache(&spec).expect("memory");
    // Blocks in another order than positions.
    let table: Vec<u32> = (0..num_blocks as u32 - 1).rev().collect();
    let all = target
        .begin_step(&tokens(0, total, &table))
        .expect("a step");
    let k = tensor(target, total, kv_width, numbers(5, total * kv_width));
    let v = tensor(target, total, kv_width, numbers(6, total * kv_width));
    target.store_kv(&mut cache, 1, &k, &v, &all).expect("fits");
    let step = target.begin_step(&tokens(total - queries, queries, &table));
    let step = step.expect("a step");
    let q = numbers(7, total * q_width)[(total - queries) * q_width..].to_vec();
    let q = tensor(target, queries, q_width, q);
    let spec = AttentionSpec {
        num_heads: heads,
        num_kv_heads: kv_heads,
        head_dim: case.head_dim,
        scale: 0.3,
        window: case.window,
        soft_cap: case.soft_cap,
    };
    let out = target.attention(&q, &cache, 1, &spec, &step).expect("fits");
    read(target, &out)
}

fn tensor<B: Backend>(target: &mut B, rows: usize, columns: usize, data: Vec<f32>) -> B::Tensor {
    let host = HostTensor::new(rows, columns, WeightData::F32(data)).expect("whole rows");
    target.load_tensor(host).expect("memory")
}

const CASES: [Case; 7] = [
    Case {
        heads: (4, 1),
        head_dim: 64,
        window: None,
        soft_cap: None,
        types: BF16,
    },
    Case {
        heads: (7, 1),
        head_dim: 20,
        window: Some(270),
        soft_cap: None,
        types: F32,
    },
    Case {
        heads: (2, 2),
        head_dim: 80,
        window: None,
        soft_cap: Some(5.0),
        types: F32,
    },
    Case {
        heads: (20, 2),
        head_dim: 8,
        window: None,
        soft_cap: None,
        types: BF16,
    },
    Case {
        heads: (4, 2),
        head_dim: 64,
        window: None,
        soft_cap: None,
        types: INT8,
    },
    Case {
        heads: (3, 1),
        head_dim: 22,
        window: Some(40),
        soft_cap: Some(5.0),
        types: INT8,
    },
    Case {
        heads: (4, 1),
        head_dim: 20,
        window: None,
        soft_cap: None,
        types: INT8_VALUES,
    },
];

/// One token of a long context runs its splits on blocks of their own; many tokens run them in one.
#[test]
fn attention_in_parts_equals_attention_whole() {
    for (profile, order) in FAST {
        for (index, case) in CASES.iter().enumerate() {
            let mut target = target(profile, order, Precision::Int8);
            for total in [257, 520] {
                let width = case.heads.0 * case.head_dim;
                let whole = attend(&mut target, case, total, 80);
                for queries in [1, 3] {
                    let parts = attend(&mut target, case, total, queries);
                    let same = &whole[(80 - queries) * width..];
                    assert_eq!(bits(&parts), bits(same), "case {index} of {total}");
                }
            }
        }
    }
}

#[test]
fn attention_passes_every_check() {
    for (index, case) in CASES.iter().enumerate() {
        let (total, queries) = (260, 2);
        let mut known = None;
        for (profile, order) in CHECKED {
            let mut target = target(profile, order, Precision::Int8Fast);
            let found = bits(&attend(&mut target, case, total, queries));
            assert_eq!(
                known.get_or_insert(found.clone()),
                &found,
                "case {index} {profile:?}"
            );
            // The whole form: many tokens, few keys; once over two splits.
            match (profile, order, case.heads) {
                (Profile::Checked80, 0, (2, 2)) => attend(&mut target, case, 260, 32),
                _ => attend(&mut target, case, 70, 70),
            };
        }
    }
}

/// The bits of the CPU, over every type of keys and values.
#[test]
fn attention_gives_the_bits_of_the_cpu() {
    for (index, case) in CASES.iter().enumerate() {
        let mut target = target(Profile::Fast80, 1, Precision::Int8);
        let mut cpu = CpuBackend::new(CpuConfig::default()).expect("a CPU");
        for (total, queries) in [(40, 12), (260, 1), (290, 9)] {
            let found = attend(&mut target, case, total, queries);
            let read = |_: &mut CpuBackend, x: &CpuTensor| x.elements().expect("floats").to_vec();
            let expected = attend_and_read(&mut cpu, case, [total, queries], read);
            assert_eq!(bits(&found), bits(&expected), "case {index} of {total}");
        }
    }
}

/// Attention under every check against the reference target, whose order of sums is another.
#[test]
fn attention_follows_the_reference() {
    for (index, case) in CASES.iter().enumerate() {
        let mut target = target(Profile::Checked80, 0, Precision::Int8);
        // Queries and weights of attention are rounded as keys and values are.
        let tolerance = match case.types {
            F32 => 1e-5,
            BF16 => 1e-2,
            _ => 2e-2,
        };
        for (total, queries) in [(40, 40), (260, 1)] {
            let found = attend(&mut target, case, total, queries);
            let expected = attend(&mut ReferenceBackend, case, total, queries);
            for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
                assert!(
                    (found - expected).abs() < tolerance,
                    "case {index} of {total}, number {at}: {found}, expected {expected}"
                );
            }
        }
    }
}

/// Norms, gates, rotations, copies and gathers under every check.
#[test]
fn row_kernels_pass_every_check() {
    for (profile, order) in CHECKED {
        let precisions = [
            Precision::Int8,
            Precision::Int8Fast,
            Precision::Int8Blocks,
            Precision::F16,
        ];
        for precision in precisions {
            let mut target = target(profile, order, precision);
            rows(&mut target, 300);
            rows(&mut target, 1030);
        }
    }
}

pub fn rows(target: &mut Target, columns: usize) {
    let step = target.begin_step(&tokens(3, 2, &[1, 0])).expect("a step");
    let weight = target
        .load_tensor(HostTensor::vector(numbers(8, columns)))
        .expect("a vector");
    let x = target.upload(2, columns, &numbers(9, 2 * columns));
    for (kind, width) in [(NormKind::Rms, columns), (NormKind::Layer, columns / 2)] {
        let weight = target
            .load_tensor(HostTensor::vector(numbers(8, columns)))
            .expect("a vector");
        let norm = Norm {
            kind,
            width,
            weight,
            bias: None,
            eps: 1e-5,
        };
        let plain = target.norm(&x, &norm, &step).expect("fits");
        let fused = target.norm_quant(&x, &norm, &step).expect("fits");
        assert_eq!(bits(&target.read(&plain)), bits(&target.read(&fused)));
    }
    drop(weight);
    let gate = target.upload(2, 2 * columns, &numbers(10, 4 * columns));
    target
        .gated(gate, columns, backend::Activation::Gelu)
        .expect("fits");
    let spec = KvCacheSpec {
        num_kv_heads: 1,
        head_dim: 6,
        num_blocks: 3,
        num_host_blocks: 0,
        layers: vec![BF16, INT8_VALUES, INT8],
    };
    let mut cache = target.alloc_kv_cache(&spec).expect("memory");
    let table = HostTensor::new(8, 4, WeightData::F32(numbers(11, 32))).expect("a table");
    let rope = backend::Rope {
        head_dim: 6,
        rotary_dim: 4,
        table: target.load_tensor(table).expect("memory"),
    };
    let qkv = target.upload(2, 24, &numbers(12, 48));
    let mut parts = target.split(qkv, &[12, 6, 6]).expect("fits").into_iter();
    let mut part = || parts.next().expect("three parts");
    let (mut q, mut k, v) = (part(), part(), part());
    target
        .rope_store_kv(&mut cache, 0, &mut q, &mut k, &v, Some(&rope), &step)
        .expect("fits");
    target.rope(&mut k, &rope, &step).expect("fits");
    let copies = [BlockCopy { from: 1, to: 2 }, BlockCopy { from: 2, to: 0 }];
    target.copy_blocks(&mut cache, &copies).expect("fits");
}

/// Every entry point of every profile has the threads and arguments that the launcher relies on: the
/// launches above check them, and here that all of them were reachable by name.
#[test]
fn profiles_have_the_same_kernels() {
    let names = |profile: Profile| {
        let mut names: Vec<_> = profile.kernels().iter().map(|k| k.name).collect();
        names.sort_unstable();
        names
    };
    let all = names(Profile::Checked80);
    assert_eq!(all.len(), 51, "{all:?}");
    assert_eq!(names(Profile::Fast80), all);
    // No bfloat16 there; its two shorter products are wrapped by themselves.
    let mut turing: Vec<_> = all
        .iter()
        .copied()
        .filter(|n| !n.starts_with("gemm_bf16") && *n != "wrapper_mma_bf16")
        .chain(["wrapper_mma_f16_k8", "wrapper_mma_s8_k16"])
        .collect();
    turing.sort_unstable();
    assert_eq!(names(Profile::Fast75), turing);
    assert_eq!(names(Profile::Checked75), turing);
    let mut hopper = all.clone();
    hopper.extend([
        "gemm_i8_wgmma_128x128",
        "gemm_i8_wgmma_64x128",
        "wrapper_wgmma",
        "wrapper_wgmma_rows",
    ]);
    hopper.sort_unstable();
    assert_eq!(names(Profile::Fast90), hopper);
    assert_eq!(names(Profile::Checked90), hopper);
}

/// A head that is the embedding as well is there once: tokens get the rows that it multiplies with, under
/// every check, to the bits of the CPU.
#[test]
fn a_tied_table_gives_the_rows_of_the_head() {
    let (n, k) = (45, 200);
    let table = || HostTensor::new(n, k, WeightData::F32(numbers(2, n * k))).expect("a table");
    let mut batch = tokens(0, 3, &[0]);
    batch.token_ids = vec![0, 44, 33];
    for (precision, granularity) in [
        (Precision::Int8, Granularity::Row),
        (Precision::Int8Blocks, Granularity::Groups(BLOCK)),
        (Precision::W8A16, Granularity::Row),
        (Precision::F16, Granularity::Row),
    ] {
        let mut target = target(Profile::Checked80, 0, precision);
        let (embedding, head) = target.load_tied(table()).expect("memory");
        let step = target.begin_step(&batch).expect("a step");
        let x = target.embed(&embedding, backend::Ids::Tokens, &step);
        let x = x.expect("rows of the table");
        let wide = match precision.is_int8() {
            true => Quantised::new(&numbers(2, n * k), n, k, granularity)
                .expect("finite")
                .dequantise(),
            false => numbers(2, n * k),
        };
        let rows = [0, 44, 33].map(|row| wide[row * k..][..k].to_vec());
        assert_eq!(
            bits(&target.read(&x)),
            bits(&rows.concat()),
            "{precision:?}"
        );
        target.linear(&x, &head, &step).expect("the same matrix");
    }
}

pub fn matrix(rows: usize, columns: usize, seed: u32) -> LinearWeight {
    let data = WeightData::F32(numbers(seed, rows * columns));
    LinearWeight::new(
        HostTensor::new(rows, columns, data).expect("a matrix"),
        None,
    )
    .expect("fits")
}

/// Router logits, the experts they choose and what these make of 20 tokens.
fn experts<B: Backend>(
    target: &mut B,
    precision_of_cpu: &str,
    read: impl Fn(&mut B, &B::Tensor) -> Vec<f32>,
) -> [Vec<u32>; 2] {
    let (m, k, width, count) = (20, 300, 64, 6);
    let step = target.begin_step(&tokens(0, m, &[0])).expect("a step");
    let x = tensor(target, m, k, numbers(1, m * k));
    let router = LinearWeight::new(
        HostTensor::new(count, k, WeightData::F32(numbers(2, count * k))).expect("a matrix"),
        Some(numbers(3, count)),
    );
    let router = router.expect("a bias").into_router();
    let router = target.load_linear(router).expect("memory");
    let logits = target.linear(&x, &router, &step).expect("fits");
    let found = bits(&read(target, &logits));
    let routing = backend::Routing {
        top_k: 2,
        renormalise: true,
    };
    let weights = target.route(logits, &routing).expect("two of six");
    let mut load = |expert: u32| backend::Expert {
        gate_up: target
            .load_linear(matrix(2 * width, k, 10 + expert))
            .expect("memory"),
        down: target
            .load_linear(matrix(k, width, 20 + expert))
            .expect("memory"),
    };
    let experts = backend::Experts {
        experts: (0..count as u32).map(&mut load).collect(),
        width,
        activation: backend::Activation::Silu,
    };
    let mixed = target.mix_experts(&x, &weights, &experts, &step);
    let mixed = mixed.unwrap_or_else(|error| panic!("{precision_of_cpu}: {error}"));
    [found, bits(&read(target, &mixed))]
}

/// Routers are floats on every target: the same experts, to the last bit of their weights.
#[test]
fn experts_give_the_bits_of_the_cpu() {
    for (precision, cpu) in [
        (Precision::Int8, backend_cpu::Precision::Int8),
        (Precision::Int8Blocks, backend_cpu::Precision::Int8Blocks),
    ] {
        let mut on_cpu = CpuBackend::new(CpuConfig {
            precision: cpu,
            ..CpuConfig::default()
        })
        .expect("a CPU");
        let expected = experts(&mut on_cpu, cpu.name(), |_, x| {
            x.elements().expect("floats").to_vec()
        });
        for profile in [Profile::Fast80, Profile::Checked75] {
            let mut target = target(profile, 1, precision);
            let found = experts(&mut target, cpu.name(), |target, x| target.read(x));
            assert_eq!(found, expected, "{precision:?} {profile:?}");
        }
    }
    // Half precision keeps a router's floats, too.
    let mut half = target(Profile::Fast80, 0, Precision::F16);
    let mut cpu = CpuBackend::new(CpuConfig::default()).expect("a CPU");
    let [found, _] = experts(&mut half, "f16", |target, x| target.read(x));
    let [expected, _] = experts(&mut cpu, "f32", |_, x| {
        x.elements().expect("floats").to_vec()
    });
    assert_eq!(found, expected);
}

/// The product of routers against its definition, under every check: one sum for each 256 inputs, added in
/// order, then the bias.
#[test]
fn routers_follow_the_definition() {
    let mut target = target(Profile::Checked80, 1, Precision::Int8);
    for (m, n, k) in [(3, 6, 300), (2, 260, 256), (1, 257, 7), (2, 5, 530)] {
        let (x, w, bias) = (numbers(1, m * k), numbers(2, n * k), numbers(3, n));
        let sum = |x: &[f32], w: &[f32]| {
            let terms = x.iter().zip(w);
            terms.fold(0.0f32, |sum, (x, w)| x.mul_add(*w, sum))
        };
        let expected = (0..m * n).map(|at| {
            let (x, w) = (&x[at / n * k..][..k], &w[at % n * k..][..k]);
            let sums = x.chunks(256).zip(w.chunks(256)).map(|(x, w)| sum(x, w));
            sums.reduce(|total, sum| total + sum).expect("inputs") + bias[at % n]
        });
        let expected: Vec<f32> = expected.collect();
        let weight = HostTensor::new(n, k, WeightData::F32(w)).expect("a matrix");
        let router = LinearWeight::new(weight, Some(bias)).expect("a bias");
        let router = target.load_linear(router.into_router()).expect("memory");
        let step = target.begin_step(&tokens(0, m, &[0])).expect("a step");
        let x = target.upload(m, k, &x);
        let y = target.linear(&x, &router, &step).expect("fits");
        assert_eq!(bits(&target.read(&y)), bits(&expected), "[{m}, {n}, {k}]");
        let mut twice = target.upload(m, n, &expected);
        target
            .linear_add(&mut twice, &x, &router, &step)
            .expect("fits");
        let doubled: Vec<f32> = expected.iter().map(|y| y + y).collect();
        assert_eq!(
            bits(&target.read(&twice)),
            bits(&doubled),
            "[{m}, {n}, {k}] added"
        );
    }
}
