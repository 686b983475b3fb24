//! One batch of token ids on the host.

use serde::Deserialize;

use crate::{BackboneError, ModelKind};

/// The label of positions that do not count.
pub const IGNORED_LABEL: i64 = -100;

/// Token ids, attention mask and labels of one batch, row-major on the host.
///
/// Sequence-to-sequence: `labels` are the decoder's targets, `[rows, target_len]`; decoder inputs are
/// the labels shifted right. Causal: `labels` align with `input_ids` and are shifted inside the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenBatch {
    rows: usize,
    source_len: usize,
    target_len: usize,
    input_ids: Vec<i64>,
    attention_mask: Vec<i64>,
    labels: Vec<i64>,
}

/// The JSON form of a batch: `{"input_ids": [[..]], "attention_mask": [[..]], "labels": [[..]]}`.
#[derive(Debug, Deserialize)]
struct BatchFile {
    input_ids: Vec<Vec<i64>>,
    attention_mask: Vec<Vec<i64>>,
    labels: Vec<Vec<i64>>,
}

impl TokenBatch {
    /// A batch from flat row-major arrays.
    ///
    /// # Shapes
    /// - input_ids, attention_mask: `[rows, source_len]`
    /// - labels: `[rows, target_len]`, [`IGNORED_LABEL`] where nothing is to be predicted
    ///
    /// # Errors
    /// [`BackboneError::BatchShape`] if an array has another size, or there is no row or no token.
    pub fn new(
        rows: usize,
        input_ids: Vec<i64>,
        attention_mask: Vec<i64>,
        labels: Vec<i64>,
    ) -> Result<Self, BackboneError> {
        let error = |field, expected: String, found: usize| {
            Err(BackboneError::BatchShape {
                field,
                expected,
                found: format!("{found} values"),
            })
        };
        if rows == 0 || input_ids.is_empty() || !input_ids.len().is_multiple_of(rows) {
            let expected = format!("a positive multiple of {rows} rows");
            return error("input_ids", expected, input_ids.len());
        }
        if attention_mask.len() != input_ids.len() {
            let expected = format!("{} values as in `input_ids`", input_ids.len());
            return error("attention_mask", expected, attention_mask.len());
        }
        if labels.is_empty() || !labels.len().is_multiple_of(rows) {
            return error(
                "labels",
                format!("a positive multiple of {rows} rows"),
                labels.len(),
            );
        }
        Ok(Self {
            rows,
            source_len: input_ids.len() / rows,
            target_len: labels.len() / rows,
            input_ids,
            attention_mask,
            labels,
        })
    }

    /// Parses the JSON form: nested arrays `input_ids`, `attention_mask` and `labels`.
    ///
    /// # Errors
    /// [`BackboneError::Json`] names `path`, line and column; [`BackboneError::BatchShape`] a ragged row.
    pub fn from_json(path: &std::path::Path, text: &str) -> Result<Self, BackboneError> {
        let file: BatchFile = serde_json::from_str(text).map_err(|source| BackboneError::Json {
            path: path.to_owned(),
            source,
        })?;
        let rows = file.input_ids.len();
        let flat = |field, values: Vec<Vec<i64>>| {
            let width = values.first().map_or(0, Vec::len);
            if values.len() != rows {
                return Err(BackboneError::BatchShape {
                    field,
                    expected: format!("{rows} rows as in `input_ids`"),
                    found: format!("{} rows", values.len()),
                });
            }
            if let Some(row) = values.iter().position(|row| row.len() != width) {
                return Err(BackboneError::BatchShape {
                    field,
                    expected: format!("rows of equal length ({width}, as row 0)"),
                    found: format!("{} values in row {row}", values[row].len()),
                });
            }
            Ok(values.concat())
        };
        Self::new(
            rows,
            flat("input_ids", file.input_ids)?,
            flat("attention_mask", file.attention_mask)?,
            flat("labels", file.labels)?,
        )
    }

    /// Checks that the labels have the form that a kind of model needs: those of a causal model align with
    /// its input.
    ///
    /// # Errors
    /// [`BackboneError::BatchShape`].
    pub fn check_kind(&self, kind: ModelKind) -> Result<(), BackboneError> {
        if kind == ModelKind::EncoderDecoder || self.target_len == self.source_len {
            return Ok(());
        }
        Err(BackboneError::BatchShape {
            field: "labels",
            expected: format!(
                "{} columns as in `input_ids` (causal model)",
                self.source_len
            ),
            found: format!("{} columns", self.target_len),
        })
    }

    /// Checks that every id is below `vocabulary` (labels may also be [`IGNORED_LABEL`]).
    ///
    /// # Errors
    /// [`BackboneError::TokenId`] names the first offending row and position.
    pub fn check_vocabulary(&self, vocabulary: usize) -> Result<(), BackboneError> {
        let valid = |id: i64| usize::try_from(id).is_ok_and(|id| id < vocabulary);
        let check = |field, ids: &[i64], width: usize, ignored: Option<i64>| match ids
            .iter()
            .position(|id| !valid(*id) && Some(*id) != ignored)
        {
            Some(at) => Err(BackboneError::TokenId {
                field,
                row: at / width,
                position: at % width,
                id: ids[at],
                vocabulary,
            }),
            None => Ok(()),
        };
        check("input_ids", &self.input_ids, self.source_len, None)?;
        check("labels", &self.labels, self.target_len, Some(IGNORED_LABEL))
    }

    /// Number of examples.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Padded source length S.
    pub fn source_len(&self) -> usize {
        self.source_len
    }

    /// Padded target length T.
    pub fn target_len(&self) -> usize {
        self.target_len
    }

    /// `[rows, source_len]`.
    pub fn input_ids(&self) -> &[i64] {
        &self.input_ids
    }

    /// `[rows, source_len]`, 1 for tokens and 0 for padding.
    pub fn attention_mask(&self) -> &[i64] {
        &self.attention_mask
    }

    /// `[rows, target_len]`.
    pub fn labels(&self) -> &[i64] {
        &self.labels
    }

    /// Labels of one row.
    pub fn row_labels(&self, row: usize) -> &[i64] {
        &self.labels[row * self.target_len..(row + 1) * self.target_len]
    }

    /// Position and value of the first label of `row` that counts.
    pub fn first_label(&self, row: usize) -> Option<(usize, i64)> {
        self.row_labels(row)
            .iter()
            .enumerate()
            .find_map(|(at, label)| (*label != IGNORED_LABEL).then_some((at, *label)))
    }

    /// Position and value of the first label of every row; `point` is for the error.
    pub(crate) fn answers(&self, point: &'static str) -> Result<Vec<(i64, i64)>, BackboneError> {
        (0..self.rows)
            .map(|row| {
                self.first_label(row)
                    .map(|(at, token)| (at as i64, token))
                    .ok_or_else(|| BackboneError::Tap {
                        point,
                        reason: format!("row {row} has no label that counts"),
                    })
            })
            .collect()
    }

    /// The batch with another first label in every row that has one: `tokens[row]`.
    ///
    /// # Panics
    /// Panics if there is not one token for each row.
    pub fn with_first_labels(&self, tokens: &[i64]) -> Self {
        assert_eq!(tokens.len(), self.rows, "one token for each row");
        let mut batch = self.clone();
        for (row, token) in tokens.iter().enumerate() {
            if let Some((at, _)) = self.first_label(row) {
                batch.labels[row * self.target_len + at] = *token;
            }
        }
        batch
    }

    /// The chosen rows, in the given order, with the padding of the whole batch kept.
    ///
    /// # Panics
    /// Panics if `rows` is empty or names a row that does not exist.
    pub fn select(&self, rows: &[usize]) -> Self {
        assert!(!rows.is_empty(), "a batch needs at least one row");
        let pick = |values: &[i64], width: usize| {
            rows.iter()
                .flat_map(|row| &values[row * width..(row + 1) * width])
                .copied()
                .collect()
        };
        Self {
            rows: rows.len(),
            source_len: self.source_len,
            target_len: self.target_len,
            input_ids: pick(&self.input_ids, self.source_len),
            attention_mask: pick(&self.attention_mask, self.source_len),
            labels: pick(&self.labels, self.target_len),
        }
    }
}
