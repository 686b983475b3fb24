//! Token vectors from co-occurrence statistics.
//!
//! Positive pointwise mutual information (Church & Hanks 1990; Bullinaria & Levy 2007) of tokens within a window and within
//! a text, factorised (Levy, Goldberg & Dagan 2015): vectors `U |L|^(1/2)` of the leading eigenpairs of the symmetric PPMI
//! matrix, found by a randomised range finder with power iterations (Halko, Martinsson & Tropp 2011).

use std::collections::BTreeMap;

use nalgebra::{DMatrix, SymmetricEigen};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

/// Tokens to either side that count as neighbours; a neighbour at distance d counts 1/d.
const WINDOW: usize = 6;
/// Exponent that smooths the distribution of contexts (Levy et al. 2015).
const SMOOTHING: f64 = 0.75;
/// Extra columns of the range finder.
const OVERSAMPLING: usize = 32;
/// Power iterations: the spectrum of a PPMI matrix falls slowly.
const ITERATIONS: usize = 4;

/// A symmetric sparse matrix by rows.
struct Sparse {
    rows: Vec<Vec<(u32, f32)>>,
}

impl Sparse {
    /// `M x` for `x: [rows, columns]`, row-major.
    fn times(&self, x: &[f32], columns: usize) -> Vec<f32> {
        let mut y = vec![0.0; self.rows.len() * columns];
        let rows = y.par_chunks_mut(columns).zip(&self.rows);
        rows.for_each(|(y, row)| {
            for &(column, value) in row {
                let x = &x[column as usize * columns..][..columns];
                for (y, x) in y.iter_mut().zip(x) {
                    *y += value * x;
                }
            }
        });
        y
    }
}

/// Vectors `[vocabulary, width]`, row-major, with mean 0 in every column and root mean square 1 over all tokens that
/// occur. A token that does not occur gets a random vector of that size. A function of `seed`, not of the threads.
pub(in crate::pretrain) fn token_vectors(
    texts: &[Vec<u32>],
    vocabulary: usize,
    width: usize,
    seed: u64,
) -> Vec<f32> {
    let matrix = ppmi(texts, vocabulary);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut normal = move || -> f32 { StandardNormal.sample(&mut rng) };
    let columns = (width + OVERSAMPLING).min(vocabulary);
    let mut range: Vec<f32> = (0..vocabulary * columns).map(|_| normal()).collect();
    for _ in 0..ITERATIONS {
        range = orthonormal(matrix.times(&range, columns), columns);
    }
    // M restricted to the range, [columns, columns].
    let image = dense(&matrix.times(&range, columns), columns);
    let range = dense(&range, columns);
    let small = range.transpose() * image;
    let eigen = SymmetricEigen::new((&small + small.transpose()) * 0.5);
    let mut order: Vec<usize> = (0..columns).collect();
    order.sort_by(|a, b| {
        let magnitude = |at: &usize| eigen.eigenvalues[*at].abs();
        magnitude(b).total_cmp(&magnitude(a))
    });
    let factors = DMatrix::from_fn(columns, width, |row, column| match order.get(column) {
        Some(&at) => eigen.eigenvectors[(row, at)] * eigen.eigenvalues[at].abs().sqrt(),
        None => 0.0,
    });
    let vectors = range * factors;
    let occurs: Vec<bool> = matrix.rows.iter().map(|row| !row.is_empty()).collect();
    standardise(&vectors, &occurs, &mut normal)
}

/// Turns token vectors `[vocabulary, of]` into ones `[vocabulary, width]` to start a model from: the vector's direction, and
/// beside it a drawn one, both with half of the square; the root mean square of a row is 1.
///
/// Tokens of similar meaning are alike, and yet no two are the same to attention and to the head. Beside each other, what
/// tells tokens apart is no noise to what reads their meaning. With vectors as they are, frequent tokens, which are
/// short, would hardly be seen.
///
/// # Panics
/// If `of` is not below `width`.
pub(in crate::pretrain) fn with_identity(
    vectors: &[f32],
    of: usize,
    width: usize,
    seed: u64,
) -> Vec<f32> {
    assert!(of < width, "{of} of {width}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x6964);
    let mut mixed = Vec::with_capacity(vectors.len() / of * width);
    for vector in vectors.chunks(of) {
        let own: Vec<f32> = (of..width)
            .map(|_| StandardNormal.sample(&mut rng))
            .collect();
        for half in [vector, &own] {
            let square = half.iter().map(|v| v * v).sum::<f32>();
            let scale = (width as f32 / 2.0 / square.max(1e-12)).sqrt();
            mixed.extend(half.iter().map(|value| scale * value));
        }
    }
    mixed
}

/// The PPMI matrix of the tokens' co-occurrence.
fn ppmi(texts: &[Vec<u32>], vocabulary: usize) -> Sparse {
    let counts = cooccurrence(texts, vocabulary);
    let totals: Vec<f64> = counts
        .iter()
        .map(|row| row.iter().map(|(_, count)| count).sum())
        .collect();
    let smoothed: Vec<f64> = totals.iter().map(|count| count.powf(SMOOTHING)).collect();
    let smoothed_total: f64 = smoothed.iter().sum();
    let rows = counts.into_par_iter().enumerate().map(|(token, row)| {
        let mutual = |(other, count): (u32, f64)| {
            let other_at = other as usize;
            // The smoothing of contexts is symmetrised: the mean of both directions.
            let directed = |of: usize, context: usize| {
                (count * smoothed_total / (totals[of] * smoothed[context])).ln()
            };
            let value = 0.5 * (directed(token, other_at) + directed(other_at, token));
            (value > 0.0).then_some((other, value as f32))
        };
        row.into_iter().filter_map(mutual).collect()
    });
    Sparse {
        rows: rows.collect(),
    }
}

/// How often tokens meet, by rows: within [`WINDOW`], and within a text (a pair of different tokens of a text with n
/// different ones counts 1/n), both with the same sum over all. Neighbours say what a word is, texts what it is about.
fn cooccurrence(texts: &[Vec<u32>], vocabulary: usize) -> Vec<Vec<(u32, f64)>> {
    // Sums in the order of the texts.
    let mut near: Vec<BTreeMap<u32, f64>> = vec![BTreeMap::new(); vocabulary];
    let mut texts_of: Vec<Vec<usize>> = vec![Vec::new(); vocabulary];
    let mut tokens_of: Vec<Vec<u32>> = Vec::with_capacity(texts.len());
    for (number, text) in texts.iter().enumerate() {
        for (at, &token) in text.iter().enumerate() {
            for distance in 1..=WINDOW.min(text.len() - 1 - at) {
                let other = text[at + distance];
                let weight = 1.0 / distance as f64;
                *near[token as usize].entry(other).or_default() += weight;
                *near[other as usize].entry(token).or_default() += weight;
            }
        }
        let mut tokens = text.clone();
        tokens.sort_unstable();
        tokens.dedup();
        for token in &tokens {
            texts_of[*token as usize].push(number);
        }
        tokens_of.push(tokens);
    }
    let near_sum: f64 = near.iter().flat_map(BTreeMap::values).sum();
    let together = tokens_of
        .iter()
        .map(|tokens| tokens.len().saturating_sub(1));
    let scale = near_sum / (together.sum::<usize>() as f64).max(1.0);
    let rows = near.into_par_iter().zip(texts_of).enumerate();
    rows.map(|(token, (near, texts))| {
        let mut row = vec![0.0; vocabulary];
        for text in texts {
            let tokens = &tokens_of[text];
            for other in tokens {
                row[*other as usize] += scale / tokens.len() as f64;
            }
        }
        row[token] = 0.0;
        for (other, count) in near {
            row[other as usize] += count;
        }
        let counts = (0..).zip(row).filter(|(_, count)| *count > 0.0);
        counts.collect()
    })
    .collect()
}

fn dense(values: &[f32], columns: usize) -> DMatrix<f64> {
    DMatrix::from_fn(values.len() / columns, columns, |row, column| {
        f64::from(values[row * columns + column])
    })
}

/// An orthonormal basis of the columns' span, row-major.
fn orthonormal(values: Vec<f32>, columns: usize) -> Vec<f32> {
    let q = dense(&values, columns).qr().q();
    let (rows, columns) = q.shape();
    (0..rows)
        .flat_map(|row| (0..columns).map(move |column| (row, column)))
        .map(|at| q[at] as f32)
        .collect()
}

fn standardise(
    vectors: &DMatrix<f64>,
    occurs: &[bool],
    normal: &mut impl FnMut() -> f32,
) -> Vec<f32> {
    let (rows, width) = vectors.shape();
    let known = || (0..rows).filter(|row| occurs[*row]);
    let count = known().count().max(1) as f64;
    let means: Vec<f64> = (0..width)
        .map(|column| known().map(|row| vectors[(row, column)]).sum::<f64>() / count)
        .collect();
    let squares = known().map(|row| {
        let centred = (0..width).map(|column| vectors[(row, column)] - means[column]);
        centred.map(|value| value * value).sum::<f64>()
    });
    let scale = 1.0
        / (squares.sum::<f64>() / (count * width as f64))
            .sqrt()
            .max(1e-12);
    let mut standardised = Vec::with_capacity(rows * width);
    for (row, occurs) in occurs.iter().enumerate() {
        for (column, mean) in means.iter().enumerate() {
            standardised.push(if *occurs {
                ((vectors[(row, column)] - mean) * scale) as f32
            } else {
                normal()
            });
        }
    }
    standardised
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words of a topic.
    const TOPIC: u32 = 10;
    /// Both topics, a word of both, and one that does not occur.
    const VOCABULARY: usize = 22;

    /// Two topics, never mixed, and a word of both.
    fn texts() -> Vec<Vec<u32>> {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut draw = move || rand::RngExt::random_range(&mut rng, 0..TOPIC);
        (0..800)
            .map(|text| {
                let topic = if text % 2 == 0 { 0 } else { TOPIC };
                let words = (0..8).map(|at| {
                    if at % 4 == 3 {
                        2 * TOPIC
                    } else {
                        topic + draw()
                    }
                });
                words.collect()
            })
            .collect()
    }

    fn cosine(a: &[f32], b: &[f32]) -> f32 {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    }

    #[test]
    fn words_of_a_topic_are_alike() {
        let vectors = token_vectors(&texts(), VOCABULARY, 4, 1);
        let of = |token: usize| &vectors[token * 4..][..4];
        for (same, other) in [((0, 1), (0, 14)), ((13, 15), (13, 2)), ((1, 9), (9, 19))] {
            assert!(cosine(of(same.0), of(same.1)) > cosine(of(other.0), of(other.1)) + 0.5);
        }
        assert_eq!(vectors, token_vectors(&texts(), VOCABULARY, 4, 1));
    }

    #[test]
    fn identity_stands_beside_meaning() {
        let mixed = with_identity(&[3.0, 4.0, 0.3, 0.4], 2, 6, 1);
        for row in mixed.chunks(6) {
            let square = |part: &[f32]| part.iter().map(|v| v * v).sum::<f32>();
            assert!((square(&row[..2]) - 3.0).abs() < 1e-5, "{row:?}");
            assert!((square(&row[2..]) - 3.0).abs() < 1e-5, "{row:?}");
        }
        // Same direction, another identity.
        assert!(cosine(&mixed[..2], &mixed[6..8]) > 0.999);
        assert!(cosine(&mixed[2..6], &mixed[8..]) < 0.9);
    }

    #[test]
    fn vectors_have_unit_mean_square() {
        let vectors = token_vectors(&texts(), VOCABULARY, 4, 1);
        let occur = &vectors[..21 * 4];
        let square = occur.iter().map(|v| v * v).sum::<f32>() / occur.len() as f32;
        assert!((square - 1.0).abs() < 1e-4, "{square}");
        // The last token does not occur: its vector is drawn.
        assert!(vectors[21 * 4..].iter().any(|v| *v != 0.0));
    }
}
