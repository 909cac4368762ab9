//! Links and pictures of Markdown pages that lead into the repository lead to something.

use std::path::Path;

use anyhow::{Context, Result};
use regex::Regex;

use super::files;
use crate::root;

/// Adds a violation for each that does not.
pub fn check(violations: &mut Vec<String>) -> Result<()> {
    for page in files(root(), ".md")? {
        let text = std::fs::read_to_string(&page)
            .with_context(|| format!("cannot read {}", page.display()))?;
        let name = page.strip_prefix(root()).unwrap_or(&page).display();
        for link in dead(&page, &text)? {
            violations.push(format!("{name}: {link} leads nowhere"));
        }
    }
    Ok(())
}

/// What a page refers to and is not there. Addresses elsewhere and places on the page are not looked at.
fn dead(page: &Path, text: &str) -> Result<Vec<String>> {
    let link = Regex::new(r#"\]\(([^)\s]+)\)|\b(?:src|srcset|href)="([^"]+)""#)?;
    let folder = page.parent().context("a page lies in a folder")?;
    let targets = link.captures_iter(text).filter_map(|found| {
        let target = found.get(1).or(found.get(2))?.as_str();
        let path = target.split('#').next().unwrap_or(target);
        let is_here = !path.is_empty() && !target.contains("://") && !target.starts_with("mailto:");
        (is_here && !folder.join(path).exists()).then(|| target.to_owned())
    });
    Ok(targets.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_here_is_dead() {
        let text = "[a](README.md) [b](crates/README.md#crates) [c](#d) [e](https://example.org/x)
            ![f](none.png) <img src=\"nowhere.webp\"> [g](Cargo.toml#x) `[h](gone.md)`";
        let found = dead(&root().join("README.md"), text).expect("readable");
        assert_eq!(found, ["none.png", "nowhere.webp", "gone.md"]);
    }
}
