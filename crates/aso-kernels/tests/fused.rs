//! Every fused kernel against the plain formula: values and all gradients, with and without dropout.

use aso_kernels::{Activation, DropoutMask, DropoutStream, plain};
use burn::tensor::{Device, Distribution, Tensor, TensorData};

/// Both paths in f32; sums of up to a few thousand terms in another order differ by some 1e-6 of their scale.
const TOLERANCE: f32 = 2e-5;

fn device() -> Device {
    Device::flex().autodiff()
}

fn constant<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex())
}

/// A fresh leaf with the values of a tensor.
fn leaf<const D: usize>(x: &Tensor<D>) -> Tensor<D> {
    Tensor::from_data(x.clone().into_data(), &device()).require_grad()
}

fn mask(p: f64) -> Option<DropoutMask> {
    DropoutStream::new(1, 2, 3, 4).mask(p, 5)
}

fn host<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().iter::<f32>().collect()
}

/// Fixed weights for the sum of an output, so that both paths have the same loss.
fn weighted<const D: usize>(y: Tensor<D>) -> Tensor<1> {
    let count = y.shape().num_elements();
    let weights = (0..count).map(|i| ((i * 7919 % 1000) as f32 - 500.0) / 500.0);
    (y.reshape([count]) * constant(weights.collect(), [count])).sum()
}

fn assert_close(name: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{name}");
    let scale = expected.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs() / scale;
        assert!(
            error <= TOLERANCE,
            "{name}[{at}]: {found} against {expected}"
        );
    }
}

/// Compares value and gradients of two functions of the same tensors.
macro_rules! compare {
    ($name:expr, ($($input:ident),+), $fused:expr, $plain:expr) => {{
        let mut all: Vec<Vec<(&str, Vec<f32>)>> = Vec::new();
        for fused in [true, false] {
            $(let $input = leaf(&$input);)+
            let y = if fused { ($fused)($($input.clone()),+) } else { ($plain)($($input.clone()),+) };
            let gradients = weighted(y.clone()).backward();
            all.push(vec![
                ("value", host(y)),
                $((stringify!($input), host($input.grad(&gradients).expect("a gradient")))),+
            ]);
        }
        for ((part, found), (_, expected)) in all[0].iter().zip(&all[1]) {
            assert_close(&format!("{}: {part}", $name), found, expected);
        }
    }};
}

#[test]
fn rms_norm() {
    for shape in [[2, 3, 40], [4, 70, 64]] {
        let (x, weight) = (random(shape), random([shape[2]]));
        compare!(
            format!("{shape:?}"),
            (x, weight),
            |x: Tensor<3>, w| aso_kernels::rms_norm(x, w, 1e-6),
            |x: Tensor<3>, w| plain::rms_norm(x, w, 1e-6)
        );
    }
}

/// Attribution starts its path at a zero vector, where the slope is `weight / sqrt(epsilon)`.
#[test]
fn rms_norm_of_zeros_has_the_exact_slope() {
    let x = leaf(&Tensor::<2>::zeros([1, 20], &Device::flex()));
    let weight = random([20]);
    let y = aso_kernels::rms_norm(x.clone(), weight.clone(), 1e-6);
    let found = host(x.grad(&y.sum().backward()).unwrap());
    assert_close("slope", &found, &host(weight.mul_scalar(1e3)));
}

#[test]
fn attention() {
    // (rows, heads, kv heads, queries, keys, d, bias shape)
    let cases = [
        (2, 4, 4, 5, 7, 8, [1, 4, 5, 7]),
        (2, 4, 2, 130, 130, 16, [2, 1, 130, 130]),
        (3, 2, 1, 1, 9, 8, [3, 1, 1, 9]),
        (1, 8, 8, 70, 33, 12, [1, 8, 70, 33]),
    ];
    for (rows, heads, kv_heads, queries, keys, d, bias) in cases {
        for p in [0.0, 0.25] {
            let query = random([rows, heads, queries, d]);
            let key = random([rows, kv_heads, keys, d]);
            let value = random([rows, kv_heads, keys, d]);
            let bias = random(bias);
            compare!(
                format!("{rows} rows, {heads}/{kv_heads} heads, {queries}x{keys}, dropout {p}"),
                (query, key, value, bias),
                |q, k, v, b| aso_kernels::attention(q, k, v, b, 0.3, mask(p)),
                |q, k, v, b| plain::attention(q, k, v, b, 0.3, mask(p))
            );
        }
    }
}

#[test]
fn attention_takes_joined_heads_and_masks_whole_rows() {
    let (rows, heads, length, d) = (2, 3, 6, 4);
    let joined = || random([rows, length, heads, d]);
    let (query, key, value) = (joined(), joined(), joined());
    // The last key is hidden; in row 1 every key is.
    let hidden = (0..rows * length).map(|at| at >= length || at == length - 1);
    let bias: Vec<f32> = hidden
        .map(|hidden| if hidden { f32::MIN } else { 0.0 })
        .collect();
    let bias = constant(bias, [rows, 1, 1, length]).expand([rows, 1, length, length]);
    let split = |x: Tensor<4>| x.swap_dims(1, 2);
    compare!(
        "joined heads",
        (query, key, value),
        |q, k, v| aso_kernels::attention(split(q), split(k), split(v), bias.clone(), 1.0, None),
        |q, k, v| plain::attention(split(q), split(k), split(v), bias.clone(), 1.0, None)
    );
}

/// A flipped tensor is a view that steps backwards; an empty one has no rows to share out.
#[test]
fn unusual_layouts() {
    let query = random([2, 3, 6, 4]);
    let weight = random([4, 5]);
    let bias = random([1, 1, 6, 6]);
    compare!(
        "flipped",
        (query),
        |q: Tensor<4>| {
            let k = q.clone().flip([2]);
            let y = aso_kernels::attention(q.clone(), k.clone(), k, bias.clone(), 1.0, None);
            aso_kernels::constant_linear(
                y,
                weight.clone().flip([0, 1]),
                weight.clone().flip([0, 1]).transpose(),
            )
        },
        |q: Tensor<4>| {
            let k = q.clone().flip([2]);
            let y = plain::attention(q.clone(), k.clone(), k, bias.clone(), 1.0, None);
            plain::constant_linear(
                y,
                weight.clone().flip([0, 1]),
                weight.clone().flip([0, 1]).transpose(),
            )
        }
    );
    let empty = Tensor::<2>::zeros([0, 4], &Device::flex());
    assert_eq!(
        aso_kernels::rms_norm(empty, random([4]), 1e-6).dims(),
        [0, 4]
    );
}

#[test]
fn rotations() {
    for angles in [5, 1] {
        let x = random([2, 3, 5, 8]);
        let (cos, sin) = (random([2, 1, angles, 4]), random([2, 1, angles, 4]));
        compare!(
            format!("rotate_halves, {angles} angles"),
            (x),
            |x| aso_kernels::rotate_halves(x, cos.clone(), sin.clone()),
            |x| plain::rotate_halves(x, cos.clone(), sin.clone())
        );
    }
}

#[test]
fn constant_linear_layers() {
    // One job, jobs of rows, jobs of columns; then a weight of which only the other layout is at hand.
    for (rows, d_in, d_out) in [(3, 24, 40), (150, 24, 40), (5, 24, 1300), (1, 300, 1300)] {
        let (x, weight) = (random([2, rows, d_in]), random([d_in, d_out]));
        let other = random([d_out, d_in]);
        let copy = Tensor::from_data(weight.clone().transpose().into_data(), &Device::flex());
        for (weight, transposed) in [
            (weight.clone(), copy),
            (weight.clone(), weight.transpose()),
            (other.clone().transpose(), other),
        ] {
            compare!(
                format!("{rows} rows, {d_in} to {d_out}"),
                (x),
                |x: Tensor<3>| aso_kernels::constant_linear(x, weight.clone(), transposed.clone()),
                |x: Tensor<3>| plain::constant_linear(x, weight.clone(), transposed.clone())
            );
        }
    }
}

#[test]
fn low_rank_products() {
    for (rows, length, d_in, d_out, rank) in [(2, 3, 10, 14, 4), (4, 300, 24, 16, 8)] {
        for p in [0.0, 0.1] {
            let (y, x) = (random([rows, length, d_out]), random([rows, length, d_in]));
            let (a, b) = (random([rank, d_in]), random([d_out, rank]));
            compare!(
                format!("{rows}x{length}, {d_in} to {d_out}, dropout {p}"),
                (y, x, a, b),
                |y: Tensor<3>, x, a, b| aso_kernels::add_low_rank(y, x, a, b, 4.0, mask(p)),
                |y: Tensor<3>, x, a, b| plain::add_low_rank(y, x, a, b, 4.0, mask(p))
            );
        }
    }
}

#[test]
fn activations() {
    for activation in [Activation::Relu, Activation::GeluTanh, Activation::Silu] {
        for p in [0.0, 0.1] {
            // More than one job of the kernel.
            let (x, gate) = (random([3, 5000]), random([3, 5000]));
            compare!(
                format!("{activation:?}, dropout {p}"),
                (x),
                |x: Tensor<2>| aso_kernels::activate(x, activation, mask(p)),
                |x: Tensor<2>| plain::activate(x, activation, mask(p))
            );
            compare!(
                format!("gated {activation:?}, dropout {p}"),
                (x, gate),
                |x: Tensor<2>, gate| aso_kernels::activate_gated(x, gate, activation, mask(p)),
                |x: Tensor<2>, gate| plain::activate_gated(x, gate, activation, mask(p))
            );
        }
    }
}

#[test]
fn dropouts() {
    let (x, y) = (random([7, 3000]), random([7, 3000]));
    compare!(
        "dropout",
        (x),
        |x: Tensor<2>| aso_kernels::dropout(x, mask(0.3)),
        |x: Tensor<2>| plain::dropout(x, mask(0.3))
    );
    compare!(
        "add_dropout",
        (x, y),
        |x: Tensor<2>, y| aso_kernels::add_dropout(x, y, mask(0.3)),
        |x: Tensor<2>, y| plain::add_dropout(x, y, mask(0.3))
    );
}

#[test]
fn cross_entropies() {
    let logits = random([6, 3000]).mul_scalar(5.0);
    let targets = [0, 2999, 17, 1500, 3, 3];
    compare!(
        "cross entropy",
        (logits),
        |logits| aso_kernels::cross_entropy(logits, &targets),
        |logits| plain::cross_entropy(logits, &targets)
    );
}

#[test]
fn penalties() {
    let (previous, active) = (random([24, 40]), random([8, 40]));
    let weights: Vec<f32> = (0..24).map(|row| row as f32 / 10.0).collect();
    for weights in [None, Some(weights)] {
        compare!(
            "absolute_products",
            (active),
            |active| aso_kernels::absolute_products(previous.clone(), active, weights.clone()),
            |active| plain::absolute_products(previous.clone(), active, weights.clone())
        );
    }
    compare!(
        "frobenius_norm",
        (active),
        aso_kernels::frobenius_norm,
        plain::frobenius_norm
    );
}

/// A fresh subspace has B = 0: its norm must not send NaN into the gradient.
#[test]
fn the_norm_of_zeros_has_a_gradient_of_zeros() {
    for norm in [aso_kernels::frobenius_norm, plain::frobenius_norm] {
        let x = leaf(&Tensor::<2>::zeros([4, 3], &Device::flex()));
        let gradients = norm(x.clone()).backward();
        assert_eq!(host(x.grad(&gradients).unwrap()), [0.0; 12]);
    }
}

/// A tensor that something else still holds must not change under it.
#[test]
fn inputs_survive() {
    let x = random([40, 1000]);
    let before = host(x.clone());
    let (a, b) = (random([2, 1000]), random([1000, 2]));
    for y in [
        aso_kernels::activate(x.clone(), Activation::Relu, mask(0.5)),
        aso_kernels::dropout(x.clone(), mask(0.5)),
        aso_kernels::add_dropout(x.clone(), x.clone(), mask(0.5)),
        aso_kernels::add_low_rank(x.clone(), x.clone(), a, b, 1.0, None),
    ] {
        assert_ne!(host(y), before);
        assert_eq!(host(x.clone()), before);
    }
}

/// The gradients of sums over rows must not depend on the number of threads.
#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let (y, x) = (random([8, 100, 64]), random([8, 100, 64]));
    let (a, b) = (random([8, 64]), random([64, 8]));
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let (a, b) = (leaf(&a), leaf(&b));
            let (y, x) = (y.clone(), x.clone());
            let z = aso_kernels::add_low_rank(y, x, a.clone(), b.clone(), 4.0, mask(0.1));
            let gradients = weighted(z).backward();
            (
                host(a.grad(&gradients).unwrap()),
                host(b.grad(&gradients).unwrap()),
            )
        })
    };
    assert_eq!(run(1), run(3));
}

/// Broadcasting and wrong groupings would go unnoticed on one path and not on the other.
#[test]
fn shapes_that_do_not_fit_panic() {
    type Misfit = (&'static str, fn());
    let misfits: [Misfit; 6] = [
        ("one weight a column", || {
            aso_kernels::rms_norm(random([2, 6]), random([3]), 1e-6);
        }),
        ("shapes of x and y", || {
            aso_kernels::add_dropout(random([4, 8]), random([1, 8]), mask(0.5));
        }),
        ("3 key heads for 4 query heads", || {
            let (query, key) = (random([1, 4, 2, 8]), random([1, 3, 2, 8]));
            let bias = random([1, 1, 1, 2]);
            aso_kernels::attention(query, key.clone(), key, bias, 1.0, None);
        }),
        ("a bias of shape", || {
            let query = random([1, 4, 2, 8]);
            let bias = random([1, 3, 1, 2]);
            aso_kernels::attention(query.clone(), query.clone(), query, bias, 1.0, None);
        }),
        ("shape of the transpose", || {
            let weight = random([8, 5]);
            aso_kernels::constant_linear(random([2, 8]), weight.clone(), weight);
        }),
        ("shape of b", || {
            let (a, b) = (random([2, 8]), random([5, 3]));
            aso_kernels::add_low_rank(random([4, 5]), random([4, 8]), a, b, 1.0, None);
        }),
    ];
    for (message, misfit) in misfits {
        let panic = std::panic::catch_unwind(misfit).expect_err(message);
        let found = match panic.downcast_ref::<String>() {
            Some(found) => found.as_str(),
            None => panic.downcast_ref::<&str>().expect("a message"),
        };
        assert!(found.contains(message), "{found}");
    }
}
