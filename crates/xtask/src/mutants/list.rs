//! The mutants. The first ten follow the pitfalls of CUDA kernels in general; the others take each
//! barrier, wait, fence, reset, guard and lane formula of the kernels.

/// One mistake.
pub struct Mutant {
    pub name: &'static str,
    pub file: &'static str,
    /// Stands once in the file.
    pub text: &'static str,
    pub replacement: &'static str,
    pub suite: Suite,
}

/// Which kernels a mutant is compiled with, and which tests it meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    Products,
    Attention,
    Rows,
    /// A decode step whose rows are padded.
    Padding,
}

impl Suite {
    pub fn files(self) -> &'static [&'static str] {
        match self {
            Self::Products => &["quant_rows", "gemm_i8_"],
            Self::Attention => &["quant_rows", "attention", "rope_store_kv"],
            Self::Rows => &[
                "quant_rows",
                "norm",
                "gated",
                "rope_store_kv",
                "copy_blocks",
            ],
            Self::Padding => &[""],
        }
    }

    pub fn tests(self) -> &'static [&'static str] {
        match self {
            Self::Products => &[
                "bits::products_pass_every_check",
                "bits::what_is_not_finite_surfaces",
            ],
            Self::Attention => &[
                "bits::attention_passes_every_check",
                "bits::attention_follows_the_reference",
            ],
            Self::Rows => &["bits::row_kernels_pass_every_check"],
            Self::Padding => &["model::replayed_steps_give_the_bits_of_computed_ones"],
        }
    }
}

use Suite::{Attention, Padding, Products, Rows};

const fn mutant(
    name: &'static str,
    file: &'static str,
    suite: Suite,
    text: &'static str,
    replacement: &'static str,
) -> Mutant {
    Mutant {
        name,
        file,
        text,
        replacement,
        suite,
    }
}

pub const MUTANTS: &[Mutant] = &[
    // A configuration that asks for more shared memory than its launcher gives.
    mutant(
        "ring-too-large",
        "gemm_i8_tile.cu",
        Products,
        "GEMM_I8_TILE(32, 64, 2, 2, 4, 2)",
        "GEMM_I8_TILE(32, 64, 2, 2, 5, 2)",
    ),
    // Stale scratch: sums, counter, a padding row that stores.
    mutant(
        "workspace-not-zeroed",
        "gemm_i8_tile.cu",
        Products,
        "            *at = 0;  // C12\n",
        "",
    ),
    mutant(
        "counter-not-reset",
        "gemm_i8_tile.cu",
        Products,
        "        if (thread_index() == 0) counters[tile_index] = 0;  // C13\n",
        "",
    ),
    mutant(
        "padding-row-stores",
        "rope_store_kv.cu",
        Padding,
        "    if (slot < 0) return;\n",
        "",
    ),
    // A maximum that swallows what is not a number.
    mutant(
        "nan-swallowed",
        "common.cuh",
        Products,
        "if (absmax >= 0x7f800000u) {",
        "if (absmax == 0xffffffffu) {",
    ),
    // Head groups that do not divide the rows of a block.
    mutant(
        "partial-rows-not-masked",
        "attention.cu",
        Attention,
        "num_rows = num_rows < ROWS ? num_rows : ROWS;",
        "num_rows = ROWS;",
    ),
    mutant(
        "head-of-another-group",
        "attention.cu",
        Attention,
        "return kv_head * share + (first_flat + r) % share;",
        "return kv_head + (first_flat + r) % share;",
    ),
    // Loads that are wider than their alignment.
    mutant(
        "misaligned-load",
        "gemm_i8_stream.cu",
        Products,
        "b * BLOCK_BYTES + q * 16);",
        "b * BLOCK_BYTES + q * 16 + 4);",
    ),
    // Freedom of the compiler: a fused step where two roundings are meant.
    mutant(
        "fused-rounding",
        "common.cuh",
        Products,
        "bits_of(fadd(fmul(x, scale.inverse), ROUND_TO_INTEGER))",
        "bits_of(ffma(x, scale.inverse, ROUND_TO_INTEGER))",
    ),
    // Whole numbers whose sign is lost.
    mutant(
        "sign-lost",
        "common.cuh",
        Products,
        "- ROUND_BITS) & 0xffu;",
        "- ROUND_BITS) & 0x7fu;",
    ),
    // Barriers.
    mutant(
        "barrier-a1",
        "common.cuh",
        Rows,
        "    block_sync();  // A1\n",
        "",
    ),
    mutant(
        "barrier-a2",
        "common.cuh",
        Rows,
        "    block_sync();  // A2\n",
        "",
    ),
    mutant(
        "barrier-a3",
        "common.cuh",
        Rows,
        "    block_sync();  // A3\n",
        "",
    ),
    mutant(
        "barrier-b2",
        "gemm_i8_stream.cu",
        Products,
        "        block_sync();  // B2\n",
        "",
    ),
    mutant(
        "barrier-b3",
        "gemm_i8_stream.cu",
        Products,
        "            block_sync();  // B3\n",
        "",
    ),
    mutant(
        "barrier-c4",
        "gemm_tile.cuh",
        Products,
        "        block_sync();              // C4\n",
        "",
    ),
    mutant(
        "barrier-c9",
        "gemm_i8_tile.cu",
        Products,
        "        block_sync();  // C9\n",
        "",
    ),
    mutant(
        "barrier-c10",
        "gemm_i8_tile.cu",
        Products,
        "        block_sync();  // C10\n",
        "",
    ),
    mutant(
        "barrier-d1",
        "attention.cu",
        Attention,
        "        block_sync();  // D1\n",
        "",
    ),
    mutant(
        "barrier-d3",
        "attention.cu",
        Attention,
        "        block_sync();  // D3\n",
        "",
    ),
    mutant(
        "barrier-d4",
        "attention.cu",
        Attention,
        "        block_sync();  // D4\n",
        "",
    ),
    mutant(
        "barrier-d6",
        "attention.cu",
        Attention,
        "        block_sync();  // D6\n",
        "",
    ),
    // Copies and their waits.
    mutant(
        "copy-not-awaited",
        "gemm_tile.cuh",
        Products,
        "        cp_wait<T::STAGES - 2>();  // C3\n",
        "",
    ),
    mutant(
        "copy-awaited-late",
        "gemm_tile.cuh",
        Products,
        "cp_wait<T::STAGES - 2>();  // C3",
        "cp_wait<T::STAGES - 1>();  // C3",
    ),
    mutant(
        "ring-off-by-one",
        "gemm_tile.cuh",
        Products,
        "(next - first) % T::STAGES * T::STAGE_BYTES",
        "(next - first + 1) % T::STAGES * T::STAGE_BYTES",
    ),
    // Fences around the counter, and a sum that is no atomic one.
    mutant(
        "release-fence",
        "gemm_i8_tile.cu",
        Products,
        "        fence();       // C8\n",
        "",
    ),
    mutant(
        "acquire-fence",
        "gemm_i8_tile.cu",
        Products,
        "        fence();  // C11\n",
        "",
    ),
    // Guards and tails.
    mutant(
        "token-guard",
        "gemm_i8_stream.cu",
        Products,
        "if (token < m) {  // B1",
        "if (token <= m) {  // B1",
    ),
    mutant(
        "row-guard",
        "gemm_tile.cuh",
        Products,
        "bool ok = row < m;",
        "bool ok = true;",
    ),
    mutant(
        "panel-guard",
        "gemm_tile.cuh",
        Products,
        "bool ok = panel < panels;",
        "bool ok = true;",
    ),
    mutant(
        "tail-of-a-row",
        "common.cuh",
        Rows,
        "if (first < row.q_pitch) quantise_four",
        "if (true) quantise_four",
    ),
    mutant(
        "causal-mask",
        "attention.cu",
        Attention,
        "column < visible[r * 2 + 1];  // D2",
        "column <= visible[r * 2 + 1];  // D2",
    ),
    mutant(
        "block-off-by-one",
        "attention.cu",
        Attention,
        "i64 block = table[(start + c) / KEY_BLOCK] * record",
        "i64 block = table[(start + c + 1) / KEY_BLOCK] * record",
    ),
    // Lanes and layouts.
    mutant(
        "lane-map-a",
        "gemm.cuh",
        Products,
        "a[1] = high.w[2 * s];",
        "a[1] = low.w[2 * s + 1];",
    ),
    mutant(
        "lane-map-b",
        "gemm.cuh",
        Products,
        "b[1] = words.w[2 * s + 1];",
        "b[1] = words.w[2 * s];",
    ),
    mutant(
        "lane-map-c",
        "gemm_i8_stream.cu",
        Products,
        "i32 channel = lane / 4 + (i / 2) * 8;",
        "i32 channel = lane / 4 + (i % 2) * 8;",
    ),
    mutant(
        "group-cut-short",
        "gemm_i8_tile.cu",
        Products,
        "if (b % 2 == 0 && b + 1 < blocks) return;  // C6",
        "if (b % 2 == 0) return;  // C6",
    ),
    // Shared memory that nobody wrote.
    mutant(
        "uninitialised-sums",
        "gemm_i8_stream.cu",
        Products,
        "for (i32 i = 0; i < STREAM_WARPS; i++) sum +=",
        "for (i32 i = 0; i <= STREAM_WARPS; i++) sum +=",
    ),
];
