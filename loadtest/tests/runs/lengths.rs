//! How long prompts are, by what the server says of them.

use crate::fake::{Behaviour, FakeServer, MetricsPage, Tokenizer};
use loadtest::repeat;
use loadtest::report::{LengthsBy, Report};

use crate::{config, measure};

async fn with(tokenizer: Tokenizer, line: &str) -> Report {
    let script = [Behaviour::Ok];
    let server = FakeServer::with_tokenizer(&script, MetricsPage::Honest, tokenizer).await;
    measure(&server, line).await
}

const LOADS: [&str; 4] = [
    "--prompt-tokens uniform:20..90",
    "--prompt-tokens uniform:20..90 --cache warm",
    "--prompt-tokens 30 --prefix-tokens 25 --prefix-groups 2",
    "--prompt-tokens uniform:20..90 --api completions",
];

#[tokio::test]
async fn a_tokenizer_that_can_be_asked_makes_lengths_exact() {
    for (tokenizer, line) in [Tokenizer::Vllm, Tokenizer::LlamaCpp]
        .into_iter()
        .flat_map(|t| LOADS.map(|line| (t, line)))
        // The fake's template of ten tokens is only rendered for messages.
        .filter(|(t, line)| *t == Tokenizer::Vllm || !line.contains("completions"))
    {
        let line = format!("--requests 20 --output-tokens 2 {line}");
        let report = with(tokenizer, &line).await;
        let lengths = &report.lengths;
        assert_eq!(report.load.lengths_by, Some(LengthsBy::Tokenizer), "{line}");
        let found = (lengths.prompts_as_asked, lengths.prompt_off_max);
        assert_eq!(found, (20, 0), "{tokenizer:?}, {line}: {lengths:?}");
    }
}

/// Words of one and of two tokens make lengths that are aimed at differ.
#[tokio::test]
async fn without_one_they_are_aimed_at_and_the_report_says_so() {
    for (tokenizer, line) in [
        (
            Tokenizer::Wrong,
            "--requests 20 --output-tokens 2 --prompt-tokens uniform:20..90",
        ),
        (
            Tokenizer::Wrong,
            "--requests 20 --output-tokens 2 --prompt-tokens 60 --tokens-per-word 1.2",
        ),
    ] {
        let report = with(tokenizer, line).await;
        let by = match line.contains("per-word") {
            true => LengthsBy::Flag,
            false => LengthsBy::Usage,
        };
        assert_eq!(report.load.lengths_by, Some(by));
        assert!(report.lengths.prompts_as_asked < 20, "{:?}", report.lengths);
        assert!(report.lengths.prompt_off_max > 0);
    }
    let hidden = with(Tokenizer::Hidden, "--requests 3 --output-tokens 2").await;
    assert_eq!(hidden.load.lengths_by, Some(LengthsBy::Usage));
    assert_eq!(hidden.lengths.prompts_as_asked, 3, "a token a word");
}

/// The words of an exact prompt are those that would be aimed at where every word is a token, so that two servers
/// of one model are asked the same whichever of them has a tokenizer to be asked.
#[tokio::test]
async fn a_vocabulary_of_single_tokens_changes_no_prompt() {
    let aimed = with(Tokenizer::Hidden, "--requests 3 --output-tokens 2").await;
    let exact = with(Tokenizer::Single, "--requests 3 --output-tokens 2").await;
    assert_eq!(exact.load.lengths_by, Some(LengthsBy::Tokenizer));
    assert_eq!(aimed.load.workload_sha256, exact.load.workload_sha256);
}

/// One side's tokenizer would choose words by their tokens, the other's does not answer.
#[tokio::test]
async fn sides_of_a_comparison_get_the_same_prompts() {
    let script = [Behaviour::Ok];
    let one = FakeServer::with_tokenizer(&script, MetricsPage::Honest, Tokenizer::Vllm).await;
    let two = FakeServer::with_tokenizer(&script, MetricsPage::Honest, Tokenizer::Wrong).await;
    let folder = tempfile::tempdir().unwrap();
    let line = "--requests 3 --output-tokens 2 --no-self-test --results unused";
    let sides = [("one", &one), ("two", &two)].map(|(name, server)| {
        let mut side = config(server, line);
        side.name = Some(name.to_owned());
        side
    });
    let (_, reports) = repeat::run(&sides, 1, folder.path(), |_| ()).await.unwrap();
    let digests = [&reports[0], &reports[1]].map(|report| &report.load.workload_sha256);
    assert_eq!(digests[0], digests[1]);
    assert!(
        reports
            .iter()
            .all(|r| r.load.lengths_by == Some(LengthsBy::Usage))
    );
}

/// A prompt of token ids has as many as were asked by construction, template or not, and the answer says so.
#[tokio::test]
async fn completions_get_token_ids_where_every_word_is_one() {
    let script = [Behaviour::Ok];
    let line = "--api completions --requests 40 --output-tokens 2 --prompt-tokens uniform:1..60";
    let server = FakeServer::with_tokenizer(&script, MetricsPage::Honest, Tokenizer::Single).await;
    let report = measure(&server, line).await;
    assert_eq!(report.load.lengths_by, Some(LengthsBy::TokenIds));
    assert_eq!(
        (
            report.lengths.prompts_as_asked,
            report.lengths.prompt_off_max
        ),
        (40, 0)
    );
    let shortest = |b: &serde_json::Value| b["prompt"].as_array().unwrap().len();
    assert!(server.bodies().iter().map(shortest).min().unwrap() < 10);
    // A target that puts one before them gets text, and so does a conversation.
    let other = with(Tokenizer::SingleWithBegin, line).await;
    assert_eq!(other.load.lengths_by, Some(LengthsBy::Tokenizer));
    let talk = with(Tokenizer::Single, &format!("{line} --turns 2")).await;
    assert_eq!(talk.load.lengths_by, Some(LengthsBy::Tokenizer));
}

/// The fake's answers are a word for each token; only the first answers of the window are looked at.
#[tokio::test]
async fn some_answers_are_made_tokens_again_and_nothing_rests_on_it() {
    let line = "--requests 40 --warmup 3 --output-tokens 5";
    let report = with(Tokenizer::Single, line).await;
    let again = report.lengths.retokenised.unwrap();
    assert_eq!(
        (again.answers, again.by_usage, again.of_text),
        (32, 160, 160)
    );
    assert_eq!(report.lengths.output_mean, Some(5.0));
    let kept = report.records.iter().filter(|r| r.text.is_some()).count();
    assert_eq!(kept, 32);
    assert!(
        with(Tokenizer::Hidden, line)
            .await
            .lengths
            .retokenised
            .is_none()
    );
}

#[tokio::test]
async fn a_field_that_is_refused_is_left_out_and_listed() {
    let line = "--requests 3 --output-tokens 2 --ignore-eos";
    let strict = with(Tokenizer::Strict, line).await;
    assert_eq!(strict.requests.succeeded, 3, "{:?}", strict.outcomes);
    assert_eq!(strict.load.dropped_fields, ["ignore_eos"]);
    let other = with(Tokenizer::Hidden, line).await;
    assert!(other.load.dropped_fields.is_empty() && other.load.ignore_eos);
}
