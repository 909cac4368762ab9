//! `octet models` and `octet devices`: what can be loaded, and what would compute.

use anyhow::Result;

use crate::args::{DeviceArgs, KvCacheDtypeArg};
use crate::config::DeviceConfig;
use crate::target::Target;

/// Lists families and containers.
pub fn print_models() {
    println!("Model families (text generation):");
    for family in model::supported() {
        println!(
            "  {:<10} {:<22} {}",
            family.model_type, family.architecture, family.examples
        );
    }
    println!("\nCheckpoints:");
    println!("  a Hugging Face directory: safetensors, one file or sharded");
    println!("  a .gguf file, in any block type; its tokenizer and template are read from it");
    println!("  a hub id such as owner/name or owner/name:file.gguf, downloaded once");
    println!(
        "  {}: inside this program, loaded when no model is named",
        bundled::NAME
    );
}

/// Says what was found, what would run on it and why.
///
/// # Errors
/// When the flags cannot be met on this machine.
pub fn print_devices(args: &DeviceArgs) -> Result<()> {
    let target = Target::choose(&DeviceConfig {
        device: args.device,
        quantization: args.quantization,
        kv_cache_dtype: KvCacheDtypeArg::Auto,
        threads: args.threads.and_then(std::num::NonZeroUsize::new),
    })?;
    println!("{}: {}", target.device, target.found);
    println!("  weights    {} ({})", target.precision, target.why);
    println!("  KV cache   {}", target.kv_dtype);
    println!(
        "  memory     {} available",
        crate::banner::bytes(crate::load::available_memory())
    );
    Ok(())
}
