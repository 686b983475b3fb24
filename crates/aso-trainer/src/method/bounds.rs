//! What continual learning is measured against.

use aso_backbones::Backbone;

use super::{Method, Structure};
use crate::config::MethodName;

/// An adapter for every task alone, used for that task: nothing is forgotten and nothing is shared (PerTaskFT among the baselines
/// of [Wang et al. 2023](https://arxiv.org/abs/2310.14152), with adapters). It must be told which
/// task an example belongs to.
#[derive(Debug, Clone, Copy)]
pub struct PerTask;

impl<M: Backbone> Method<M> for PerTask {
    fn name(&self) -> &str {
        MethodName::PerTask.as_str()
    }

    fn structure(&self) -> Structure {
        MethodName::PerTask.structure()
    }
}

/// One adapter trained on the examples of all tasks together (MTL among the baselines of
/// [Wang et al. 2023](https://arxiv.org/abs/2310.14152); [Caruana 1997](https://doi.org/10.1023/A:1007379606734)): no stream at all.
#[derive(Debug, Clone, Copy)]
pub struct MultiTask;

impl<M: Backbone> Method<M> for MultiTask {
    fn name(&self) -> &str {
        MethodName::MultiTask.as_str()
    }

    fn structure(&self) -> Structure {
        MethodName::MultiTask.structure()
    }
}
