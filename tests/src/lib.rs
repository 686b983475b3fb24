//! Shared helpers of the end-to-end and parity tests, which live in `tests/`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

/// The repository's root, of the checkout that Cargo runs: checkouts that share a build folder also share binaries,
/// whose compiled-in path may be another's.
pub fn root() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package
        .parent()
        .expect("a package of the workspace has a parent")
        .to_owned()
}

/// A committed fixture.
pub fn fixture(path: &str) -> PathBuf {
    root().join("tests/fixtures").join(path)
}

/// A file or folder next to the checkout that is not part of the repository. `None`, with the reason
/// printed, where it is absent.
pub fn shared(path: &str) -> Option<PathBuf> {
    let found = root().parent()?.join("shared").join(path);
    if found.exists() {
        return Some(found);
    }
    eprintln!("skipped: ../shared/{path} is not there");
    None
}

/// Tensors of a safetensors file as (shape, values); integers become floats.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Reads every f32 and i64 tensor of a file.
pub fn read_tensors(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    file.tensors()
        .into_iter()
        .map(|(name, view)| {
            let values = match view.dtype() {
                Dtype::F32 => view
                    .data()
                    .chunks_exact(4)
                    .map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes")))
                    .collect(),
                Dtype::I64 => view
                    .data()
                    .chunks_exact(8)
                    .map(|b| i64::from_le_bytes(b.try_into().expect("8 bytes")) as f32)
                    .collect(),
                other => panic!("{name}: unexpected type {other:?}"),
            };
            (name, (view.shape().to_vec(), values))
        })
        .collect()
}

/// Largest absolute difference, relative to the largest expected magnitude.
///
/// # Panics
/// Panics if the lengths differ.
pub fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len(), "number of values");
    let scale = expected
        .iter()
        .fold(0.0f64, |m, v| m.max(f64::from(v.abs())))
        .max(1e-30);
    let worst = found.iter().zip(expected).fold(0.0f64, |m, (a, b)| {
        m.max((f64::from(*a) - f64::from(*b)).abs())
    });
    worst / scale
}

/// Fails unless `found` is within `tolerance` of `expected` ([`relative_error`]).
///
/// # Panics
/// Panics with the name and the error if it is not.
pub fn assert_close(name: &str, found: &[f32], expected: &[f32], tolerance: f64) {
    let error = relative_error(found, expected);
    assert!(
        error <= tolerance,
        "{name}: relative error {error:.2e}, allowed {tolerance:.0e}"
    );
}

/// Writes three adapters for fixture `v1_0` with this workspace's own code: fresh subspaces of different
/// rank and alpha whose `B` is filled with fixed values. Used to check that PEFT reads them.
///
/// # Panics
/// Panics if the fixture is missing or a file cannot be written.
pub fn write_adapters(dir: &Path) {
    use aso_lora::peft::SIDECAR_FORMAT;
    use aso_lora::{Adapter, AdapterHost, AdapterKind, LoraConfig, PeftConfig, Sidecar};
    let mut model = aso_backbones::t5::T5ForConditionalGeneration::from_pretrained(
        &fixture("t5/v1_0"),
        &burn::tensor::Device::flex(),
    )
    .expect("the fixture loads");
    for (order, (rank, alpha)) in [(2, 4.0), (3, 1.5), (1, 3.0)].into_iter().enumerate() {
        let config = LoraConfig {
            rank,
            alpha,
            ..LoraConfig::default()
        };
        model
            .start_subspace(&config, 7, order as u64)
            .expect("a valid subspace");
        let mut weights = model.active_weights();
        for (module, weights) in weights.values_mut().enumerate() {
            for (at, value) in weights.b.iter_mut().enumerate() {
                *value = ((at * 37 + module * 11 + order * 5) % 23) as f32 / 23.0 - 0.5;
            }
        }
        let task = format!("task{order}");
        let adapter = Adapter {
            origin: task.clone(),
            config: PeftConfig::new(&config, "SEQ_2_SEQ_LM", None),
            weights,
            sidecar: Some(Sidecar {
                format: SIDECAR_FORMAT,
                task: task.clone(),
                order,
                kind: AdapterKind::Subspace,
                base_model_fingerprint: "sha256:fixture".into(),
            }),
        };
        adapter
            .save(&dir.join(task))
            .expect("the folder can be written");
    }
}
