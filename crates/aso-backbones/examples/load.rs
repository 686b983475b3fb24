//! What loading a checkpoint costs: time against reading its file, peak memory against its weights.
//!
//! `cargo run --release -p aso-backbones --example load -- DIR [f32|bf16|f16]`

use std::path::Path;
use std::time::Instant;

use aso_backbones::{AutoModel, BackboneError, FloatDtype};
use aso_lora::AdapterHost;
use burn::tensor::Device;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().ok_or("usage: load DIR [f32|bf16|f16]")?;
    let dtype = match arguments.next().as_deref() {
        None | Some("f32") => FloatDtype::F32,
        Some("bf16") => FloatDtype::Bf16,
        Some("f16") => FloatDtype::F16,
        Some(other) => return Err(format!("unknown type {other}").into()),
    };
    // Memory first: reading the whole file at once would hide the peak.
    let before = memory("VmRSS")?;
    let model = load(Path::new(&dir), dtype)?;
    let (held, peak) = (memory("VmRSS")? - before, memory("VmHWM")? - before);
    drop(model);
    // The file is in the system's cache now; reading and loading take turns.
    for _ in 0..3 {
        let start = Instant::now();
        let bytes = read(Path::new(&dir))?;
        let reading = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let model = load(Path::new(&dir), dtype)?;
        let loading = start.elapsed().as_secs_f64();
        let mut weights = 0;
        model.visit_linears(&mut |layer| weights += layer.dims().iter().product::<usize>());
        println!(
            "{} of {bytes} bytes: read {reading:.2} s, load {loading:.2} s ({:.2} x); \
             held {held:.0} MiB, peak {peak:.0} MiB ({:.2} x); {weights} parameters in linear layers",
            dtype.name(),
            loading / reading,
            peak / held,
        );
    }
    Ok(())
}

fn load(dir: &Path, dtype: FloatDtype) -> Result<AutoModel, BackboneError> {
    AutoModel::from_pretrained(dir, dtype, &Device::flex())
}

/// Reads every safetensors file of a folder into memory of its own and frees it; bytes read.
fn read(dir: &Path) -> std::io::Result<usize> {
    let mut total = 0;
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "safetensors")
        {
            total += std::hint::black_box(std::fs::read(path)?).len();
        }
    }
    Ok(total)
}

/// A line of `/proc/self/status` in MiB; 0 where there is no such file.
fn memory(key: &str) -> std::io::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    Ok(kilobytes.unwrap_or(0.0) / 1024.0)
}
