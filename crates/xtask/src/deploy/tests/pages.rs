//! What the pages of `deploy/` tell an operator to type: programs, flags and files that are there.

use regex::Regex;

use super::super::manual;
use super::{deploy, read};

const PAGES: &[&str] = &[
    "README.md",
    "kubernetes/README.md",
    "cloud/README.md",
    "gpu/rtx-4090.md",
    "gpu/rx-6800.md",
    "prometheus/runbook.md",
];

/// The commands in the blocks of a page, without prompts and remarks.
fn commands(page: &str) -> Vec<String> {
    let mut found = Vec::new();
    for block in page.split("```").skip(1).step_by(2) {
        let lines = block.lines().filter_map(|line| {
            let line = line.trim_start();
            line.strip_prefix("$ ").or(line.strip_prefix("# "))
        });
        let parts = lines.flat_map(|line| line.split("  #").next().unwrap_or(line).split("&&"));
        found.extend(parts.map(|part| part.trim().to_owned()));
    }
    found
}

/// Whether it is a command of ours; fails when it is one that does not exist.
fn check(page: &str, command: &str) -> bool {
    let manual = manual::page();
    let mut words = command.split(' ');
    match (words.next(), words.next()) {
        (Some("octet"), Some(name)) => {
            let title = format!("\n.SH OCTET {}\n", name.to_uppercase());
            assert!(
                name == "serve" || manual.contains(&title),
                "{page}: octet has no {name}"
            );
            for flag in words.filter(|word| word.starts_with('-')) {
                assert!(manual.contains(flag), "{page}: octet has no {flag}");
            }
            true
        }
        (Some("cargo"), Some("xtask")) => {
            let task: Vec<&str> = words.collect();
            let usage = format!("\n  {} ", task.join(" "));
            assert!(
                include_str!("../../main.rs").contains(&usage),
                "{page}: no task {command}"
            );
            true
        }
        _ => false,
    }
}

#[test]
fn commands_of_pages_exist() {
    let mut ours = 0;
    for page in PAGES {
        let commands = commands(&read(page));
        ours += commands
            .iter()
            .filter(|command| check(page, command))
            .count();
    }
    assert!(ours >= 7, "only {ours} commands were found");
}

#[test]
fn files_that_commands_name_exist() {
    let named = Regex::new(r"\bdeploy/([\w./-]+)").expect("a pattern");
    let mut files = 0;
    for page in PAGES {
        for command in commands(&read(page)) {
            for file in named.captures_iter(&command) {
                assert!(deploy(&file[1]).exists(), "{page}: no deploy/{}", &file[1]);
                files += 1;
            }
        }
    }
    assert!(files >= 7, "only {files} files were found");
}
