//! Padded batches.

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::encode::EncodedExample;

/// The label of positions that the loss leaves out.
pub const IGNORED_LABEL: i64 = -100;

/// A padded batch for an encoder-decoder; every matrix is row-major.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seq2SeqBatch {
    /// Number of examples.
    pub rows: usize,
    /// Length of the longest source.
    pub source_len: usize,
    /// Length of the longest target.
    pub target_len: usize,
    /// Source ids, `[rows, source_len]`, padded on the right with the padding id.
    pub input_ids: Vec<i64>,
    /// 1 for tokens and 0 for padding, `[rows, source_len]`.
    pub attention_mask: Vec<i64>,
    /// Target ids, `[rows, target_len]`, padded on the right with [`IGNORED_LABEL`].
    pub labels: Vec<i64>,
}

/// A [`Seq2SeqBatch`] on a device.
#[derive(Debug, Clone)]
pub struct Seq2SeqTensors {
    /// Source ids, `[rows, source_len]`.
    pub input_ids: Tensor<2, Int>,
    /// 1 for tokens and 0 for padding, `[rows, source_len]`.
    pub attention_mask: Tensor<2, Int>,
    /// Target ids or [`IGNORED_LABEL`], `[rows, target_len]`.
    pub labels: Tensor<2, Int>,
}

/// Pads examples to the longest source and the longest target among them.
///
/// No examples make a batch of zero rows, which has no tensors worth computing with.
pub fn collate_seq2seq(examples: &[&EncodedExample], pad_id: u32) -> Seq2SeqBatch {
    let longest = |length: fn(&EncodedExample) -> usize| {
        examples
            .iter()
            .map(|example| length(example))
            .max()
            .unwrap_or(0)
    };
    let source_len = longest(|example| example.source.len());
    let target_len = longest(|example| example.target.len());
    let mut batch = Seq2SeqBatch {
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

impl Seq2SeqBatch {
    /// Copies the batch to a device.
    pub fn tensors(&self, device: &Device) -> Seq2SeqTensors {
        let matrix = |values: &[i64], columns| {
            let data = TensorData::new(values.to_vec(), [self.rows, columns]);
            Tensor::<2, Int>::from_data(data, device)
        };
        Seq2SeqTensors {
            input_ids: matrix(&self.input_ids, self.source_len),
            attention_mask: matrix(&self.attention_mask, self.source_len),
            labels: matrix(&self.labels, self.target_len),
        }
    }

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

        let tensors = batch.tensors(&Device::default());
        assert_eq!(tensors.input_ids.dims(), [2, 3]);
        let labels = tensors.labels.into_data().convert::<i64>();
        assert_eq!(labels.try_to_vec::<i64>().unwrap(), batch.labels);
        let mask = tensors.attention_mask.into_data().convert::<i64>();
        assert_eq!(mask.try_to_vec::<i64>().unwrap(), batch.attention_mask);
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
        }
    }
}
