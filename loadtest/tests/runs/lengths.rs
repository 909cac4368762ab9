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
