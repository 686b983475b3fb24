//! Padded batches.

use crate::encode::EncodedExample;

/// The label of positions that the loss leaves out.
pub const IGNORED_LABEL: i64 = -100;

/// A padded batch; every matrix is row-major.
///
/// Encoder-decoder: sources and targets, padded on the right. Causal: whole sequences padded on the left, and
/// labels that lie at the position of their own token, so that `target_len` equals `source_len`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaddedBatch {
    /// Number of examples.
    pub rows: usize,
    /// Length of the longest input.
    pub source_len: usize,
    /// Length of the longest row of labels.
    pub target_len: usize,
    /// Input ids, `[rows, source_len]`, padded with the padding id.
    pub input_ids: Vec<i64>,
    /// 1 for tokens and 0 for padding, `[rows, source_len]`.
    pub attention_mask: Vec<i64>,
    /// Target ids, `[rows, target_len]`; [`IGNORED_LABEL`] where nothing is to be predicted.
    pub labels: Vec<i64>,
}

/// Pads examples to the longest source and the longest target among them.
///
/// No examples make a batch of zero rows.
pub fn collate_seq2seq(examples: &[&EncodedExample], pad_id: u32) -> PaddedBatch {
    let longest = |length: fn(&EncodedExample) -> usize| {
        examples
            .iter()
            .map(|example| length(example))
            .max()
            .unwrap_or(0)
    };
    let source_len = longest(|example| example.source.len());
    let target_len = longest(|example| example.target.len());
    let mut batch = PaddedBatch {
        rows: examples.len(),
        source_len,
        target_len,
        input_ids: Vec::with_capacity(examples.len() * source_len),
        attention_mask: Vec::with_capacity(examples.len() * source_len),
        labels: Vec::with_capacity(examples.len() * target_len),
    };
    for example in examples {
        push_row(
            &mut batch.input_ids,
            &example.source,
            source_len,
            i64::from(pad_id),
        );
        push_row(
            &mut batch.labels,
            &example.target,
            target_len,
            IGNORED_LABEL,
        );
        let tokens = example.source.len();
        batch
            .attention_mask
            .extend((0..source_len).map(|position| i64::from(position < tokens)));
    }
    batch
}

/// Joins the source and target of each example to one sequence, padded on the left to the longest: what a
/// causal model is trained on. The source carries no labels.
pub fn collate_causal(examples: &[&EncodedExample], pad_id: u32) -> PaddedBatch {
    let rows = examples.iter().map(|example| {
        let labelled = example.target.iter().map(|&id| (id, i64::from(id)));
        let source = example.source.iter().map(|&id| (id, IGNORED_LABEL));
        source.chain(labelled).collect()
    });
    left_padded(rows.collect(), pad_id)
}

/// The sources alone, padded on the left to the longest and without labels: what a causal model continues.
pub fn collate_prompts(examples: &[&EncodedExample], pad_id: u32) -> PaddedBatch {
    let rows = examples.iter().map(|example| {
        example
            .source
            .iter()
            .map(|&id| (id, IGNORED_LABEL))
            .collect()
    });
    left_padded(rows.collect(), pad_id)
}

/// Rows of ids and labels, padded on the left.
fn left_padded(rows: Vec<Vec<(u32, i64)>>, pad_id: u32) -> PaddedBatch {
    let length = rows.iter().map(Vec::len).max().unwrap_or(0);
    let mut batch = PaddedBatch {
        rows: rows.len(),
        source_len: length,
        target_len: length,
        input_ids: Vec::with_capacity(rows.len() * length),
        attention_mask: Vec::with_capacity(rows.len() * length),
        labels: Vec::with_capacity(rows.len() * length),
    };
    for row in rows {
        let padding = length - row.len();
        let pad = |value| std::iter::repeat_n(value, padding);
        batch.input_ids.extend(pad(i64::from(pad_id)));
        batch
            .input_ids
            .extend(row.iter().map(|(id, _)| i64::from(*id)));
        batch.attention_mask.extend(pad(0));
        batch.attention_mask.extend(row.iter().map(|_| 1));
        batch.labels.extend(pad(IGNORED_LABEL));
        batch.labels.extend(row.iter().map(|(_, label)| *label));
    }
    batch
}

impl PaddedBatch {
    /// Target tokens that count in the loss.
    pub fn target_tokens(&self) -> usize {
        self.labels
            .iter()
            .filter(|&&label| label != IGNORED_LABEL)
            .count()
    }
}

fn push_row(matrix: &mut Vec<i64>, ids: &[u32], length: usize, padding: i64) {
    let padding = std::iter::repeat_n(padding, length - ids.len());
    matrix.extend(ids.iter().map(|&id| i64::from(id)).chain(padding));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example(source: &[u32], target: &[u32]) -> EncodedExample {
        EncodedExample {
            source: source.to_vec(),
            target: target.to_vec(),
            source_removed: 0,
            target_removed: 0,
        }
    }

    #[test]
    fn pads_to_the_longest() {
        let (long, short) = (example(&[5, 6, 1], &[1]), example(&[7, 1], &[8, 9, 1]));
        let batch = collate_seq2seq(&[&long, &short], 0);
        assert_eq!((batch.rows, batch.source_len, batch.target_len), (2, 3, 3));
        assert_eq!(batch.input_ids, [5, 6, 1, 7, 1, 0]);
        assert_eq!(batch.attention_mask, [1, 1, 1, 1, 1, 0]);
        assert_eq!(batch.labels, [1, -100, -100, 8, 9, 1]);
        assert_eq!(batch.target_tokens(), 4);
    }

    #[test]
    fn causal_rows_end_together() {
        let (long, short) = (example(&[1, 5, 6], &[8, 2]), example(&[1, 7], &[2]));
        let batch = collate_causal(&[&long, &short], 0);
        assert_eq!((batch.rows, batch.source_len, batch.target_len), (2, 5, 5));
        assert_eq!(batch.input_ids, [1, 5, 6, 8, 2, 0, 0, 1, 7, 2]);
        assert_eq!(batch.attention_mask, [1, 1, 1, 1, 1, 0, 0, 1, 1, 1]);
        assert_eq!(
            batch.labels,
            [-100, -100, -100, 8, 2, -100, -100, -100, -100, 2]
        );
        let prompts = collate_prompts(&[&long, &short], 0);
        assert_eq!(prompts.input_ids, [1, 5, 6, 0, 1, 7]);
        assert_eq!(prompts.attention_mask, [1, 1, 1, 0, 1, 1]);
        assert_eq!(prompts.target_tokens(), 0);
    }

    #[test]
    fn an_empty_batch_has_no_rows() {
        let batch = collate_seq2seq(&[], 0);
        assert_eq!((batch.rows, batch.source_len, batch.target_len), (0, 0, 0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn nothing_is_lost(
            rows in prop::collection::vec(
                (prop::collection::vec(2_u32..50, 1..20), prop::collection::vec(2_u32..50, 1..6)),
                1..9,
            ),
        ) {
            let examples: Vec<_> = rows.iter().map(|(s, t)| example(s, t)).collect();
            let batch = collate_seq2seq(&examples.iter().collect::<Vec<_>>(), 0);
            for (row, example) in examples.iter().enumerate() {
                let cells = row * batch.source_len..(row + 1) * batch.source_len;
                let source: Vec<u32> = batch.input_ids[cells.clone()]
                    .iter()
                    .zip(&batch.attention_mask[cells])
                    .filter(|&(_, &mask)| mask == 1)
                    .map(|(&id, _)| id as u32)
                    .collect();
                prop_assert_eq!(&source, &example.source);
                let target: Vec<u32> = batch.labels[row * batch.target_len..(row + 1) * batch.target_len]
                    .iter()
                    .filter(|&&label| label != IGNORED_LABEL)
                    .map(|&label| label as u32)
                    .collect();
                prop_assert_eq!(&target, &example.target);
            }
            let batch = collate_causal(&examples.iter().collect::<Vec<_>>(), 0);
            for (row, example) in examples.iter().enumerate() {
                let end = (row + 1) * batch.source_len;
                let whole = [example.source.as_slice(), &example.target].concat();
                let found = &batch.input_ids[end - whole.len()..end];
                prop_assert!(found.iter().zip(&whole).all(|(a, b)| *a == i64::from(*b)));
                let mask = &batch.attention_mask[row * batch.source_len..end];
                prop_assert_eq!(mask.iter().sum::<i64>(), whole.len() as i64);
            }
            let targets: usize = examples.iter().map(|example| example.target.len()).sum();
            prop_assert_eq!(batch.target_tokens(), targets);
        }
    }
}
