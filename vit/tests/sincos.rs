//! The fixed position tables against the original's.
use candle_core::{safetensors, Device};

#[test]
fn tables_match() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/sincos.safetensors"
    );
    let goldens = safetensors::load(path, &Device::Cpu).unwrap();
    for (name, dim) in [("pos_32_4_cls", 32), ("pos_48_4_cls", 48)] {
        let ours = vit::sincos_2d(dim, (4, 4), &Device::Cpu)
            .unwrap()
            .squeeze(0)
            .unwrap();
        let ours = ours.to_vec2::<f32>().unwrap();
        let want = goldens[name].to_vec2::<f32>().unwrap();
        for (a, b) in ours.iter().flatten().zip(want.iter().flatten()) {
            assert!((a - b).abs() < 1e-7, "{name}: {a}, not {b}");
        }
        assert_eq!(ours.len(), want.len());
    }
}
