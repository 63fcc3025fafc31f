//! The schedule against the original's: 54 settings, every learning rate and every freeze iteration.
use candle_core::{safetensors, Device};
use freezeout::{LayerLr, Schedule, Spacing, Warmup};
use serde_json::Value;

fn fixture(name: &str) -> String {
    format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn all_54_settings_match() {
    let json: Value =
        serde_json::from_str(&std::fs::read_to_string(fixture("schedules.json")).unwrap()).unwrap();
    let rates = safetensors::load(fixture("schedules.safetensors"), &Device::Cpu).unwrap();
    let lr = rates["lr"].to_vec3::<f64>().unwrap();
    let global = rates["global_lr"].to_vec2::<f64>().unwrap();
    let number = |key: &str| json[key].as_u64().unwrap() as usize;
    let per_epoch = number("iterations_per_epoch");
    let iterations: Vec<usize> = serde_json::from_value(json["iterations"].clone()).unwrap();
    let settings = json["settings"].as_array().unwrap();
    assert_eq!(settings.len(), 54);
    let mut compared = 0;
    for (s, setting) in settings.iter().enumerate() {
        let schedule = Schedule {
            steps: number("epochs") * per_epoch,
            warmup_steps: number("warmup_epochs") * per_epoch,
            layers: number("num_of_layers") + 1,
            spacing: match setting["how_scale"].as_str().unwrap() {
                "linear" => Spacing::Linear,
                "squared" => Spacing::Squared,
                "cubic" => Spacing::Cubic,
                other => panic!("{other}"),
            },
            t0: setting["t_0"].as_f64().unwrap(),
            layer_lr: match setting["mode"].as_str().unwrap() {
                "layerwise_scaled" => LayerLr::Scaled,
                "layerwise_unscaled" => LayerLr::Unscaled,
                "non_layerwise" => LayerLr::Shared,
                other => panic!("{other}"),
            },
            warmup: Warmup::Common,
            lr: json["lr"].as_f64().unwrap(),
            min_lr: json["min_lr"].as_f64().unwrap(),
            ..Schedule::cubic(1.0, 1, 1)
        };
        let close = |got: f64, want: f64, what: String| {
            let error = (got - want).abs() / want.abs().max(1e-300);
            assert!(
                got == want || error <= 1e-12,
                "{setting}: {what} is {got}, not {want}"
            );
        };
        for (i, &iteration) in iterations.iter().enumerate() {
            close(
                schedule.lr(iteration, None),
                global[s][i],
                format!("global lr at {iteration}"),
            );
            for (layer, &want) in lr[s][i].iter().enumerate() {
                let what = format!("lr of layer {layer} at {iteration}");
                if want.is_nan() {
                    assert!(schedule.is_frozen(iteration, layer), "{setting}: {what}");
                } else {
                    assert!(!schedule.is_frozen(iteration, layer), "{setting}: {what}");
                    close(schedule.lr(iteration, Some(layer)), want, what);
                }
                compared += 1;
            }
        }
        for (layer, want) in setting["freeze_iteration"]
            .as_array()
            .unwrap()
            .iter()
            .enumerate()
        {
            let want = want.as_u64().map(|n| n as usize);
            assert_eq!(
                schedule.freeze_step(layer),
                want,
                "{setting}: layer {layer}"
            );
            if let Some(step) = want {
                assert!(!schedule.is_frozen(step - 1, layer) && schedule.is_frozen(step, layer));
            }
        }
    }
    assert_eq!(compared, 54 * 51 * 13);
}
