use super::*;

/// Scores of `scripts/knn_fixture.py`, brute force in numpy.
#[derive(serde::Deserialize)]
struct Fixture {
    width: usize,
    classes: usize,
    bank: Vec<f32>,
    bank_labels: Vec<u32>,
    queries: Vec<f32>,
    query_labels: Vec<u32>,
    /// (k, top-1, top-5) in images.
    right: Vec<(usize, usize, usize)>,
}

fn fixture() -> Fixture {
    serde_json::from_str(include_str!("../../../../tests/fixtures/knn.json")).unwrap()
}

fn bank(values: &[f32], labels: &[u32], width: usize) -> Bank {
    let mut bank = Bank::with_capacity(labels.len(), width);
    // In batches of 7, so that the last one is short.
    for (rows, labels) in values.chunks(7 * width).zip(labels.chunks(7)) {
        assert_eq!(bank.add(rows, labels), None);
    }
    bank
}

fn right(f: &Fixture, bank: &Bank, queries: &Bank) -> Vec<(usize, usize, usize)> {
    let mut out: Vec<_> = f.right.iter().map(|&(k, ..)| (k, 0, 0)).collect();
    bank.nearest(queries, 200, &Device::Cpu, |label, near, _| {
        assert!(near.is_sorted());
        for (k, top1, top5) in &mut out {
            let rank = vote(&near[..*k], bank.labels(), f.classes, 0.07, label);
            *top1 += usize::from(rank == Some(0));
            *top5 += usize::from(rank.is_some_and(|r| r < 5));
        }
    })
    .unwrap();
    out
}

#[test]
fn agrees_with_brute_force() {
    let f = fixture();
    let queries = bank(&f.queries, &f.query_labels, f.width);
    let straight = bank(&f.bank, &f.bank_labels, f.width);
    assert_eq!(right(&f, &straight, &queries), f.right);
    // The same features in another order.
    let count = f.bank_labels.len();
    let order = datasets::rng::permutation(&mut datasets::rng::rng(3, "test", 0, 0), count);
    let rows = order
        .iter()
        .flat_map(|&i| &f.bank[i * f.width..][..f.width]);
    let values: Vec<f32> = rows.copied().collect();
    let labels: Vec<u32> = order.iter().map(|&i| f.bank_labels[i]).collect();
    let shuffled = bank(&values, &labels, f.width);
    assert_eq!(right(&f, &shuffled, &queries), f.right);
}

#[test]
fn of_equals_the_first_is_nearer_across_blocks() {
    // More features than one block has, all the same but one.
    let count = FEATURES + 10;
    let mut values = vec![1.0; 2 * count];
    values[2 * (FEATURES + 4)] = 1.5;
    let all = bank(&values, &vec![0; count], 2);
    let query = bank(&[3.0, 2.0], &[0], 2);
    all.nearest(&query, 3, &Device::Cpu, |_, near, done| {
        let indices: Vec<u32> = near.iter().map(|n| n.index).collect();
        assert_eq!(indices, [FEATURES as u32 + 4, 0, 1]);
        assert_eq!(done, 1);
    })
    .unwrap();
}

#[test]
fn votes() {
    let near = |similarity, index| Neighbour { similarity, index };
    let neighbours = [near(0.9, 0), near(0.8, 1), near(0.8, 2)];
    let labels = [1, 0, 0];
    let rank = |label| vote(&neighbours, &labels, 3, 0.07, label);
    // exp(0.1 / 0.07) = 4.2 votes against two.
    assert_eq!([rank(0), rank(1), rank(2)], [Some(1), Some(0), None]);
    // Equal votes: the lower class.
    let rank = |label| vote(&neighbours[1..], &[0, 2, 1], 3, 0.07, label);
    assert_eq!([rank(1), rank(2)], [Some(0), Some(1)]);
}

#[test]
fn features_that_are_not_finite_are_found() {
    let mut bank = Bank::with_capacity(2, 2);
    assert_eq!(bank.add(&[0.0, 0.0, f32::NAN, 1.0], &[0, 1]), Some(1));
}
