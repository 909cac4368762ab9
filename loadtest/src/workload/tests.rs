use super::*;
use crate::dataset::Dataset;
use crate::lengths::Lengths;

fn workload() -> Workload {
    Workload {
        api: Api::Chat,
        model: "m".into(),
        seed: 5,
        contents: vec![Content {
            ignore_eos: true,
            ..Content::words(Lengths::Uniform { min: 10, max: 40 }, Lengths::Fixed(8))
        }],
        trace: None,
        tokens_per_word: TokensPerWord {
            per_word: 1.0,
            overhead: 0.0,
        },
        vocabulary: None,
        temperature: 0.0,
        nonce: None,
    }
}

fn json(body: &Bytes) -> Value {
    serde_json::from_slice(body).unwrap()
}

#[test]
fn the_word_list_is_what_it_says() {
    let distinct: std::collections::HashSet<&&str> = WORDS.iter().collect();
    assert_eq!((WORDS.len(), distinct.len()), (256, 256));
    assert!(
        WORDS
            .iter()
            .all(|w| w.bytes().all(|b| b.is_ascii_lowercase()))
    );
}

#[test]
fn a_chat_body() {
    let request = workload().request(3);
    let body = json(&request.body);
    let content = body["messages"][0]["content"].as_str().unwrap();
    assert_eq!(content.split(' ').count(), request.prompt_tokens as usize);
    assert_eq!(body["max_tokens"], 8);
    assert_eq!(body["ignore_eos"], true);
    assert_eq!(body["stream"], true);
    assert_eq!(body["stream_options"]["include_usage"], true);
    assert!(body.get("seed").is_none() && body.get("prompt").is_none());
}

#[test]
fn a_completions_body_with_sampling() {
    let mut workload = Workload {
        api: Api::Completions,
        temperature: 0.7,
        ..workload()
    };
    workload.contents[0].ignore_eos = false;
    let body = json(&workload.request(3).body);
    assert!(body["prompt"].is_string() && body.get("messages").is_none());
    assert_eq!(body["seed"], 8);
    assert!(body.get("ignore_eos").is_none());
}

#[test]
fn requests_are_a_function_of_seed_and_number() {
    let (a, b) = (
        workload(),
        Workload {
            seed: 6,
            ..workload()
        },
    );
    assert_eq!(a.request(7), a.request(7));
    assert_ne!(a.request(7).body, a.request(8).body);
    assert_ne!(a.request(7).body, b.request(7).body);
    assert_eq!(a.digest(20), workload().digest(20));
    assert_ne!(a.digest(20), b.digest(20));
    assert_ne!(a.digest(20), a.digest(19));
}

#[test]
fn a_nonce_goes_first_and_leaves_length_and_digest_alone() {
    let plain = Workload {
        contents: vec![Content::words(Lengths::Fixed(20), Lengths::Fixed(8))],
        ..workload()
    };
    let cold = Workload {
        nonce: Some(Nonce::Run("a b c d e f".into())),
        ..plain.clone()
    };
    let content = |w: &Workload| {
        json(&w.request(0).body)["messages"][0]["content"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert!(content(&cold).starts_with("a b c d e f "));
    assert_eq!(
        content(&cold).split(' ').count(),
        content(&plain).split(' ').count()
    );
    assert_eq!(cold.digest(5), plain.digest(5));
    assert_eq!(
        Nonce::of_this_run(false).words(3).split(' ').count(),
        NONCE_WORDS as usize
    );
}

#[test]
fn words_follow_the_calibration() {
    let estimate = TokensPerWord {
        per_word: 1.5,
        overhead: 30.0,
    };
    assert_eq!(
        [180, 31, 1].map(|tokens| estimate.words(tokens)),
        [100, 1, 1]
    );
}

fn messages(request: &PlannedRequest) -> Vec<(String, String)> {
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let message = |m: &Value| (text(&m["role"]), text(&m["content"]));
    let body = json(&request.body);
    body["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(message)
        .collect()
}

#[test]
fn a_later_turn_holds_what_was_said_before() {
    let mut w = workload();
    w.contents[0].turns = Lengths::Fixed(3);
    w.contents[0].think = "uniform:1s..2s".parse().unwrap();
    let conversation = w.conversation(4);
    assert_eq!(conversation.turns.len(), 3);
    let first = w.planned(&conversation, &[]);
    // The first turn is that of the run without conversations.
    assert_eq!(first, workload().request(4));
    let third = w.planned(&conversation, &["a1".into(), "a2".into()]);
    let said = messages(&third);
    let roles: Vec<&str> = said.iter().map(|(role, _)| role.as_str()).collect();
    assert_eq!(roles, ["user", "assistant", "user", "assistant", "user"]);
    assert_eq!((said[1].1.as_str(), said[3].1.as_str()), ("a1", "a2"));
    assert_eq!(said[0], messages(&first)[0]);
    let asked: u32 = conversation.turns.iter().map(|t| t.prompt_tokens).sum();
    assert_eq!(third.prompt_tokens, asked + 2 * 8);
    assert!(conversation.turns.iter().all(|t| t.think >= 1_000_000_000));
    assert_ne!(w.digest(5), workload().digest(5));
}

#[test]
fn groups_share_their_beginning_and_nothing_else() {
    let mut w = workload();
    w.contents[0].prefix = Some(Prefix {
        tokens: 30,
        groups: 2,
    });
    w.nonce = Some(Nonce::Run("a b c d e f".into()));
    let texts: Vec<Vec<String>> = (0..20)
        .map(|n| w.conversation(n).turns.remove(0).text)
        .map(|text| text.split(' ').map(str::to_owned).collect())
        .collect();
    assert!(texts.iter().all(|t| t[..6].join(" ") == "a b c d e f"));
    let beginnings: std::collections::HashSet<&[String]> =
        texts.iter().map(|t| &t[6..36]).collect();
    assert_eq!(beginnings.len(), 2);
    let tails: std::collections::HashSet<&[String]> = texts.iter().map(|t| &t[36..]).collect();
    assert_eq!(tails.len(), 20);
    for (n, text) in (0..).zip(&texts) {
        assert_eq!(text.len(), w.request(n).prompt_tokens as usize);
    }
}

#[test]
fn a_mix_keeps_its_weights() {
    let content = |weight, tokens| Content {
        weight,
        ..Content::words(Lengths::Fixed(tokens), Lengths::Fixed(1))
    };
    let w = Workload {
        contents: vec![content(3.0, 5), content(1.0, 6)],
        ..workload()
    };
    let of_second = (0..2000)
        .filter(|n| w.conversation(*n).content == 1)
        .count();
    assert!((440..560).contains(&of_second), "{of_second}");
}

fn dataset() -> Arc<Dataset> {
    let text = r#"{"messages": [
        {"role": "user", "content": "q one"}, {"role": "assistant", "content": "a one two"},
        {"role": "user", "content": "q two"}, {"role": "assistant", "content": "a"}]}"#
        .replace('\n', " ");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    Arc::new(Dataset::read(file.path(), None).unwrap())
}

#[test]
fn a_dataset_brings_its_own_questions_and_lengths() {
    let mut w = workload();
    w.contents[0].prompts = Prompts::Dataset(dataset());
    w.contents[0].output = None;
    w.contents[0].turns = Lengths::Fixed(9);
    w.nonce = Some(Nonce::Run("n".into()));
    let conversation = w.conversation(0);
    let outputs: Vec<u32> = conversation.turns.iter().map(|t| t.output_tokens).collect();
    assert_eq!(outputs, [3, 1]);
    let second = |w: &Workload| messages(&w.planned(&conversation, &["said".into()]));
    assert_eq!(second(&w)[0].1, "n q one");
    assert_eq!(second(&w)[1].1, "said");
    w.contents[0].replays_recorded = true;
    assert_eq!(second(&w)[1].1, "a one two");
}

#[test]
fn a_trace_brings_its_lengths_and_the_blocks_that_it_shares() {
    let request = |prompt_tokens, blocks: &[u64]| TraceRequest {
        at: 0,
        prompt_tokens,
        output_tokens: 3,
        blocks: blocks.to_vec(),
    };
    let trace = Trace {
        requests: vec![
            request(600, &[1, 2]),
            request(700, &[1, 3]),
            request(40, &[]),
        ],
        ..Trace::default()
    };
    let w = Workload {
        trace: Some(Arc::new(trace)),
        ..workload()
    };
    let texts: Vec<Vec<String>> = (0..3)
        .map(|n| w.conversation(n).turns.remove(0).text)
        .map(|text| text.split(' ').map(str::to_owned).collect())
        .collect();
    assert_eq!(
        texts.iter().map(Vec::len).collect::<Vec<_>>(),
        [600, 700, 40]
    );
    assert_eq!(texts[0][..512], texts[1][..512]);
    assert_ne!(texts[0][512..600], texts[1][512..600]);
}

/// Under `shared` the conversations of a group have their beginning in common, with each other and with no other.
#[test]
fn a_nonce_per_group_keeps_groups_apart() {
    let mut w = workload();
    w.contents[0].prefix = Some(Prefix {
        tokens: 30,
        groups: 2,
    });
    let beginnings = |w: &Workload| {
        let begin = |n| {
            let text = &w.conversation(n).turns[0].text;
            let words: Vec<&str> = text.split(' ').take(8).collect();
            words.join(" ")
        };
        (0..40)
            .map(begin)
            .collect::<std::collections::BTreeSet<String>>()
    };
    let plain = beginnings(&w);
    w.nonce = Some(Nonce::Group(7));
    let digest = w.digest(9);
    let first = beginnings(&w);
    w.nonce = Some(Nonce::Group(8));
    let second = beginnings(&w);
    assert_eq!((plain.len(), first.len(), second.len()), (2, 2, 2));
    assert!(first.is_disjoint(&second) && first.is_disjoint(&plain));
    assert_eq!(w.digest(9), digest);
    // Two groups do not even begin with the same words, as they do under one nonce.
    let words: Vec<&str> = first.iter().map(|t| &t[..12]).collect();
    assert_ne!(words[0], words[1]);
    w.contents[0].prefix = None;
    assert_eq!(
        beginnings(&w).len(),
        40,
        "alone, each is a group of its own"
    );
}
