//! The command line as it can be typed again, without the key in it.

/// Words joined for a shell, with the value of `--api-key` replaced.
pub fn command_line(words: impl IntoIterator<Item = String>) -> String {
    let mut hides_next = false;
    let mut shown = Vec::new();
    for (i, word) in words.into_iter().enumerate() {
        let word = match word.as_str() {
            // Wherever the program lies, it is known by its name.
            _ if i == 0 => "loadtest".to_owned(),
            _ if hides_next => "KEY".to_owned(),
            text if text.starts_with("--api-key=") => "--api-key=KEY".to_owned(),
            text => quoted(text),
        };
        hides_next = word == "--api-key";
        shown.push(word);
    }
    shown.join(" ")
}

fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,%+@".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_hidden_and_words_quoted() {
        let line = |text: &str| command_line(text.split(' ').map(str::to_owned));
        assert_eq!(
            line("/opt/loadtest --api-key secret --users 4"),
            "loadtest --api-key KEY --users 4"
        );
        assert_eq!(line("x --api-key=secret"), "loadtest --api-key=KEY");
        let words = ["x", "--name", "it's two", "", "a;b"].map(str::to_owned);
        assert_eq!(
            command_line(words),
            r"loadtest --name 'it'\''s two' '' 'a;b'"
        );
    }
}
