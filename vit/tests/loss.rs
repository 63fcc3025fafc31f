//! The losses against PyTorch's (timm's) on the golden classifier, and their gradients against finite differences.
use candle_core::{safetensors, DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use vit::{cross_entropy, soft_target_cross_entropy, Pool, Vit, VitConfig};

const CPU: Device = Device::Cpu;

fn scalar(x: &Tensor) -> f64 {
    let x = x.flatten_all().unwrap().to_dtype(DType::F64).unwrap();
    x.to_vec1::<f64>().unwrap()[0]
}

/// Logits, both losses to 1e-5, and the gradients of the label-smoothed one.
#[test]
fn golden_vit_finetune() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/vit_finetune.safetensors"
    );
    let io = safetensors::load(path, &CPU).unwrap();
    let labels = io["labels"].to_dtype(DType::U32).unwrap();
    let labels: Vec<u32> = labels.to_vec1().unwrap();
    for (prefix, pool) in [("gp", Pool::Avg), ("cls", Pool::Token)] {
        let cfg = VitConfig {
            image_size: 64,
            embed_dim: 48,
            depth: 2,
            num_heads: 4,
            num_classes: 10,
            pool,
            fc_norm: pool == Pool::Avg,
            ..VitConfig::default()
        };
        let vars = candle_nn::VarMap::new();
        for (name, tensor) in &io {
            if let Some(name) = name.strip_prefix(&format!("{prefix}.model.")) {
                let var = Var::from_tensor(tensor).unwrap();
                vars.data().lock().unwrap().insert(name.into(), var);
            }
        }
        let model = Vit::new(&cfg, VarBuilder::from_varmap(&vars, DType::F32, &CPU)).unwrap();
        let logits = model.forward(&io["imgs"]).unwrap();
        let smoothed = cross_entropy(&logits, &labels, 0.1).unwrap();
        let want = scalar(&io[&format!("{prefix}.loss_label_smoothing_0.1")]);
        assert!((scalar(&smoothed) - want).abs() < 1e-5, "{prefix}: {want}");
        let soft = soft_target_cross_entropy(&logits, &io["soft_labels"]).unwrap();
        let want = scalar(&io[&format!("{prefix}.loss_soft_target")]);
        assert!((scalar(&soft) - want).abs() < 1e-5, "{prefix}: {want}");

        let grads = smoothed.backward().unwrap();
        for (name, want) in &io {
            let Some(name) = name.strip_prefix(&format!("{prefix}.grad.")) else {
                continue;
            };
            let var = vars.data().lock().unwrap()[name].clone();
            let error = (grads.get(&var).unwrap() - want).unwrap().abs().unwrap();
            let error = scalar(&error.max_all().unwrap());
            assert!(error < 1e-5, "{prefix}: gradient of {name} off by {error}");
        }
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let (batch, classes) = (3, 5);
    let start: Vec<f64> = (0..batch * classes)
        .map(|i| (i * 7 % 11) as f64 / 3.0 - 1.5)
        .collect();
    let targets: Vec<f64> = (0..batch * classes)
        .map(|i| (i * 5 % 7) as f64 / 15.0)
        .collect();
    let targets = Tensor::from_vec(targets, (batch, classes), &CPU).unwrap();
    type Loss = Box<dyn Fn(&Tensor) -> Tensor>;
    let losses: [(&str, Loss); 3] = [
        (
            "soft",
            Box::new(move |z| soft_target_cross_entropy(z, &targets).unwrap()),
        ),
        (
            "smoothed",
            Box::new(|z| cross_entropy(z, &[4, 0, 2], 0.3).unwrap()),
        ),
        (
            "plain",
            Box::new(|z| cross_entropy(z, &[1, 1, 3], 0.0).unwrap()),
        ),
    ];
    for (name, loss) in losses {
        let at = |values: Vec<f64>| Tensor::from_vec(values, (batch, classes), &CPU).unwrap();
        let var = Var::from_tensor(&at(start.clone())).unwrap();
        let grads = loss(&var).backward().unwrap();
        let grad = grads.get(&var).unwrap().flatten_all().unwrap();
        for (i, got) in grad.to_vec1::<f64>().unwrap().into_iter().enumerate() {
            let moved = |by: f64| {
                let mut values = start.clone();
                values[i] += by;
                scalar(&loss(&at(values)))
            };
            let want = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((got - want).abs() < 1e-8, "{name} {i}: {got}, not {want}");
        }
    }
}

#[test]
fn huge_logits_stay_finite_and_bad_input_is_refused() {
    let logits = Tensor::new(&[[1e30f32, 0.0], [-1e30, 0.0]], &CPU).unwrap();
    assert_eq!(scalar(&cross_entropy(&logits, &[0, 1], 0.0).unwrap()), 0.0);
    for (labels, smoothing, want) in [
        (&[0u32][..], 0.0, "1 labels for 2 images"),
        (&[0, 2], 0.0, "label 2, there are 2 classes"),
        (&[0, 1], 1.5, "smoothing 1.5"),
    ] {
        let error = cross_entropy(&logits, labels, smoothing).unwrap_err();
        assert!(error.to_string().contains(want), "{error}");
    }
    let other = Tensor::zeros((2, 3), DType::F32, &CPU).unwrap();
    let error = soft_target_cross_entropy(&logits, &other).unwrap_err();
    assert!(error.to_string().contains("targets [2, 3]"), "{error}");
}
