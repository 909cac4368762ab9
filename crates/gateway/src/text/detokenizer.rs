//! Tokens to text, one token at a time: only whole characters leave, whatever the token borders.

use super::Pieces;

/// What happens to the one space that some decoders put in front of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeadingSpace {
    /// The text starts here: the decoder's rule applies.
    Decode,
    /// The text continues a prompt: the space separates words and stays.
    Keep,
}

/// Turns the tokens of one choice into text.
#[derive(Debug, Clone)]
pub(crate) struct Detokenizer {
    /// The start of a character whose rest has not arrived.
    partial: Vec<u8>,
    /// The next byte is the first of the text and may be a space to drop.
    at_start: bool,
    skip_special: bool,
}

impl Detokenizer {
    /// A text's beginning.
    pub(crate) fn new(pieces: &Pieces, space: LeadingSpace, skip_special: bool) -> Self {
        Self {
            partial: Vec::new(),
            at_start: space == LeadingSpace::Decode && pieces.strips_leading_space(),
            skip_special,
        }
    }

    /// The bytes that the next token adds, without changing the state.
    pub(crate) fn bytes<'a>(&self, pieces: &'a Pieces, id: u32) -> &'a [u8] {
        let bytes = pieces.bytes(id);
        if self.at_start && !pieces.is_special(id) {
            return bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        bytes
    }

    /// Takes a token and returns the characters that are now complete.
    pub(crate) fn push(&mut self, pieces: &Pieces, id: u32) -> String {
        if self.skip_special && pieces.is_special(id) {
            return String::new();
        }
        let bytes = self.bytes(pieces, id);
        self.at_start &= pieces.bytes(id).is_empty();
        self.partial.extend_from_slice(bytes);
        let mut text = String::new();
        self.drain(&mut text);
        text
    }

    /// Characters begun but not completed, as replacement characters; the text is over.
    pub(crate) fn flush(&mut self) -> String {
        let rest = std::mem::take(&mut self.partial);
        String::from_utf8_lossy(&rest).into_owned()
    }

    /// Whether the last token ended inside a character.
    pub(crate) fn is_inside_character(&self) -> bool {
        !self.partial.is_empty()
    }

    /// Moves whole characters to `text`. Bytes that cannot become a character are replaced at once;
    /// an unfinished character at the end stays.
    fn drain(&mut self, text: &mut String) {
        let bytes = std::mem::take(&mut self.partial);
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    return;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    let Some(invalid) = error.error_len() else {
                        self.partial = after.to_vec();
                        return;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &after[invalid..];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Byte tokens 0–255, then one special token, in SentencePiece spelling.
    fn byte_pieces() -> Pieces {
        let mut vocabulary: HashMap<String, u32> =
            (0..256).map(|b| (format!("<0x{b:02X}>"), b)).collect();
        vocabulary.insert("</s>".into(), 256);
        vocabulary.insert("\u{2581}a".into(), 257);
        let decoder = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]});
        Pieces::new(&decoder, vocabulary, |id| (id == 256).then_some(true)).unwrap()
    }

    fn decode(ids: &[u32], space: LeadingSpace) -> (String, Vec<String>) {
        let pieces = byte_pieces();
        let mut detokenizer = Detokenizer::new(&pieces, space, true);
        let mut deltas: Vec<String> = ids
            .iter()
            .map(|id| detokenizer.push(&pieces, *id))
            .collect();
        deltas.push(detokenizer.flush());
        (deltas.concat(), deltas)
    }

    #[test]
    fn the_leading_space_goes_once_and_only_at_the_start() {
        for (ids, decoded, kept) in [
            (vec![257, 257], "a a", " a a"),
            (vec![256, 257], "a", " a"),
            (vec![0x20, 0x20, 0x61], " a", "  a"),
            (vec![0x61, 257], "a a", "a a"),
        ] {
            assert_eq!(decode(&ids, LeadingSpace::Decode).0, decoded);
            assert_eq!(decode(&ids, LeadingSpace::Keep).0, kept);
        }
    }

    #[test]
    fn special_tokens_are_left_out_or_spelled() {
        let pieces = byte_pieces();
        let mut all = Detokenizer::new(&pieces, LeadingSpace::Keep, false);
        assert_eq!(all.push(&pieces, 256), "</s>");
        assert_eq!(decode(&[0x61, 256, 0x62], LeadingSpace::Keep).0, "ab");
    }

    #[test]
    fn every_character_survives_every_token_border() {
        for text in [
            "é",
            "€",
            "😀",
            "👩‍👩‍👧‍👦",
            "a\u{0301}",
            "नि",
            "\u{10FFFF}",
            "é€😀",
        ] {
            let ids: Vec<u32> = text.bytes().map(u32::from).collect();
            let (whole, deltas) = decode(&ids, LeadingSpace::Keep);
            assert_eq!(whole, text);
            assert!(deltas.iter().all(|d| !d.contains('\u{FFFD}')), "{deltas:?}");
        }
    }

    proptest! {
        #[test]
        fn deltas_add_up_to_the_decoded_bytes(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let ids: Vec<u32> = bytes.iter().copied().map(u32::from).collect();
            let (whole, _) = decode(&ids, LeadingSpace::Keep);
            prop_assert_eq!(whole, String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn valid_text_needs_no_replacement(text in "\\PC{0,24}") {
            let ids: Vec<u32> = text.bytes().map(u32::from).collect();
            let (whole, deltas) = decode(&ids, LeadingSpace::Keep);
            prop_assert_eq!(&whole, &text);
            // A character leaves with its last byte, not later.
            let mut read = 0;
            for (i, _) in ids.iter().enumerate() {
                read += deltas[i].len();
                let complete = (0..=i + 1).rev().find(|end| text.is_char_boundary(*end));
                prop_assert_eq!(Some(read), complete);
            }
        }
    }
}
