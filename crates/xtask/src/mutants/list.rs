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
    Sampler,
    /// Tied tables and routers.
    Tables,
    /// 8-bit weights with 16-bit activations.
    Wide,
    /// Products of warpgroups, on the one architecture that has them.
    Warpgroups,
    /// Launches that may begin before the one before has ended, from that architecture on.
    Dependent,
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
            Self::Sampler => &["sample"],
            Self::Wide => &["quant_rows", "gemm_w8a16_"],
            Self::Warpgroups => &["quant_rows", "gemm_i8_wgmma"],
            Self::Dependent => &[
                "attention",
                "elementwise",
                "embed",
                "fill",
                "gated",
                "gemm_i8_",
                "norm",
                "quant_rows",
                "rope_store_kv",
                "sample",
            ],
            Self::Tables => &["elementwise", "embed", "linear_f32", "quant_rows", "gemm_"],
        }
    }

    /// What its kernels are compiled for.
    pub fn arch(self) -> &'static str {
        match self {
            Self::Warpgroups | Self::Dependent => "-DPTX_ARCH=900",
            _ => "-DPTX_ARCH=800",
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
                "bits::attention_gives_the_bits_of_the_cpu",
            ],
            Self::Rows => &["bits::row_kernels_pass_every_check"],
            Self::Sampler => &["sampler::the_sampler_passes_every_check"],
            Self::Tables => &[
                "bits::a_tied_table_gives_the_rows_of_the_head",
                "bits::routers_follow_the_definition",
            ],
            Self::Wide => &["bits::products_of_whole_numbers_with_8_bit_weights_are_exact"],
            Self::Warpgroups => &["warpgroups::products_pass_every_check"],
            Self::Dependent => &["dependent::a_step_passes_every_check"],
            Self::Padding => &["model::replayed_steps_give_the_bits_of_computed_ones"],
        }
    }
}

use Suite::{Attention, Padding, Products, Rows, Sampler, Tables, Wide};

pub const fn mutant(
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
        "gemm_i8.cuh",
        Products,
        "            *at = 0;  // C12\n",
        "",
    ),
    mutant(
        "counter-not-reset",
        "gemm_i8.cuh",
        Products,
        "        if (thread_index() == 0) divided.counters[divided.tile] = 0;  // C13\n",
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
        "    block_sync();  // B2\n",
        "",
    ),
    mutant(
        "barrier-b3",
        "gemm_i8_stream.cu",
        Products,
        "        block_sync();  // B3\n",
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
        "gemm_i8.cuh",
        Products,
        "        block_sync();  // C9\n",
        "",
    ),
    mutant(
        "barrier-c10",
        "gemm_i8.cuh",
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
        "gemm_i8.cuh",
        Products,
        "        fence();       // C8\n",
        "",
    ),
    mutant(
        "acquire-fence",
        "gemm_i8.cuh",
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
        "bool ok = row < o.m &&",
        "bool ok =",
    ),
    mutant(
        "panel-guard",
        "gemm_tile.cuh",
        Products,
        "bool ok = panel < o.panels;",
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
        "return cache + table[position / KEY_BLOCK]",
        "return cache + table[(position + 1) / KEY_BLOCK]",
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
        "((b + 1) % group_blocks == 0 || b + 1 == blocks)) {  // C6",
        "(b + 1) % group_blocks == 0) {  // C6",
    ),
    // Shared memory that nobody wrote.
    mutant(
        "uninitialised-sums",
        "gemm_i8_stream.cu",
        Products,
        "for (i32 i = 0; i < STREAM_WARPS; i++) sum +=",
        "for (i32 i = 0; i <= STREAM_WARPS; i++) sum +=",
    ),
    // Scales of groups.
    mutant(
        "half-out-of-place",
        "common.cuh",
        Products,
        "in_half / 8 * 16 + first % 64 / 32 * 8",
        "in_half / 8 * 16 + 8 - first % 64 / 32 * 8",
    ),
    mutant(
        "half-behind-the-last",
        "gemm_i8_tile.cu",
        Products,
        "2 * b + s < e.groups) promote",
        "2 * b + s <= e.groups) promote",
    ),
    mutant(
        "scale-of-another-group",
        "gemm.cuh",
        Products,
        "static_cast<i64>(group) * e.n + channel]",
        "static_cast<i64>(channel) * e.groups + group]",
    ),
    mutant(
        "groups-share-a-maximum",
        "common.cuh",
        Products,
        "lanes_max(absmax, row.granularity / 4)",
        "lanes_max(absmax, 32)",
    ),
    // Keys and values of fewer bits.
    mutant(
        "pairs-in-order",
        "attention.cu",
        Attention,
        "for (i32 c = pair + TOKENS - 1; c >= pair; c--) {",
        "for (i32 c = pair; c < pair + TOKENS; c++) {",
    ),
    mutant(
        "scale-of-another-token",
        "attention.cu",
        Attention,
        "value_scales<V>(values, a.head_dim)[lane]",
        "value_scales<V>(values, a.head_dim)[lane ^ 1]",
    ),
    mutant(
        "query-not-scaled",
        "attention.cu",
        Attention,
        "queries.scales[r] = fmul(scale.step, a.scale);",
        "queries.scales[r] = a.scale;",
    ),
    mutant(
        "weight-not-rounded",
        "attention.cu",
        Attention,
        "sees ? widen(to_operand(weight)) : 0.0f",
        "sees ? weight : 0.0f",
    ),
    // The sampler.
    mutant(
        "barrier-s1",
        "sample.cu",
        Sampler,
        "    block_sync();  // S1\n",
        "",
    ),
    mutant(
        "barrier-s2",
        "sample.cu",
        Sampler,
        "    block_sync();  // S2\n",
        "",
    ),
    mutant(
        "barrier-s3",
        "sample.cu",
        Sampler,
        "    block_sync();  // S3\n",
        "",
    ),
    mutant(
        "barrier-s4",
        "sample.cu",
        Sampler,
        "    block_sync();  // S4\n",
        "",
    ),
    mutant(
        "barrier-s5",
        "sample.cu",
        Sampler,
        "        block_sync();  // S5\n",
        "",
    ),
    mutant(
        "barrier-s6",
        "sample.cu",
        Sampler,
        "        block_sync();  // S6\n",
        "",
    ),
    mutant(
        "barrier-s7",
        "sample.cu",
        Sampler,
        "    block_sync();  // S7\n",
        "",
    ),
    mutant(
        "barrier-s8",
        "sample.cu",
        Sampler,
        "    block_sync();  // S8\n",
        "",
    ),
    mutant(
        "barrier-s9",
        "sample.cu",
        Sampler,
        "    block_sync();  // S9\n",
        "",
    ),
    mutant(
        "barrier-s10",
        "sample.cu",
        Sampler,
        "    block_sync();  // S10\n",
        "",
    ),
    mutant(
        "barrier-s11",
        "sample.cu",
        Sampler,
        "        block_sync();  // S11\n",
        "",
    ),
    mutant(
        "barrier-s12",
        "sample.cu",
        Sampler,
        "        block_sync();  // S12\n",
        "",
    ),
    mutant(
        "barrier-s13",
        "sample.cu",
        Sampler,
        "    block_sync();  // S13\n",
        "",
    ),
    mutant(
        "zero-has-a-sign",
        "sample.cu",
        Sampler,
        "bits_of(fadd(x, 0.0f))",
        "bits_of(x)",
    ),
    mutant(
        "draw-off-by-one",
        "sample.cu",
        Sampler,
        "index_where(row, mark + 1,",
        "index_where(row, mark,",
    ),
    mutant(
        "border-counts-all",
        "sample.cu",
        Sampler,
        "row.masses[i] == mass",
        "row.masses[i] >= mass",
    ),
    mutant(
        "ban-behind-the-last",
        "sample.cu",
        Sampler,
        "if (bans[i].token < size) edited",
        "if (bans[i].token <= size) edited",
    ),
    mutant(
        "table-panel",
        "embed.cu",
        Tables,
        "row % 16 / 8 * 512",
        "row % 16 / 8 * 1024",
    ),
    mutant(
        "table-halves",
        "embed.cu",
        Tables,
        "i % 64 / 32 * 8 + i % 8",
        "i % 64 / 32 * 4 + i % 8",
    ),
    mutant(
        "table-scale",
        "embed.cu",
        Tables,
        "static_cast<i64>(i / group_len) * num_rows + row",
        "static_cast<i64>(i / group_len) * columns + row",
    ),
    mutant(
        "router-tail",
        "linear_f32.cu",
        Tables,
        "if (n >= outputs) return;",
        "if (n > outputs) return;",
    ),
    mutant(
        "router-order",
        "linear_f32.cu",
        Tables,
        "#define K_BLOCK 256",
        "#define K_BLOCK 512",
    ),
    mutant(
        "router-inputs",
        "linear_f32.cu",
        Tables,
        "first + K_BLOCK < inputs ? first + K_BLOCK : inputs",
        "first + K_BLOCK",
    ),
    // Weights of 8 bits beside activations of 16.
    mutant(
        "activations-behind-k",
        "gemm_tile.cuh",
        Wide,
        " && (T::X_SLABS == 1 || byte < o.x_bytes)",
        "",
    ),
    mutant(
        "slab-of-another-half",
        "gemm_tile.cuh",
        Wide,
        "stage + slab * T::SLAB_BYTES",
        "stage + (1 - slab) * T::SLAB_BYTES",
    ),
    mutant(
        "stage-without-second-slab",
        "gemm_tile.cuh",
        Wide,
        "i < T::X_BYTES / 16;",
        "i < T::SLAB_BYTES / 16;",
    ),
    mutant(
        "sum-kept-after-its-group",
        "gemm_w8a16_tile.cu",
        Wide,
        "            c[i][j][k] = 0.0f;  // W2\n",
        "",
    ),
    mutant(
        "scale-behind-the-channels",
        "gemm_w8a16_tile.cu",
        Wide,
        "channel < e.n ? e.s_w[static_cast<i64>(group) * e.n + channel] : 0.0f;  // W1",
        "e.s_w[static_cast<i64>(group) * e.n + channel];  // W1",
    ),
    mutant(
        "half-promoted-early",
        "gemm_w8a16_tile.cu",
        Wide,
        "halves && s % 2 == 1 &&",
        "halves && s % 2 == 0 &&",
    ),
    mutant(
        "group-behind-k",
        "gemm_w8a16_tile.cu",
        Wide,
        " && 2 * b + s / 2 < e.groups) promote",
        ") promote",
    ),
    mutant(
        "last-group-lost",
        "gemm_w8a16_tile.cu",
        Wide,
        "(b + 1) % group_blocks == 0 || b + 1 == blocks)) {  // W4",
        "(b + 1) % group_blocks == 0)) {  // W4",
    ),
];
