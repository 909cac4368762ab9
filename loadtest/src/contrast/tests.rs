//! Expected figures are SciPy 1.17's: `stats.t.interval` and `stats.permutation_test` over the logarithms
//! (`permutation_type` "samples" for pairs, "independent" for groups, every arrangement), and
//! `stats.ttest_ind(equal_var=False)` with its degrees of freedom rounded down.

use super::*;

const SLOW: [f64; 6] = [100.0, 103.0, 98.0, 101.0, 99.0, 102.0];
const FAST: [f64; 6] = [184.0, 190.0, 181.0, 188.0, 179.0, 186.0];
const NOISY: [f64; 6] = [100.0, 120.0, 95.0, 108.0, 111.0, 99.0];
const NOISY_TOO: [f64; 6] = [104.0, 109.0, 101.0, 103.0, 116.0, 98.0];

fn check(found: Contrast, ratio: f64, low: f64, high: f64, p: f64, finding: Finding) {
    let interval = found.interval.expect("there are several runs");
    for (value, expected) in [
        (found.ratio, ratio),
        (interval.low, low),
        (interval.high, high),
    ] {
        assert!((value / expected - 1.0).abs() < 1e-6, "{value} {expected}");
    }
    assert!((found.p.unwrap() - p).abs() < 1e-9, "{:?} {p}", found.p);
    assert_eq!(found.finding, finding);
}

#[test]
fn pairs_agree_with_scipy() {
    let found = paired(&SLOW, &FAST).unwrap();
    check(
        found,
        1.837351706762,
        1.817629991063,
        1.857287407746,
        0.03125,
        Finding::Different,
    );
    let found = paired(&NOISY, &NOISY_TOO).unwrap();
    check(
        found,
        0.998472144574,
        0.936227958369,
        1.064854573695,
        0.9375,
        Finding::NotShown,
    );
}

#[test]
fn runs_without_pairs_agree_with_scipy() {
    let found = unpaired(&SLOW[..5], &FAST[..5]).unwrap();
    let p = 0.007936507936507936;
    check(
        found,
        1.840128713141,
        1.779851505146,
        1.902447294696,
        p,
        Finding::Different,
    );
    let found = unpaired(&NOISY[..3], &FAST[..3]).unwrap();
    check(
        found,
        1.77057794087,
        1.29719605246,
        2.416709670638,
        0.1,
        Finding::TooFew,
    );
}

#[test]
fn turning_the_sides_around_turns_the_ratio_around() {
    for compare in [paired, unpaired] {
        let (there, back) = (
            compare(&SLOW, &FAST).unwrap(),
            compare(&FAST, &SLOW).unwrap(),
        );
        assert!((there.ratio * back.ratio - 1.0).abs() < 1e-12);
        assert_eq!(there.finding, back.finding);
        assert_eq!(there.p, back.p);
    }
}

#[test]
fn the_same_within_three_percent_is_a_finding_and_a_wide_interval_is_none() {
    let nearly = SLOW.map(|v| v * 1.001);
    assert_eq!(
        paired(&SLOW, &SLOW.map(|v| v * 1.04)).unwrap().finding,
        Finding::Different
    );
    let mut mixed = nearly;
    mixed[0] = SLOW[0] * 0.999;
    assert_eq!(paired(&SLOW, &mixed).unwrap().finding, Finding::Same);
    assert_eq!(
        paired(&NOISY, &NOISY_TOO).unwrap().finding,
        Finding::NotShown
    );
}

#[test]
fn few_runs_show_nothing() {
    let one = unpaired(&[100.0], &[200.0]).unwrap();
    assert_eq!((one.interval, one.finding), (None, Finding::TooFew));
    assert_eq!(
        paired(&SLOW[..5], &FAST[..5]).unwrap().finding,
        Finding::TooFew
    );
    assert_eq!(
        unpaired(&SLOW[..4], &FAST).unwrap().finding,
        Finding::TooFew
    );
    assert_eq!(paired(&SLOW[..5], &FAST), None);
    for bad in [&[][..], &[0.0], &[f64::NAN], &[-1.0], &[f64::INFINITY]] {
        assert_eq!(unpaired(bad, &FAST), None);
        assert_eq!(unpaired(&FAST, bad), None);
    }
}

/// Twenty pairs are a million flips; beyond the bound there is no p, and the interval remains.
#[test]
fn many_runs_are_bounded() {
    let (many, more): (Vec<f64>, Vec<f64>) = (0..30).map(|i| (100.0 + f64::from(i), 150.0)).unzip();
    for found in [paired(&many, &more), unpaired(&many, &more)] {
        let found = found.unwrap();
        assert_eq!((found.p, found.finding), (None, Finding::Different));
    }
}

/// The smallest p there is: 2/2ⁿ of n pairs, 2 of the ways to choose of groups.
#[test]
fn the_smallest_p_is_that_of_the_design() {
    let rising: Vec<f64> = (0..6).map(|i| 200.0 + f64::from(i)).collect();
    for (n, p) in [(5, 0.0625), (6, 0.03125)] {
        assert_eq!(paired(&SLOW[..n], &rising[..n]).unwrap().p, Some(p));
    }
    for (n, ways) in [(3, 20.0), (4, 70.0), (5, 252.0)] {
        assert_eq!(
            unpaired(&SLOW[..n], &rising[..n]).unwrap().p,
            Some(2.0 / ways)
        );
    }
}

/// The example of R's `p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")`.
#[test]
fn holm_raises_and_keeps_the_order() {
    let mut ps = [Some(0.01), Some(0.04), None, Some(0.03), Some(0.005)];
    holm(&mut ps);
    let expected = [Some(0.03), Some(0.06), None, Some(0.06), Some(0.02)];
    for (found, expected) in ps.iter().zip(expected) {
        match (found, expected) {
            (Some(a), Some(b)) => assert!((a - b).abs() < 1e-12, "{a} {b}"),
            _ => assert_eq!(*found, expected),
        }
    }
    let mut high = [Some(0.9), Some(0.8)];
    holm(&mut high);
    assert_eq!(high, [Some(1.0), Some(1.0)]);
}
