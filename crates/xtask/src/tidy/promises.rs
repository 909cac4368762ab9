//! The page of promises: each has a number, in order, and names tests that exist.

use std::path::Path;

use anyhow::{Context, Result};
use regex::Regex;

use crate::root;

const PAGE: &str = "docs/promises.md";
/// Promises on the page.
const COUNT: usize = 22;

/// Adds a violation for each number that is missing and each test that is not there.
pub fn check(violations: &mut Vec<String>) -> Result<()> {
    let page = root().join(PAGE);
    let text = std::fs::read_to_string(&page).context(PAGE)?;
    let folder = page.parent().context("a page lies in a folder")?;
    violations.extend(broken(&text, folder)?);
    Ok(())
}

fn broken(text: &str, folder: &Path) -> Result<Vec<String>> {
    let link = Regex::new(r"\[`(\w+)`\]\(([^)#]+)\)")?;
    let mut found = Vec::new();
    let sections: Vec<&str> = text.split("\n## P-").skip(1).collect();
    if sections.len() != COUNT {
        found.push(format!(
            "{PAGE} has {} promises, not {COUNT}",
            sections.len()
        ));
    }
    for (number, section) in sections.into_iter().enumerate() {
        let name = format!("P-{:02}", number + 1);
        if !section.starts_with(&name[2..]) {
            found.push(format!("{PAGE}: {name} is not where it belongs"));
        }
        // A heading without a number ends the last promise.
        let section = section.split("\n## ").next().unwrap_or(section);
        let tests: Vec<_> = link
            .captures_iter(section)
            .map(|link| link.extract().1)
            .collect();
        if tests.is_empty() {
            found.push(format!("{PAGE}: {name} names no test"));
        }
        for [test, path] in tests {
            let source = std::fs::read_to_string(folder.join(path)).unwrap_or_default();
            if !has_test(&source, path, test)? {
                found.push(format!("{PAGE}: {name}: {path} has no test {test}"));
            }
        }
    }
    Ok(found)
}

/// Whether a test stands there: in Rust a function that is marked as one, in a script any.
fn has_test(source: &str, path: &str, name: &str) -> Result<bool> {
    let marked = if path.ends_with(".py") {
        format!(r"(?m)^def {name}\(")
    } else {
        format!(r"#\[(tokio::)?test\b[^\]]*\]\s*(#\[[^\]]*\]\s*)*(async )?fn {name}\(")
    };
    Ok(Regex::new(&marked)?.is_match(source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_without_number_or_test_are_found() {
        let folder = root().join("docs");
        let page = |number: usize| {
            let section = |n| {
                format!("\n## P-{n:02} x\n[`the_workspace_is_tidy`](../crates/xtask/src/tidy.rs)\n")
            };
            (1..=number).map(section).collect::<String>()
        };
        let found = |text: &str| broken(text, &folder).expect("patterns");
        assert_eq!(found(&page(COUNT)), [""; 0]);
        assert_eq!(found(&page(COUNT - 1)).len(), 1);
        let text = page(COUNT);
        assert_eq!(found(&text.replace("P-07", "P-17")).len(), 1);
        // A function that is no test, one that is not there, and none at all.
        for (from, to) in [
            ("the_workspace_is_tidy", "manifests"),
            ("the_workspace_is_tidy", "gone"),
            ("[`", "["),
        ] {
            assert_eq!(found(&text.replace(from, to)).len(), COUNT, "{to}");
        }
    }
}
