//! Prompts whose length in tokens is exact: how many tokens the target makes of each word of the list, asked from its
//! tokenizer, so that words can be chosen until their tokens are as many as are wanted.
//!
//! It rests on tokenizers that split at spaces before anything else: tokens of a text are then those of its
//! words. Whoever makes a [`Vocabulary`] has to try whole prompts.

use std::collections::HashMap;

use crate::rng::Rng;

/// A word and its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word {
    /// The word.
    pub text: &'static str,
    /// Tokens of a prompt of this word alone, with what the template puts around it.
    pub alone: u32,
    /// Tokens that it adds to a prompt, with the space before it.
    pub more: u32,
}

/// Words with their tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    words: Vec<Word>,
    /// Those that add a single token.
    ones: Vec<Word>,
    /// The token of every word, where prompts are given as tokens.
    ids: HashMap<&'static str, u32>,
}

impl Vocabulary {
    /// None where no word adds a single token: then not every length can be reached.
    pub fn new(words: Vec<Word>) -> Option<Self> {
        let ones: Vec<Word> = words.iter().copied().filter(|w| w.more == 1).collect();
        let costs_something = words.iter().all(|w| w.more > 0 && w.alone > 0);
        let ids = HashMap::new();
        (costs_something && !ones.is_empty()).then_some(Self { words, ones, ids })
    }

    /// Words that are a token each, of prompts that are given as tokens: nothing is put around those.
    pub fn of_ids(ids: impl IntoIterator<Item = (&'static str, u32)>) -> Option<Self> {
        let ids: Vec<(&'static str, u32)> = ids.into_iter().collect();
        let word = |(text, _): &(&'static str, u32)| Word {
            text,
            alone: 1,
            more: 1,
        };
        let vocabulary = Self::new(ids.iter().map(word).collect())?;
        Some(Self {
            ids: ids.into_iter().collect(),
            ..vocabulary
        })
    }

    /// Whether prompts are given as tokens.
    pub fn has_ids(&self) -> bool {
        !self.ids.is_empty()
    }

    /// The tokens of a prompt; none where it has words that are not known, or is to be given as text.
    pub fn ids(&self, prompt: &str) -> Option<Vec<u32>> {
        let id = |word: &str| self.ids.get(word).copied();
        let known = !self.ids.is_empty();
        known.then(|| prompt.split_whitespace().map(id).collect())?
    }

    /// Tokens of a prompt of these words, none where it has others.
    pub fn tokens(&self, prompt: &str) -> Option<u32> {
        let mut words = prompt.split_whitespace();
        let first = self.find(words.next()?)?.alone;
        let rest = words.map(|word| Some(self.find(word)?.more));
        Some(first + rest.sum::<Option<u32>>()?)
    }

    fn find(&self, text: &str) -> Option<&Word> {
        self.words.iter().find(|word| word.text == text)
    }

    /// Words that make a prompt of `tokens` together with those `before` them. Where these are too many already it
    /// is nothing, and where a prompt of one word is, it is that one.
    pub fn fill(&self, rng: &mut Rng, before: &str, tokens: u32) -> String {
        if let Some(known) = self.tokens(before) {
            return self.more(rng, tokens.saturating_sub(known));
        }
        let first = self.draw(rng, &self.words);
        let rest = self.more(rng, tokens.saturating_sub(first.alone));
        join([first.text, &rest])
    }

    /// Words that add `tokens` to a prompt.
    pub fn more(&self, rng: &mut Rng, tokens: u32) -> String {
        let (mut left, mut words) = (tokens, Vec::new());
        while left > 0 {
            let mut word = self.draw(rng, &self.words);
            if word.more > left {
                word = self.draw(rng, &self.ones);
            }
            left -= word.more;
            words.push(word.text);
        }
        words.join(" ")
    }

    /// The beginning of a prompt that has no more than `tokens`.
    pub fn cut(&self, prompt: &str, tokens: u32) -> String {
        let mut kept = Vec::new();
        let mut total = 0;
        for word in prompt.split_whitespace().map_while(|word| self.find(word)) {
            total += if kept.is_empty() {
                word.alone
            } else {
                word.more
            };
            if total > tokens {
                break;
            }
            kept.push(word.text);
        }
        kept.join(" ")
    }

    fn draw<'a>(&self, rng: &mut Rng, words: &'a [Word]) -> &'a Word {
        &words[rng.below(words.len() as u64) as usize]
    }
}

/// Texts with a space between those that are not empty.
pub fn join<const N: usize>(parts: [&str; N]) -> String {
    let parts = parts.into_iter().filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    fn word(text: &'static str, alone: u32, more: u32) -> Word {
        Word { text, alone, more }
    }

    fn vocabulary() -> Vocabulary {
        let words = vec![
            word("one", 11, 1),
            word("two", 12, 2),
            word("three", 12, 3),
            word("of", 11, 1),
        ];
        Vocabulary::new(words).unwrap()
    }

    #[test]
    fn every_length_is_reached_exactly_whatever_the_words_cost() {
        let v = vocabulary();
        for seed in 0..50 {
            let mut rng = Rng::new(seed, Stream::Words(seed));
            for tokens in 12..60 {
                assert_eq!(v.tokens(&v.fill(&mut rng, "", tokens)), Some(tokens));
                let lead = v.cut("two three of one", tokens);
                let rest = v.fill(&mut rng, &lead, tokens);
                assert_eq!(v.tokens(&join([&lead, &rest])), Some(tokens), "{lead}");
                let more = v.more(&mut rng, tokens);
                let all = v.tokens(&join(["one", &more]));
                assert_eq!(all, Some(11 + tokens), "{more}");
            }
        }
    }

    #[test]
    fn words_with_a_token_each_make_prompts_of_tokens() {
        let v = Vocabulary::of_ids([("one", 7), ("of", 9)]).unwrap();
        assert_eq!(v.ids("of one of"), Some(vec![9, 7, 9]));
        assert_eq!(v.ids("of two"), None);
        let mut rng = Rng::new(1, Stream::Words(1));
        for tokens in 1..40 {
            let prompt = v.fill(&mut rng, "", tokens);
            assert_eq!(v.ids(&prompt).unwrap().len(), tokens as usize);
        }
        assert_eq!(vocabulary().ids("one of"), None, "given as text");
        assert_eq!(Vocabulary::of_ids([]), None);
    }

    #[test]
    fn what_cannot_be_is_as_short_as_it_can_be() {
        let v = vocabulary();
        let mut rng = Rng::new(1, Stream::Words(1));
        assert_eq!(v.fill(&mut rng, "", 3).split(' ').count(), 1);
        assert_eq!(v.fill(&mut rng, "one two", 3), "");
        assert_eq!(v.cut("one two", 10), "");
        assert_eq!(v.cut("one two three", 13), "one two");
        assert_eq!(v.cut("one strange three", 99), "one");
        assert_eq!((v.tokens(""), v.tokens("one strange")), (None, None));
        let two = vec![word("two", 12, 2)];
        assert_eq!(Vocabulary::new(two), None);
        assert_eq!(
            Vocabulary::new(vec![word("one", 3, 1), word("nil", 3, 0)]),
            None
        );
    }
}
