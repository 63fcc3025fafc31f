//! Images of other channels than RGB: each has targets of its own.
use candle_core::{DType, Device, Tensor};
use candle_nn::VarMap;
use localmim::{hog, LocalMim, LocalMimConfig, Masking, Stage};
use vit::ops::Compute;
use vit::VitConfig;

const CPU: Device = Device::Cpu;

fn images(channels: usize) -> Tensor {
    let value = |i: usize| ((i * 7919) % 1009) as f32 / 300.0 - 1.5;
    let data: Vec<f32> = (0..2 * channels * 256).map(value).collect();
    Tensor::from_vec(data, (2, channels, 16, 16), &CPU).unwrap()
}

/// The histograms of a channel are those that it has among two others, bit for bit.
#[test]
fn channels_do_not_see_each_other() {
    let all = images(5);
    let compute = Compute::default();
    let got = hog(&all, 9, 2, &[2, 4], &compute).unwrap();
    for (target, pool) in got.iter().zip([2, 4]) {
        assert_eq!(target.dims(), [2, (16 / pool) * (16 / pool), 45]);
    }
    for channel in 0..5 {
        let one = all.narrow(1, channel, 1).unwrap();
        let three = Tensor::cat(&[&one, &one, &one], 1).unwrap();
        for (alone, count) in [(one, 1), (three, 3)] {
            let alone = hog(&alone, 9, 2, &[2, 4], &compute).unwrap();
            for (all, alone) in got.iter().zip(alone) {
                let part = all.narrow(2, channel * 9, 9).unwrap();
                let last = alone.narrow(2, 9 * (count - 1), 9).unwrap();
                let numbers = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert_eq!(numbers(&part), numbers(&last), "{channel}");
            }
        }
    }
}

/// Two steps of gradients against central differences of the patch embedding's weight, which sees every channel.
#[test]
fn a_model_of_five_channels_learns_of_all() {
    let vit = VitConfig {
        image_size: 16,
        patch_size: 4,
        embed_dim: 24,
        num_heads: 3,
        depth: 2,
        in_chans: 5,
        ..VitConfig::default()
    };
    let stages = vec![Stage {
        block: 1,
        scale: 1.0,
    }];
    let cfg = LocalMimConfig {
        vit,
        stages,
        decoder_embed_dim: 16,
        decoder_depth: 1,
        decoder_num_heads: 2,
        target: localmim::Target::Hog,
        hog_bins: 9,
    };
    assert_eq!(cfg.outputs(&cfg.stages[0]), 45);
    let vars = VarMap::new();
    let model = LocalMim::new(&cfg, vit::seeded(&vars, 3, DType::F32, &CPU)).unwrap();
    let noise: Vec<f32> = (0..32).map(|i| ((i * 37) % 32) as f32).collect();
    let masking = Masking::from_noise(&noise, 16, 0.75).unwrap();
    let images = images(5);
    let loss = |model: &LocalMim| model.loss(&images, &masking).unwrap().total;
    let grads = loss(&model).backward().unwrap();
    let weight = vars.data().lock().unwrap()["patch_embed.proj.weight"].clone();
    assert_eq!(weight.dims(), [24, 5, 4, 4]);
    let grad = grads.get(&weight).unwrap();
    let numbers = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (grad, base) = (numbers(grad), numbers(&weight));
    for channel in 0..5 {
        let at = 7 * 5 * 16 + channel * 16 + 5;
        let moved = |delta: f32| {
            let mut values = base.clone();
            values[at] += delta;
            let values = Tensor::from_vec(values, (24, 5, 4, 4), &CPU).unwrap();
            weight.set(&values).unwrap();
            f64::from(loss(&model).to_scalar::<f32>().unwrap())
        };
        let numeric = (moved(0.03) - moved(-0.03)) / 0.06;
        moved(0.0);
        let error = (numeric - f64::from(grad[at])).abs();
        assert!(
            error < 2e-4 + 0.05 * numeric.abs(),
            "{channel}: {} not {numeric}",
            grad[at]
        );
    }
}
