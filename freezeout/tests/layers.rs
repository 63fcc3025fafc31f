//! Layers from names: helpers, inference, and every mistake named.
use candle_core::{DType, Device};
use candle_nn::{VarBuilder, VarMap};
use freezeout::{Error, FreezeOut, Layers, Schedule};

fn vars(names: &[&str]) -> VarMap {
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    for name in names {
        vb.get((2, 2), name).unwrap();
    }
    vars
}

fn vit(depth: usize) -> VarMap {
    let mut names = vec![
        "cls_token".to_owned(),
        "pos_embed".to_owned(),
        "patch_embed.proj.weight".to_owned(),
        "norm.weight".to_owned(),
        "head.weight".to_owned(),
    ];
    for i in 0..depth {
        names.push(format!("blocks.{i}.attn.qkv.weight"));
        names.push(format!("blocks.{i}.mlp.fc1.weight"));
    }
    vars(&names.iter().map(String::as_str).collect::<Vec<_>>())
}

fn error(layers: Result<Layers, Error>) -> String {
    layers.unwrap_err().to_string()
}

#[test]
fn described_layers() {
    let vars = vit(12);
    let layers = Layers::of(&vars)
        .layer(&["patch_embed", "cls_token", "pos_embed"])
        .blocks("blocks.{i}")
        .leave_out(&["norm", "head"])
        .build()
        .unwrap();
    assert_eq!(layers.len(), 13);
    assert_eq!(layers.layer_of("cls_token"), Some(0));
    // blocks.1 does not take blocks.10.
    assert_eq!(layers.layer_of("blocks.1.mlp.fc1.weight"), Some(2));
    assert_eq!(layers.layer_of("blocks.10.mlp.fc1.weight"), Some(11));
    assert_eq!(layers.layer_of("head.weight"), None);
    assert_eq!(layers.label(11), Some("blocks.10"));
    let table = layers.to_string();
    assert!(
        table.contains("   11          2           8  blocks.10"),
        "{table}"
    );
    assert!(table.contains("in no layer: trains to the end"), "{table}");
    let schedule = Schedule::cubic(0.8, 13, 100);
    let mut freeze = FreezeOut::with_layers(&vars, schedule, &layers).unwrap();
    freeze.freeze_first(13);
    let live: Vec<&str> = freeze.live().map(|(name, ..)| name).collect();
    assert_eq!(live, ["head.weight", "norm.weight"]);
}

#[test]
fn every_mistake_is_named() {
    let vars = vit(2);
    let of = || Layers::of(&vars).layer(&["patch_embed", "cls_token", "pos_embed"]);
    let text = error(of().blocks("blocks.{i}").leave_out(&["norm"]).build());
    assert!(
        text.contains("1 variable(s) in no layer: head.weight"),
        "{text}"
    );
    let text = error(of().blocks("block.{i}").build());
    assert!(
        text.contains("'block.{i}' fits no variable") && text.contains("blocks.0"),
        "{text}"
    );
    let text = error(of().blocks("blocks").build());
    assert!(text.contains("'blocks' has no {i}"), "{text}");
    let text = error(of().layer(&["stem"]).build());
    assert!(text.contains("prefix 'stem' fits no variable"), "{text}");
    let text = error(
        of().layer(&["blocks"])
            .layer(&["blocks.1"])
            .leave_out(&["norm", "head"])
            .build(),
    );
    assert!(text.contains("fits both 'blocks' and 'blocks.1'"), "{text}");

    let new = |layers, layer_of: fn(&str) -> Option<usize>| {
        FreezeOut::new(&vars, Schedule::cubic(0.8, layers, 100), layer_of)
            .err()
            .map(|e| e.to_string())
    };
    let block = |name: &str| name.split('.').nth(1)?.parse::<usize>().ok();
    assert_eq!(new(2, block), None);
    let text = new(1, block).unwrap();
    assert!(
        text.contains("blocks.1.attn.qkv.weight, blocks.1.mlp.fc1.weight"),
        "{text}"
    );
    let text = new(3, block).unwrap();
    assert!(
        text.contains("layers [2] hold no variable") && text.contains("patch_embed.proj"),
        "{text}"
    );
    let text = new(2, |name| {
        Some(1 - name.split('.').nth(1)?.parse::<usize>().ok()?)
    })
    .unwrap();
    assert!(
        text.contains("'blocks.1.attn.qkv.weight' is in layer 0, before"),
        "{text}"
    );
    // Said with Layers, that order is meant.
    let backwards = Layers::of(&vars)
        .layer(&["blocks.1"])
        .layer(&["blocks.0"])
        .leave_out(&["patch_embed", "cls_token", "pos_embed", "norm", "head"])
        .build()
        .unwrap();
    FreezeOut::with_layers(&vars, Schedule::cubic(0.8, 2, 100), &backwards).unwrap();
    let wrong = FreezeOut::with_layers(&vars, Schedule::cubic(0.8, 3, 100), &backwards);
    assert!(wrong
        .err()
        .unwrap()
        .to_string()
        .contains("there are 2 layers, the schedule has 3"));
    VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu)
        .get(2, "late")
        .unwrap();
    let late = FreezeOut::with_layers(&vars, Schedule::cubic(0.8, 2, 100), &backwards);
    assert!(late
        .err()
        .unwrap()
        .to_string()
        .contains("'late' was made after"));
}

fn inferred(names: &[&str]) -> Vec<(String, Option<usize>)> {
    let vars = vars(names);
    let layers = Layers::infer(&vars).unwrap();
    let layer = |name: &&str| ((*name).to_owned(), layers.layer_of(name));
    names.iter().map(layer).collect()
}

fn expect(pairs: &[(&str, Option<usize>)]) {
    let names: Vec<&str> = pairs.iter().map(|(name, _)| *name).collect();
    let want: Vec<(String, Option<usize>)> =
        pairs.iter().map(|(n, l)| ((*n).to_owned(), *l)).collect();
    assert_eq!(inferred(&names), want);
}

#[test]
fn layers_are_inferred() {
    // BERT.
    expect(&[
        ("bert.embeddings.word_embeddings.weight", Some(0)),
        ("bert.encoder.layer.0.attention.self.query.weight", Some(1)),
        ("bert.encoder.layer.0.output.dense.weight", Some(1)),
        ("bert.encoder.layer.2.output.dense.weight", Some(2)),
        ("bert.encoder.layer.10.output.dense.weight", Some(3)),
        ("bert.pooler.dense.weight", None),
        ("classifier.weight", None),
    ]);
    // ResNet.
    expect(&[
        ("conv1.weight", Some(0)),
        ("bn1.weight", Some(0)),
        ("bn1.running_mean", None),
        ("layer1.0.conv1.weight", Some(1)),
        ("layer1.1.conv1.weight", Some(2)),
        ("layer2.0.conv1.weight", Some(3)),
        ("layer2.0.downsample.0.weight", Some(3)),
        ("fc.weight", None),
    ]);
    // A masked autoencoder: the decoder is not the trunk.
    expect(&[
        ("cls_token", Some(0)),
        ("patch_embed.proj.weight", Some(0)),
        ("blocks.0.a", Some(1)),
        ("blocks.1.a", Some(2)),
        ("blocks.2.a", Some(3)),
        ("mask_token", None),
        ("decoder_embed.weight", None),
        ("decoder_blocks.0.a", None),
    ]);
    // An MLP.
    expect(&[
        ("fc1.weight", Some(0)),
        ("fc2.weight", Some(1)),
        ("fc10.weight", Some(2)),
        ("out.weight", None),
    ]);
    // OPT: the decoder is the trunk.
    expect(&[
        ("model.decoder.embed_tokens.weight", Some(0)),
        ("model.decoder.layers.0.fc1.weight", Some(1)),
        ("model.decoder.layers.1.fc1.weight", Some(2)),
        ("lm_head.weight", None),
    ]);
    // Encoder and decoder, or classifier larger than the features: said, not guessed.
    for names in [
        [
            "encoder.block.0.a",
            "encoder.block.1.a",
            "decoder.block.0.a",
            "decoder.block.0.b",
            "decoder.block.1.a",
        ],
        [
            "features.0.a",
            "features.2.a",
            "features.4.a",
            "classifier.0.a",
            "classifier.3.a",
        ],
    ] {
        let text = error(Layers::infer(&vars(&names)));
        assert!(text.contains("could be the trunk"), "{text}");
    }
    let text = error(Layers::infer(&vars(&["a.weight", "b.weight"])));
    assert!(
        text.contains("none of the 2 variables (a.weight, b.weight)"),
        "{text}"
    );
}
