//! The real binary under real clients.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{assets, install, root, target_dir};

/// One server and the suites that run against it.
struct Run {
    what: &'static str,
    flags: Vec<String>,
    suites: &'static [&'static str],
    suite_flags: &'static [&'static str],
    /// Flags of load tests; each must end with equal counts on both sides.
    loads: &'static [&'static [&'static str]],
}

/// Runs every client suite against a fresh server.
pub fn run() -> Result<()> {
    install::debian("chromium", "chromium")?;
    let clients = root().join("crates/server/tests/clients");
    let python = install::python("python", &clients.join("requirements.txt"))?;
    let assets = assets::fetch()?;
    let smollm2 = assets.join("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    let minilm = assets.join("minilm").display().to_string();
    let runs = [
        Run {
            what: "bundled model",
            flags: Vec::new(),
            suites: &[
                "readme.py",
                "openai_sdk.py",
                "langchain_client.py",
                "page.py",
            ],
            suite_flags: &["--bundled"],
            loads: &[
                &[
                    "--users",
                    "64",
                    "--requests",
                    "256",
                    "--prompt-tokens",
                    "uniform:16..256",
                    "--output-tokens",
                    "uniform:8..64",
                ],
                &[
                    "--rate",
                    "40",
                    "--requests",
                    "120",
                    "--api",
                    "completions",
                    "--temperature",
                    "1",
                    "--output-tokens",
                    "uniform:4..24",
                ],
            ],
        },
        Run {
            what: "bundled model behind a key, MiniLM beside it",
            flags: ["--api-key", "a-test-key", "--embedding-model", &minilm]
                .map(str::to_owned)
                .to_vec(),
            suites: &["openai_sdk.py", "page.py", "embeddings.py"],
            suite_flags: &["--bundled", "--api-key", "a-test-key"],
            loads: &[],
        },
        Run {
            what: "MiniLM",
            flags: vec!["--model".into(), minilm],
            suites: &["embeddings.py"],
            suite_flags: &[],
            loads: &[],
        },
        Run {
            what: "SmolLM2",
            flags: vec!["--model".into(), smollm2.display().to_string()],
            suites: &["openai_sdk.py", "langchain_client.py"],
            suite_flags: &[],
            loads: &[&[
                "--users",
                "64",
                "--requests",
                "64",
                "--prompt-tokens",
                "uniform:8..48",
                "--output-tokens",
                "uniform:4..16",
            ]],
        },
    ];
    for run in runs {
        let server = Server::start(&run.flags)?;
        for suite in run.suites {
            println!("-- {suite} on {}", run.what);
            install::run(
                Command::new(&python)
                    .arg(clients.join(suite))
                    .args(["--url", &server.url])
                    .args(run.suite_flags)
                    .env("PYTHONDONTWRITEBYTECODE", "1"),
            )?;
        }
        for load in run.loads {
            println!("-- loadtest {} on {}", load.join(" "), run.what);
            install::run(
                Command::new(target_dir().join("release/loadtest"))
                    // The same prompts in every run: random words may make a model end at once, which
                    // counts as a failure.
                    .args([
                        "--quiet",
                        "--cache",
                        "warm",
                        "--ignore-eos",
                        "--url",
                        &server.url,
                    ])
                    .args(*load),
            )?;
        }
    }
    report_pages(&python, &clients, &assets.join("axe/axe.min.js"))
}

/// Pages of a comparison of a server with itself, of an index, and of a suite with a search, in a browser.
fn report_pages(python: &Path, clients: &Path, axe: &Path) -> Result<()> {
    println!("-- pages of load tests");
    let results = comparison()?;
    let suite = small_suite(&clients.join("pages.toml"))?;
    install::run(
        Command::new(python)
            .arg(clients.join("report_pages.py"))
            .arg("--results")
            .arg(&results)
            .arg("--suite")
            .arg(&suite)
            .arg("--loadtest")
            .arg(target_dir().join("release/loadtest"))
            .arg("--axe")
            .arg(axe)
            .env("PYTHONDONTWRITEBYTECODE", "1"),
    )?;
    install::run(
        Command::new(python)
            .arg(clients.join("report_schemas.py"))
            .arg("--schemas")
            .arg(root().join("loadtest/schemas"))
            .args([&results, &suite])
            .env("PYTHONDONTWRITEBYTECODE", "1"),
    )
}

/// Results of a server against itself, with an index.
fn comparison() -> Result<PathBuf> {
    let server = Server::start(&[])?;
    let results = empty("load-test-pages")?;
    let loadtest = target_dir().join("release/loadtest");
    install::run(
        Command::new(&loadtest)
            .arg("compare")
            .args(["one", "other"].map(|name| format!("{name}={}", server.url)))
            .args(["--quiet", "--cache", "warm", "--ignore-eos", "--pairs", "2"])
            .args(["--users", "4", "--requests", "64", "--output-tokens", "16"])
            .arg("--results")
            .arg(&results),
    )?;
    install::run(Command::new(&loadtest).arg("index").arg(&results))?;
    Ok(results)
}

/// Results of a suite, which starts its servers itself.
fn small_suite(file: &Path) -> Result<PathBuf> {
    let results = empty("load-test-suite")?;
    install::run(
        Command::new(target_dir().join("release/loadtest"))
            .arg("suite")
            .arg(file)
            .arg("--out")
            .arg(&results),
    )?;
    Ok(results)
}

/// A folder for results, without those of the last time.
fn empty(name: &str) -> Result<PathBuf> {
    let folder = target_dir().join("tmp").join(name);
    if folder.exists() {
        std::fs::remove_dir_all(&folder).context("cannot empty the folder of results")?;
    }
    Ok(folder)
}

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    /// Where it answers.
    pub url: String,
}

impl Server {
    /// Starts `octet serve` on a free port and waits for the line that says it is ready.
    pub fn start(flags: &[String]) -> Result<Self> {
        let mut child = Command::new(target_dir().join("release/octet"))
            .args(["serve", "--port", "0", "--log-level", "warn"])
            .args(flags)
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start octet; run the build stage first")?;
        let stdout = child.stdout.take().context("standard output is piped")?;
        let mut server = Self {
            child,
            url: String::new(),
        };
        let mut lines = BufReader::new(stdout).lines();
        for line in lines.by_ref() {
            let line = line?;
            if let Some(address) = line.split("http://127.0.0.1:").nth(1) {
                let port: String = address.chars().take_while(char::is_ascii_digit).collect();
                server.url = format!("http://127.0.0.1:{port}");
            }
            if line.trim_start().starts_with("ready") {
                break;
            }
        }
        if server.url.is_empty() {
            bail!("octet ended before it named its address");
        }
        std::thread::spawn(move || lines.for_each(drop));
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
