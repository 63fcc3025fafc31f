//! The wiring against MAE's: every variable's rate and decay, the learning rate of every step.
use std::collections::{BTreeMap, HashMap};

use freezeout::Param;
use serde_json::Value;

use super::*;

fn golden(name: &str) -> String {
    let crates = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    std::fs::read_to_string(format!("{crates}/{name}")).unwrap()
}

fn config(more: &str) -> Config {
    let model = match more.contains("model = ") {
        true => "",
        false => "model = 'vit-base'",
    };
    let text = format!("data = 'shapes'\n{model}\n{more}");
    let flags = crate::settings::parse::<Config>(&text, "test").unwrap();
    Config::merge(flags, &crate::settings::Given::nothing()).unwrap()
}

/// Every name of the real ViT-B classifier, its rate and its decay.
#[test]
fn groups_are_maes() {
    type Setting = BTreeMap<String, (f64, f64)>;
    let text = golden("freezeout/tests/fixtures/param_groups_lrd_vit_b.json");
    let settings: HashMap<String, Setting> = serde_json::from_str(&text).unwrap();
    assert_eq!(settings.len(), 4);
    for (setting, want) in settings {
        let (pool, decay) = setting.split_once(",layer_decay=").unwrap();
        let pool = if pool.ends_with("True") {
            "avg"
        } else {
            "token"
        };
        let config = config(&format!("layer-decay = {decay}\npool = '{pool}'"));
        let encoder = scratch(&config, &Device::Cpu).unwrap();
        let model = with_head(encoder, 1000, &config).unwrap();
        let groups = groups(&config, model.cfg.depth + 1);
        let got: Setting = (model.tensors.iter())
            .map(|(name, tensor)| {
                let group = groups(&Param {
                    name,
                    layer: vit::layer_of(name),
                    dims: tensor.dims(),
                });
                let decay = config.training.weight_decay * group.weight_decay;
                (name.clone(), (group.lr_scale, decay))
            })
            .collect();
        let names = |s: &Setting| s.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&got), names(&want), "{setting}");
        for (name, (rate, decay)) in &want {
            assert!(
                (got[name].0 - rate).abs() < 1e-12,
                "{setting} {name}: {:?}",
                got[name]
            );
            assert_eq!(got[name].1, *decay, "{setting} {name}");
        }
    }
}

/// Warm-up and cosine per iteration, and the rate of a group.
#[test]
fn rates_of_all_steps_are_maes() {
    let text = golden("vitfreeze-cli/tests/fixtures/lr_sched_finetune.json");
    let want: Value = serde_json::from_str(&text).unwrap();
    let number = |key: &str| want[key].as_f64().unwrap();
    assert_eq!(number("lr_scale_of_group0"), 0.5);
    // 4000 batches an epoch: the golden's places are multiples of 1/4000 of an epoch.
    let config = config("accum = 1\nlr = 4e-3\nlayer-decay = 0.5");
    let training = &config.training;
    assert_eq!(
        [
            training.min_lr,
            training.epochs as f64,
            training.warmup_epochs as f64
        ],
        [number("min_lr"), number("epochs"), number("warmup_epochs")]
    );
    let schedule = config
        .freezing(
            training
                .schedule(&training.plan(4000, 1).unwrap(), 13)
                .unwrap(),
        )
        .unwrap();
    let group = groups(&config, 13)(&Param {
        name: "blocks.11.attn.qkv.weight",
        layer: Some(12),
        dims: &[2304, 768],
    });
    assert_eq!(group.lr_scale, 0.5);
    let rows = want["rows"].as_array().unwrap();
    for row in rows {
        let row: [f64; 3] = serde_json::from_value(row.clone()).unwrap();
        let step = (row[0] * 4000.0).round() as usize;
        assert!((step as f64 / 4000.0 - row[0]).abs() < 1e-9);
        let close = |got: f64, want: f64| assert!((got - want).abs() < 1e-12, "{row:?}: {got}");
        close(schedule.lr(step, None), row[1]);
        close(schedule.lr(step, Some(12)) * group.lr_scale, row[2]);
    }
    assert!(rows.len() > 30);
}

/// From the head down, a block more every half epoch.
#[test]
fn gradual_unfreezing_is_a_plan() {
    let config = config("freeze = 'gradual:0.5'\naccum = 1\nepochs = 8\nwarmup-epochs = 1");
    let schedule = config
        .freezing(
            config
                .training
                .schedule(&config.training.plan(10, 1).unwrap(), 13)
                .unwrap(),
        )
        .unwrap();
    let frozen = [0, 4, 5, 9, 10, 59, 60, 79].map(|step| schedule.frozen(step));
    assert_eq!(frozen, [12, 12, 11, 11, 10, 1, 0, 0]);
    assert!("gradual:0".parse::<config::Freezing>().is_err());
    assert!("cubik"
        .parse::<config::Freezing>()
        .unwrap_err()
        .contains("gradual:EPOCHS"));
}

/// timm's groups of swin_tiny_patch4_window7_224, from `group_parameters` with its own matcher; but its last norm is of the last
/// block's group there, of the head's here, as a ViT's.
#[test]
fn a_swins_groups_are_timms() {
    let config = config("model = 'swin-tiny'\nlayer-decay = 0.5\nimage-size = 32");
    let model = scratch(&config, &Device::Cpu).unwrap().pretrained;
    let groups = groups(&config, model.cfg.depth + 1);
    for (name, layer, decays) in [
        ("patch_embed.proj.weight", 0, 1.0),
        ("patch_embed.norm.weight", 0, 0.0),
        (
            "layers.0.blocks.0.attn.relative_position_bias_table",
            1,
            0.0,
        ),
        ("layers.0.blocks.1.attn.qkv.weight", 2, 1.0),
        ("layers.1.downsample.norm.weight", 3, 0.0),
        ("layers.1.downsample.reduction.weight", 3, 1.0),
        ("layers.1.blocks.0.norm1.weight", 3, 0.0),
        ("layers.2.downsample.norm.bias", 5, 0.0),
        ("layers.2.blocks.0.mlp.fc1.weight", 5, 1.0),
        ("layers.3.blocks.1.mlp.fc2.bias", 12, 0.0),
        ("norm.weight", 13, 0.0),
    ] {
        let group = groups(&Param {
            name,
            layer: model.cfg.layer_of(name),
            dims: model.tensors[name].dims(),
        });
        assert_eq!(group.lr_scale, 0.5f64.powi(13 - layer), "{name}");
        assert_eq!(group.weight_decay, decays, "{name}");
    }
}
