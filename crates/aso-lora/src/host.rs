//! A model made of [`LoraLinear`] layers.

use std::collections::BTreeMap;

use crate::peft::Adapter;
use crate::{LoraConfig, LoraError, LoraLinear, LoraWeights, TargetModules};

/// A model whose linear layers can carry subspaces.
///
/// Implementors list their layers in a fixed order; everything else is provided.
pub trait AdapterHost {
    /// Visits every adaptable linear layer, always in the same order.
    fn visit_linears(&self, visit: &mut dyn FnMut(&LoraLinear));

    /// Visits every adaptable linear layer mutably, in the order of
    /// [`visit_linears`](Self::visit_linears).
    fn visit_linears_mut(&mut self, visit: &mut dyn FnMut(&mut LoraLinear));

    /// Whether a subspace could be started with this configuration.
    ///
    /// # Errors
    /// [`LoraError::InvalidConfig`] for values out of range, [`LoraError::NoTarget`] if no layer matches.
    fn check_targets(&self, config: &LoraConfig) -> Result<(), LoraError> {
        config.validate()?;
        let targets = config.target_modules.matcher()?;
        let mut matches = false;
        self.visit_linears(&mut |layer| matches |= targets.matches(layer.name()));
        if matches {
            Ok(())
        } else {
            Err(no_target(self, &config.target_modules))
        }
    }

    /// Starts a fresh subspace on every target layer and clears the others.
    ///
    /// `A` is drawn from `(seed, task, layer name)`, `B` is zero.
    ///
    /// # Errors
    /// As [`check_targets`](Self::check_targets); the model is then unchanged.
    fn start_subspace(
        &mut self,
        config: &LoraConfig,
        seed: u64,
        task: u64,
    ) -> Result<(), LoraError> {
        self.check_targets(config)?;
        let targets = config.target_modules.matcher()?;
        self.visit_linears_mut(&mut |layer| {
            if targets.matches(layer.name()) {
                layer.start_subspace(config, seed, task);
            } else {
                layer.discard_active();
            }
        });
        Ok(())
    }

    /// Ends a task: every active subspace joins its layer's frozen stack.
    fn freeze_active(&mut self) {
        let task = self.frozen_count();
        self.visit_linears_mut(&mut |layer| layer.freeze_active_of(task));
    }

    /// Folds every frozen stack into its layer's base weight ([`LoraLinear::fold`]).
    fn fold(&mut self) {
        self.visit_linears_mut(&mut LoraLinear::fold);
    }

    /// Runs every frozen stack next to its base weight again.
    fn unfold(&mut self) {
        self.visit_linears_mut(&mut LoraLinear::unfold);
    }

    /// Keeps transposed copies of the weights ([`LoraLinear::keep_transposed`]).
    fn keep_transposed(&mut self) {
        self.visit_linears_mut(&mut LoraLinear::keep_transposed);
    }

    /// Host copy of the active subspace, by layer name. Empty if there is none.
    fn active_weights(&self) -> BTreeMap<String, LoraWeights> {
        let mut weights = BTreeMap::new();
        self.visit_linears(&mut |layer| {
            if let Some(active) = layer.active() {
                weights.insert(layer.name().to_owned(), active.to_weights());
            }
        });
        weights
    }

    /// Number of past tasks: one more than the last one that has a frozen subspace on any layer.
    fn frozen_count(&self) -> usize {
        let mut count = 0;
        self.visit_linears(&mut |layer| {
            count = count.max(layer.frozen_tasks());
        });
        count
    }

    /// Installs an adapter as the active subspace.
    ///
    /// # Errors
    /// [`LoraError::UnknownModule`] or [`LoraError::Shape`] if it does not fit, [`LoraError::Module`] if a pair fails
    /// [`LoraWeights::check`]; the model is then unchanged.
    fn set_active(&mut self, adapter: &Adapter, dropout: f64) -> Result<(), LoraError> {
        check_fit(self, adapter)?;
        self.visit_linears_mut(&mut |layer| match adapter.weights.get(layer.name()) {
            Some(weights) => layer.set_active(weights, dropout),
            None => layer.discard_active(),
        });
        Ok(())
    }

    /// Appends an adapter to the frozen stacks, as that of the next task.
    ///
    /// # Errors
    /// As [`set_active`](Self::set_active).
    fn push_frozen(&mut self, adapter: &Adapter) -> Result<(), LoraError> {
        check_fit(self, adapter)?;
        let task = self.frozen_count();
        self.visit_linears_mut(&mut |layer| {
            if let Some(weights) = adapter.weights.get(layer.name()) {
                layer.push_frozen_of(weights, task);
            }
        });
        Ok(())
    }
}

fn no_target<H: AdapterHost + ?Sized>(host: &H, targets: &TargetModules) -> LoraError {
    let mut available: Vec<String> = Vec::new();
    host.visit_linears(&mut |layer| {
        let last = layer
            .name()
            .rsplit('.')
            .next()
            .unwrap_or_default()
            .to_owned();
        if !available.contains(&last) {
            available.push(last);
        }
    });
    LoraError::NoTarget {
        targets: targets.to_string(),
        available: available.join(", "),
    }
}

fn check_fit<H: AdapterHost + ?Sized>(host: &H, adapter: &Adapter) -> Result<(), LoraError> {
    adapter.check()?;
    let mut dims = BTreeMap::new();
    host.visit_linears(&mut |layer| {
        dims.insert(layer.name().to_owned(), layer.dims());
    });
    for (module, weights) in &adapter.weights {
        let Some(&[d_in, d_out]) = dims.get(module) else {
            let nearest = dims.keys().max_by_key(|name| shared_affixes(name, module));
            return Err(LoraError::UnknownModule {
                origin: adapter.origin.clone(),
                module: module.clone(),
                nearest: nearest.cloned().unwrap_or_default(),
            });
        };
        let shape_error = |half: &str, expected: [usize; 2], found: [usize; 2]| LoraError::Shape {
            origin: adapter.origin.clone(),
            tensor: format!("{module}.{half}.weight"),
            expected: expected.to_vec(),
            found: found.to_vec(),
        };
        if weights.d_in != d_in {
            let found = [weights.rank, weights.d_in];
            return Err(shape_error("lora_A", [weights.rank, d_in], found));
        }
        if weights.d_out != d_out {
            let found = [weights.d_out, weights.rank];
            return Err(shape_error("lora_B", [d_out, weights.rank], found));
        }
    }
    Ok(())
}

/// Length of the common prefix plus the common suffix: enough to point at a likely module.
fn shared_affixes(a: &str, b: &str) -> usize {
    let prefix = a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count();
    let suffix = a
        .bytes()
        .rev()
        .zip(b.bytes().rev())
        .take_while(|(x, y)| x == y)
        .count();
    prefix + suffix
}
