//! Named random streams of one seed. Everything a run draws comes from here, so that a seed fixes
//! the workload and the arrivals whatever the order in which requests happen to run.
//! The generator is ChaCha8 with the seed expanded by `seed_from_u64` and one stream number per use;
//! its values are fixed by the algorithm.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// What a stream is drawn for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Gaps between arrivals of an open loop.
    Arrivals,
    /// Prompt and output length of request `index`.
    Lengths(u64),
    /// Words of the prompt of request `index`.
    Words(u64),
    /// Words of a later turn of a conversation, counted from one.
    Turn(u64, u32),
    /// Words that all conversations of a group begin with.
    Prefix(u64),
    /// Words of a block that several requests of a trace share.
    TraceBlock(u64),
    /// Order of the conversations of a dataset.
    Order,
    /// Words of the calibration prompt `index`.
    Calibration(u64),
    /// Blocks of a run that is drawn from itself.
    Bootstrap,
}

impl Stream {
    fn number(self) -> u64 {
        // Requests are numbered below 2^40; what is not a request has a high bit of its own.
        match self {
            Self::Arrivals => 0,
            Self::Order => 4,
            Self::Bootstrap => 8,
            Self::Lengths(index) => index * 4 + 1,
            Self::Words(index) => index * 4 + 2,
            Self::Turn(index, turn) => (index + (u64::from(turn) << 40)) * 4 + 2,
            Self::Prefix(group) => (group + (1 << 60)) * 4 + 2,
            Self::TraceBlock(id) => ((id & ((1 << 59) - 1)) + (1 << 59)) * 4 + 3,
            Self::Calibration(index) => index * 4 + 3,
        }
    }
}

/// A random stream.
pub struct Rng(ChaCha8Rng);

impl Rng {
    /// The stream `stream` of `seed`.
    pub fn new(seed: u64, stream: Stream) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream.number());
        Self(rng)
    }

    /// A uniform number in `[0, 1)` with 53 random bits.
    pub fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// A uniform integer below `bound`, which is at least one.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The high half of the product is uniform up to a bias of bound / 2^64.
        ((u128::from(self.0.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// An exponential number of mean one, by inversion.
    pub fn exponential(&mut self) -> f64 {
        -(1.0 - self.unit()).ln()
    }

    /// A gamma number of shape `k` and scale one. G. Marsaglia and W. W. Tsang, "A simple method for
    /// generating gamma variables", ACM Transactions on Mathematical Software 26 (2000); a shape below
    /// one takes a power of a uniform number from the shape above.
    pub fn gamma(&mut self, k: f64) -> f64 {
        if k < 1.0 {
            let lift = (1.0 - self.unit()).powf(1.0 / k);
            return self.gamma(k + 1.0) * lift;
        }
        let d = k - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            let u = 1.0 - self.unit();
            if v > 0.0 && u.ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v;
            }
        }
    }

    /// A standard normal number, by the Box-Muller transform.
    pub fn normal(&mut self) -> f64 {
        let radius = (2.0 * self.exponential()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_fixed_by_seed_and_purpose() {
        let draw = |seed, stream| {
            (0..8)
                .map(|_| 0)
                .scan(Rng::new(seed, stream), |rng, _| Some(rng.below(1 << 40)))
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(1, Stream::Words(3)), draw(1, Stream::Words(3)));
        assert_ne!(draw(1, Stream::Words(3)), draw(2, Stream::Words(3)));
        assert_ne!(draw(1, Stream::Words(3)), draw(1, Stream::Words(4)));
        let purposes = [
            Stream::Arrivals,
            Stream::Order,
            Stream::Lengths(0),
            Stream::Words(0),
            Stream::Turn(0, 1),
            Stream::Prefix(0),
            Stream::TraceBlock(0),
            Stream::Calibration(0),
        ];
        let distinct: std::collections::HashSet<u64> =
            purposes.into_iter().map(Stream::number).collect();
        assert_eq!(distinct.len(), purposes.len());
    }

    #[test]
    fn draws_stay_in_their_range_and_near_their_mean() {
        let mut rng = Rng::new(7, Stream::Arrivals);
        let n = 20_000;
        let exponential = (0..n).map(|_| rng.exponential()).sum::<f64>() / f64::from(n);
        assert!((exponential - 1.0).abs() < 0.05, "{exponential}");
        let normal: Vec<f64> = (0..n).map(|_| rng.normal()).collect();
        let mean = normal.iter().sum::<f64>() / f64::from(n);
        let variance = normal.iter().map(|x| x * x).sum::<f64>() / f64::from(n);
        assert!(
            mean.abs() < 0.05 && (variance - 1.0).abs() < 0.05,
            "{mean} {variance}"
        );
        assert!((0..n).all(|_| rng.below(3) < 3 && (0.0..1.0).contains(&rng.unit())));
    }
}
