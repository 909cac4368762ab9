//! The `prompt` of a completions call: a string, strings, token ids, or lists of token ids.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// One prompt.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Prompt {
    /// Text.
    Text(String),
    /// Token ids, not yet compared with the vocabulary.
    Ids(Vec<u32>),
}

/// The field as sent; wrong types are kept as findings, so that they become field errors.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum PromptValue {
    /// A single prompt.
    One(Prompt),
    /// A list of prompts.
    Many(Vec<Prompt>),
    /// `[]`.
    Empty,
    /// Something else; the path inside the field, and what is wrong.
    Invalid(String, IdError),
}

/// What is wrong with an element of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IdError {
    /// Not a string, an integer or a list of integers.
    Type,
    /// A negative id.
    Negative,
    /// An id that no vocabulary has.
    TooLarge,
    /// A list without ids.
    EmptyList,
    /// Strings, ids and lists in one list.
    Mixed,
}

/// One element of the outer list.
enum Element {
    Text(String),
    Id(Result<u32, IdError>),
    Ids(Vec<u32>),
    Bad(String, IdError),
}

impl<'de> Deserialize<'de> for PromptValue {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Ok(match d.deserialize_any(ElementVisitor { outer: true })? {
            Parsed::Element(Element::Text(text)) => Self::One(Prompt::Text(text)),
            Parsed::Element(Element::Bad(path, error)) => Self::Invalid(path, error),
            Parsed::Element(_) => Self::Invalid(String::new(), IdError::Type),
            Parsed::List(list) => list,
        })
    }
}

enum Parsed {
    Element(Element),
    List(PromptValue),
}

struct ElementVisitor {
    outer: bool,
}

impl<'de> Visitor<'de> for ElementVisitor {
    type Value = Parsed;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a prompt")
    }

    fn visit_str<E>(self, value: &str) -> Result<Parsed, E> {
        Ok(Parsed::Element(Element::Text(value.into())))
    }

    fn visit_string<E>(self, value: String) -> Result<Parsed, E> {
        Ok(Parsed::Element(Element::Text(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Parsed, E> {
        let id = u32::try_from(value).map_err(|_| IdError::TooLarge);
        Ok(Parsed::Element(Element::Id(id)))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Parsed, E> {
        match u64::try_from(value) {
            Ok(value) => self.visit_u64(value),
            Err(_) => Ok(Parsed::Element(Element::Id(Err(IdError::Negative)))),
        }
    }

    fn visit_f64<E>(self, value: f64) -> Result<Parsed, E> {
        let id = if value.fract() != 0.0 {
            Err(IdError::Type)
        } else if value < 0.0 {
            Err(IdError::Negative)
        } else if value > f64::from(u32::MAX) {
            Err(IdError::TooLarge)
        } else {
            Ok(value as u32)
        };
        Ok(Parsed::Element(Element::Id(id)))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Parsed, E> {
        Ok(bad())
    }

    fn visit_unit<E>(self) -> Result<Parsed, E> {
        Ok(bad())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parsed, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(bad())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Parsed, A::Error> {
        if self.outer {
            outer_list(seq).map(Parsed::List)
        } else {
            inner_list(seq).map(Parsed::Element)
        }
    }
}

fn bad() -> Parsed {
    Parsed::Element(Element::Bad(String::new(), IdError::Type))
}

/// Lets an element inside the outer list be read with the same visitor.
struct Inner(Element);

impl<'de> Deserialize<'de> for Inner {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Ok(Self(
            match d.deserialize_any(ElementVisitor { outer: false })? {
                Parsed::Element(element) => element,
                Parsed::List(_) => Element::Bad(String::new(), IdError::Type),
            },
        ))
    }
}

fn inner_list<'de, A: SeqAccess<'de>>(mut seq: A) -> Result<Element, A::Error> {
    let mut ids = Vec::new();
    let mut error = None;
    while let Some(Inner(element)) = seq.next_element()? {
        match element {
            Element::Id(Ok(id)) if error.is_none() => ids.push(id),
            Element::Id(Err(e)) if error.is_none() => {
                error = Some(Element::Bad(format!("[{}]", ids.len()), e));
            }
            _ if error.is_none() => {
                error = Some(Element::Bad(format!("[{}]", ids.len()), IdError::Type));
            }
            _ => {}
        }
    }
    Ok(match error {
        Some(error) => error,
        None if ids.is_empty() => Element::Bad(String::new(), IdError::EmptyList),
        None => Element::Ids(ids),
    })
}

fn outer_list<'de, A: SeqAccess<'de>>(mut seq: A) -> Result<PromptValue, A::Error> {
    let mut ids = Vec::new();
    let mut prompts = Vec::new();
    let mut error = None;
    let mut index = 0usize;
    while let Some(Inner(element)) = seq.next_element()? {
        let path = format_args!("[{index}]").to_string();
        if error.is_none() {
            match element {
                Element::Id(_) if !prompts.is_empty() => error = Some((path, IdError::Mixed)),
                Element::Text(_) | Element::Ids(_) if !ids.is_empty() => {
                    error = Some((path, IdError::Mixed));
                }
                Element::Id(Ok(id)) => ids.push(id),
                Element::Id(Err(e)) => error = Some((path, e)),
                Element::Text(text) => prompts.push(Prompt::Text(text)),
                Element::Ids(list) => prompts.push(Prompt::Ids(list)),
                Element::Bad(inner, e) => error = Some((path + &inner, e)),
            }
        }
        index += 1;
    }
    Ok(match error {
        Some((path, error)) => PromptValue::Invalid(path, error),
        None if !ids.is_empty() => PromptValue::One(Prompt::Ids(ids)),
        None if prompts.is_empty() => PromptValue::Empty,
        None => PromptValue::Many(prompts),
    })
}
