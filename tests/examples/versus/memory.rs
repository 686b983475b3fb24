//! Peak resident memory of training steps above what is held after loading.

use anyhow::Context;

use crate::{Outcome, Workload, read};

/// Steps of which the highest peak counts: optimizer state and fragmentation belong to it.
const STEPS: usize = 3;

pub(crate) struct Memory<W> {
    step: W,
    held: u64,
}

impl<W: Workload> Memory<W> {
    pub(crate) fn new(step: W) -> Self {
        Self { step, held: 0 }
    }
}

impl<W: Workload> Workload for Memory<W> {
    fn warm_up(&mut self) -> anyhow::Result<Option<f64>> {
        self.held = status("VmRSS")?;
        // Sets the peak back to what is held now (proc(5)).
        std::fs::write("/proc/self/clear_refs", "5").context("/proc/self/clear_refs")?;
        Ok(None)
    }

    fn run(&mut self) -> anyhow::Result<Outcome> {
        let mut outcome = self.step.run()?;
        for _ in 1..STEPS {
            outcome = self.step.run()?;
        }
        let peak = status("VmHWM")?.saturating_sub(self.held);
        Ok(Outcome {
            peak_bytes: Some(peak),
            ..outcome
        })
    }
}

/// A line of `/proc/self/status` in bytes.
fn status(key: &str) -> anyhow::Result<u64> {
    let text = read("/proc/self/status".as_ref())?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let kilobytes = line.and_then(|line| line.split_whitespace().next());
    let kilobytes = kilobytes.with_context(|| format!("/proc/self/status has no {key}"))?;
    Ok(kilobytes.parse::<u64>()? * 1024)
}
