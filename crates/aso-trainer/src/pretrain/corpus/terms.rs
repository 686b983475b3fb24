//! Content words of a corpus, what they mean to each other, and what texts are about.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use rand::RngExt;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::iter::{IntoParallelIterator, IntoParallelRefIterator, ParallelIterator};

/// The most frequent words say nothing about a text, whatever its language: so many, or one in [`STOP_SHARE`] words of
/// a small corpus. More would take words such as "good" or "film" away; English function words are known by name.
const FREQUENT_WORDS: usize = 30;
const STOP_SHARE: usize = 100;
/// A term occurs in so many texts at least.
const MIN_TEXTS: usize = 5;
/// Nearest terms that are kept.
const NEIGHBOURS: usize = 16;
/// Groups of texts.
const GROUPS: usize = 48;
const GROUP_ROUNDS: usize = 12;
/// Terms that may name a group.
const NAMES: usize = 8;

/// A word of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Word {
    /// Bytes of the text.
    pub(super) at: Range<usize>,
    /// Number of the term, if it is one.
    pub(super) term: Option<u32>,
}

/// The content words of a corpus.
pub(super) struct Terms {
    /// Lower case.
    pub(super) names: Vec<String>,
    /// Unit vectors.
    vectors: Vec<Vec<f32>>,
    /// Weight of a term in a text's vector, `ln(texts / texts with the term)`.
    weights: Vec<f32>,
    /// Nearest terms, nearest first.
    pub(super) neighbours: Vec<Vec<u32>>,
    /// The words of every text.
    pub(super) texts: Vec<Vec<Word>>,
    /// The group of every text.
    pub(super) group_of: Vec<u32>,
    /// Terms that name each group, best first.
    pub(super) group_names: Vec<Vec<u32>>,
}

impl Terms {
    /// `vector_of` gives the vector of a word. A function of its arguments, not of the threads.
    pub(super) fn new(
        texts: &[String],
        seed: u64,
        vector_of: impl Fn(&str) -> Option<Vec<f32>> + Sync,
    ) -> Self {
        let words: Vec<Vec<Range<usize>>> = texts.par_iter().map(|text| words(text)).collect();
        let (mut counts, mut in_texts) = (BTreeMap::new(), BTreeMap::new());
        for (text, words) in texts.iter().zip(&words) {
            let mut here = BTreeMap::new();
            for word in words {
                *here.entry(text[word.clone()].to_lowercase()).or_insert(0) += 1;
            }
            for (word, count) in here {
                *in_texts.entry(word.clone()).or_insert(0_usize) += 1;
                *counts.entry(word).or_insert(0_usize) += count;
            }
        }
        let mut by_count: Vec<(&String, usize)> = counts.iter().map(|(w, c)| (w, *c)).collect();
        by_count.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
        let stop_words: HashSet<&str> = stop_words::get("en").iter().copied().collect();
        let candidates: Vec<&String> = by_count
            .into_iter()
            .skip(FREQUENT_WORDS.min(in_texts.len() / STOP_SHARE))
            .map(|(word, _)| word)
            .filter(|word| in_texts[*word] >= MIN_TEXTS && word.chars().count() >= 3)
            .filter(|word| !stop_words.contains(word.as_str()))
            .collect();
        let vectors: Vec<Option<Vec<f32>>> = candidates
            .par_iter()
            .map(|word| unit(vector_of(word)?))
            .collect();
        let (mut names, mut kept, mut weights) = (Vec::new(), Vec::new(), Vec::new());
        for (word, vector) in candidates.into_iter().zip(vectors) {
            let Some(vector) = vector else { continue };
            weights.push((texts.len() as f32 / in_texts[word] as f32).ln());
            names.push(word.clone());
            kept.push(vector);
        }
        let number: BTreeMap<&str, u32> = (0..).zip(&names).map(|(n, w)| (w.as_str(), n)).collect();
        let texts = texts.iter().zip(words).map(|(text, words)| {
            let word = |at: Range<usize>| Word {
                term: number
                    .get(text[at.clone()].to_lowercase().as_str())
                    .copied(),
                at,
            };
            words.into_iter().map(word).collect()
        });
        let texts: Vec<Vec<Word>> = texts.collect();
        let mut terms = Self {
            neighbours: nearest(&kept),
            names,
            vectors: kept,
            weights,
            texts,
            group_of: Vec::new(),
            group_names: Vec::new(),
        };
        terms.group(seed);
        terms
    }

    /// The vector of some words: the weighted sum of their terms, not normalised.
    pub(super) fn topic<'a>(&self, words: impl IntoIterator<Item = &'a Word>) -> Vec<f32> {
        let mut sum = vec![0.0; self.vectors.first().map_or(0, Vec::len)];
        for term in words.into_iter().filter_map(|word| word.term) {
            let (vector, weight) = (&self.vectors[term as usize], self.weights[term as usize]);
            for (sum, value) in sum.iter_mut().zip(vector) {
                *sum += weight * value;
            }
        }
        sum
    }

    /// Cosine of a term and a topic, without the term's own part where it is one of the topic's.
    pub(super) fn belonging(&self, term: u32, topic: &[f32], own: bool) -> f32 {
        let vector = &self.vectors[term as usize];
        let weight = if own {
            self.weights[term as usize]
        } else {
            0.0
        };
        let rest: Vec<f32> = topic
            .iter()
            .zip(vector)
            .map(|(t, v)| t - weight * v)
            .collect();
        dot(vector, &rest) / dot(&rest, &rest).sqrt().max(1e-6)
    }

    /// Groups texts by topic (spherical k-means) and names the groups.
    fn group(&mut self, seed: u64) {
        let topics: Vec<Option<Vec<f32>>> = self
            .texts
            .par_iter()
            .map(|words| unit(self.topic(words)))
            .collect();
        let known: Vec<usize> = (0..topics.len())
            .filter(|at| topics[*at].is_some())
            .collect();
        if known.is_empty() {
            self.group_of = vec![0; topics.len()];
            return;
        }
        let topic = |at: usize| topics[at].as_deref().unwrap_or(&[]);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut centres: Vec<Vec<f32>> = (0..GROUPS)
            .map(|_| topic(known[rng.random_range(0..known.len())]).to_vec())
            .collect();
        let nearest_centre = |centres: &[Vec<f32>], at: usize| {
            let mut best = (0, f32::NEG_INFINITY);
            for (centre, vector) in (0..).zip(centres) {
                let cosine = dot(vector, topic(at));
                if cosine > best.1 {
                    best = (centre, cosine);
                }
            }
            best.0
        };
        for _ in 0..GROUP_ROUNDS {
            let of: Vec<u32> = known
                .par_iter()
                .map(|at| nearest_centre(&centres, *at))
                .collect();
            let mut sums = vec![vec![0.0; centres[0].len()]; GROUPS];
            for (at, group) in known.iter().zip(of) {
                for (sum, value) in sums[group as usize].iter_mut().zip(topic(*at)) {
                    *sum += value;
                }
            }
            for (centre, sum) in centres.iter_mut().zip(sums) {
                if let Some(unit) = unit(sum) {
                    *centre = unit;
                }
            }
        }
        let all = 0..topics.len();
        self.group_of = all
            .into_par_iter()
            .map(|at| nearest_centre(&centres, at))
            .collect();
        // A good name is near the group's centre and frequent in the group.
        let mut counts = vec![BTreeMap::<u32, f32>::new(); GROUPS];
        for (words, group) in self.texts.iter().zip(&self.group_of) {
            for term in words.iter().filter_map(|word| word.term) {
                *counts[*group as usize].entry(term).or_default() += 1.0;
            }
        }
        self.group_names = centres
            .iter()
            .zip(counts)
            .map(|(centre, counts)| {
                let score = |(term, count): (u32, f32)| {
                    let near = dot(centre, &self.vectors[term as usize]).max(0.0);
                    (term, near * near * (1.0 + count).ln())
                };
                let mut scored: Vec<(u32, f32)> = counts.into_iter().map(score).collect();
                scored.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
                scored
                    .into_iter()
                    .take(NAMES)
                    .map(|(term, _)| term)
                    .collect()
            })
            .collect();
    }
}

/// Stretches of letters.
fn words(text: &str) -> Vec<Range<usize>> {
    let mut words = Vec::new();
    let mut start = None;
    for (at, character) in text.char_indices() {
        match (character.is_alphabetic(), start) {
            (true, None) => start = Some(at),
            (false, Some(from)) => {
                words.push(from..at);
                start = None;
            }
            _ => {}
        }
    }
    words.extend(start.map(|from| from..text.len()));
    words
}

fn nearest(vectors: &[Vec<f32>]) -> Vec<Vec<u32>> {
    let of = |(at, vector): (usize, &Vec<f32>)| {
        let mut others: Vec<(u32, f32)> = (0..)
            .zip(vectors)
            .filter(|(other, _)| *other as usize != at)
            .map(|(other, found)| (other, dot(vector, found)))
            .collect();
        others.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        others.truncate(NEIGHBOURS);
        others.into_iter().map(|(other, _)| other).collect()
    };
    let numbered: Vec<(usize, &Vec<f32>)> = vectors.iter().enumerate().collect();
    numbered.into_par_iter().map(of).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn unit(mut vector: Vec<f32>) -> Option<Vec<f32>> {
    let length = dot(&vector, &vector).sqrt();
    (length > 1e-6).then(|| {
        vector.iter_mut().for_each(|value| *value /= length);
        vector
    })
}
