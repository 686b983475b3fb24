//! Properties of the layer: stack, fold and merge compute the same function; gradients reach the
//! active subspace only; Burn's own LoRA agrees.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;

use aso_lora::peft::{SIDECAR_FILE, SIDECAR_FORMAT};
use aso_lora::{
    Adapter, AdapterHost, AdapterKind, AdapterScope, DropoutStream, ForwardContext, LoraConfig,
    LoraError, LoraLinear, LoraWeights, Patterns, PeftConfig, Sidecar, TargetModules,
};
use burn::module::Module;
use burn::nn::LinearConfig;
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Distribution, Tensor, TensorData, Tolerance};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};

const D_IN: usize = 6;
const D_OUT: usize = 5;

fn device() -> Device {
    Device::flex()
}

fn random(seed: u64, count: usize) -> Vec<f32> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn tensor<const D: usize>(seed: u64, dims: [usize; D]) -> Tensor<D> {
    let values = random(seed, dims.iter().product());
    Tensor::from_data(TensorData::new(values, dims), &device())
}

fn weights(seed: u64, rank: usize, scaling: f64) -> LoraWeights {
    LoraWeights {
        a: random(seed, rank * D_IN),
        b: random(seed + 1, rank * D_OUT),
        rank,
        d_in: D_IN,
        d_out: D_OUT,
        scaling,
    }
}

fn layer(seed: u64, frozen: &[(usize, f64)], active: Option<(usize, f64)>) -> LoraLinear {
    let base = tensor(seed, [D_IN, D_OUT]);
    let bias = tensor(seed + 1, [D_OUT]);
    let mut layer = LoraLinear::new("block.q", base, Some(bias));
    for (k, &(rank, scaling)) in frozen.iter().enumerate() {
        layer.push_frozen(&weights(seed + 10 * (k as u64 + 1), rank, scaling));
    }
    if let Some((rank, scaling)) = active {
        layer.set_active(&weights(seed + 1000, rank, scaling), 0.0);
    }
    layer
}

fn close(a: Tensor<2>, b: Tensor<2>) {
    // Sums of at most 40 products of numbers below 2: rounding stays near 1e-6.
    a.into_data()
        .assert_approx_eq::<f32>(&b.into_data(), Tolerance::absolute(2e-5));
}

struct One(LoraLinear);

impl AdapterHost for One {
    fn visit_linears(&self, visit: &mut dyn FnMut(&LoraLinear)) {
        visit(&self.0);
    }
    fn visit_linears_mut(&mut self, visit: &mut dyn FnMut(&mut LoraLinear)) {
        visit(&mut self.0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn stack_fold_and_merge_agree(
        seed in 0u64..1000,
        ranks in proptest::collection::vec((1usize..4, 0.1f64..3.0), 1..5),
        active in proptest::option::of((1usize..4, 0.1f64..3.0)),
    ) {
        let mut layer = layer(seed, &ranks, active);
        let x = tensor(seed + 7, [4, D_IN]);
        let mut scopes = vec![AdapterScope::All, AdapterScope::WithoutActive, AdapterScope::Base];
        scopes.push(AdapterScope::OnlyActive);
        scopes.extend((0..ranks.len()).map(AdapterScope::WithoutFrozen));
        scopes.extend((0..ranks.len()).map(AdapterScope::OnlyFrozen));
        let stacked: Vec<_> = scopes
            .iter()
            .map(|&scope| layer.forward(x.clone(), &ForwardContext::inference().with_scope(scope)))
            .collect();
        layer.fold();
        for (scope, stacked) in scopes.into_iter().zip(&stacked) {
            let context = ForwardContext::inference().with_scope(scope);
            close(layer.forward(x.clone(), &context), stacked.clone());
        }
        close(layer.merge().forward(x.clone()), stacked[0].clone());
        // Freezing the active subspace changes nothing either.
        layer.freeze_active();
        close(layer.forward(x, &ForwardContext::inference()), stacked[0].clone());
    }

    #[test]
    fn excluding_a_task_equals_never_having_learnt_it(
        seed in 0u64..1000, k in 0usize..3, folded in any::<bool>(),
    ) {
        let ranks = [(1, 0.5), (2, 1.5), (3, 0.25)];
        let mut whole = layer(seed, &ranks, Some((2, 2.0)));
        if folded {
            whole.fold();
        }
        let mut without = LoraLinear::new("block.q", tensor(seed, [D_IN, D_OUT]), Some(tensor(seed + 1, [D_OUT])));
        for (j, &(rank, scaling)) in ranks.iter().enumerate().filter(|(j, _)| *j != k) {
            without.push_frozen(&weights(seed + 10 * (j as u64 + 1), rank, scaling));
        }
        without.set_active(&weights(seed + 1000, 2, 2.0), 0.0);
        let x = tensor(seed + 7, [3, D_IN]);
        let context = ForwardContext::inference().with_scope(AdapterScope::WithoutFrozen(k));
        close(
            whole.forward(x.clone(), &context),
            without.forward(x, &ForwardContext::inference()),
        );
    }

    #[test]
    fn a_subspace_alone_equals_having_learnt_nothing_else(
        seed in 0u64..1000, k in 0usize..3, folded in any::<bool>(),
    ) {
        let ranks = [(1, 0.5), (2, 1.5), (3, 0.25)];
        let mut whole = layer(seed, &ranks, Some((2, 2.0)));
        if folded {
            whole.fold();
        }
        let bare = || LoraLinear::new("block.q", tensor(seed, [D_IN, D_OUT]), Some(tensor(seed + 1, [D_OUT])));
        let x = tensor(seed + 7, [3, D_IN]);
        let (rank, scaling) = ranks[k];
        let past = weights(seed + 10 * (k as u64 + 1), rank, scaling);
        for (scope, alone) in [
            (AdapterScope::OnlyFrozen(k), past),
            (AdapterScope::OnlyActive, weights(seed + 1000, 2, 2.0)),
        ] {
            let mut only = bare();
            only.set_active(&alone, 0.0);
            let context = ForwardContext::inference().with_scope(scope);
            close(
                whole.forward(x.clone(), &context),
                only.forward(x.clone(), &ForwardContext::inference()),
            );
        }
        let none = ForwardContext::inference().with_scope(AdapterScope::OnlyFrozen(3));
        close(
            whole.forward(x.clone(), &none),
            bare().forward(x, &ForwardContext::inference()),
        );
    }

    /// Attribution differentiates with respect to the input, through kept transposed copies.
    #[test]
    fn gradients_of_the_input_agree(seed in 0u64..1000, folded in any::<bool>()) {
        let ranks = [(1, 0.5), (2, 1.5)];
        let plain = layer(seed, &ranks, Some((2, 2.0)));
        let mut kept = plain.clone();
        kept.keep_transposed();
        if folded {
            kept.fold();
        }
        let (values, upstream) = (tensor::<2>(seed + 7, [4, D_IN]), tensor::<2>(seed + 8, [4, D_OUT]));
        for scope in [
            AdapterScope::All,
            AdapterScope::WithoutActive,
            AdapterScope::WithoutFrozen(1),
            AdapterScope::OnlyActive,
            AdapterScope::OnlyFrozen(1),
            AdapterScope::Base,
        ] {
            let gradient = |layer: &LoraLinear| {
                let x = values.clone().autodiff().require_grad();
                let context = ForwardContext::inference().with_scope(scope);
                let loss = (layer.forward(x.clone(), &context) * upstream.clone().autodiff()).sum();
                x.grad(&loss.backward()).unwrap()
            };
            close(gradient(&kept), gradient(&plain));
        }
    }

    #[test]
    fn adapter_files_round_trip(seed in 0u64..1000, rank in 1usize..5, alpha in 1u32..64) {
        let dir = tempfile::tempdir().unwrap();
        let lora = LoraConfig { rank, alpha: f64::from(alpha), ..Default::default() };
        let adapter = Adapter {
            origin: dir.path().display().to_string(),
            config: PeftConfig::new(&lora, "SEQ_2_SEQ_LM", Some("base".into())),
            weights: BTreeMap::from([
                ("a.q".to_owned(), weights(seed, rank, lora.scaling())),
                ("b.v".to_owned(), weights(seed + 5, rank, lora.scaling())),
            ]),
            sidecar: Some(Sidecar {
                format: SIDECAR_FORMAT,
                task: "news".into(),
                order: 2,
                kind: AdapterKind::Subspace,
                base_model_fingerprint: "sha256:00".into(),
            }),
        };
        adapter.save(dir.path()).unwrap();
        let first = std::fs::read(dir.path().join("adapter_model.safetensors")).unwrap();
        prop_assert_eq!(&Adapter::load(dir.path()).unwrap(), &adapter);
        adapter.save(dir.path()).unwrap();
        let second = std::fs::read(dir.path().join("adapter_model.safetensors")).unwrap();
        prop_assert_eq!(first, second);
    }
}

/// Layers of other ranks and scalings than the configuration's, one of whose names is the end of another.
#[test]
fn adapters_of_mixed_rank_round_trip() {
    let lora = LoraConfig {
        rank: 1,
        alpha: 1.0,
        ..Default::default()
    };
    let weights = BTreeMap::from([
        ("a.q".to_owned(), weights(1, 4, 1.0)),
        ("b.a.q".to_owned(), weights(2, 2, 0.5)),
        ("b.v".to_owned(), weights(3, 1, 1.0)),
        ("c.v".to_owned(), weights(4, 1, 3.0)),
    ]);
    let config = PeftConfig::new(&lora, "SEQ_2_SEQ_LM", None).with_patterns(&weights);
    // What is as the configuration says needs no entry.
    let ranks = config.rank_pattern.0.iter();
    assert!(!ranks.map(|(pattern, _)| pattern).any(|p| p == "^b\\.v"));
    let dir = tempfile::tempdir().unwrap();
    let adapter = Adapter {
        origin: dir.path().display().to_string(),
        config,
        weights,
        sidecar: None,
    };
    adapter.save(dir.path()).unwrap();
    assert_eq!(Adapter::load(dir.path()).unwrap().weights, adapter.weights);
}

/// As PEFT does, and whatever the alphabet says.
#[test]
fn of_several_patterns_the_first_one_in_the_file_counts() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["a.q", "b.q", "b.v"];
    let adapter = Adapter {
        origin: dir.path().display().to_string(),
        config: PeftConfig {
            r: 1,
            lora_alpha: 3.0,
            alpha_pattern: Patterns(vec![("b\\..".into(), 5.0), ("b.q".into(), 7.0)]),
            ..PeftConfig::default()
        },
        weights: names
            .map(|name| (name.to_owned(), weights(1, 1, 0.0)))
            .into(),
        sidecar: None,
    };
    adapter.save(dir.path()).unwrap();
    let scalings = || {
        let weights = Adapter::load(dir.path()).unwrap().weights;
        names.map(|name| weights[name].scaling)
    };
    assert_eq!(scalings(), [3.0, 5.0, 5.0]);
    let turned = Adapter {
        config: PeftConfig {
            alpha_pattern: Patterns(vec![("b.q".into(), 7.0), ("b\\..".into(), 5.0)]),
            ..adapter.config
        },
        ..adapter
    };
    turned.save(dir.path()).unwrap();
    assert_eq!(scalings(), [3.0, 7.0, 5.0]);
}

/// In memory, and in a file that another program wrote.
#[test]
fn values_that_nothing_can_be_computed_with_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let adapter = |weights| Adapter {
        origin: "news".into(),
        config: PeftConfig {
            r: 2,
            ..PeftConfig::default()
        },
        weights: BTreeMap::from([("block.q".to_owned(), weights)]),
        sidecar: None,
    };
    let sound = weights(1, 2, 1.0);
    let short = LoraWeights {
        a: vec![0.0; 11],
        ..sound.clone()
    };
    let infinite = LoraWeights {
        scaling: f64::INFINITY,
        ..sound.clone()
    };
    for (weights, expected) in [
        (
            short,
            "`a` of a low-rank pair is 11 values; expected 2 x 6 values",
        ),
        (
            infinite,
            "`scaling` of a low-rank pair is inf; expected a finite number",
        ),
        (
            weights(1, 0, 1.0),
            "`rank` of a low-rank pair is 0; expected at least 1",
        ),
    ] {
        let adapter = adapter(weights);
        let expected = format!("news: module `block.q`: {expected}");
        let mut host = One(layer(5, &[], None));
        for found in [
            adapter.save(dir.path()),
            host.set_active(&adapter, 0.0),
            host.push_frozen(&adapter),
        ] {
            assert_eq!(found.unwrap_err().to_string(), expected);
        }
        assert!(host.0.active().is_none() && host.0.frozen().is_none());
    }
    let mut broken = sound.clone();
    broken.b[3] = f32::NAN;
    let error = adapter(broken).save(dir.path()).unwrap_err().to_string();
    assert_eq!(
        error,
        "news: tensor `base_model.model.block.q.lora_B.weight` holds a value that is not finite"
    );
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);

    adapter(sound.clone()).save(dir.path()).unwrap();
    let path = dir.path().join("adapter_model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&f32::NEG_INFINITY.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let error = Adapter::load(dir.path()).unwrap_err().to_string();
    assert!(
        error.contains("adapter_model.safetensors") && error.contains("not finite"),
        "{error}"
    );
    let empty = |shape| safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, &[]);
    let tensors = [
        ("A", empty(vec![0, D_IN]).unwrap()),
        ("B", empty(vec![D_OUT, 0]).unwrap()),
    ]
    .map(|(half, view)| (format!("base_model.model.block.q.lora_{half}.weight"), view));
    std::fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
    let config = r#"{"peft_type": "LORA", "r": 0}"#;
    std::fs::write(dir.path().join("adapter_config.json"), config).unwrap();
    let error = Adapter::load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("`rank` of a low-rank pair is 0"), "{error}");
}

#[test]
fn a_sidecar_of_another_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let adapter = Adapter {
        origin: String::new(),
        config: PeftConfig::default(),
        weights: BTreeMap::from([("block.q".to_owned(), weights(1, 8, 1.0))]),
        sidecar: None,
    };
    adapter.save(dir.path()).unwrap();
    // Whatever else it holds.
    std::fs::write(dir.path().join(SIDECAR_FILE), r#"{"format": 2}"#).unwrap();
    let error = Adapter::load(dir.path()).unwrap_err();
    assert!(matches!(
        error,
        LoraError::SidecarFormat {
            expected: 1,
            found: 2,
            ..
        }
    ));
    let message = error.to_string();
    assert!(message.ends_with("aso_subspace.json: sidecar format 2; expected 1"));
    // An adapter that is written over it has none.
    adapter.save(dir.path()).unwrap();
    assert!(Adapter::load(dir.path()).unwrap().sidecar.is_none());
}

#[test]
fn adapters_of_nothing_and_of_wrong_types_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("adapter_config.json");
    std::fs::write(&config, r#"{"peft_type": "LORA", "r": "1"}"#).unwrap();
    let error = Adapter::load(dir.path()).unwrap_err().to_string();
    assert!(
        error.contains("adapter_config.json: `r`: invalid type: string"),
        "{error}"
    );
    std::fs::write(&config, r#"{"peft_type": "LORA", "r": 1}"#).unwrap();
    let path = dir.path().join("adapter_model.safetensors");
    let none: [(String, safetensors::tensor::TensorView<'_>); 0] = [];
    std::fs::write(&path, safetensors::serialize(none, None).unwrap()).unwrap();
    let error = Adapter::load(dir.path()).unwrap_err();
    assert!(matches!(&error, LoraError::NoWeights { path: found } if *found == path));
    assert!(
        error.to_string().contains("no tensors; expected"),
        "{error}"
    );
}

#[test]
#[should_panic(expected = "subspace of `block.q`: `rank` of a low-rank pair is 0")]
fn a_layer_refuses_a_subspace_without_rank() {
    let config = LoraConfig {
        rank: 0,
        ..LoraConfig::default()
    };
    layer(5, &[], None).start_subspace(&config, 0, 0);
}

struct Two([LoraLinear; 2]);

impl AdapterHost for Two {
    fn visit_linears(&self, visit: &mut dyn FnMut(&LoraLinear)) {
        self.0.iter().for_each(visit);
    }

    fn visit_linears_mut(&mut self, visit: &mut dyn FnMut(&mut LoraLinear)) {
        self.0.iter_mut().for_each(visit);
    }
}

/// The second task is number 1 on a layer that the first one left alone, too.
#[test]
fn a_frozen_subspace_belongs_to_its_task_on_every_layer() {
    let linear = |name| LoraLinear::new(name, tensor(3, [D_IN, D_OUT]), None);
    let mut host = Two([linear("q"), linear("k")]);
    let adapter = |modules: &[&str]| Adapter {
        origin: String::new(),
        config: PeftConfig::default(),
        weights: modules
            .iter()
            .map(|name| ((*name).to_owned(), weights(8, 2, 1.0)))
            .collect(),
        sidecar: None,
    };
    host.push_frozen(&adapter(&["q"])).unwrap();
    host.push_frozen(&adapter(&["q", "k"])).unwrap();
    assert_eq!(host.frozen_count(), 2);
    let tasks = host
        .0
        .each_ref()
        .map(|layer| layer.frozen().unwrap().tasks());
    assert_eq!(tasks, [&[0, 1][..], &[1]]);
    let x = tensor::<2>(9, [4, D_IN]);
    let [_, k] = &host.0;
    let of = |scope| {
        let context = ForwardContext::inference().with_scope(scope);
        k.forward(x.clone(), &context).into_data()
    };
    assert_eq!(of(AdapterScope::WithoutFrozen(0)), of(AdapterScope::All));
    assert_eq!(of(AdapterScope::OnlyFrozen(0)), of(AdapterScope::Base));
    assert_ne!(of(AdapterScope::WithoutFrozen(1)), of(AdapterScope::All));
    let names = TargetModules::Names(vec!["k".into()]);
    let config = LoraConfig {
        target_modules: names,
        ..LoraConfig::default()
    };
    host.start_subspace(&config, 1, 2).unwrap();
    host.freeze_active();
    assert_eq!(host.0[1].frozen().unwrap().tasks(), [1, 2]);
    assert_eq!(host.frozen_count(), 3);
}

#[test]
fn a_fresh_subspace_changes_nothing_and_is_reproducible() {
    let mut host = One(layer(3, &[(2, 1.0)], None));
    let x = tensor(9, [4, D_IN]);
    let before = host.0.forward(x.clone(), &ForwardContext::inference());
    let config = LoraConfig {
        rank: 3,
        ..Default::default()
    };
    host.start_subspace(&config, 42, 1).unwrap();
    let first = host.active_weights();
    assert_eq!(
        before.into_data(),
        host.0.forward(x, &ForwardContext::inference()).into_data()
    );
    let bound = 1.0 / (D_IN as f32).sqrt();
    assert!(first["block.q"].a.iter().all(|a| a.abs() <= bound));
    assert!(first["block.q"].b.iter().all(|b| *b == 0.0));
    host.start_subspace(&config, 42, 1).unwrap();
    assert_eq!(first, host.active_weights());
    host.start_subspace(&config, 42, 2).unwrap();
    assert_ne!(first, host.active_weights());
}

#[test]
fn records_hold_no_frozen_subspaces() {
    let past = layer(5, &[(2, 1.0)], None);
    let loaded = layer(6, &[], None).load_record(past.clone().into_record());
    assert!(loaded.frozen().is_none());
    assert_eq!(
        loaded.weight.val().into_data(),
        past.weight.val().into_data()
    );
    // An active one is in the record, and wants a place.
    let active = layer(5, &[], Some((2, 1.0))).into_record();
    assert!(layer(6, &[], None).try_load_record(active).is_err());
}

#[test]
fn the_next_subspace_inherits_the_moments_of_an_optimizer() {
    let config = LoraConfig {
        rank: 2,
        ..LoraConfig::default()
    };
    let step = |layer: LoraLinear, optimizer: &mut ModuleOptimizer| {
        let context = ForwardContext::training(None);
        let loss = layer.forward(tensor::<2>(1, [3, D_IN]), &context).sum();
        let gradients = GradientsParams::from_grads(loss.backward(), &layer);
        optimizer.step(0.1, layer, gradients)
    };
    let mut next = layer(5, &[], None);
    next.start_subspace(&config, 1, 0);
    let mut kept = AdamWConfig::new().init();
    next = step(next, &mut kept);
    next.freeze_active();
    next.start_subspace(&config, 1, 1);
    let b = |optimizer: &mut ModuleOptimizer| {
        let trained = step(next.clone(), optimizer);
        trained.active().unwrap().to_weights().b
    };
    let fresh = b(&mut AdamWConfig::new().init());
    assert_eq!(fresh, b(&mut AdamWConfig::new().init()));
    assert_ne!(fresh, b(&mut kept));
}

#[test]
fn gradients_reach_the_active_subspace_only() {
    let mut layer = layer(5, &[(2, 1.0)], Some((2, 0.5)));
    layer.fold();
    let loss = layer
        .forward(tensor(1, [3, D_IN]), &ForwardContext::training(None))
        .sum();
    let grads = loss.backward();
    let active = layer.active().unwrap();
    assert!(active.a.val().grad(&grads).is_some());
    assert!(active.b.val().grad(&grads).is_some());
    assert!(layer.weight.val().grad(&grads).is_none());
    // Inference records no graph at all.
    let y = layer.forward(tensor(1, [3, D_IN]), &ForwardContext::inference());
    assert!(!y.is_autodiff());
}

#[test]
fn dropout_touches_the_active_path_only_unless_asked() {
    let mut layer = layer(5, &[(2, 1.0)], None);
    let x = tensor(2, [64, D_IN]);
    let clean = layer
        .forward(x.clone(), &ForwardContext::inference())
        .into_data();
    let stream = DropoutStream::new(1, 1, 1, 0);
    layer.set_active(
        &LoraWeights {
            b: vec![0.0; D_OUT],
            ..weights(1, 1, 1.0)
        },
        0.5,
    );
    let mut context = ForwardContext::training(Some(stream));
    let training = layer
        .forward(x.clone(), &context)
        .without_autodiff()
        .into_data();
    assert_eq!(clean, training, "the frozen path saw dropout");
    context.drop_frozen_input = true;
    let released = layer.forward(x, &context).without_autodiff().into_data();
    assert_ne!(
        clean, released,
        "the released variant drops the frozen path's input"
    );
}

#[test]
fn one_subspace_equals_the_dense_update() {
    let base = LinearConfig::new(D_IN, D_OUT)
        .with_bias(false)
        .init(&device());
    let pair = weights(11, 2, 1.5);
    let x = Tensor::<2>::random([4, D_IN], Distribution::Default, &device());
    // Burn: weight + scale * (a @ b) with a [d_in, r], b [r, d_out].
    let a = Tensor::<2>::from_data(TensorData::new(pair.a.clone(), [2, D_IN]), &device());
    let b = Tensor::<2>::from_data(TensorData::new(pair.b.clone(), [D_OUT, 2]), &device());
    let dense = base.weight.val() + a.transpose().matmul(b.transpose()).mul_scalar(1.5);
    let expected = x.clone().matmul(dense);
    let mut layer = LoraLinear::from_linear("q", base);
    layer.set_active(&pair, 0.0);
    close(layer.forward(x, &ForwardContext::inference()), expected);
}

#[test]
fn misfits_are_named() {
    let mut host = One(layer(5, &[], None));
    let config = LoraConfig {
        target_modules: TargetModules::Names(vec!["w".into()]),
        ..Default::default()
    };
    let error = host.start_subspace(&config, 0, 0).unwrap_err().to_string();
    assert_eq!(
        error,
        "no linear layer of the model matches the target modules [\"w\"]; its layers end in: q"
    );
    let adapter = |module: &str, weights| Adapter {
        origin: "file".into(),
        config: PeftConfig::default(),
        weights: BTreeMap::from([(module.to_owned(), weights)]),
        sidecar: None,
    };
    let error = host
        .push_frozen(&adapter("block.k", weights(1, 1, 1.0)))
        .unwrap_err();
    assert!(error.to_string().contains("`block.k`") && error.to_string().contains("`block.q`"));
    let wrong = LoraWeights {
        a: vec![0.0; 7],
        d_in: 7,
        ..weights(1, 1, 1.0)
    };
    let error = host
        .push_frozen(&adapter("block.q", wrong))
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "file: tensor `block.q.lora_A.weight` has shape [1, 7]; expected [1, 6]"
    );
}
