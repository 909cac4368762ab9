//! `octet models` and `octet devices`: what can be loaded, and what would compute.

use std::fmt::Write;

use anyhow::Result;

use crate::args::{DeviceArg, DeviceArgs, KernelTuningArg, KvCacheDtypeArg};
use crate::config::DeviceConfig;
use crate::target::Target;

/// Families and containers.
///
/// # Errors
/// Never in practice: strings take any text.
pub fn models() -> Result<String> {
    let mut text = "Model families (text generation):\n".to_owned();
    for family in model::supported() {
        writeln!(
            text,
            "  {:<11} {:<22} {:<4} {}",
            family.model_type,
            family.architecture,
            if family.reads_gguf() { "GGUF" } else { "" },
            family.examples
        )?;
    }
    writeln!(text, "\nEmbedding models (/v1/embeddings; safetensors):")?;
    for row in encoder::SUPPORTED {
        writeln!(text, "  {:<11} {}", row.model_type, row.examples)?;
    }
    writeln!(
        text,
        "\nCheckpoints:
  a Hugging Face directory: safetensors, one file or sharded, in floats or in 8 bits of
    compressed-tensors, bitsandbytes or GPTQ
  a .gguf file, in any block type; Q8_0 keeps its blocks in int8, everything else is brought to the
    precision that --quantization says; its tokenizer and template are read from it
  a hub id such as owner/name or owner/name:file.gguf, downloaded once
  {}: inside this program, loaded when no model is named",
        bundled::NAME
    )?;
    Ok(text)
}

/// What was found, what would run on it and why.
///
/// # Errors
/// When the flags cannot be met on this machine.
pub fn devices(args: &DeviceArgs) -> Result<String> {
    let config = DeviceConfig {
        device: args.device,
        quantization: args.quantization,
        kv_cache_dtype: KvCacheDtypeArg::Auto,
        threads: args.threads.and_then(std::num::NonZeroUsize::new),
        kernel_tuning: KernelTuningArg::Auto,
    };
    let target = match config.device {
        DeviceArg::Auto if !config.needs_cpu() => Target::choose(&DeviceConfig {
            device: DeviceArg::Cuda,
            ..config.clone()
        })
        .or_else(|_| Target::choose(&config))?,
        _ => Target::choose(&config)?,
    };
    Ok(format!(
        "{}chosen: {}: {}
  weights    {} ({})
  KV cache   {}
  memory     {} available
",
        crate::cuda::describe(),
        target.device,
        target.found,
        target.precision,
        target.why,
        target.kv_dtype,
        crate::banner::bytes(crate::load::available_memory())
    ))
}
