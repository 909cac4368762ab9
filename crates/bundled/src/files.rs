//! The trained model as files of a Hugging Face directory, inside the binary.

/// The model's name.
pub const NAME: &str = "octet-bundled";

/// File names and contents; together a complete checkpoint.
pub fn files() -> &'static [(&'static str, &'static [u8])] {
    macro_rules! files {
        ($($name:literal),+) => {
            &[$(($name, include_bytes!(concat!("../model/", $name)))),+]
        };
    }
    files!(
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json"
    )
}
