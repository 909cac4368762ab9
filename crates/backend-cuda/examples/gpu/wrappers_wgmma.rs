//! The warpgroup's product (`wgmma.mma_async`, compute capability 9.0 alone) against the PTX manual: descriptors by the
//! table "Matrix descriptor", operands by the canonical layouts of "Strides" for K in rows, sums by the fragment of
//! "Register fragments for wgmma" of D, as we know them; nothing here knows how the kernels lay their memory out.

use backend::Result;
use backend_cuda::device::{Arg, Device, Launch};

use super::wrappers::random;

/// Rows of A, of B, and K of one product of 8-bit integers.
const M: usize = 64;
const N: usize = 128;
const K: usize = 32;
/// Bytes of shared memory for each operand.
const OPERAND: usize = 16_384;

/// A canonical layout in 16-byte elements, ((8, m), (1, 2)) : ((row, eight rows), (1, column)), with the swizzle of its
/// mode: Swizzle<bits, 4, 3> exchanges as many bits of the address from bit 4 on with those from bit 7 on.
#[derive(Clone, Copy)]
struct Layout {
    name: &'static str,
    /// Bits 62 and 63 of the descriptor.
    mode: u64,
    bits: u32,
    /// From a row to the next, in bytes.
    row: usize,
    /// From eight rows to the next: the stride, bits 32 to 45.
    eight_rows: [usize; 2],
    /// From sixteen bytes of a row to the next.
    column: [usize; 2],
    /// The leading dimension, bits 16 to 29; only read without a swizzle.
    leading: [usize; 2],
    /// Products inside a row of the pattern.
    steps: usize,
}

const LAYOUTS: [Layout; 4] = [
    Layout {
        name: "none",
        mode: 0,
        bits: 0,
        row: 16,
        // Of A chunks neighbour, of B eight rows do.
        eight_rows: [256, 128],
        column: [128, 2048],
        leading: [128, 2048],
        steps: 1,
    },
    Layout {
        name: "128 bytes",
        mode: 1,
        bits: 3,
        row: 128,
        eight_rows: [2048, 1024],
        column: [16; 2],
        leading: [16, 0],
        steps: 4,
    },
    Layout {
        name: "64 bytes",
        mode: 2,
        bits: 2,
        row: 64,
        eight_rows: [1024, 512],
        column: [16; 2],
        leading: [16, 0],
        steps: 2,
    },
    Layout {
        name: "32 bytes",
        mode: 3,
        bits: 1,
        row: 32,
        eight_rows: [256, 512],
        column: [16; 2],
        leading: [16, 0],
        steps: 1,
    },
];

impl Layout {
    /// Where byte k of a row lies, from the start of the operand.
    fn at(&self, operand: usize, row: usize, k: usize) -> usize {
        let at = row % 8 * self.row
            + row / 8 * self.eight_rows[operand]
            + k / 16 * self.column[operand]
            + k % 16;
        let mask = (1 << self.bits) - 1;
        at ^ (at >> 7 & mask) << 4
    }

    /// The descriptor of an operand whose K begins `step` products into its rows.
    fn descriptor(&self, operand: usize, step: usize) -> u64 {
        let encoded = |bytes: usize| (bytes as u64 & 0x3_ffff) >> 4;
        encoded(operand * OPERAND + step * K)
            | encoded(self.leading[operand]) << 16
            | encoded(self.eight_rows[operand]) << 32
            | self.mode << 62
    }

    /// One operand's bytes, row by row, from an image.
    fn read(&self, image: &[u8], operand: usize, rows: usize, step: usize) -> Vec<i32> {
        let byte = |row: usize, k: usize| {
            let at = operand * OPERAND + self.at(operand, row, step * K + k);
            i32::from(image[at].cast_signed())
        };
        (0..rows)
            .flat_map(|row| (0..K).map(move |k| byte(row, k)))
            .collect()
    }
}

/// Row and column of a thread's sum.
fn place(thread: usize, i: usize) -> [usize; 2] {
    let (warp, lane) = (thread / 32, thread % 32);
    let row = warp * 16 + lane / 4 + if i % 4 >= 2 { 8 } else { 0 };
    [row, i / 4 * 8 + lane % 4 * 2 + (i & 1)]
}

/// Each thread's sums of before, by which a product that replaces them is told apart.
fn before() -> Vec<i32> {
    (0..128 * 64).map(|i| i * 7 - 20_000).collect()
}

fn is_product(found: &[i32], [a, b]: [&[i32]; 2], accumulate: bool) -> bool {
    let before = before();
    (0..128 * 64).all(|at| {
        let [row, column] = place(at / 64, at % 64);
        let pairs = a[row * K..][..K].iter().zip(&b[column * K..][..K]);
        let sum: i32 = pairs.map(|(a, b)| a * b).sum();
        found[at] == sum + if accumulate { before[at] } else { 0 }
    })
}

fn bytes_of(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The sums after one launch of a warpgroup.
fn run<D: Device>(
    device: &D,
    kernel: &'static str,
    inputs: &[Vec<u8>],
    numbers: &[i32],
) -> Result<Vec<i32>> {
    let upload = |bytes: &[u8]| {
        let buffer = device.alloc(bytes.len(), "operands")?;
        device.upload(&buffer, 0, bytes)?;
        Ok(buffer)
    };
    let mut sums: Vec<u8> = before().iter().flat_map(|sum| sum.to_le_bytes()).collect();
    let buffers = inputs
        .iter()
        .map(|bytes| upload(bytes))
        .collect::<Result<Vec<_>>>()?;
    let in_and_out = upload(&sums)?;
    let pointers = buffers.iter().chain([&in_and_out]);
    let args: Vec<Arg<D::Buffer>> = pointers
        .map(|buffer| Arg::Buffer(buffer, 0))
        .chain(numbers.iter().map(|number| Arg::Int(*number)))
        .collect();
    device.launch(&Launch {
        kernel,
        threads: 128,
        grid: [1, 1, 1],
        // What alignment may cost on top.
        dynamic_bytes: 2 * OPERAND as u32 + 1024,
        args: &args,
    })?;
    device.download(&in_and_out, 0, &mut sums)?;
    let (words, _) = sums.as_chunks::<4>();
    Ok(words.iter().map(|word| i32::from_le_bytes(*word)).collect())
}

/// Every mode of the descriptor, every product inside its pattern, added and replaced; random bytes everywhere, so
/// that a wrong address is a wrong sum.
fn descriptors<D: Device>(device: &D, layout: &Layout) -> Result<bool> {
    let image = bytes_of(&random(11, 2 * OPERAND / 4));
    for (step, accumulate) in (0..layout.steps).flat_map(|step| [(step, true), (step, false)]) {
        let halves = [0, 1].map(|operand| layout.descriptor(operand, step));
        let [a, b] = halves.map(|d| [d as u32, (d >> 32) as u32].map(u32::cast_signed));
        let words = (image.len() / 4) as i32;
        let numbers = [words, a[0], a[1], b[0], b[1], i32::from(accumulate)];
        let found = run(
            device,
            "wrapper_wgmma",
            std::slice::from_ref(&image),
            &numbers,
        )?;
        let [a, b] =
            [(0, M), (1, N)].map(|(operand, rows)| layout.read(&image, operand, rows, step));
        if !is_product(&found, [&a, &b], accumulate) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Rows as the product's kernel lays them out: the four products of 128 columns.
fn rows<D: Device>(device: &D) -> Result<bool> {
    let operands = [(12, M), (13, N)].map(|(seed, rows)| bytes_of(&random(seed, rows * 128 / 4)));
    for step in 0..4 {
        let found = run(device, "wrapper_wgmma_rows", &operands, &[step as i32])?;
        let [a, b] = operands.each_ref().map(|bytes| {
            let rows = bytes
                .chunks_exact(128)
                .flat_map(|row| &row[step * K..][..K]);
            rows.map(|byte| i32::from(byte.cast_signed()))
                .collect::<Vec<_>>()
        });
        if !is_product(&found, [&a, &b], true) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What is checked, and whether it is as the manual says; nothing on other parts.
pub fn check<D: Device>(device: &D) -> Result<Vec<(String, bool)>> {
    if !device.properties().warpgroups {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for layout in &LAYOUTS {
        let name = format!("wrapper_wgmma, swizzle: {}", layout.name);
        found.push((name, descriptors(device, layout)?));
    }
    found.push(("wrapper_wgmma_rows".to_owned(), rows(device)?));
    Ok(found)
}
