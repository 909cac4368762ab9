//! The bytes of every token, taken from the tokenizer's decoder once at load.
//!
//! Three kinds of decoders exist among the supported families: byte-level ones, SentencePiece ones
//! with byte fallback and a mark for spaces, and none at all (words joined by a space). Each is a
//! concatenation of per-token bytes, except that some drop one space at the very start.

use std::collections::HashMap;

use serde_json::Value;

use super::TextError;

/// Far above the ids of any vocabulary.
const MAX_IDS: usize = 1 << 24;

/// Bytes of every token id.
#[derive(Debug)]
pub(crate) struct Pieces {
    bytes: Vec<Option<Box<[u8]>>>,
    special: Vec<bool>,
    /// The decoder drops one leading space of a text.
    strips_leading_space: bool,
    longest: usize,
}

/// How a token's spelling becomes bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Spelling {
    /// GPT-2's table of printable stand-ins for bytes.
    ByteLevel,
    /// A mark stands for a space; `<0x41>` stands for a byte where `fallback`.
    Marked { mark: String, fallback: bool },
    /// Words with a space in front.
    Words,
}

/// A decoder as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Decoder {
    spelling: Spelling,
    strips_leading_space: bool,
}

impl Pieces {
    /// Reads the vocabulary of a `tokenizer.json`: `spellings` by id, and which ids are special.
    ///
    /// # Errors
    /// [`TextError::Decoder`] for a decoder of an unknown kind.
    pub(crate) fn new(
        decoder: &Value,
        vocabulary: HashMap<String, u32>,
        special: impl Fn(u32) -> Option<bool>,
    ) -> Result<Self, TextError> {
        let decoder = Decoder::read(decoder)?;
        let stand_ins = stand_ins();
        let len = vocabulary.values().max().map_or(0, |id| *id as usize + 1);
        if len > MAX_IDS {
            return Err(TextError::Tokenizer(format!(
                "a token has the id {}, ids end below {MAX_IDS}",
                len - 1
            )));
        }
        let mut pieces = Self {
            bytes: vec![None; len],
            special: vec![false; len],
            strips_leading_space: decoder.strips_leading_space,
            longest: 1,
        };
        for (spelling, id) in vocabulary {
            let added = special(id);
            let bytes = decoder
                .spelling
                .bytes(&spelling, added.is_some(), &stand_ins);
            pieces.longest = pieces.longest.max(bytes.len());
            pieces.special[id as usize] = added == Some(true);
            pieces.bytes[id as usize] = Some(bytes.into());
        }
        Ok(pieces)
    }

    /// The bytes a token stands for; none for an id that no token has.
    pub(crate) fn bytes(&self, id: u32) -> &[u8] {
        self.bytes
            .get(id as usize)
            .and_then(Option::as_deref)
            .unwrap_or_default()
    }

    /// Whether a token is a control token, left out of texts.
    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    /// Whether the decoder drops one leading space of a text.
    pub(crate) fn strips_leading_space(&self) -> bool {
        self.strips_leading_space
    }

    /// One more than the largest id.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes of the longest token.
    pub(crate) fn longest(&self) -> usize {
        self.longest
    }
}

impl Spelling {
    fn bytes(&self, spelling: &str, added: bool, stand_ins: &HashMap<char, u8>) -> Vec<u8> {
        match self {
            Self::ByteLevel => spelling
                .chars()
                .map(|c| stand_ins.get(&c).copied())
                .collect::<Option<Vec<u8>>>()
                .unwrap_or_else(|| spelling.as_bytes().to_vec()),
            Self::Marked { fallback: true, .. } if fallback_byte(spelling).is_some() => {
                fallback_byte(spelling).into_iter().collect()
            }
            Self::Marked { mark, .. } => spelling.replace(mark.as_str(), " ").into_bytes(),
            Self::Words if added => spelling.as_bytes().to_vec(),
            Self::Words => format!(" {spelling}").into_bytes(),
        }
    }
}

/// The byte of `<0x41>`.
fn fallback_byte(spelling: &str) -> Option<u8> {
    let digits = spelling.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2)
        .then(|| u8::from_str_radix(digits, 16).ok())
        .flatten()
}

impl Decoder {
    fn read(decoder: &Value) -> Result<Self, TextError> {
        if decoder.is_null() {
            return Ok(Self {
                spelling: Spelling::Words,
                strips_leading_space: true,
            });
        }
        let mut read = Self {
            spelling: Spelling::Marked {
                mark: String::new(),
                fallback: false,
            },
            strips_leading_space: false,
        };
        let steps = match decoder["decoders"].as_array() {
            Some(steps) => steps.as_slice(),
            None => std::slice::from_ref(decoder),
        };
        for step in steps {
            read.add(step)?;
        }
        match &read.spelling {
            Spelling::Marked { mark, fallback } if mark.is_empty() && !fallback => {
                Err(unknown(decoder))
            }
            // A mark that never occurs keeps spellings as they are.
            Spelling::Marked { mark, fallback } if mark.is_empty() => {
                read.spelling = Spelling::Marked {
                    mark: "\u{2581}".into(),
                    fallback: *fallback,
                };
                Ok(read)
            }
            _ => Ok(read),
        }
    }

    fn add(&mut self, step: &Value) -> Result<(), TextError> {
        let kind = step["type"].as_str().unwrap_or_default();
        match (kind, &mut self.spelling) {
            ("ByteLevel", spelling) => *spelling = Spelling::ByteLevel,
            ("ByteFallback", Spelling::Marked { fallback, .. }) => *fallback = true,
            ("Fuse", _) => {}
            ("Replace", Spelling::Marked { mark, .. }) if step["content"] == " " => {
                let pattern = step["pattern"]["String"].as_str();
                *mark = pattern.ok_or_else(|| unknown(step))?.into();
            }
            ("Metaspace", Spelling::Marked { mark, .. }) => {
                *mark = step["replacement"].as_str().unwrap_or("\u{2581}").into();
                let prepends = match step["prepend_scheme"].as_str() {
                    Some(scheme) => scheme != "never",
                    None => step["add_prefix_space"] != false,
                };
                self.strips_leading_space = prepends;
            }
            ("Strip", _) if step["content"] == " " && step["stop"] == 0 => {
                self.strips_leading_space = step["start"] != 0;
            }
            _ => return Err(unknown(step)),
        }
        Ok(())
    }
}

fn unknown(step: &Value) -> TextError {
    let name = step["type"].as_str().unwrap_or("?").chars().take(64);
    TextError::Decoder(name.collect())
}

/// GPT-2's table: printable Latin-1 bytes stand for themselves, the other 68 bytes are the code
/// points from U+0100 on, in order.
fn stand_ins() -> HashMap<char, u8> {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut table: HashMap<char, u8> = (0..=u8::MAX)
        .filter(|b| printable(*b))
        .map(|b| (char::from(b), b))
        .collect();
    for (code, byte) in (0x100..).zip((0..=u8::MAX).filter(|b| !printable(*b))) {
        let stand_in = char::from_u32(code).expect("U+0100 to U+0143 are characters");
        table.insert(stand_in, byte);
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(decoder: Value) -> Result<(Spelling, bool), TextError> {
        Decoder::read(&decoder).map(|d| (d.spelling, d.strips_leading_space))
    }

    #[test]
    fn decoders_of_the_supported_families() {
        let marked = |fallback| Spelling::Marked {
            mark: "\u{2581}".into(),
            fallback,
        };
        let replace = json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "});
        let fallback = json!({"type": "ByteFallback"});
        let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
        let sequence = |steps: &[&Value]| json!({"type": "Sequence", "decoders": steps});
        for (decoder, expected) in [
            (json!({"type": "ByteLevel"}), (Spelling::ByteLevel, false)),
            (
                sequence(&[&replace, &fallback, &json!({"type": "Fuse"}), &strip]),
                (marked(true), true),
            ),
            (
                sequence(&[&replace, &fallback, &json!({"type": "Fuse"})]),
                (marked(true), false),
            ),
            (
                json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always"}),
                (marked(false), true),
            ),
            (
                json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "never"}),
                (marked(false), false),
            ),
            (Value::Null, (Spelling::Words, true)),
        ] {
            assert_eq!(read(decoder.clone()).unwrap(), expected, "{decoder}");
        }
        assert!(matches!(
            read(json!({"type": "WordPiece"})),
            Err(TextError::Decoder(name)) if name == "WordPiece"
        ));
    }

    #[test]
    fn the_stand_ins_cover_every_byte_once() {
        let table = stand_ins();
        let mut bytes: Vec<u8> = table.values().copied().collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!((table[&'Ġ'], table[&'Ċ'], table[&'Ã']), (b' ', b'\n', 0xC3));
    }

    #[test]
    fn spellings_become_bytes() {
        let table = stand_ins();
        let marked = Spelling::Marked {
            mark: "\u{2581}".into(),
            fallback: true,
        };
        for (spelling, text, expected) in [
            (&Spelling::ByteLevel, "Ġhi", b" hi".as_slice()),
            (&Spelling::ByteLevel, "Ã", &[0xC3]),
            (&Spelling::ByteLevel, "a b", b"a b"),
            (&marked, "\u{2581}a", b" a"),
            (&marked, "<0x0A>", b"\n"),
            (&marked, "<0xA>", b"<0xA>"),
            (&Spelling::Words, "w1", b" w1"),
        ] {
            assert_eq!(spelling.bytes(text, false, &table), expected, "{text}");
        }
    }
}
