//! What GGUF files of each architecture call their tensors, which of them hold several, and how rows
//! are ordered. Facts: the GGUF specification's tables of names and llama.cpp's converter.

/// One architecture.
pub(crate) struct GgufFamily {
    /// `general.architecture`.
    pub architecture: &'static str,
    /// The family in `config.json`.
    pub model_type: &'static str,
    /// Names outside the layers, `.weight` and `.bias` left out.
    whole: &'static [(&'static str, &'static str)],
    /// What the layers are called there.
    layers: &'static str,
    /// Names inside a layer.
    parts: &'static [(&'static str, &'static str)],
    /// The converter put the rows of a rotation's pairs side by side.
    pub interleaved: bool,
    /// Stored norm weights have the 1 that `config.json`'s family adds.
    pub whole_norms: bool,
}

type Names = &'static [(&'static str, &'static str)];

const LLAMA_WHOLE: Names = &[
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    ("output", "lm_head"),
];
const LLAMA_PARTS: Names = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

const LLAMA: GgufFamily = GgufFamily {
    architecture: "llama",
    model_type: "llama",
    whole: LLAMA_WHOLE,
    layers: "model.layers",
    parts: LLAMA_PARTS,
    interleaved: true,
    whole_norms: false,
};
const QWEN2: GgufFamily = GgufFamily {
    architecture: "qwen2",
    model_type: "qwen2",
    interleaved: false,
    ..LLAMA
};
/// Norms before and behind both branches.
const GEMMA2: GgufFamily = GgufFamily {
    architecture: "gemma2",
    model_type: "gemma2",
    parts: &[
        ("attn_norm", "input_layernorm"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("attn_q_norm", "self_attn.q_norm"),
        ("attn_k_norm", "self_attn.k_norm"),
        ("post_attention_norm", "post_attention_layernorm"),
        ("ffn_norm", "pre_feedforward_layernorm"),
        ("post_ffw_norm", "post_feedforward_layernorm"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
    ],
    whole_norms: true,
    ..QWEN2
};

const FAMILIES: &[GgufFamily] = &[
    LLAMA,
    QWEN2,
    GgufFamily {
        architecture: "qwen3",
        model_type: "qwen3",
        ..QWEN2
    },
    GgufFamily {
        architecture: "qwen3moe",
        model_type: "qwen3_moe",
        parts: &[
            ("attn_norm", "input_layernorm"),
            ("attn_q", "self_attn.q_proj"),
            ("attn_k", "self_attn.k_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("attn_output", "self_attn.o_proj"),
            ("attn_q_norm", "self_attn.q_norm"),
            ("attn_k_norm", "self_attn.k_norm"),
            ("ffn_norm", "post_attention_layernorm"),
            ("ffn_gate_inp", "mlp.gate"),
            ("ffn_gate_exps", "mlp.experts.*.gate_proj"),
            ("ffn_up_exps", "mlp.experts.*.up_proj"),
            ("ffn_down_exps", "mlp.experts.*.down_proj"),
        ],
        ..QWEN2
    },
    GgufFamily {
        architecture: "granite",
        model_type: "granite",
        ..LLAMA
    },
    GgufFamily {
        architecture: "smollm3",
        model_type: "smollm3",
        ..LLAMA
    },
    GgufFamily {
        architecture: "olmo2",
        model_type: "olmo2",
        whole_norms: false,
        ..GEMMA2
    },
    GgufFamily {
        architecture: "gemma",
        model_type: "gemma",
        whole_norms: true,
        ..QWEN2
    },
    GEMMA2,
    GgufFamily {
        architecture: "gemma3",
        model_type: "gemma3_text",
        ..GEMMA2
    },
    GgufFamily {
        architecture: "phi3",
        model_type: "phi3",
        parts: &[
            ("attn_norm", "input_layernorm"),
            ("attn_qkv", "self_attn.qkv_proj"),
            ("attn_output", "self_attn.o_proj"),
            ("ffn_norm", "post_attention_layernorm"),
            ("ffn_up", "mlp.gate_up_proj"),
            ("ffn_down", "mlp.down_proj"),
        ],
        ..QWEN2
    },
    GgufFamily {
        architecture: "phi2",
        model_type: "phi",
        whole: &[
            ("token_embd", "model.embed_tokens"),
            ("output_norm", "model.final_layernorm"),
            ("output", "lm_head"),
        ],
        parts: &[
            ("attn_norm", "input_layernorm"),
            ("attn_q", "self_attn.q_proj"),
            ("attn_k", "self_attn.k_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("attn_output", "self_attn.dense"),
            ("ffn_up", "mlp.fc1"),
            ("ffn_down", "mlp.fc2"),
        ],
        ..QWEN2
    },
    GgufFamily {
        architecture: "stablelm",
        model_type: "stablelm",
        parts: &[
            ("attn_norm", "input_layernorm"),
            ("attn_q", "self_attn.q_proj"),
            ("attn_k", "self_attn.k_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("attn_output", "self_attn.o_proj"),
            ("attn_q_norm", "self_attn.q_layernorm.norms.*"),
            ("attn_k_norm", "self_attn.k_layernorm.norms.*"),
            ("ffn_norm", "post_attention_layernorm"),
            ("ffn_gate", "mlp.gate_proj"),
            ("ffn_up", "mlp.up_proj"),
            ("ffn_down", "mlp.down_proj"),
        ],
        ..QWEN2
    },
    GgufFamily {
        architecture: "gptneox",
        model_type: "gpt_neox",
        whole: &[
            ("token_embd", "gpt_neox.embed_in"),
            ("output_norm", "gpt_neox.final_layer_norm"),
            ("output", "embed_out"),
        ],
        layers: "gpt_neox.layers",
        parts: &[
            ("attn_norm", "input_layernorm"),
            ("attn_qkv", "attention.query_key_value"),
            ("attn_output", "attention.dense"),
            ("ffn_norm", "post_attention_layernorm"),
            ("ffn_up", "mlp.dense_h_to_4h"),
            ("ffn_down", "mlp.dense_4h_to_h"),
        ],
        ..QWEN2
    },
    GgufFamily {
        architecture: "gpt2",
        model_type: "gpt2",
        whole: &[
            ("token_embd", "transformer.wte"),
            ("position_embd", "transformer.wpe"),
            ("output_norm", "transformer.ln_f"),
            ("output", "lm_head"),
        ],
        layers: "transformer.h",
        parts: &[
            ("attn_norm", "ln_1"),
            ("attn_qkv", "attn.c_attn"),
            ("attn_output", "attn.c_proj"),
            ("ffn_norm", "ln_2"),
            ("ffn_up", "mlp.c_fc"),
            ("ffn_down", "mlp.c_proj"),
        ],
        ..QWEN2
    },
    GgufFamily {
        architecture: "falcon",
        model_type: "falcon",
        whole: &[
            ("token_embd", "transformer.word_embeddings"),
            ("output_norm", "transformer.ln_f"),
            ("output", "lm_head"),
        ],
        layers: "transformer.h",
        parts: &[
            ("attn_norm", "input_layernorm"),
            ("attn_qkv", "self_attention.query_key_value"),
            ("attn_output", "self_attention.dense"),
            ("ffn_up", "mlp.dense_h_to_4h"),
            ("ffn_down", "mlp.dense_4h_to_h"),
        ],
        ..QWEN2
    },
];

/// Names of layers with experts in files of the Llama architecture, which are then a Mixtral's.
const MIXTRAL_PARTS: Names = &[
    ("ffn_gate_inp", "block_sparse_moe.gate"),
    ("ffn_gate_exps", "block_sparse_moe.experts.*.w1"),
    ("ffn_up_exps", "block_sparse_moe.experts.*.w3"),
    ("ffn_down_exps", "block_sparse_moe.experts.*.w2"),
];
/// Names of a Falcon layer with two norms: the second is attention's.
const TWO_NORMS: Names = &[("attn_norm", "ln_mlp"), ("attn_norm_2", "ln_attn")];

impl GgufFamily {
    pub fn find(architecture: &str) -> Option<&'static Self> {
        FAMILIES
            .iter()
            .find(|family| family.architecture == architecture)
    }

    /// Whether there are files of a family of `config.json`.
    pub fn reads(model_type: &str) -> bool {
        // Files of Mistral and Mixtral have the architecture of Llama.
        matches!(model_type, "mistral" | "mixtral")
            || FAMILIES
                .iter()
                .any(|family| family.model_type == model_type)
    }

    /// All architectures, as messages list them.
    pub fn list() -> String {
        let names: Vec<_> = FAMILIES.iter().map(|family| family.architecture).collect();
        names.join(", ")
    }

    /// The name a tensor has in a Hugging Face checkpoint, `*` standing for the index of each that it
    /// holds; an unknown one stays, and nothing will read it. `two_norms` says that layers have a
    /// second norm before attention.
    pub fn hugging_face_name(&self, name: &str, two_norms: bool) -> String {
        let renamed = || {
            let (stem, kind) = name.rsplit_once('.')?;
            if let Some((_, known)) = self.whole.iter().find(|(gguf, _)| *gguf == stem) {
                return Some(format!("{known}.{kind}"));
            }
            let (layer, part) = stem.strip_prefix("blk.")?.split_once('.')?;
            let more: Names = match self.architecture {
                "llama" => MIXTRAL_PARTS,
                "falcon" if two_norms => TWO_NORMS,
                _ => &[],
            };
            let mut names = more.iter().chain(self.parts);
            let (_, known) = names.find(|(gguf, _)| *gguf == part)?;
            Some(format!("{}.{layer}.{known}.{kind}", self.layers))
        };
        renamed().unwrap_or_else(|| name.to_owned())
    }
}
