//! The loader's promises: same bytes always, any start, bad images replaced, no hangs.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use datasets::rng::{permutation, rng};
use datasets::{
    Batch, Error, Image, Loader, LoaderConfig, Normalize, OnBad, Permit, PretrainTransform, Shapes,
    Source, Transform,
};

const CONFIG: LoaderConfig = LoaderConfig {
    batch_size: 4,
    seed: 7,
    threads: 2,
    prefetch: 2,
    shuffle: true,
    repeats: 1,
    keep_last: false,
    on_bad: OnBad::Replace,
    rank: 0,
    ranks: 1,
};

/// `len` small images, of which some cannot be read.
#[derive(Default)]
struct Fake {
    len: usize,
    bad: BTreeSet<usize>,
    panics: BTreeSet<usize>,
    /// Images that were read, good or bad.
    reads: AtomicUsize,
}

impl Source for Fake {
    fn len(&self) -> usize {
        self.len
    }
    fn classes(&self) -> &[String] {
        &[]
    }
    fn label(&self, index: usize) -> usize {
        index + 1000
    }
    fn read(&self, index: usize, _: &mut Permit) -> Result<Image, Error> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        assert!(!self.panics.contains(&index), "image {index} is cursed");
        if self.bad.contains(&index) {
            return Err(Error::Image {
                name: self.name(index),
                reason: "unreadable".into(),
            });
        }
        Ok(Image {
            width: 9,
            height: 7,
            rgb: (0..189).map(|i| (i + index) as u8).collect(),
        })
    }
    fn name(&self, index: usize) -> String {
        format!("fake #{index}")
    }
    fn describe(&self) -> String {
        "fakes".into()
    }
}

fn fake(len: usize, bad: &[usize]) -> Arc<Fake> {
    Arc::new(Fake {
        len,
        bad: bad.iter().copied().collect(),
        ..Fake::default()
    })
}

fn loader(source: Arc<dyn Source>, config: LoaderConfig) -> Loader {
    Loader::new(source, PretrainTransform::imagenet(8), config).unwrap()
}

fn take(loader: &Loader, epoch: usize, batch: usize, n: usize) -> Vec<Batch> {
    loader
        .stream(epoch, batch)
        .take(n)
        .map(Result::unwrap)
        .collect()
}

#[test]
fn threads_and_prefetch_change_nothing() {
    let shapes: Arc<dyn Source> = Arc::new(Shapes::new(0, 16, 30));
    let with = |threads, prefetch| {
        let loader = loader(
            Arc::clone(&shapes),
            LoaderConfig {
                threads,
                prefetch,
                ..CONFIG
            },
        );
        take(&loader, 0, 0, 16)
    };
    let one = with(1, 0);
    assert_eq!(one[0].images.len(), 4 * 3 * 8 * 8);
    assert!(with(2, 1) == one && with(7, 5) == one);
}

#[test]
fn a_stream_can_begin_anywhere() {
    let loader = loader(Arc::new(Shapes::new(0, 16, 30)), CONFIG);
    let all = take(&loader, 0, 0, 16);
    assert_eq!(loader.batches_per_epoch(), 7);
    let places: Vec<(usize, usize)> = all.iter().map(|b| (b.epoch, b.batch)).collect();
    assert_eq!(places[5..9], [(0, 5), (0, 6), (1, 0), (1, 1)]);
    for (i, batch) in all.iter().enumerate() {
        assert_eq!(&take(&loader, batch.epoch, batch.batch, 1)[0], batch);
        // Counting on in the first epoch leads to the same place.
        assert_eq!(&take(&loader, 0, i, 1)[0], batch);
    }
}

/// Each batch is that of a loader whose images always had its size, wherever the stream begins, with any threads.
#[test]
fn images_may_grow_from_a_batch_on() {
    let shapes: Arc<dyn Source> = Arc::new(Shapes::new(0, 16, 30));
    let of = |size: usize, threads: usize| {
        let config = LoaderConfig { threads, ..CONFIG };
        let transform = PretrainTransform::imagenet(size);
        Loader::new(Arc::clone(&shapes), transform, config).unwrap()
    };
    let growing = |threads| {
        let next = PretrainTransform::imagenet;
        let loader = of(4, threads).then((0, 5), next(8)).unwrap();
        loader.then((1, 0), next(12)).unwrap()
    };
    let sizes = [(4, 0..5), (8, 5..7), (12, 7..12)];
    let want: Vec<Batch> = sizes
        .into_iter()
        .flat_map(|(size, batches)| take(&of(size, 1), 0, batches.start, batches.len()))
        .collect();
    assert_eq!(want[11].images.len(), 4 * 3 * 12 * 12);
    for threads in [1, 2, 5] {
        let loader = growing(threads);
        for start in [0, 4, 5, 6, 7, 11] {
            assert!(take(&loader, 0, start, 12 - start) == want[start..]);
        }
    }
    // Memory of small batches is filled with large ones.
    let loader = growing(2);
    let mut stream = loader.stream(0, 0);
    for want in &want {
        let batch = stream.next().unwrap().unwrap();
        assert!(batch == *want);
        stream.recycle(batch.images);
    }
    for from in [(0, 0), (1, 0), (0, 9), (2, 7)] {
        let again = growing(1).then(from, PretrainTransform::imagenet(16));
        let error = again.err().unwrap().to_string();
        assert!(error.contains("behind epoch 1, batch 0"), "{error}");
    }
    let begun = growing(1);
    let _stream = begun.stream(0, 0);
    let late = begun.then((3, 0), PretrainTransform::imagenet(16));
    assert!(late.err().unwrap().to_string().contains("has begun"));
}

#[test]
fn the_order_is_the_permutation_of_the_epoch() {
    let loader = loader(fake(30, &[]), CONFIG);
    for epoch in 0..2 {
        let batches = take(&loader, epoch, 0, 7);
        let indices: Vec<usize> = batches
            .iter()
            .flat_map(|b| b.indices.iter().map(|&i| i as usize))
            .collect();
        let order = permutation(&mut rng(7, "shuffle", epoch as u64, 0), 30);
        assert_eq!(indices, order[..28]);
        let labels = batches
            .iter()
            .flat_map(|b| b.labels.iter().map(|&l| l as usize - 1000));
        assert!(labels.eq(indices));
    }
}

#[test]
fn an_image_is_augmented_by_its_own_generator() {
    let source = fake(30, &[]);
    let batch = &take(&loader(source.clone(), CONFIG), 3, 2, 1)[0];
    let transform = PretrainTransform::imagenet(8);
    for (image, &index) in batch.images.chunks_exact(3 * 8 * 8).zip(&batch.indices) {
        let mut out = vec![0.0; 3 * 8 * 8];
        let from = source.image(index as usize).unwrap();
        transform
            .draw(&from, &mut rng(7, "augment", 3, index))
            .and_then(|d| d.write(&transform.normalize, &mut out))
            .unwrap();
        assert_eq!(image, out);
    }
}

#[test]
fn a_bad_image_is_replaced_by_the_next() {
    let whole = loader(fake(400, &[]), CONFIG);
    for threads in [1, 3] {
        let loader = loader(
            fake(400, &[17, 18, 399]),
            LoaderConfig { threads, ..CONFIG },
        );
        let mut replaced = 0;
        for (with, without) in take(&loader, 0, 0, 200).iter().zip(take(&whole, 0, 0, 200)) {
            for (&with, &without) in with.indices.iter().zip(&without.indices) {
                let expected = match without {
                    17 | 18 => 19,
                    399 => 0,
                    good => good,
                };
                assert_eq!(with, expected);
                replaced += usize::from(with != without);
            }
        }
        // Two epochs, but each bad image is listed once.
        assert_eq!(replaced, 6);
        let names: Vec<String> = loader.skipped().into_iter().map(|s| s.name).collect();
        assert_eq!(names, ["fake #17", "fake #18", "fake #399"]);
        assert_eq!(loader.skipped()[0].reason, "unreadable");
        assert_eq!(loader.skipped_count(), loader.skipped().len());
    }
}

#[test]
fn a_bad_image_is_left_out_of_an_evaluation() {
    for threads in [1, 3] {
        let config = LoaderConfig {
            threads,
            shuffle: false,
            keep_last: true,
            on_bad: OnBad::LeaveOut,
            ..CONFIG
        };
        // The middle of a batch, a whole batch, the last image of all.
        let loader = loader(fake(14, &[2, 4, 5, 6, 7, 13]), config);
        let batches = take(&loader, 0, 0, loader.batches_per_epoch());
        let seen: Vec<Vec<u64>> = batches.iter().map(|b| b.indices.clone()).collect();
        assert_eq!(seen, [vec![0, 1, 3], vec![], vec![8, 9, 10, 11], vec![12]]);
        for batch in &batches {
            let labels: Vec<u32> = batch.indices.iter().map(|&i| i as u32 + 1000).collect();
            assert_eq!(batch.labels, labels);
            assert_eq!(batch.images.len(), labels.len() * 3 * 8 * 8);
        }
        let skipped: Vec<usize> = loader.skipped().iter().map(|s| s.index).collect();
        assert_eq!(skipped, [2, 4, 5, 6, 7, 13]);
    }
    // Eleven of twelve are more than one in a hundred and ten.
    let config = LoaderConfig {
        on_bad: OnBad::LeaveOut,
        ..CONFIG
    };
    let bad: Vec<usize> = (0..11).collect();
    let mut batches = loader(fake(12, &bad), config).stream(0, 0);
    let error = batches.find_map(Result::err).unwrap();
    assert!(matches!(error, Error::TooManyBad { .. }), "{error}");
}

#[test]
fn more_than_one_bad_image_in_a_hundred_ends_the_stream() {
    let last = |bad: &[usize]| {
        let mut batches = loader(fake(400, bad), CONFIG).stream(0, 0);
        let error = batches.by_ref().take(100).find_map(Result::err);
        assert!(error.is_none() || batches.next().is_none());
        error.map(|e| e.to_string())
    };
    assert_eq!(last(&[1, 2, 3, 4]), None);
    let message = last(&[1, 2, 3, 4, 5]).unwrap();
    assert_eq!(
        message,
        "5 of 400 images cannot be read, more than 1 %; repair the dataset. First: fake #1: unreadable; \
         fake #2: unreadable; fake #3: unreadable; and 2 more"
    );
    let all: Vec<usize> = (0..400).collect();
    assert!(last(&all).unwrap().starts_with("5 of 400"));
}

#[test]
fn a_panic_is_an_error_and_not_a_hang() {
    let source = Fake {
        len: 40,
        panics: [5].into(),
        ..Fake::default()
    };
    let loader = loader(Arc::new(source), CONFIG);
    let error = loader.stream(0, 0).take(10).find_map(Result::err).unwrap();
    assert_eq!(
        error.to_string(),
        "panic in a loader thread at fake #5: image 5 is cursed; this is a bug"
    );
}

#[test]
fn dropping_a_stream_stops_its_threads() {
    let source = fake(100_000, &[]);
    let config = LoaderConfig {
        batch_size: 1000,
        prefetch: 50,
        threads: 3,
        ..CONFIG
    };
    let loader = loader(source.clone(), config);
    drop(loader.stream(0, 0));
    let mut batches = loader.stream(0, 0);
    batches.next().unwrap().unwrap();
    drop(batches);
    let reads = source.reads.load(Ordering::Relaxed);
    assert!(reads < 100_000);
    // Threads are joined: loader and test alone still hold the source, and nothing more is read.
    assert_eq!(Arc::strong_count(&source), 2);
    drop(loader);
    assert_eq!(Arc::strong_count(&source), 1);
    assert_eq!(source.reads.load(Ordering::Relaxed), reads);
}

#[test]
fn a_stream_outlives_its_loader() {
    let mut batches = loader(fake(40, &[]), CONFIG).stream(0, 0);
    assert!(batches.nth(30).unwrap().is_ok());
}

#[test]
fn work_ahead_is_bounded() {
    let source = fake(1000, &[]);
    let loader = loader(
        source.clone(),
        LoaderConfig {
            prefetch: 3,
            ..CONFIG
        },
    );
    let mut batches = loader.stream(0, 0);
    batches.next().unwrap().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(source.reads.load(Ordering::Relaxed) <= (1 + 3) * 4);
}

#[test]
fn impossible_settings_are_explained() {
    let error = |config, transform| {
        Loader::new(fake(10, &[]), transform, config)
            .err()
            .unwrap()
            .to_string()
    };
    let good = PretrainTransform::imagenet(8);
    let of_three = LoaderConfig {
        batch_size: 4,
        ranks: 3,
        ..CONFIG
    };
    assert_eq!(
        error(of_three, good),
        "batch size 4 of each of 3 processes is larger than the dataset of 10 images; choose a batch size of at most 3"
    );
    assert_eq!(
        error(
            LoaderConfig {
                batch_size: 16,
                ..CONFIG
            },
            good
        ),
        "batch size 16 is larger than the dataset of 10 images; choose a batch size of at most 10"
    );
    assert_eq!(
        error(
            LoaderConfig {
                threads: 0,
                ..CONFIG
            },
            good
        ),
        "loader threads 0; expected at least 1"
    );
    assert_eq!(
        error(
            LoaderConfig {
                batch_size: 0,
                ..CONFIG
            },
            good
        ),
        "batch size 0; expected at least 1"
    );
    assert!(error(
        LoaderConfig {
            prefetch: 5000,
            ..CONFIG
        },
        good
    )
    .contains("at most 1024"));
    for bad in [
        PretrainTransform { size: 0, ..good },
        PretrainTransform {
            scale: (0.0, 1.0),
            ..good
        },
        PretrainTransform {
            scale: (0.5, 1.5),
            ..good
        },
        PretrainTransform {
            ratio: (2.0, 1.0),
            ..good
        },
        PretrainTransform {
            ratio: (f64::NAN, 1.0),
            ..good
        },
        PretrainTransform {
            normalize: Normalize {
                std: [0.0; 3],
                ..good.normalize
            },
            ..good
        },
    ] {
        assert!(error(CONFIG, bad).contains("expected"));
    }
}

fn indices(batches: &[Batch]) -> Vec<u64> {
    batches.iter().flat_map(|b| b.indices.clone()).collect()
}

#[test]
fn an_evaluation_sees_each_image_once_in_order() {
    let config = LoaderConfig {
        shuffle: false,
        keep_last: true,
        ..CONFIG
    };
    let loader = loader(fake(30, &[]), config);
    assert_eq!(loader.batches_per_epoch(), 8);
    let batches = take(&loader, 0, 0, 9);
    assert_eq!(indices(&batches[..8]), (0..30).collect::<Vec<_>>());
    assert_eq!(
        (batches[7].labels.len(), batches[7].images.len()),
        (2, 2 * 192)
    );
    assert_eq!((batches[8].epoch, batches[8].batch), (1, 0));
    assert_eq!(&take(&loader, 0, 7, 1)[0], &batches[7]);
}

/// The batches of so many processes: for each, five from the start.
fn of_ranks(ranks: usize, batch_size: usize, keep_last: bool) -> Vec<Vec<Batch>> {
    let batches = |rank| {
        let config = LoaderConfig {
            batch_size,
            rank,
            ranks,
            keep_last,
            ..CONFIG
        };
        take(&loader(fake(31, &[]), config), 0, 0, 5)
    };
    (0..ranks).map(batches).collect()
}

#[test]
fn ranks_share_the_batch_of_one_process() {
    for (keep_last, ranks, batch_size) in [
        (false, 3, 4),
        (true, 3, 4),
        (false, 2, 6),
        (false, 4, 3),
        (true, 4, 3),
        (true, 2, 5),
    ] {
        let one = &of_ranks(1, ranks * batch_size, keep_last)[0];
        let parts = of_ranks(ranks, batch_size, keep_last);
        for (b, whole) in one.iter().enumerate() {
            let mut places = Vec::new();
            for part in &parts {
                let part = &part[b];
                assert_eq!((part.epoch, part.batch), (whole.epoch, whole.batch));
                let mut last = None;
                for (i, index) in part.indices.iter().enumerate() {
                    let place = whole.indices.iter().position(|w| w == index).unwrap();
                    assert!(last < Some(place), "in order");
                    let image = |batch: &Batch, i: usize| batch.images[i * 192..][..192].to_vec();
                    assert_eq!(image(part, i), image(whole, place));
                    places.push(place);
                    last = Some(place);
                }
            }
            places.sort_unstable();
            let all: Vec<usize> = (0..whole.labels.len()).collect();
            assert_eq!(places, all, "each image in one rank");
        }
    }
    // Nothing may be left out, and no rank has more than the others, while batches are whole.
    for parts in [of_ranks(3, 4, false), of_ranks(4, 3, false)] {
        let sizes = parts.iter().flatten().map(|batch| batch.labels.len());
        assert!(sizes.into_iter().all(|n| n == parts[0][0].labels.len()));
    }
}

/// Mixup mixes the first image with the last: they are in one process.
#[test]
fn ranks_mix_as_one_process_does() {
    let mixup = datasets::Mixup::imagenet(2048);
    let whole = of_ranks(1, 12, false).remove(0);
    for ranks in [2, 3] {
        let parts = of_ranks(ranks, 12 / ranks, false);
        for (b, whole) in whole.iter().enumerate() {
            let mut whole = whole.clone();
            let targets = mixup.apply(&mut whole, (8, 8), 3).unwrap();
            for part in &parts {
                let mut part = part[b].clone();
                let mine = mixup.apply(&mut part, (8, 8), 3).unwrap();
                for (i, index) in part.indices.iter().enumerate() {
                    let place = whole.indices.iter().position(|w| w == index).unwrap();
                    assert_eq!(
                        part.images[i * 192..][..192],
                        whole.images[place * 192..][..192]
                    );
                    assert_eq!(mine[i * 2048..][..2048], targets[place * 2048..][..2048]);
                }
            }
        }
    }
}

#[test]
fn a_rank_may_have_nothing() {
    // Nothing may be left for a rank.
    let config = LoaderConfig {
        batch_size: 2,
        rank: 2,
        ranks: 3,
        keep_last: true,
        ..CONFIG
    };
    assert!(take(&loader(fake(8, &[]), config), 0, 1, 1)[0]
        .images
        .is_empty());
}

#[test]
fn repeated_images_are_augmented_anew() {
    let with = |threads| {
        let config = LoaderConfig {
            repeats: 3,
            threads,
            ..CONFIG
        };
        take(&loader(fake(30, &[]), config), 0, 0, 8)
    };
    let batches = with(1);
    assert_eq!(batches, with(7));
    let order = permutation(&mut rng(7, "shuffle", 0, 0), 30);
    let expected: Vec<u64> = (0..28).map(|p| order[p / 3] as u64).collect();
    assert_eq!(indices(&batches[..7]), expected);
    let images: Vec<&[f32]> = batches
        .iter()
        .flat_map(|b| b.images.chunks_exact(192))
        .collect();
    assert!(images[0] != images[1] && images[1] != images[2] && images[0] != images[2]);
    // The first of them is the one that comes without repetition.
    let plain = take(&loader(fake(30, &[]), CONFIG), 0, 0, 1);
    assert_eq!(images[0], &plain[0].images[..192]);
}

#[test]
fn returned_memory_is_used_again() {
    let loader = loader(
        fake(30, &[]),
        LoaderConfig {
            threads: 1,
            prefetch: 0,
            ..CONFIG
        },
    );
    let expected = take(&loader, 0, 0, 12);
    let mut batches = loader.stream(0, 0);
    let mut places = BTreeSet::new();
    for expected in expected {
        let batch = batches.next().unwrap().unwrap();
        assert_eq!(batch, expected);
        places.insert(batch.images.as_ptr() as usize);
        batches.recycle(batch.images);
    }
    assert_eq!(places.len(), 1);
}
