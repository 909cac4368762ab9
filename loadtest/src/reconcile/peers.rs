//! The comparison with other servers, as far as they count: requests, tokens, and what R7 has of the
//! gaps. What a server does not say is not possible, never passed.

use super::{Checks, ClientCounts, Range, Reconciliation, Strength};
use crate::metric_map::ServerKind;
use crate::record::RequestRecord;
use crate::scrape::Delta;

impl Reconciliation {
    /// Compares all `records` of a run with what a server of `kind` counted meanwhile.
    pub fn of_peer(records: &[RequestRecord], delta: &Delta<'_>, kind: ServerKind) -> Self {
        let client = ClientCounts { records };
        let map = kind.map();
        let ended = client.tokens(|r| u64::from(r.outcome.is_success()));
        let finished = delta.first(map.finished);
        let not_exclusive = finished
            .zip(ended.high)
            .is_some_and(|(server, own)| server > own);
        // llama.cpp counts the prompt tokens that it computed, and has no count of answers by which
        // others could be told.
        let is_exact = kind != ServerKind::LlamaCpp && !not_exclusive;
        let mut checks = Checks {
            delta,
            exact: if is_exact {
                Strength::Exact
            } else {
                Strength::Soft
            },
            list: Vec::new(),
        };
        checks.add("R1", "answers that ended well", ended, finished);
        let prompt = client.tokens(RequestRecord::prompt_tokens);
        let prompt = match kind {
            ServerKind::LlamaCpp => Range {
                low: prompt.low - client.sum(RequestRecord::cached_tokens) as f64,
                ..prompt
            },
            _ => prompt,
        };
        checks.add(
            "R3",
            "prompt tokens",
            prompt,
            delta.first(map.prompt_tokens),
        );
        let output = client.tokens(RequestRecord::output_tokens);
        checks.add(
            "R4",
            "generated tokens",
            output,
            delta.first(map.generation_tokens),
        );
        let between = client.tokens(|r| r.output_tokens().saturating_sub(1));
        let gaps = map.itl.iter().find_map(|name| delta.count(name));
        checks.add_as(
            Strength::Soft,
            "R7",
            "tokens after the first (ITL count)",
            between,
            gaps,
        );
        let none = Range::exactly(0.0);
        for (names, what) in [
            (map.running, "still running"),
            (map.waiting, "still waiting"),
        ] {
            checks.add("R11", what, none, delta.after.first(names));
        }
        Self {
            checks: checks.list,
            not_exclusive,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use crate::outcome::Outcome;
    use crate::record::tests::{failure, success};
    use crate::scrape::Snapshot;

    fn compare(kind: ServerKind, records: &[RequestRecord], after: &str) -> Reconciliation {
        let zero = after
            .lines()
            .map(|line| format!("{} 0\n", line.rsplit_once(' ').unwrap().0));
        let before = Snapshot::parse(&zero.collect::<String>()).unwrap();
        let after = Snapshot::parse(after).unwrap();
        let delta = Delta {
            before: &before,
            after: &after,
        };
        Reconciliation::of_peer(records, &delta, kind)
    }

    fn records() -> Vec<RequestRecord> {
        (0..3).map(|i| success(i, i * 1000, 20, 4)).collect()
    }

    fn verdicts(result: &Reconciliation) -> Vec<(&str, Verdict)> {
        result.checks.iter().map(|c| (c.id, c.verdict)).collect()
    }

    const VLLM: &str = "vllm:request_success_total{finished_reason=\"length\"} 3\n\
        vllm:prompt_tokens_total 60\nvllm:generation_tokens_total 12\n\
        vllm:inter_token_latency_seconds_count 9\n\
        vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n";

    #[test]
    fn an_honest_peer_passes() {
        let tgi = "tgi_request_success 3\ntgi_request_input_length_sum 60\n\
            tgi_request_generated_tokens_sum 12\ntgi_batch_current_size 0\ntgi_queue_size 0\n";
        for (kind, text, possible) in [(ServerKind::Vllm, VLLM, 6), (ServerKind::Tgi, tgi, 5)] {
            let result = compare(kind, &records(), text);
            let passes = verdicts(&result)
                .iter()
                .filter(|(_, v)| *v == Verdict::Pass)
                .count();
            assert_eq!(passes, possible, "{kind:?}: {result:?}");
            assert!(!result.has_failed() && !result.not_exclusive);
        }
    }

    #[test]
    fn a_wrong_count_of_a_peer_fails_the_run() {
        for (count, wrong, id) in [
            ("length\"} 3", "length\"} 2", "R1"),
            ("prompt_tokens_total 60", "prompt_tokens_total 61", "R3"),
            (
                "generation_tokens_total 12",
                "generation_tokens_total 11",
                "R4",
            ),
            ("requests_running 0", "requests_running 1", "R11"),
        ] {
            let result = compare(ServerKind::Vllm, &records(), &VLLM.replace(count, wrong));
            let failed: Vec<_> = verdicts(&result)
                .into_iter()
                .filter(|(_, v)| *v == Verdict::Fail)
                .collect();
            assert_eq!(failed, [(id, Verdict::Fail)]);
        }
        let others = compare(
            ServerKind::Vllm,
            &records(),
            &VLLM.replace("length\"} 3", "length\"} 4"),
        );
        assert!(others.not_exclusive && !others.has_failed());
        let mut more = records();
        more.push(failure(3, 1, 500, Outcome::Http5xx));
        let open = compare(
            ServerKind::Vllm,
            &more,
            &VLLM.replace("_total 12", "_total 15"),
        );
        assert!(!open.has_failed(), "what a failure cost is not known");
    }

    #[test]
    fn what_llama_cpp_counts_is_soft_and_what_it_does_not_is_not_possible() {
        let text = "llamacpp:prompt_tokens_total 60\nllamacpp:tokens_predicted_total 13\n\
            llamacpp:requests_processing 0\nllamacpp:requests_deferred 0\n";
        let result = compare(ServerKind::LlamaCpp, &records(), text);
        assert_eq!(
            verdicts(&result),
            [
                ("R1", Verdict::NotPossible),
                ("R3", Verdict::Pass),
                ("R4", Verdict::Warn),
                ("R7", Verdict::NotPossible),
                ("R11", Verdict::Pass),
                ("R11", Verdict::Pass),
            ]
        );
    }
}
