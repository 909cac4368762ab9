//! What is computed together: texts of about one length, from every request that waits.

/// One request's inputs, the longest last.
#[derive(Debug)]
pub(crate) struct Lengths {
    /// Length and position of what is still to be computed, ascending.
    remaining: Vec<(usize, usize)>,
}

/// What bounds a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Tokens, padding included; a single input may exceed it.
    pub tokens: usize,
    /// Texts of different lengths may be padded to one.
    pub pads: bool,
}

impl Lengths {
    pub fn new(lengths: impl Iterator<Item = usize>) -> Self {
        let mut remaining: Vec<_> = lengths.enumerate().map(|(i, len)| (len, i)).collect();
        remaining.sort_unstable();
        Self { remaining }
    }

    pub fn is_empty(&self) -> bool {
        self.remaining.is_empty()
    }
}

/// Takes the next batch out of the requests: led by the longest input of the first one, filled with inputs
/// of at least half that length, its own before those of others. Returns positions of requests and inputs.
pub(crate) fn take<'a>(
    requests: impl Iterator<Item = &'a mut Lengths>,
    bounds: Bounds,
) -> Vec<(usize, usize)> {
    let mut batch = Vec::new();
    let mut longest = 0;
    for (request, lengths) in requests.enumerate() {
        let remaining = &mut lengths.remaining;
        if batch.is_empty() {
            longest = remaining.last().map_or(0, |(len, _)| *len);
        }
        let shortest = if bounds.pads {
            longest.div_ceil(2)
        } else {
            longest
        };
        let mut end = remaining.partition_point(|(len, _)| *len <= longest);
        while end > 0 && remaining[end - 1].0 >= shortest {
            if !batch.is_empty() && longest * (batch.len() + 1) > bounds.tokens {
                return batch;
            }
            end -= 1;
            batch.push((request, remaining.remove(end).1));
        }
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(lengths: &[&[usize]]) -> Vec<Lengths> {
        lengths
            .iter()
            .map(|own| Lengths::new(own.iter().copied()))
            .collect()
    }

    /// Lengths of the batches taken until nothing is left, and the requests that led them.
    fn all(lengths: &[&[usize]], bounds: Bounds) -> Vec<Vec<usize>> {
        let mut requests = requests(lengths);
        let mut batches = Vec::new();
        while requests.iter().any(|request| !request.is_empty()) {
            let batch = take(requests.iter_mut(), bounds);
            assert!(!batch.is_empty());
            batches.push(batch.iter().map(|(r, i)| lengths[*r][*i]).collect());
        }
        batches
    }

    #[test]
    fn a_batch_holds_similar_lengths_within_its_tokens() {
        let bounds = Bounds {
            tokens: 32,
            pads: true,
        };
        assert_eq!(
            all(&[&[3, 16, 9, 4, 8, 40]], bounds),
            [vec![40], vec![16, 9], vec![8, 4], vec![3]]
        );
    }

    #[test]
    fn others_fill_up_what_the_first_request_leaves() {
        let bounds = Bounds {
            tokens: 32,
            pads: true,
        };
        let mut waiting = requests(&[&[8], &[20, 6], &[7, 5]]);
        assert_eq!(
            take(waiting.iter_mut(), bounds),
            [(0, 0), (1, 1), (2, 0), (2, 1)]
        );
        assert_eq!(take(waiting[1..].iter_mut(), bounds), [(0, 0)]);
        assert!(waiting.iter().all(Lengths::is_empty));
    }

    #[test]
    fn without_a_mask_only_equal_lengths_go_together() {
        let bounds = Bounds {
            tokens: 32,
            pads: false,
        };
        assert_eq!(
            all(&[&[5, 4, 5], &[5, 4]], bounds),
            [vec![5, 5, 5], vec![4, 4]]
        );
    }
}
