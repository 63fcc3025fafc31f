//! What the example under `mpirun` does not reach; `scripts/mpi_tests.sh` runs it on several ranks. One test: MPI can be
//! initialised once a process.
#![cfg(feature = "mpi")]
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use candle_nn::{Init, VarBuilder, VarMap};
use freezeout::distributed::{Communicator, Mpi};
use freezeout::{FreezeOut, Schedule};

#[test]
fn everything_over_mpi() {
    let mpi = Mpi::new(Duration::from_secs(60)).unwrap();
    let (rank, size) = (mpi.rank(), mpi.size());
    let told = std::env::var("OMPI_COMM_WORLD_SIZE").or(std::env::var("PMI_SIZE"));
    assert_eq!(size, told.map_or(1, |size| size.parse().unwrap()));
    assert!(mpi.local_rank() <= rank && (1..=size).contains(&mpi.local_size()));
    assert!(!mpi.library().is_empty());
    let error = Mpi::new(Duration::from_secs(60)).unwrap_err().to_string();
    assert!(error.contains("before"), "{error}");

    // More than a piece, and none.
    let sum = |of: &dyn Fn(usize) -> f32| (0..size).map(of).sum::<f32>();
    let value = |i: usize, rank: usize| (i % 1000 + rank) as f32;
    let mut values: Vec<f32> = (0..7_000_001).map(|i| value(i, rank)).collect();
    mpi.all_reduce(&mut values).unwrap();
    for (i, got) in values.iter().enumerate() {
        assert_eq!(*got, sum(&|rank| value(i, rank)));
    }
    mpi.all_reduce(&mut []).unwrap();
    let mut bytes: Vec<u8> = (0..30_000_001).map(|i| (i * (rank + 1)) as u8).collect();
    mpi.broadcast(&mut bytes, size - 1).unwrap();
    assert!(bytes
        .iter()
        .enumerate()
        .all(|(i, byte)| *byte == (i * size) as u8));
    assert!(mpi.broadcast(&mut bytes, size).is_err());
    mpi.barrier().unwrap();

    // Several under way, others between.
    let begun: Vec<_> = (1..4)
        .map(|i| mpi.begin(vec![(i * (rank + 1)) as f32; i * 1000]).unwrap())
        .collect();
    let mut count = [1.0, 2f64.powi(40) + 1.0];
    mpi.all_reduce_f64(&mut count).unwrap();
    assert_eq!(count, [size as f64, (2f64.powi(40) + 1.0) * size as f64]);
    for (i, begun) in (1..4).zip(begun) {
        let got = mpi.finish(begun).unwrap();
        assert_eq!(got, vec![sum(&|rank| (i * (rank + 1)) as f32); i * 1000]);
    }

    // Other sums while one is under way.
    let left = mpi.begin(vec![1.0; 1000]).unwrap();
    mpi.barrier().unwrap();
    let mut one = [1.0];
    mpi.all_reduce(&mut one).unwrap();
    assert_eq!(one, [size as f32]);
    assert_eq!(mpi.finish(left).unwrap(), vec![size as f32; 1000]);

    // Several buckets: 4, 28 and 24 MB, and 8 bytes.
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    for (i, len) in [1 << 20, 7 << 20, 6 << 20, 2].into_iter().enumerate() {
        vb.get_with_hints(len, &format!("{i}.w"), Init::Const(0.0))
            .unwrap();
    }
    let layer_of = |name: &str| name.split('.').next()?.parse().ok();
    let mut freeze = FreezeOut::new(&vars, Schedule::cubic(0.5, 4, 10), layer_of).unwrap();
    let mut grads = |odd: usize| {
        freeze.freeze_first(usize::from(rank == odd));
        let mut loss = Tensor::zeros((), DType::F32, &Device::Cpu).unwrap();
        for (name, _, var) in freeze.live() {
            let factor = (layer_of(name).unwrap() + 1 + 10 * rank) as f64;
            loss = (loss + (var.as_tensor() * factor).unwrap().sum_all()).unwrap();
        }
        freeze.backward(&loss).unwrap()
    };
    let mut same = grads(usize::MAX);
    let reduced = same.all_reduce(&mpi).unwrap();
    assert_eq!(
        reduced.bytes,
        if size == 1 { 0 } else { 4 * ((14 << 20) + 2) }
    );
    for (i, (_, grad)) in same.iter().enumerate() {
        let want = (i + 1) as f32 + 5.0 * (size - 1) as f32;
        assert!(grad
            .to_vec1::<f32>()
            .unwrap()
            .iter()
            .all(|got| *got == want));
    }
    if size > 1 {
        let error = grads(1).all_reduce(&mpi).unwrap_err().to_string();
        assert!(error.contains("rank 1 has 3"), "{error}");
    }
    // MPI ends with a sum under way.
    let _ = mpi.begin(vec![1.0; 10_000_000]).unwrap();
}
