//! The decision, as a function of times alone.

/// What another way must save in every round: less is noise, and a change nobody notices.
const MIN_SAVING: f64 = 0.02;

/// The middle of some times; NaN of none.
#[must_use]
pub fn median(times: &[f64]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Which of several ways is taken, by its times in the same rounds. The first is the table's: it stays unless
/// another saves 2 % of it in every round, of which the one with the smallest median wins, the earlier of two
/// alike. Ways without times, or with some that no clock can show, are left out; without times of the table's
/// the fastest of the others is taken, and without any the table's.
#[must_use]
pub fn pick(rounds: &[Vec<f64>]) -> usize {
    let is_valid = |times: &[f64]| {
        let is_time = |t: &f64| t.is_finite() && *t > 0.0;
        !times.is_empty() && times.iter().all(is_time)
    };
    let table = rounds.first().filter(|times| is_valid(times));
    let is_faster = |times: &[f64]| match table {
        Some(table) => {
            let saves = |(time, table): (&f64, &f64)| *time <= table * (1.0 - MIN_SAVING);
            times.len() == table.len() && times.iter().zip(table).all(saves)
        }
        None => true,
    };
    let others = rounds.iter().enumerate().skip(1);
    others
        .filter(|(_, times)| is_valid(times) && is_faster(times))
        .min_by(|(_, a), (_, b)| median(a).total_cmp(&median(b)))
        .map_or(0, |(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_stays_unless_another_way_is_faster_in_every_round() {
        const NAN: f64 = f64::NAN;
        const INF: f64 = f64::INFINITY;
        let cases: [(&str, &[&[f64]], usize); 17] = [
            ("nothing", &[], 0),
            ("only the table", &[&[10.0, 10.0, 10.0]], 0),
            ("a tie", &[&[10.0; 3], &[10.0; 3]], 0),
            ("faster", &[&[10.0; 3], &[8.0; 3]], 1),
            ("slower", &[&[10.0; 3], &[12.0; 3]], 0),
            (
                "the fastest of several",
                &[&[10.0; 3], &[9.0; 3], &[8.0; 3], &[8.5; 3]],
                2,
            ),
            ("others tie", &[&[10.0; 3], &[8.0; 3], &[8.0; 3]], 1),
            ("by less than noise", &[&[10.0; 3], &[9.9; 3]], 0),
            ("by just enough", &[&[10.0; 3], &[9.8; 3]], 1),
            (
                "in two rounds of three",
                &[&[10.0; 3], &[5.0, 5.0, 10.0]],
                0,
            ),
            (
                "rounds that all slow down",
                &[&[10.0, 20.0, 30.0], &[9.0, 18.0, 27.0]],
                1,
            ),
            (
                "noise wins once, another always",
                &[&[10.0; 3], &[2.0, 2.0, 11.0], &[9.0; 3]],
                2,
            ),
            ("a way without times", &[&[10.0; 3], &[], &[8.0; 3]], 2),
            ("fewer rounds", &[&[10.0; 3], &[8.0; 2]], 0),
            (
                "a time that is none",
                &[
                    &[10.0; 3],
                    &[NAN, 8.0, 8.0],
                    &[0.0; 3],
                    &[-1.0; 3],
                    &[INF; 3],
                ],
                0,
            ),
            (
                "no times of the table's",
                &[&[NAN; 3], &[9.0; 3], &[8.0; 3]],
                2,
            ),
            ("no times at all", &[&[0.0; 3], &[NAN; 3], &[]], 0),
        ];
        for (case, rounds, expected) in cases {
            let rounds: Vec<Vec<f64>> = rounds.iter().map(|times| times.to_vec()).collect();
            assert_eq!(pick(&rounds), expected, "{case}");
        }
    }

    #[test]
    fn one_slow_round_moves_no_median() {
        assert_eq!(median(&[1.0, 900.0, 2.0]), 2.0);
        assert!(median(&[]).is_nan());
    }
}
