//! Writes the model in the Hugging Face layout.

use std::fs;
use std::path::Path;

use half::bf16;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};

use super::error::Result;
use super::model::Shape;
use super::ops::{NORM_EPS, ROPE_THETA};
use crate::chat::{TOOLS_HEAD, TOOLS_TAIL};
use crate::tokenizer::{END_OF_TEXT, END_OF_TEXT_ID, IM_END, IM_END_ID, Tokenizer};

/// Writes weights in bf16, configuration, tokenizer and chat template.
pub fn export(
    directory: &Path,
    shape: &Shape,
    params: &[f32],
    tokenizer: &Tokenizer,
) -> Result<()> {
    fs::create_dir_all(directory)?;
    let tensors = shape.tensors();
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|t| {
            let part = &params[t.offset..t.offset + t.rows * t.cols];
            part.iter()
                .flat_map(|v| bf16::from_f32(*v).to_le_bytes())
                .collect()
        })
        .collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|(t, bytes)| {
            let dims = if t.rows == 1 {
                vec![t.cols]
            } else {
                vec![t.rows, t.cols]
            };
            Ok((t.name.clone(), TensorView::new(Dtype::BF16, dims, bytes)?))
        })
        .collect::<Result<Vec<_>>>()?;
    let format = [("format".to_owned(), "pt".to_owned())].into();
    fs::write(
        directory.join("model.safetensors"),
        serialize(views, Some(format))?,
    )?;
    for (name, value) in [
        ("config.json", config(shape)),
        (
            "generation_config.json",
            json!({"do_sample": false, "eos_token_id": [IM_END_ID, END_OF_TEXT_ID]}),
        ),
        ("tokenizer.json", tokenizer.to_json()),
        ("tokenizer_config.json", tokenizer_config(shape)),
    ] {
        fs::write(
            directory.join(name),
            serde_json::to_string_pretty(&value)? + "\n",
        )?;
    }
    Ok(())
}

/// `config.json`.
fn config(shape: &Shape) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "vocab_size": shape.vocab, "hidden_size": shape.width, "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads, "head_dim": shape.head_dim(),
        "max_position_embeddings": shape.context, "rms_norm_eps": 1e-5, "rope_theta": f64::from(ROPE_THETA),
        "hidden_act": "silu", "attention_bias": false, "mlp_bias": false, "tie_word_embeddings": true,
        "bos_token_id": null, "eos_token_id": IM_END_ID, "torch_dtype": "bfloat16",
    })
}

/// `tokenizer_config.json` with the chat template.
pub fn tokenizer_config(shape: &Shape) -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": shape.context,
        "bos_token": null, "eos_token": IM_END, "pad_token": END_OF_TEXT, "add_bos_token": false,
        "clean_up_tokenization_spaces": false, "chat_template": chat_template(),
    })
}

/// ChatML with tools in the Hermes manner, as a Jinja template; `chat::render` is the same in Rust.
pub fn chat_template() -> String {
    let quoted = |text: &str| serde_json::to_string(text).expect("a string is always JSON");
    format!(
        "{{%- set turns = messages %}}{{%- set system = none %}}\
         {{%- if messages and messages[0]['role'] == 'system' %}}\
         {{%- set system = messages[0]['content'] %}}{{%- set turns = messages[1:] %}}{{%- endif %}}\
         {{%- if system is not none or tools %}}{{{{- '<|im_start|>system\\n' }}}}\
         {{%- if system is not none %}}{{{{- system }}}}{{%- if tools %}}{{{{- '\\n\\n' }}}}{{%- endif %}}{{%- endif %}}\
         {{%- if tools %}}{{{{- {head} }}}}{{%- for tool in tools %}}{{{{- '\\n' }}}}{{{{- tool | tojson }}}}{{%- endfor %}}\
         {{{{- {tail} }}}}{{%- endif %}}{{{{- '<|im_end|>\\n' }}}}{{%- endif %}}\
         {{%- for message in turns %}}\
         {{%- if message['role'] == 'tool' %}}\
         {{{{- '<|im_start|>user\\n<tool_response>\\n' + message['content'] + '\\n</tool_response><|im_end|>\\n' }}}}\
         {{%- else %}}{{{{- '<|im_start|>' + message['role'] + '\\n' }}}}\
         {{%- if message['content'] %}}{{{{- message['content'] }}}}{{%- endif %}}\
         {{%- for call in message['tool_calls'] or [] %}}{{%- set function = call['function'] or call %}}\
         {{%- if message['content'] or not loop.first %}}{{{{- '\\n' }}}}{{%- endif %}}\
         {{{{- '<tool_call>\\n{{\"name\": \"' + function['name'] + '\", \"arguments\": ' }}}}\
         {{%- if function['arguments'] is string %}}{{{{- function['arguments'] }}}}\
         {{%- else %}}{{{{- function['arguments'] | tojson }}}}{{%- endif %}}\
         {{{{- '}}\\n</tool_call>' }}}}{{%- endfor %}}{{{{- '<|im_end|>\\n' }}}}{{%- endif %}}{{%- endfor %}}\
         {{%- if add_generation_prompt %}}{{{{- '<|im_start|>assistant\\n' }}}}{{%- endif %}}",
        head = quoted(TOOLS_HEAD),
        tail = quoted(TOOLS_TAIL),
    )
}

/// Checked here so that the exported number and the one computed with cannot part.
const _: () = assert!(NORM_EPS == 1e-5);
