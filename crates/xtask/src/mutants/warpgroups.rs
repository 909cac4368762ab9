//! Mistakes in the products of warpgroups: the order that their instructions want, descriptors and
//! patterns of shared memory, the ring, and guards.

use super::list::{Mutant, Suite, mutant};

const FILE: &str = "gemm_i8_wgmma.cu";
const INSTRUCTIONS: &str = "ptx_hopper.cuh";

const fn wrong(
    name: &'static str,
    file: &'static str,
    text: &'static str,
    replacement: &'static str,
) -> Mutant {
    mutant(name, file, Suite::Warpgroups, text, replacement)
}

pub const MUTANTS: &[Mutant] = &[
    wrong(
        "wgmma-no-proxy-fence",
        FILE,
        "        proxy_fence();            // H8\n",
        "",
    ),
    wrong(
        "wgmma-proxy-fence-behind-the-barrier",
        FILE,
        "        proxy_fence();            // H8\n        block_sync();             // H9\n",
        "        block_sync();\n        proxy_fence();\n",
    ),
    wrong(
        "wgmma-no-barrier",
        FILE,
        "        block_sync();             // H9\n",
        "",
    ),
    wrong(
        "wgmma-no-wait-for-a-group",
        FILE,
        "        wgmma_wait_all(c[0]);  // H13\n",
        "",
    ),
    wrong(
        "wgmma-no-wait-at-the-end",
        FILE,
        "    wgmma_wait_all(c[0]);  // H15\n",
        "",
    ),
    wrong(
        "wgmma-no-wait-in-the-ring",
        FILE,
        "[](i32) { wgmma_wait<1>(); });  // H14",
        "[](i32) {});",
    ),
    wrong(
        "wgmma-wait-one-short",
        FILE,
        "wgmma_wait<1>(); });  // H14",
        "wgmma_wait<2>(); });",
    ),
    wrong(
        "wgmma-ring-too-short",
        FILE,
        "AHEAD = STAGES - 2",
        "AHEAD = STAGES - 1",
    ),
    wrong(
        "wgmma-copy-wait-one-short",
        FILE,
        "cp_wait<T::AHEAD - 1>();  // H7",
        "cp_wait<T::AHEAD>();",
    ),
    wrong(
        "wgmma-no-fence-of-sums",
        FILE,
        "        wgmma_fence(c);  // H11\n",
        "",
    ),
    wrong("wgmma-no-commit", FILE, "        wgmma_commit();\n", ""),
    wrong(
        "wgmma-descriptor-stride",
        INSTRUCTIONS,
        "1024ull / 16 << 32",
        "512ull / 16 << 32",
    ),
    wrong(
        "wgmma-descriptor-pattern",
        INSTRUCTIONS,
        "1ull << 62",
        "2ull << 62",
    ),
    wrong(
        "wgmma-descriptor-no-pattern",
        INSTRUCTIONS,
        " | 1ull << 62;  // H1",
        ";",
    ),
    wrong(
        "wgmma-descriptor-start",
        INSTRUCTIONS,
        ">> 4 | 1ull << 16",
        ">> 5 | 1ull << 16",
    ),
    wrong(
        "wgmma-pattern-of-four-rows",
        INSTRUCTIONS,
        "chunk ^ row % 8",
        "chunk ^ row % 4",
    ),
    wrong(
        "wgmma-ring-not-aligned",
        FILE,
        "memory + (PATTERN_BYTES - shared_address(memory) % PATTERN_BYTES) % PATTERN_BYTES;",
        "memory;                                                                               ",
    ),
    wrong(
        "wgmma-k-step-of-16",
        FILE,
        "wgmma_s8(c, a + 2 * k, b + 2 * k,",
        "wgmma_s8(c, a + k, b + k,",
    ),
    wrong("wgmma-sums-not-fresh", FILE, "!FRESH || k > 0", "true"),
    wrong(
        "wgmma-second-warpgroup-on-the-first-rows",
        FILE,
        "thread_index() / 128 * 64 * STAGE_ROW;  // H6",
        "0;",
    ),
    wrong(
        "wgmma-block-behind-the-last",
        FILE,
        "return {chunk, block, block < blocks_of(from)};  // H3",
        "return {chunk, block, true};",
    ),
    wrong(
        "wgmma-token-behind-the-last",
        FILE,
        "bool ok = share.inside && token < from.m;  // H4",
        "bool ok = share.inside;",
    ),
    wrong(
        "wgmma-panel-behind-the-last",
        FILE,
        "bool ok = share.inside && panel < from.panels;  // H5",
        "bool ok = share.inside;",
    ),
    wrong(
        "wgmma-scale-of-the-other-row",
        FILE,
        "float by = scale[k / 2];",
        "float by = scale[k % 2];",
    ),
    wrong(
        "wgmma-scale-behind-the-last",
        FILE,
        "if (e.grouped_weights && channel < e.n) by",
        "if (e.grouped_weights) by",
    ),
    wrong(
        "wgmma-one-stage-too-many",
        FILE,
        "(blocks_of(from) + 1) / STAGE_BLOCKS; }  // H16",
        "blocks_of(from) / STAGE_BLOCKS; }",
    ),
];
