//! From `--device` to a device, as far as it is compiled in.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, bail};
use burn::tensor::Device;

/// A parsed `--device`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceName {
    backend: Backend,
    index: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backend {
    Flex,
    Wgpu,
    Vulkan,
    Metal,
    Cuda,
    Rocm,
}

/// Every backend, in the order in which a default is chosen.
const BACKENDS: [Backend; 6] = [
    Backend::Flex,
    Backend::Cuda,
    Backend::Rocm,
    Backend::Metal,
    Backend::Vulkan,
    Backend::Wgpu,
];

impl Backend {
    /// The name on the command line, which is also the cargo feature.
    fn name(self) -> &'static str {
        match self {
            Self::Flex => "flex",
            Self::Wgpu => "wgpu",
            Self::Vulkan => "vulkan",
            Self::Metal => "metal",
            Self::Cuda => "cuda",
            Self::Rocm => "rocm",
        }
    }

    fn is_compiled_in(self) -> bool {
        match self {
            Self::Flex => cfg!(feature = "flex"),
            Self::Wgpu => cfg!(feature = "wgpu"),
            Self::Vulkan => cfg!(feature = "vulkan"),
            Self::Metal => cfg!(feature = "metal"),
            Self::Cuda => cfg!(feature = "cuda"),
            Self::Rocm => cfg!(feature = "rocm"),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.backend.name())?;
        match self.index {
            Some(index) => write!(f, ":{index}"),
            None => Ok(()),
        }
    }
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, index) = match text.split_once(':') {
            Some((name, index)) => {
                let index = index.parse().map_err(|_| {
                    format!("`{index}` is not a device number; expected e.g. {name}:0")
                })?;
                (name, Some(index))
            }
            None => (text, None),
        };
        let names = BACKENDS.map(Backend::name).join(", ");
        let backend = BACKENDS
            .into_iter()
            .find(|backend| backend.name() == name)
            .ok_or_else(|| format!("unknown device `{name}`; expected one of {names}"))?;
        if backend == Backend::Flex && index.is_some() {
            return Err("flex is the CPU and has no number".to_owned());
        }
        Ok(Self { backend, index })
    }
}

/// Sets the number of CPU threads.
pub(crate) fn set_threads(threads: Option<usize>) -> anyhow::Result<()> {
    let Some(threads) = threads else {
        return Ok(());
    };
    if threads == 0 {
        bail!("--threads is 0; expected at least 1");
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .context("--threads could not be applied")
}

/// Opens a device, or the default one.
pub(crate) fn open(name: Option<&DeviceName>) -> anyhow::Result<Device> {
    let compiled = BACKENDS
        .into_iter()
        .filter(|backend| backend.is_compiled_in());
    let name = match name {
        Some(name) => name.clone(),
        None => {
            let Some(backend) = compiled.clone().next() else {
                bail!("no backend is compiled in; build with e.g. `--features flex`");
            };
            DeviceName {
                backend,
                index: None,
            }
        }
    };
    if !name.backend.is_compiled_in() {
        let feature = name.backend.name();
        let compiled: Vec<_> = compiled.map(Backend::name).collect();
        bail!(
            "device `{name}` is not compiled in (there is: {}); build with `--features {feature}`",
            compiled.join(", ")
        );
    }
    let device = create(&name);
    if name.backend == Backend::Flex {
        return Ok(device);
    }
    // GPU runtimes panic when there is no such device: find out here, once, and say so.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let probe = device.clone();
    let works = std::panic::catch_unwind(move || {
        let ones = burn::tensor::Tensor::<1>::ones([2], &probe);
        ones.sum().into_scalar::<f32>()
    });
    std::panic::set_hook(hook);
    if works.is_err() {
        bail!("device `{name}` does not work on this machine: no such device or no driver");
    }
    Ok(device)
}

fn create(name: &DeviceName) -> Device {
    #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
    let kind = || match name.index {
        Some(index) => burn::tensor::DeviceKind::DiscreteGpu(index),
        None => burn::tensor::DeviceKind::DefaultDevice,
    };
    #[cfg(any(feature = "cuda", feature = "rocm"))]
    let index = || match name.index {
        Some(index) => burn::tensor::DeviceIndex::new(index),
        None => burn::tensor::DeviceIndex::Default,
    };
    match name.backend {
        #[cfg(feature = "flex")]
        Backend::Flex => Device::flex(),
        #[cfg(feature = "wgpu")]
        Backend::Wgpu => Device::wgpu(kind()),
        #[cfg(feature = "vulkan")]
        Backend::Vulkan => Device::vulkan(kind()),
        #[cfg(feature = "metal")]
        Backend::Metal => Device::metal(kind()),
        #[cfg(feature = "cuda")]
        Backend::Cuda => Device::cuda(index()),
        #[cfg(feature = "rocm")]
        Backend::Rocm => Device::rocm(index()),
        // Checked by the caller; the default is what Burn would choose.
        #[allow(
            unreachable_patterns,
            reason = "reachable unless every backend is compiled in"
        )]
        _ => Device::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_and_print() {
        for name in ["flex", "wgpu", "cuda:0", "rocm:3", "vulkan", "metal"] {
            assert_eq!(name.parse::<DeviceName>().unwrap().to_string(), name);
        }
        assert!(
            "gpu"
                .parse::<DeviceName>()
                .unwrap_err()
                .contains("expected one of flex")
        );
        assert!(
            "cuda:x"
                .parse::<DeviceName>()
                .unwrap_err()
                .contains("cuda:0")
        );
        assert!("flex:1".parse::<DeviceName>().is_err());
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn a_missing_backend_names_its_feature() {
        let error = open(Some(&"cuda:0".parse().unwrap()))
            .unwrap_err()
            .to_string();
        assert!(error.contains("--features cuda"), "{error}");
    }
}
