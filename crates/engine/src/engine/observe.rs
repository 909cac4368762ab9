//! What metrics show of steps and of the state between them.

use std::time::Duration;

use metrics::Phase;

use super::Engine;

impl Engine {
    pub(super) fn observe_step(&self, batch: &backend::Batch, duration: Duration) {
        let single = batch.sequences.iter().filter(|s| s.num_tokens == 1).count();
        let phase = match single {
            0 => Phase::Prefill,
            _ if single == batch.sequences.len() => Phase::Decode,
            _ => Phase::Mixed,
        };
        let labels = &[phase.as_str()];
        self.metrics
            .step_duration_seconds
            .with_label_values(labels)
            .observe(duration.as_secs_f64());
        self.metrics
            .step_tokens
            .with_label_values(labels)
            .observe(batch.num_tokens() as f64);
        self.metrics
            .step_batch_size
            .with_label_values(labels)
            .observe(batch.sequences.len() as f64);
        self.metrics.engine_steps_total.inc();
    }

    pub(super) fn observe_state(&mut self) {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let (blocks, counts) = (self.scheduler.blocks(), self.scheduler.counts);
        let total = self.model.info().num_blocks.max(1);
        self.metrics
            .requests_running
            .set(gauge(self.scheduler.num_running()));
        self.metrics
            .requests_waiting
            .set(gauge(self.scheduler.num_waiting()));
        self.metrics
            .kv_cache_blocks_used
            .set(gauge(blocks.num_used()));
        self.metrics
            .kv_cache_usage_ratio
            .set(blocks.num_used() as f64 / total as f64);
        let before = self.reported;
        self.metrics
            .preemptions_total
            .inc_by(counts.preemptions - before.preemptions);
        self.metrics
            .prefix_cache_queries_total
            .inc_by(counts.prefix_queries - before.prefix_queries);
        self.metrics
            .prefix_cache_hits_total
            .inc_by(counts.prefix_hits - before.prefix_hits);
        self.reported = counts;
    }
}
