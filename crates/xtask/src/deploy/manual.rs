//! What the manual page says of the server's flags: their environment variables and defaults, against
//! which files of `deploy/` are checked. The page itself is checked against the flags by the server's
//! tests.

use std::collections::BTreeMap;

use regex::Regex;

const PAGE: &str = include_str!("../../../../deploy/man/octet.1");

/// The page without the marks of its language.
pub fn page() -> String {
    let marks = Regex::new(r"\\f[A-Z]").expect("a pattern");
    marks.replace_all(PAGE, "").replace('\\', "")
}

/// Every variable that is read, with the default of its flag.
pub fn variables() -> BTreeMap<String, Option<String>> {
    let named = Regex::new(r"specified with the (\w+) environment variable").expect("a pattern");
    let default = Regex::new(r"\[default: ([^\]]+)\]").expect("a pattern");
    let mut found = BTreeMap::new();
    for paragraph in page().split("\n.TP\n") {
        if let Some(name) = named.captures(paragraph) {
            let value = default.captures(paragraph).map(|value| value[1].to_owned());
            found.entry(name[1].to_owned()).or_insert(value);
        }
    }
    found
}

/// The default of the flag that a variable stands for.
pub fn default(name: &str) -> Option<String> {
    variables().remove(name)?
}
