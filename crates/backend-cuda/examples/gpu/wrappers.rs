//! Each wrapper of an instruction against what the PTX manual says of it: every lane's elements are placed by the
//! manual's tables ("Matrix Fragments for mma"), which are written here a second time and share nothing with the
//! kernels or the emulator.

use backend::Result;
use backend_cuda::device::{Arg, Device, Launch};
use half::{bf16, f16};

/// Element `i` of a lane in group `g` of four, thread `t` of it: row and column of A or C, column and row of B.
type Place = fn(usize, usize, usize) -> [usize; 2];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Element {
    S8,
    F16,
    Bf16,
}

/// A matrix instruction, by the manual.
struct Mma {
    kernel: &'static str,
    /// From which major version of the capability on, and before which.
    parts: std::ops::Range<u32>,
    element: Element,
    /// Rows of A, and K.
    shape: [usize; 2],
    /// Elements of A, B and C that a lane has.
    elements: [usize; 3],
    places: [Place; 3],
}

const EVERY_PART: std::ops::Range<u32> = 0..u32::MAX;
const TURING: std::ops::Range<u32> = 0..8;
const AMPERE: std::ops::Range<u32> = 8..u32::MAX;

fn c_of_16_rows(g: usize, t: usize, i: usize) -> [usize; 2] {
    [if i < 2 { g } else { g + 8 }, t * 2 + (i & 1)]
}

/// A of m16n8k16 in 16 bits.
fn a_k16(g: usize, t: usize, i: usize) -> [usize; 2] {
    let row = if i < 2 || (4..6).contains(&i) {
        g
    } else {
        g + 8
    };
    [row, t * 2 + (i & 1) + if i >= 4 { 8 } else { 0 }]
}

fn b_k16(g: usize, t: usize, i: usize) -> [usize; 2] {
    [g, t * 2 + (i & 1) + if i >= 2 { 8 } else { 0 }]
}

const INSTRUCTIONS: [Mma; 5] = [
    Mma {
        kernel: "wrapper_mma_s8",
        parts: EVERY_PART,
        element: Element::S8,
        shape: [16, 32],
        elements: [16, 8, 4],
        places: [
            |g, t, i| {
                let row = if i < 4 || (8..12).contains(&i) {
                    g
                } else {
                    g + 8
                };
                [row, t * 4 + (i & 3) + if i >= 8 { 16 } else { 0 }]
            },
            |g, t, i| [g, t * 4 + (i & 3) + if i >= 4 { 16 } else { 0 }],
            c_of_16_rows,
        ],
    },
    Mma {
        kernel: "wrapper_mma_f16",
        parts: EVERY_PART,
        element: Element::F16,
        shape: [16, 16],
        elements: [8, 4, 4],
        places: [a_k16, b_k16, c_of_16_rows],
    },
    Mma {
        kernel: "wrapper_mma_bf16",
        parts: AMPERE,
        element: Element::Bf16,
        shape: [16, 16],
        elements: [8, 4, 4],
        places: [a_k16, b_k16, c_of_16_rows],
    },
    Mma {
        kernel: "wrapper_mma_s8_k16",
        parts: TURING,
        element: Element::S8,
        shape: [8, 16],
        elements: [4, 4, 2],
        places: [
            |g, t, i| [g, t * 4 + i],
            |g, t, i| [g, t * 4 + i],
            |g, t, i| [g, t * 2 + i],
        ],
    },
    Mma {
        kernel: "wrapper_mma_f16_k8",
        parts: TURING,
        element: Element::F16,
        shape: [16, 8],
        elements: [4, 2, 4],
        places: [
            |g, t, i| [if i < 2 { g } else { g + 8 }, t * 2 + (i & 1)],
            |g, t, i| [g, t * 2 + i],
            c_of_16_rows,
        ],
    },
];

/// Prints a line for each wrapper; true when all do what the manual says.
pub fn check<D: Device>(device: &D, say: &mut dyn FnMut(String)) -> Result<bool> {
    let mut all = true;
    let mut say = |what: &str, is_right: bool| {
        say(format!(
            "{} {what}",
            if is_right { "ok   " } else { "WRONG" }
        ));
        all &= is_right;
    };
    let major = device.properties().capability.0;
    for mma in INSTRUCTIONS.iter().filter(|mma| mma.parts.contains(&major)) {
        say(mma.kernel, mma.is_right(device)?);
    }
    say("wrapper_cp_async", copies(device)?);
    say("wrapper_atomics", atomics(device)?);
    say("wrapper_loads", loads(device)?);
    say("wrapper_scalars", scalars(device)?);
    for (what, is_right) in super::wrappers_wgmma::check(device)? {
        say(&what, is_right);
    }
    Ok(all)
}

/// Bits that every machine makes alike.
pub fn random(seed: u32, len: usize) -> Vec<u32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state ^ state >> 15
    };
    (0..len).map(|_| next()).collect()
}

/// Launches a kernel of 32 threads with buffers of words and one number, and returns what lies in the buffers then.
fn run<D: Device>(
    device: &D,
    kernel: &'static str,
    blocks: u32,
    words: &[Vec<u32>],
    number: Option<i32>,
) -> Result<Vec<Vec<u32>>> {
    let mut buffers = Vec::new();
    for words in words {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let buffer = device.alloc(bytes.len(), "operands")?;
        device.upload(&buffer, 0, &bytes)?;
        buffers.push((buffer, bytes));
    }
    let mut args: Vec<Arg<D::Buffer>> = buffers
        .iter()
        .map(|(buffer, _)| Arg::Buffer(buffer, 0))
        .collect();
    args.extend(number.map(Arg::Int));
    device.launch(&Launch {
        kernel,
        threads: 32,
        grid: [blocks, 1, 1],
        dynamic_bytes: 0,
        args: &args,
    })?;
    drop(args);
    let mut found = Vec::new();
    for (buffer, mut bytes) in buffers {
        device.download(&buffer, 0, &mut bytes)?;
        let (words, _) = bytes.as_chunks::<4>();
        found.push(words.iter().map(|word| u32::from_le_bytes(*word)).collect());
    }
    Ok(found)
}

impl Element {
    /// The elements of words, of which each holds whole numbers.
    fn unpack(self, words: &[u32]) -> Vec<i32> {
        let halves = words.iter().flat_map(|w| [*w as u16, (w >> 16) as u16]);
        match self {
            Self::S8 => words
                .iter()
                .flat_map(|w| w.to_le_bytes())
                .map(|byte| i32::from(byte.cast_signed()))
                .collect(),
            Self::F16 => halves.map(|h| f16::from_bits(h).to_f32() as i32).collect(),
            Self::Bf16 => halves.map(|h| bf16::from_bits(h).to_f32() as i32).collect(),
        }
    }

    /// Words of random elements.
    fn words(self, seed: u32, elements: usize) -> Vec<u32> {
        let small = |bits: u32| (bits % 255) as f32 - 127.0;
        let pairs = random(seed, elements);
        let pairs = pairs.chunks_exact(2);
        let pack = |pair: [u16; 2]| u32::from(pair[0]) | u32::from(pair[1]) << 16;
        match self {
            Self::S8 => random(seed, elements / 4),
            Self::F16 => pairs
                .map(|p| pack([p[0], p[1]].map(|x| f16::from_f32(small(x)).to_bits())))
                .collect(),
            Self::Bf16 => pairs
                .map(|p| pack([p[0], p[1]].map(|x| bf16::from_f32(small(x)).to_bits())))
                .collect(),
        }
    }

    /// A sum as the instruction holds it; whole numbers of this size are exact in both types.
    fn sum(self, value: i32) -> u32 {
        match self {
            Self::S8 => value.cast_unsigned(),
            Self::F16 | Self::Bf16 => (value as f32).to_bits(),
        }
    }
}

impl Mma {
    fn is_right<D: Device>(&self, device: &D) -> Result<bool> {
        let [in_a, in_b, in_c] = self.elements;
        let [a_words, b_words] = [in_a, in_b].map(|n| 32 * n);
        let a_words = self.element.words(1, a_words);
        let b_words = self.element.words(2, b_words);
        // What is there already is added to.
        let before: Vec<i32> = (0..128).map(|i| i * 3 - 100).collect();
        let sums = before.iter().map(|x| self.element.sum(*x)).collect();
        let words = [a_words, b_words, sums];
        let found = run(device, self.kernel, 1, &words, None)?;
        let [a, b] = [&words[0], &words[1]].map(|words| self.element.unpack(words));
        let [rows, k] = self.shape;
        let (mut matrix_a, mut matrix_b) = (vec![0; rows * k], vec![0; 8 * k]);
        let [place_a, place_b, place_c] = self.places;
        for lane in 0..32 {
            let (g, t) = (lane / 4, lane % 4);
            for i in 0..in_a {
                let [row, column] = place_a(g, t, i);
                matrix_a[row * k + column] = a[lane * in_a + i];
            }
            for i in 0..in_b {
                let [channel, column] = place_b(g, t, i);
                matrix_b[channel * k + column] = b[lane * in_b + i];
            }
        }
        // Sums that the instruction does not have stay as they are.
        let product = |lane: usize, i: usize| -> i32 {
            if i >= in_c {
                return 0;
            }
            let [row, channel] = place_c(lane / 4, lane % 4, i);
            let (a, b) = (&matrix_a[row * k..][..k], &matrix_b[channel * k..][..k]);
            a.iter().zip(b).map(|(a, b)| a * b).sum()
        };
        Ok((0..128)
            .all(|at| found[2][at] == self.element.sum(before[at] + product(at / 4, at % 4))))
    }
}

/// What is not wanted becomes zeros, everything else arrives.
fn copies<D: Device>(device: &D) -> Result<bool> {
    let from = random(3, 64 * 4);
    for count in [0, 17, 40, 64] {
        let words = [from.clone(), vec![0xa5a5_a5a5; 64 * 4]];
        let found = run(device, "wrapper_cp_async", 1, &words, Some(count as i32))?;
        let is_right = |(at, word): (usize, &u32)| match at / 4 < count {
            true => *word == from[at],
            false => *word == 0,
        };
        if !found[1].iter().enumerate().all(is_right) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Of three blocks: no addition is lost, and every number of the counter is found once.
fn atomics<D: Device>(device: &D) -> Result<bool> {
    let words = [vec![5], vec![0], vec![u32::MAX; 96]];
    let found = run(device, "wrapper_atomics", 3, &words, None)?;
    let mut counts = found[2].clone();
    counts.sort_unstable();
    let sum: i32 = 5 + (0..96).map(|i| i - 20).sum::<i32>();
    let all: Vec<u32> = (0..96).collect();
    Ok(found[0] == [sum.cast_unsigned()] && found[1] == [96] && counts == all)
}

fn loads<D: Device>(device: &D) -> Result<bool> {
    let (wide, narrow) = (random(4, 128), random(5, 32));
    let words = [wide.clone(), narrow.clone(), vec![0; 128], vec![0; 32]];
    let found = run(device, "wrapper_loads", 1, &words, None)?;
    Ok(found[2] == wide && found[3] == narrow)
}

/// Bytes at both ends of their range, and halves and floats around every border of their types.
fn scalars<D: Device>(device: &D) -> Result<bool> {
    let edges = [
        0x8080_8080,
        0x7f7f_7f7f,
        0x807f_0180,
        0,
        0x8000_0000,
        // Floats: the largest half, what rounds to it and what overflows; subnormal halves, a tie to even.
        0x477f_e000,
        0x477f_efff,
        0x477f_f000,
        0x3380_0000,
        0x3300_0000,
        0x3f80_1000,
        0x3f80_3000,
        0x7f80_0000,
        0xff80_0000,
        0x7fc0_0000,
        // Halves: the smallest, the largest, infinities, not a number.
        0x0000_0001,
        0x0000_83ff,
        0x0000_7bff,
        0x0000_fc00,
        0x0000_7e00,
    ];
    let mut xs = random(6, 32);
    xs[..edges.len()].copy_from_slice(&edges);
    let mut ys = random(7, 32);
    ys[..2].fill(0x8080_8080);
    for distance in [1, 2, 4, 8, 16, 21] {
        let pairs = xs.iter().zip(&ys).flat_map(|(x, y)| [*x, *y]).collect();
        let found = run(
            device,
            "wrapper_scalars",
            1,
            &[pairs, vec![0; 6 * 32]],
            Some(distance),
        )?;
        for (lane, out) in found[1].chunks_exact(6).enumerate() {
            let (x, y) = (xs[lane], ys[lane]);
            let bytes = x.to_le_bytes().map(u8::cast_signed);
            let others = y.to_le_bytes().map(u8::cast_signed);
            let products = bytes
                .iter()
                .zip(others)
                .map(|(x, y)| i32::from(*x) * i32::from(y));
            let halves = bytes.map(|byte| u32::from(f16::from_f32(f32::from(byte)).to_bits()));
            let (narrow, float) = (f16::from_bits(x as u16), f32::from_bits(x));
            let widened = f32::from_bits(out[3]);
            let rounded = f16::from_bits(out[4] as u16);
            let is_right = out[0] == (7 + products.sum::<i32>()).cast_unsigned()
                && out[1] == halves[0] | halves[1] << 16
                && out[2] == halves[2] | halves[3] << 16
                && (out[3] == narrow.to_f32().to_bits() || widened.is_nan() && narrow.is_nan())
                && (rounded.to_bits() == f16::from_f32(float).to_bits()
                    || rounded.is_nan() && float.is_nan())
                && out[5] == xs[lane ^ distance as usize];
            if !is_right {
                return Ok(false);
            }
        }
    }
    Ok(true)
}
