//! From text to token ids, as sentence-transformers makes them: control tokens in the text are read, and
//! the tokens that mark its beginning and end are added.

use std::borrow::Cow;

use tokenizers::{Encoding, PostProcessor, Tokenizer, TruncationDirection};

/// The tokenizer of an encoder.
#[derive(Clone)]
pub struct TextTokenizer {
    inner: Tokenizer,
    lower_case: bool,
    /// Bytes of the longest token: no text has fewer tokens than its bytes divided by this.
    longest: usize,
    /// Characters of which a run is as good as one space.
    blanks: Vec<char>,
}

/// A run of blanks that is longer becomes one space, so that no text costs much more than its words.
const LONGEST_RUN: usize = 16;

/// Which end of a text is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TruncationSide {
    /// The beginning.
    Left,
    /// The end.
    Right,
}

impl TextTokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// The library's text when it is malformed.
    pub fn new(json: &[u8], lower_case: bool) -> Result<Self, String> {
        let mut inner = Tokenizer::from_bytes(json).map_err(|error| error.to_string())?;
        // Lengths are checked and padded elsewhere.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|error| error.to_string())?;
        let longest = inner.get_vocab(true).keys().map(String::len).max();
        let mut tokenizer = Self {
            inner,
            lower_case,
            longest: longest.unwrap_or(1).max(1),
            blanks: Vec::new(),
        };
        tokenizer.blanks = tokenizer.find_blanks()?;
        Ok(tokenizer)
    }

    /// White space that this tokenizer takes for a space, whose runs it takes for one. Byte-level
    /// vocabularies have none: they keep every space.
    fn find_blanks(&self) -> Result<Vec<char>, String> {
        let around = |gap: &str| self.run(&format!("{gap}a{gap}b{gap}"), false);
        let one = around(" ")?;
        let mut blanks = Vec::new();
        for c in ('\0'..='\u{3000}').filter(|c| c.is_whitespace()) {
            let mut is_blank = true;
            for gap in [
                c.to_string(),
                format!("{c}{c}"),
                format!(" {c} "),
                c.to_string().repeat(64),
            ] {
                is_blank &= around(&gap)?.get_ids() == one.get_ids();
            }
            blanks.extend(is_blank.then_some(c));
        }
        Ok(blanks)
    }

    /// The text with its long runs of blanks made short, which changes no token.
    fn squeeze<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut squeezed: Option<String> = None;
        let (mut copied, mut rest) = (0, text);
        while let Some(begin) = rest.find(|c| self.blanks.contains(&c)) {
            let begin = text.len() - rest.len() + begin;
            let run = &text[begin..];
            let after = run.trim_start_matches(|c| self.blanks.contains(&c));
            let end = text.len() - after.len();
            if text[begin..end].chars().nth(LONGEST_RUN).is_some() {
                let squeezed = squeezed.get_or_insert_default();
                squeezed.push_str(&text[copied..begin]);
                squeezed.push(' ');
                copied = end;
            }
            rest = after;
        }
        match squeezed {
            None => Cow::Borrowed(text),
            Some(squeezed) => Cow::Owned(squeezed + &text[copied..]),
        }
    }

    /// Fewer tokens than this no text of so many bytes has, blanks left out.
    pub fn min_tokens(&self, text: &str) -> usize {
        let words = text.split(|c| self.blanks.contains(&c));
        words.map(str::len).sum::<usize>() / self.longest
    }

    /// Tokens that mark the beginning and the end of every text.
    pub fn num_marks(&self) -> usize {
        let processor = self.inner.get_post_processor();
        processor.map_or(0, |processor| processor.added_tokens(false))
    }

    /// Token ids of a text.
    ///
    /// # Errors
    /// The library's text when it fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        self.encode_marked(text, true)
    }

    /// Token ids of a text, with the marks of beginning and end or without.
    ///
    /// # Errors
    /// The library's text when it fails.
    pub fn encode_marked(&self, text: &str, marks: bool) -> Result<Vec<u32>, String> {
        let text = self.squeeze(text);
        self.run(&text, marks).map(|found| found.get_ids().to_vec())
    }

    /// The vocabulary's spelling of a token; nothing for an id that has none.
    pub fn spelling(&self, id: u32) -> String {
        self.inner.id_to_token(id).unwrap_or_default()
    }

    /// The text of tokens, marks spelled out.
    ///
    /// # Errors
    /// The library's text when it fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, String> {
        self.inner
            .decode(ids, false)
            .map_err(|error| error.to_string())
    }

    /// At most `max` token ids of a text, the marks of beginning and end among them. Costs what is kept,
    /// not what the text has.
    ///
    /// # Errors
    /// The library's text when it fails, or that not even the marks fit.
    pub fn encode_truncated(
        &self,
        text: &str,
        max: usize,
        side: TruncationSide,
    ) -> Result<Vec<u32>, String> {
        let num_marks = self.num_marks();
        let num_tokens = max
            .checked_sub(num_marks)
            .ok_or_else(|| format!("{num_marks} marks do not fit into {max} tokens"))?;
        let mut encoding = self.enough(&self.squeeze(text), num_tokens, side)?;
        let direction = match side {
            TruncationSide::Left => TruncationDirection::Left,
            TruncationSide::Right => TruncationDirection::Right,
        };
        encoding.truncate(num_tokens, 0, direction);
        let marked = self.inner.post_process(encoding, None, true);
        let marked = marked.map_err(|error| error.to_string())?;
        Ok(marked.get_ids().to_vec())
    }

    /// The tokens of a text without marks, or of a part with so many words that the `num_tokens` on the
    /// side that is kept are those of the whole. A part of 64 KiB, or of 128 bytes for each of these tokens,
    /// is enough whatever it holds: words of thousands of letters or control characters make hardly any
    /// token.
    fn enough(
        &self,
        text: &str,
        num_tokens: usize,
        side: TruncationSide,
    ) -> Result<Encoding, String> {
        // Words are split apart before anything else happens, so that a cut between them is felt by a few
        // neighbours at most.
        const NEIGHBOURS: usize = 64;
        let wanted = 2 * num_tokens + NEIGHBOURS;
        let most = (64 * wanted).max(64 << 10);
        let text = bytes_from(text, most, side);
        let mut num_bytes = 8 * wanted;
        loop {
            let part = part(text, num_bytes, side);
            let encoding = self.run(part, false)?;
            if part.len() == text.len() || encoding.len() >= wanted {
                return Ok(encoding);
            }
            num_bytes = num_bytes.saturating_mul(4);
        }
    }

    fn run(&self, text: &str, marks: bool) -> Result<Encoding, String> {
        let lower = self.lower_case.then(|| text.to_lowercase());
        let text = lower.as_deref().unwrap_or(text);
        let encoding = self.inner.encode_fast(text, marks);
        encoding.map_err(|error| error.to_string())
    }
}

/// At most so many bytes from one end of a text, in whole words.
fn part(text: &str, num_bytes: usize, keeps_from: TruncationSide) -> &str {
    let part = bytes_from(text, num_bytes, keeps_from);
    if part.len() == text.len() {
        return text;
    }
    match keeps_from {
        TruncationSide::Right => &part[..part.rfind(char::is_whitespace).unwrap_or(0)],
        TruncationSide::Left => &part[part.find(char::is_whitespace).unwrap_or(part.len())..],
    }
}

/// At most so many bytes from one end of a text, in whole characters.
fn bytes_from(text: &str, num_bytes: usize, keeps_from: TruncationSide) -> &str {
    match keeps_from {
        TruncationSide::Right => &text[..text.floor_char_boundary(num_bytes)],
        TruncationSide::Left => {
            &text[text.ceil_char_boundary(text.len().saturating_sub(num_bytes))..]
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;
    use tokenizers::TruncationParams;

    use super::*;

    fn tokenizers() -> Vec<TextTokenizer> {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let folders = std::fs::read_dir(fixtures).expect("fixtures");
        let files = folders.map(|folder| folder.expect("an entry").path().join("tokenizer.json"));
        let jsons = files.filter_map(|file| std::fs::read(file).ok());
        let read = |json: Vec<u8>| TextTokenizer::new(&json, false).expect("a tokenizer");
        let found: Vec<_> = jsons.map(read).collect();
        assert!(found.len() >= 3);
        found
    }

    /// By the library alone, from the tokens of the whole text.
    fn slowly(
        tokenizer: &TextTokenizer,
        text: &str,
        max_length: usize,
        side: TruncationSide,
    ) -> Vec<u32> {
        let mut inner = tokenizer.inner.clone();
        let truncation = TruncationParams {
            max_length,
            direction: match side {
                TruncationSide::Left => TruncationDirection::Left,
                TruncationSide::Right => TruncationDirection::Right,
            },
            ..TruncationParams::default()
        };
        inner.with_truncation(Some(truncation)).expect("they fit");
        let encoding = inner.encode_fast(text, true).expect("it encodes");
        encoding.get_ids().to_vec()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_part_gives_the_tokens_of_the_whole(
            words in prop::collection::vec("[ab 1]{0,9}|[ \n\t\u{2003}]{14,40}|[\\PC]{1,6}|[ \n\t\u{3000}]{1,3}|a{150,400}", 0..300),
            room in 1usize..40,
        ) {
            let text = words.join(" ");
            for tokenizer in tokenizers() {
                let max = tokenizer.num_marks() + room;
                for side in [TruncationSide::Left, TruncationSide::Right] {
                    let found = tokenizer.encode_truncated(&text, max, side);
                    prop_assert_eq!(found, Ok(slowly(&tokenizer, &text, max, side)));
                }
            }
        }
    }

    #[test]
    fn white_space_costs_nothing_and_changes_no_token() {
        let mut num_blank = 0;
        for tokenizer in tokenizers() {
            let gap = " \n\t\u{3000}".repeat(1000);
            let text = format!("{gap}lorem{gap}{gap}ipsum  dolor\u{a0}\u{85}{gap}");
            let squeezed = tokenizer.squeeze(&text);
            assert_eq!(tokenizer.encode(&squeezed), tokenizer.encode(&text));
            let whole = tokenizer.run(&text, true).expect("it encodes");
            assert_eq!(tokenizer.encode(&text), Ok(whole.get_ids().to_vec()));
            if tokenizer.blanks.contains(&' ') {
                num_blank += 1;
                let spaces = " ".repeat(25 << 20);
                assert_eq!(tokenizer.squeeze(&spaces), " ");
                assert_eq!(tokenizer.min_tokens(&spaces), 0);
            }
        }
        assert!(num_blank > 0);
    }

    #[test]
    fn where_every_space_is_a_token_they_are_kept_and_counted() {
        let json = r#"{"version": "1.0", "added_tokens": [], "normalizer": null, "post_processor": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "Ġ": 2}, "merges": []}}"#;
        let tokenizer = TextTokenizer::new(json.as_bytes(), false).expect("a tokenizer");
        assert_eq!(tokenizer.blanks, []);
        let text = format!("a{}b", " ".repeat(100));
        assert_eq!(tokenizer.encode(&text).map(|ids| ids.len()), Ok(102));
        assert_eq!(tokenizer.min_tokens(&text), 102 / tokenizer.longest);
    }

    #[test]
    fn what_is_cut_off_costs_nothing() {
        let text = "lorem ipsum ".repeat(100_000);
        for tokenizer in tokenizers() {
            for side in [TruncationSide::Left, TruncationSide::Right] {
                let found = tokenizer.enough(&text, 16, side).expect("it encodes");
                assert!(found.len() < 10_000, "{}", found.len());
            }
        }
    }

    #[test]
    fn where_hardly_any_token_is_found_the_search_ends() {
        let mut num_dropped = 0;
        for tokenizer in tokenizers() {
            let num_marks = tokenizer.num_marks();
            let tokens = |text: &str, side| {
                let found = tokenizer.encode_truncated(text, num_marks + 4, side);
                found.expect("it encodes").len() - num_marks
            };
            if tokens("\u{1}", TruncationSide::Right) > 0 {
                continue;
            }
            num_dropped += 1;
            for (num_bytes, is_found) in [(60 << 10, true), (70 << 10, false)] {
                let filler = "\u{1}".repeat(num_bytes);
                let (end, start) = (format!("{filler} a"), format!("a {filler}"));
                assert_eq!(tokens(&end, TruncationSide::Right) > 0, is_found);
                assert_eq!(tokens(&start, TruncationSide::Left) > 0, is_found);
            }
        }
        assert!(num_dropped > 0);
    }

    #[test]
    fn marks_alone_must_fit() {
        for tokenizer in tokenizers() {
            let num_marks = tokenizer.num_marks();
            let cut = |max| tokenizer.encode_truncated("a b c", max, TruncationSide::Right);
            assert_eq!(cut(num_marks).map(|ids| ids.len()), Ok(num_marks));
            assert!(num_marks > 0 && cut(num_marks - 1).is_err());
        }
    }
}
