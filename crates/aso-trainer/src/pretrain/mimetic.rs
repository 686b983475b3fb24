//! Attention that looks for equal tokens and copies what it finds, before any training.
//!
//! A small encoder-decoder with drawn weights needs thousands of steps until it copies a word of its source. Trained
//! transformers have products of query and key, and of value and output, near multiples of the identity; starting
//! from there ("Mimetic Initialization of Self-Attention Layers", Trockman & Kolter 2023) it copies within hundreds.

use aso_backbones::t5::HfT5Config;
use nalgebra::DMatrix;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// How attention starts. Every product is of a random orthogonal matrix R of the attention and its transpose.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mimetic {
    /// `W_q = W_k = similarity R`: a token's score with itself is about `d_kv similarity^2`.
    pub similarity: f64,
    /// In cross attention `W_v = copy R` and `W_o = copy R^T`: it adds `copy^2` times what it looks at.
    pub copy: f64,
    /// Standard deviation of the noise on these matrices' entries, relative to that of the entries.
    pub noise: f64,
    /// Factor on the outputs of self attention and of the feed-forward layers, which at full size drown
    /// the tokens.
    pub branch: f64,
    /// Weight of the decoder's last norm: with 1 the logits of a mixture of tokens are too flat for a large vocabulary.
    pub gain: f64,
    /// Factor on the decoder's start vector, which nothing should be like.
    pub start: f64,
}

impl Mimetic {
    /// Scales the decoder's start vector.
    pub(super) fn quieten(&self, start: &mut [f32]) {
        start
            .iter_mut()
            .for_each(|value| *value *= self.start as f32);
    }

    /// The tensors that differ from Hugging Face's initialisation, by name, in PyTorch's orientation.
    pub(super) fn tensors(&self, config: &HfT5Config, seed: u64) -> Vec<(String, Vec<f32>)> {
        let (width, inner) = (config.d_model, config.num_heads * config.d_kv);
        let decoder = config.num_decoder_layers.unwrap_or(config.num_layers);
        let mut draws = Draws(ChaCha8Rng::seed_from_u64(seed ^ 0x6d69_6d65));
        let mut tensors = Vec::new();
        for (stack, blocks) in [("encoder", config.num_layers), ("decoder", decoder)] {
            for block in 0..blocks {
                let mut layers = vec![(0, "SelfAttention")];
                if stack == "decoder" {
                    layers.push((1, "EncDecAttention"));
                }
                let feed_forward = layers.len();
                for (at, attention) in layers {
                    let name = |kind: &str| {
                        format!("{stack}.block.{block}.layer.{at}.{attention}.{kind}.weight")
                    };
                    let alike = draws.orthogonal(inner, width);
                    for kind in ["q", "k"] {
                        tensors.push((name(kind), draws.near(&alike, self.similarity, self.noise)));
                    }
                    if attention == "EncDecAttention" {
                        let copied = draws.orthogonal(inner, width);
                        let back = copied.transpose();
                        tensors.push((name("v"), draws.near(&copied, self.copy, self.noise)));
                        tensors.push((name("o"), draws.near(&back, self.copy, self.noise)));
                    } else {
                        let std = self.branch / (inner as f64).sqrt();
                        tensors.push((name("o"), draws.normal(width * inner, std)));
                    }
                }
                let std = self.branch / (config.d_ff as f64).sqrt();
                tensors.push((
                    format!("{stack}.block.{block}.layer.{feed_forward}.DenseReluDense.wo.weight"),
                    draws.normal(width * config.d_ff, std),
                ));
            }
        }
        let gain = vec![self.gain as f32; width];
        tensors.push(("decoder.final_layer_norm.weight".to_owned(), gain));
        tensors
    }
}

struct Draws(ChaCha8Rng);

impl Draws {
    fn normal(&mut self, count: usize, std: f64) -> Vec<f32> {
        (0..count).map(|_| (std * self.draw()) as f32).collect()
    }

    fn draw(&mut self) -> f64 {
        StandardNormal.sample(&mut self.0)
    }

    /// The upper left part of a random orthogonal matrix.
    fn orthogonal(&mut self, rows: usize, columns: usize) -> DMatrix<f64> {
        let size = rows.max(columns);
        let drawn = DMatrix::from_fn(size, size, |_, _| self.draw());
        drawn.qr().q().view((0, 0), (rows, columns)).into_owned()
    }

    /// `scale (R + noise)`, row-major.
    fn near(&mut self, matrix: &DMatrix<f64>, scale: f64, noise: f64) -> Vec<f32> {
        let (rows, columns) = matrix.shape();
        let std = noise / (rows.max(columns) as f64).sqrt();
        let mut values = Vec::with_capacity(rows * columns);
        for row in 0..rows {
            for column in 0..columns {
                values.push((scale * (matrix[(row, column)] + std * self.draw())) as f32);
            }
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_near_multiples_of_the_identity() {
        let config = HfT5Config {
            d_model: 32,
            d_kv: 8,
            num_heads: 4,
            d_ff: 64,
            num_layers: 1,
            num_decoder_layers: Some(1),
            ..HfT5Config::default()
        };
        let mimetic = Mimetic {
            similarity: 0.4,
            copy: 1.2,
            noise: 0.0,
            branch: 0.5,
            gain: 3.0,
            start: 0.1,
        };
        let tensors = mimetic.tensors(&config, 1);
        assert_eq!(tensors, mimetic.tensors(&config, 1));
        let of = |name: &str| {
            let found = tensors.iter().find(|(found, _)| found == name);
            DMatrix::from_row_slice(32, 32, &found.unwrap().1)
        };
        let cross = "decoder.block.0.layer.1.EncDecAttention";
        let copies = of(&format!("{cross}.o.weight")) * of(&format!("{cross}.v.weight"));
        let scores =
            of(&format!("{cross}.q.weight")).transpose() * of(&format!("{cross}.k.weight"));
        for (product, factor) in [(copies, 1.44), (scores, 0.16)] {
            let identity = DMatrix::<f32>::identity(32, 32) * factor;
            assert!((product - identity).abs().max() < 1e-5);
        }
        // 2 + 3 attentions' matrices, 2 feed-forward layers, the norm.
        assert_eq!(tensors.len(), 3 + 3 + 4 + 2 + 1);
    }
}
