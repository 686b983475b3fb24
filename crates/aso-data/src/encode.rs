//! From text to token ids, and back.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use sha2::{Digest, Sha256};
use tokenizers::{Encoding, Tokenizer};

use crate::error::DataError;
use crate::example::{Example, TruncationSide};
use crate::records::read;

/// A Hugging Face tokenizer with the ids of its special tokens.
///
/// Padding and truncation that `tokenizer.json` may ask for are switched off: both are done here,
/// see [`Seq2SeqEncoder`] and [`collate_seq2seq`](crate::collate_seq2seq).
#[derive(Clone)]
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    vocab_size: usize,
    pad: Option<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    unk: Option<u32>,
    adds_bos: bool,
    digest: Option<[u8; 32]>,
}

/// A tokenised example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedExample {
    /// The prompt: ending with the end token for an encoder-decoder, beginning with the begin token (if the
    /// model has one) for a causal model.
    pub source: Vec<u32>,
    /// The answer, ending with the end token.
    pub target: Vec<u32>,
    /// How many tokens of the sentence did not fit.
    pub source_removed: usize,
    /// How many tokens of the answer did not fit.
    pub target_removed: usize,
}

/// The tokenised answers of a classification task, for each of some examples: how an answer is tokenised may depend on
/// the prompt that it follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerSet {
    /// Distinct lists of the same answers, in the order of the labels.
    pub(crate) lists: Vec<Vec<Vec<u32>>>,
    /// The list of each example.
    pub(crate) of: Vec<usize>,
}

/// Encodes examples for an encoder-decoder such as T5.
///
/// Source and target both end with the end token exactly once, whether or not the tokenizer's
/// post-processor adds it (T5's does). No other token is added.
///
/// A source of more than `max_source` tokens loses tokens at the end of its *sentence*, or at its beginning, as the
/// example's [`truncation_side`](Example::truncation_side) says. Prompts are
/// tokenised as a whole and cut afterwards, by the tokens' offsets in the text, so that what
/// stays is tokenised as in the uncut prompt. A token that reaches over an edge of the sentence
/// belongs to the prefix or suffix and stays. A target of more than `max_target` tokens is cut
/// before its end token.
#[derive(Debug, Clone, Copy)]
pub struct Seq2SeqEncoder<'a> {
    tokenizer: &'a TextTokenizer,
    limits: Limits,
}

/// What every encoder keeps to: lengths in tokens, and the token that ends an answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    eos: u32,
    pub(crate) max_source: usize,
    max_target: usize,
}

/// Spellings of the special tokens, T5's and LLaMA's first.
const PAD: &[&str] = &["<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>"];
const EOS: &[&str] = &[
    "</s>",
    "<eos>",
    "[EOS]",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|im_end|>",
    "[SEP]",
];
const BOS: &[&str] = &["<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>"];
const UNK: &[&str] = &["<unk>", "[UNK]", "<|unk|>"];

/// Examples tokenised at a time, which bounds the memory that offsets take.
pub(crate) const CHUNK: usize = 2048;

impl TextTokenizer {
    /// Loads `tokenizer.json`.
    ///
    /// # Errors
    /// If the file cannot be read or is no tokenizer.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, DataError> {
        let path = path.as_ref();
        Self::parse(&read(path)?, path.display().to_string())
    }

    /// Loads the bytes of a `tokenizer.json`.
    ///
    /// # Errors
    /// If they are no tokenizer.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DataError> {
        Self::parse(bytes, "tokenizer in memory".to_owned())
    }

    /// Wraps a tokenizer that is built already.
    ///
    /// # Errors
    /// If its vocabulary is empty.
    pub fn from_tokenizer(tokenizer: Tokenizer) -> Result<Self, DataError> {
        Self::wrap(tokenizer, "tokenizer in memory".to_owned())
    }

    fn parse(bytes: &[u8], origin: String) -> Result<Self, DataError> {
        match Tokenizer::from_bytes(bytes) {
            Ok(tokenizer) => Ok(Self {
                digest: Some(Sha256::digest(bytes).into()),
                ..Self::wrap(tokenizer, origin)?
            }),
            Err(error) => Err(DataError::Tokenizer {
                origin,
                problem: error.to_string(),
            }),
        }
    }

    fn wrap(mut tokenizer: Tokenizer, origin: String) -> Result<Self, DataError> {
        let own_pad = tokenizer
            .get_padding()
            .map(|padding| padding.pad_token.clone());
        tokenizer.with_padding(None);
        if let Err(error) = tokenizer.with_truncation(None) {
            return Err(DataError::Tokenizer {
                origin,
                problem: error.to_string(),
            });
        }
        let Some(largest) = tokenizer.get_vocab(true).into_values().max() else {
            return Err(DataError::Tokenizer {
                origin,
                problem: "empty vocabulary".to_owned(),
            });
        };
        let first = |names: &[&str]| names.iter().find_map(|name| tokenizer.token_to_id(name));
        // What the post-processor puts in front of a text is the begin token.
        let encode = |special| tokenizer.encode_fast("a", special);
        let added = match (encode(true), encode(false)) {
            (Ok(with), Ok(without)) => {
                let first = with.get_ids().first().copied();
                first.filter(|first| Some(first) != without.get_ids().first())
            }
            _ => None,
        };
        Ok(Self {
            vocab_size: largest as usize + 1,
            adds_bos: added.is_some(),
            bos: added.or_else(|| first(BOS)),
            pad: own_pad
                .and_then(|token| tokenizer.token_to_id(&token))
                .or_else(|| first(PAD)),
            eos: first(EOS),
            unk: first(UNK),
            digest: None,
            tokenizer,
        })
    }

    /// Replaces the padding id, for a model whose `config.json` names another.
    #[must_use]
    pub fn with_pad_id(self, id: u32) -> Self {
        Self {
            pad: Some(id),
            ..self
        }
    }

    /// Replaces the id of the end token, for a model whose `config.json` names another.
    #[must_use]
    pub fn with_eos_id(self, id: u32) -> Self {
        Self {
            eos: Some(id),
            ..self
        }
    }

    /// Rows that an embedding needs for every token: the largest id plus one.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Id of the padding token, if the tokenizer has one.
    pub fn pad_id(&self) -> Option<u32> {
        self.pad
    }

    /// Id of the begin token, if the tokenizer has one.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// Whether the tokenizer's own post-processor puts a begin token in front of a text. LLaMA's and
    /// Mistral's do, Qwen's does not.
    pub fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// Id of the end token, if the tokenizer has one.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos
    }

    /// Id of the token for unknown pieces, if the tokenizer has one.
    pub fn unk_id(&self) -> Option<u32> {
        self.unk
    }

    /// SHA-256 of the `tokenizer.json` that it was read from; `None` for one that was built otherwise.
    pub fn digest(&self) -> Option<[u8; 32]> {
        self.digest
    }

    /// The wrapped tokenizer.
    pub fn inner(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The ids of a text, without any token that the post-processor would add.
    ///
    /// Special tokens that are spelled out in the text (such as `<extra_id_0>`) are recognised, as
    /// in Hugging Face's tokenizers.
    ///
    /// # Errors
    /// If the tokenizer rejects the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let encoding = self
            .tokenizer
            .encode_fast(text, false)
            .map_err(cannot_encode(text))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of token ids; special tokens and ids that the tokenizer does not have are skipped.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, DataError> {
        self.tokenizer
            .decode(ids, true)
            .map_err(|error| DataError::Decode {
                problem: error.to_string(),
            })
    }
}

impl fmt::Debug for TextTokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TextTokenizer")
            .field("vocab_size", &self.vocab_size)
            .field("pad", &self.pad)
            .field("bos", &self.bos)
            .field("eos", &self.eos)
            .field("unk", &self.unk)
            .finish_non_exhaustive()
    }
}

impl EncodedExample {
    /// Whether anything was cut.
    pub fn truncated(&self) -> bool {
        self.source_removed > 0 || self.target_removed > 0
    }
}

impl AnswerSet {
    /// The answers to example `example`, each ending with the end token.
    ///
    /// # Panics
    /// Panics if there is no such example.
    pub fn of(&self, example: usize) -> &[Vec<u32>] {
        &self.lists[self.of[example]]
    }

    /// Every id that occurs, with the number of its label.
    pub fn ids(&self) -> impl Iterator<Item = (usize, u32)> {
        let answers = self.lists.iter().flat_map(|list| list.iter().enumerate());
        answers.flat_map(|(label, ids)| ids.iter().map(move |id| (label, *id)))
    }
}

impl<'a> Seq2SeqEncoder<'a> {
    /// An encoder with limits in tokens, end tokens included.
    ///
    /// # Errors
    /// [`DataError::NoSpecialToken`] if the tokenizer has no end token, [`DataError::BadLimits`] if a limit
    /// is below 2.
    pub fn new(
        tokenizer: &'a TextTokenizer,
        max_source: usize,
        max_target: usize,
    ) -> Result<Self, DataError> {
        Ok(Self {
            tokenizer,
            limits: Limits::new(tokenizer, max_source, max_target)?,
        })
    }

    /// Encodes one example; `task` is for error messages.
    ///
    /// # Errors
    /// [`DataError::InstructionTooLong`] if what may not be cut exceeds `max_source`.
    pub fn encode(&self, task: &str, example: &Example) -> Result<EncodedExample, DataError> {
        let tokenizer = &self.tokenizer.tokenizer;
        let failed = cannot_encode(task);
        let source = tokenizer.encode(example.prompt(), false).map_err(&failed)?;
        let target = tokenizer
            .encode_fast(example.target.as_str(), false)
            .map_err(&failed)?;
        self.limit(task, 0, example, &source, &target)
    }

    /// Encodes a whole split in parallel, in order; the result does not depend on the threads.
    ///
    /// # Errors
    /// Those of [`Seq2SeqEncoder::encode`], for the first example that has one.
    pub fn encode_all(
        &self,
        task: &str,
        examples: &[Example],
    ) -> Result<Vec<EncodedExample>, DataError> {
        let failed = cannot_encode(task);
        let tokenizer = &self.tokenizer.tokenizer;
        let mut encoded = Vec::with_capacity(examples.len());
        for chunk in examples.chunks(CHUNK) {
            let prompts: Vec<String> = chunk.iter().map(Example::prompt).collect();
            let targets: Vec<&str> = chunk
                .iter()
                .map(|example| example.target.as_str())
                .collect();
            let sources = tokenizer.encode_batch(prompts, false).map_err(&failed)?;
            let targets = tokenizer
                .encode_batch_fast(targets, false)
                .map_err(&failed)?;
            for ((example, source), target) in chunk.iter().zip(sources).zip(targets) {
                let index = encoded.len();
                encoded.push(self.limit(task, index, example, &source, &target)?);
            }
        }
        let cut = encoded.iter().filter(|example| example.truncated()).count();
        tracing::debug!(task, examples = encoded.len(), cut, "examples tokenised");
        Ok(encoded)
    }

    /// Encodes every label as the answer to each of the examples.
    ///
    /// # Errors
    /// If the tokenizer rejects a label.
    pub fn answers(&self, examples: &[Example], labels: &[String]) -> Result<AnswerSet, DataError> {
        let encode = |label: &String| {
            let ids = self.tokenizer.encode(label)?;
            Ok(self.limits.target(&ids).0)
        };
        let answers = labels
            .iter()
            .map(encode)
            .collect::<Result<_, DataError>>()?;
        Ok(AnswerSet {
            lists: vec![answers],
            of: vec![0; examples.len()],
        })
    }

    /// Cuts an encoded example, number `index` of its split, to the limits.
    fn limit(
        &self,
        task: &str,
        index: usize,
        example: &Example,
        source: &Encoding,
        target: &Encoding,
    ) -> Result<EncodedExample, DataError> {
        let start = example.prefix.len();
        let sentence = start..start + example.sentence.len();
        let cut = Truncation {
            sentence,
            side: example.truncation_side,
        };
        let (source, source_removed) = self
            .source(source.get_ids(), source.get_offsets(), &cut)
            .map_err(|fixed| DataError::InstructionTooLong {
                task: task.to_owned(),
                example: index,
                fixed,
                max_source: self.limits.max_source,
            })?;
        let (target, target_removed) = self.limits.target(target.get_ids());
        Ok(EncodedExample {
            source,
            target,
            source_removed,
            target_removed,
        })
    }

    /// Ids with the end token and the number of removed ones, or the length of what may not be cut.
    fn source(
        &self,
        ids: &[u32],
        offsets: &[(usize, usize)],
        cut: &Truncation,
    ) -> Result<(Vec<u32>, usize), usize> {
        let Limits {
            eos, max_source, ..
        } = self.limits;
        let ids = self.limits.without_eos(ids);
        let (mut kept, removed) =
            cut_sentence(ids, offsets, cut, max_source - 1).map_err(|fixed| fixed + 1)?;
        kept.push(eos);
        Ok((kept, removed))
    }
}

impl Limits {
    /// Checks the limits, and that the tokenizer has an end token.
    pub(crate) fn new(
        tokenizer: &TextTokenizer,
        max_source: usize,
        max_target: usize,
    ) -> Result<Self, DataError> {
        if max_source < 2 || max_target < 2 {
            return Err(DataError::BadLimits {
                max_source,
                max_target,
            });
        }
        let eos = tokenizer.eos.ok_or_else(|| DataError::NoSpecialToken {
            role: "end-of-sequence",
            tried: EOS.iter().map(|&name| name.to_owned()).collect(),
        })?;
        Ok(Self {
            eos,
            max_source,
            max_target,
        })
    }

    /// An answer's ids with the end token, and the number of those that did not fit.
    pub(crate) fn target(&self, ids: &[u32]) -> (Vec<u32>, usize) {
        let ids = self.without_eos(ids);
        let kept = ids.len().min(self.max_target - 1);
        (
            ids[..kept].iter().copied().chain([self.eos]).collect(),
            ids.len() - kept,
        )
    }

    /// The ids up to end tokens that the text itself may spell at its end.
    fn without_eos<'i>(&self, ids: &'i [u32]) -> &'i [u32] {
        let end = ids
            .iter()
            .rposition(|&id| id != self.eos)
            .map_or(0, |last| last + 1);
        &ids[..end]
    }
}

/// What of a prompt may be cut.
#[derive(Debug, Clone)]
pub(crate) struct Truncation {
    /// Bytes of the sentence.
    pub(crate) sentence: Range<usize>,
    pub(crate) side: TruncationSide,
}

/// Cuts a tokenised prompt to `budget` tokens by taking tokens from one side of the sentence. Gives the ids and the number of
/// removed ones, or the number of tokens that may not be cut.
pub(crate) fn cut_sentence(
    ids: &[u32],
    offsets: &[(usize, usize)],
    Truncation { sentence, side }: &Truncation,
    budget: usize,
) -> Result<(Vec<u32>, usize), usize> {
    let excess = ids.len().saturating_sub(budget);
    if excess == 0 {
        return Ok((ids.to_vec(), 0));
    }
    let inside: Vec<usize> = (0..ids.len())
        .filter(|&i| sentence.start <= offsets[i].0 && offsets[i].1 <= sentence.end)
        .collect();
    let Some(stays) = inside.len().checked_sub(excess) else {
        return Err(ids.len() - inside.len());
    };
    let mut keep = vec![true; ids.len()];
    let removed = match side {
        TruncationSide::Right => &inside[stays..],
        TruncationSide::Left => &inside[..excess],
    };
    for &index in removed {
        keep[index] = false;
    }
    let kept = ids.iter().zip(keep).filter(|&(_, keep)| keep);
    Ok((kept.map(|(&id, _)| id).collect(), excess))
}

pub(crate) fn cannot_encode(what: &str) -> impl Fn(tokenizers::Error) -> DataError {
    move |error| DataError::Encode {
        what: format!("`{what}`"),
        problem: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const PAD_ID: u32 = 0;
    const EOS_ID: u32 = 1;

    /// A tokenizer in T5's form with pieces `▁`, `▁the`, `:` and the letters; its file asks for padding and
    /// truncation, which must be ignored.
    fn file(post_processor: &Value) -> Vec<u8> {
        let special = ["<pad>", "</s>", "<unk>"];
        let mut vocabulary: Vec<Value> = special.iter().map(|token| json!([token, 0.0])).collect();
        vocabulary.extend([
            json!(["▁", -2.0]),
            json!(["▁the", -1.0]),
            json!([":", -3.0]),
        ]);
        vocabulary.extend(('a'..='z').map(|letter| json!([letter.to_string(), -3.0])));
        let added: Vec<Value> = (0..)
            .zip(special)
            .map(|(id, content)| {
                json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                       "rstrip": false, "normalized": false, "special": true})
            })
            .collect();
        let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
        let tokenizer = json!({
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
                        "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"},
            "added_tokens": added,
            "normalizer": {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "},
            "pre_tokenizer": metaspace,
            "post_processor": post_processor,
            "decoder": metaspace,
            "model": {"type": "Unigram", "unk_id": 2, "vocab": vocabulary, "byte_fallback": false},
        });
        tokenizer.to_string().into_bytes()
    }

    /// The post-processor of T5: it adds the end token.
    fn adds_eos() -> Value {
        let sequence = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
        let eos = json!({"SpecialToken": {"id": "</s>", "type_id": 0}});
        json!({
            "type": "TemplateProcessing",
            "single": [sequence("A"), eos],
            "pair": [sequence("A"), eos, sequence("B"), eos],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        })
    }

    fn tokenizer() -> TextTokenizer {
        TextTokenizer::from_bytes(&file(&adds_eos())).unwrap()
    }

    fn example(prefix: &str, sentence: &str, suffix: &str) -> Example {
        Example {
            prefix: prefix.into(),
            sentence: sentence.into(),
            suffix: suffix.into(),
            target: "the".into(),
            ..Example::default()
        }
    }

    #[test]
    fn finds_the_special_tokens() {
        let tokenizer = tokenizer();
        assert_eq!(tokenizer.pad_id(), Some(PAD_ID));
        assert_eq!(tokenizer.eos_id(), Some(EOS_ID));
        assert_eq!(tokenizer.unk_id(), Some(2));
        assert_eq!(tokenizer.vocab_size(), 32);
        let tokenizer = tokenizer.with_pad_id(7).with_eos_id(8);
        assert_eq!((tokenizer.pad_id(), tokenizer.eos_id()), (Some(7), Some(8)));
    }

    #[test]
    fn decoding_skips_special_and_unknown_ids() {
        let tokenizer = tokenizer();
        let mut ids = tokenizer.encode("the cat").unwrap();
        assert_eq!(ids.len(), 5);
        ids.insert(0, PAD_ID);
        ids.extend([EOS_ID, PAD_ID, 31_000]);
        assert_eq!(tokenizer.decode(&ids).unwrap(), "the cat");
    }

    #[test]
    fn the_end_token_comes_once_whoever_adds_it() {
        let plain = TextTokenizer::from_bytes(&file(&Value::Null)).unwrap();
        for tokenizer in [tokenizer(), plain] {
            let encoder = Seq2SeqEncoder::new(&tokenizer, 64, 8).unwrap();
            for text in ["the", "the</s>", "the</s></s>"] {
                let encoded = encoder.encode("t", &Example::plain(text, text)).unwrap();
                assert_eq!(encoded.source, [4, EOS_ID]);
                assert_eq!(encoded.target, [4, EOS_ID]);
                assert!(!encoded.truncated());
            }
            // An empty prompt is the end token alone.
            let empty = encoder.encode("t", &Example::plain("", "the")).unwrap();
            assert_eq!(empty.source, [EOS_ID]);
        }
    }

    #[test]
    fn truncation_takes_the_end_of_the_sentence() {
        let tokenizer = tokenizer();
        let text = example("task:\n", "abcdef the xyz ", "\nanswer:");
        let decoded = |max| {
            let encoder = Seq2SeqEncoder::new(&tokenizer, max, 8).unwrap();
            let encoded = encoder.encode("t", &text).unwrap();
            assert_eq!(encoded.source.len(), max.min(27));
            assert_eq!(encoded.source_removed, 27 - max.min(27));
            tokenizer.decode(&encoded.source).unwrap()
        };
        assert_eq!(decoded(100), "task: abcdef the xyz answer:");
        assert_eq!(decoded(27), "task: abcdef the xyz answer:");
        assert_eq!(decoded(25), "task: abcdef the x answer:");
        assert_eq!(decoded(22), "task: abcdef answer:");
        assert_eq!(decoded(17), "task: a answer:");
        // The blank before the sentence is its own token, made of the prefix's line feed.
        assert_eq!(decoded(16), "task:  answer:");
    }

    #[test]
    fn truncation_may_take_the_beginning_of_the_sentence() {
        let tokenizer = tokenizer();
        let text = Example {
            truncation_side: TruncationSide::Left,
            ..example("task:\n", "abcdef the xyz ", "\nanswer:")
        };
        let decoded = |max| {
            let encoder = Seq2SeqEncoder::new(&tokenizer, max, 8).unwrap();
            let encoded = encoder.encode("t", &text).unwrap();
            assert_eq!(encoded.source.len(), max.min(27));
            assert_eq!(encoded.source_removed, 27 - max.min(27));
            tokenizer.decode(&encoded.source).unwrap()
        };
        assert_eq!(decoded(27), "task: abcdef the xyz answer:");
        assert_eq!(decoded(25), "task: cdef the xyz answer:");
        // The blank of the prefix's line feed stays, and that before the word.
        assert_eq!(decoded(20), "task:  xyz answer:");
    }

    #[test]
    fn an_instruction_that_does_not_fit_is_an_error() {
        let tokenizer = tokenizer();
        let encoder = Seq2SeqEncoder::new(&tokenizer, 15, 8).unwrap();
        let long = example("task:\n", "abcdef", "\nanswer:");
        let error = encoder
            .encode_all("mine", &[Example::plain("a", "b"), long])
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "task `mine`, example 1 (counted from 0): the instruction alone takes 16 tokens \
             (prefix, suffix and end token), which exceeds max_source = 15"
        );
    }

    #[test]
    fn long_targets_keep_their_end_token() {
        let tokenizer = tokenizer();
        let encoder = Seq2SeqEncoder::new(&tokenizer, 16, 3).unwrap();
        let encoded = encoder
            .encode("t", &Example::plain("a", "the the the"))
            .unwrap();
        assert_eq!(
            (encoded.target.as_slice(), encoded.target_removed),
            (&[4, 4, EOS_ID][..], 1)
        );
        assert!(encoded.truncated());
    }

    #[test]
    fn bad_tokenizers_and_limits() {
        let error = TextTokenizer::from_bytes(b"{\"version\": \"1.0\"").unwrap_err();
        assert!(matches!(error, DataError::Tokenizer { .. }), "{error}");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        assert!(matches!(
            TextTokenizer::from_file(&path),
            Err(DataError::Io { .. })
        ));
        std::fs::write(&path, "[]").unwrap();
        let message = TextTokenizer::from_file(&path).unwrap_err().to_string();
        assert!(
            message.contains("tokenizer.json: not a usable tokenizer"),
            "{message}"
        );

        let tokenizer = tokenizer();
        assert!(matches!(
            Seq2SeqEncoder::new(&tokenizer, 1, 9),
            Err(DataError::BadLimits { .. })
        ));
        assert!(matches!(
            Seq2SeqEncoder::new(&tokenizer, 9, 1),
            Err(DataError::BadLimits { .. })
        ));
        let bare = TextTokenizer {
            eos: None,
            ..tokenizer
        };
        let message = Seq2SeqEncoder::new(&bare, 9, 9).unwrap_err().to_string();
        assert!(
            message.contains("no end-of-sequence token: none of `</s>`"),
            "{message}"
        );
    }

    #[test]
    fn the_tokens_own_padding_token_wins() {
        let text = String::from_utf8(file(&Value::Null)).unwrap();
        let text = text.replace("\"pad_token\":\"<pad>\"", "\"pad_token\":\"<unk>\"");
        assert_eq!(
            TextTokenizer::from_bytes(text.as_bytes()).unwrap().pad_id(),
            Some(2)
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn cutting_removes_one_run_before_the_suffix(
            prefix in "[a-c \n]{0,12}",
            sentence in "[d-f \u{e9}\u{2026}\n]{0,40}",
            suffix in "[\n ]{0,2}[x-z]{0,6}",
            max_source in 2_usize..60,
        ) {
            let tokenizer = tokenizer();
            let text = example(&prefix, &sentence, &suffix);
            let full = Seq2SeqEncoder::new(&tokenizer, 1000, 8).unwrap().encode("t", &text).unwrap();
            let letters = |ids: &[u32], from: char, to: char| -> Vec<u32> {
                let ids = ids.iter().copied();
                ids.filter(|&id| (6 + from as u32 - 97..=6 + to as u32 - 97).contains(&id)).collect()
            };
            match Seq2SeqEncoder::new(&tokenizer, max_source, 8).unwrap().encode("t", &text) {
                Ok(cut) => {
                    prop_assert_eq!(cut.source.len(), full.source.len().min(max_source));
                    prop_assert_eq!(cut.source_removed, full.source.len() - cut.source.len());
                    prop_assert_eq!(cut.source.iter().filter(|&&id| id == EOS_ID).count(), 1);
                    prop_assert_eq!(cut.source.last(), Some(&EOS_ID));
                    for (from, to) in [('a', 'c'), ('x', 'z')] {
                        prop_assert_eq!(letters(&cut.source, from, to), letters(&full.source, from, to));
                    }
                    // What stays is a head and a tail of the uncut prompt.
                    let head = cut.source.iter().zip(&full.source).take_while(|(a, b)| a == b).count();
                    let tail = cut.source.len() - head;
                    prop_assert!(cut.source[head..] == full.source[full.source.len() - tail..]);
                }
                Err(DataError::InstructionTooLong { fixed, .. }) => {
                    prop_assert!(fixed > max_source && fixed <= full.source.len());
                }
                Err(other) => prop_assert!(false, "{other}"),
            }
        }

        #[test]
        fn a_split_is_encoded_in_order(texts in prop::collection::vec("[a-z ]{0,30}", 0..40)) {
            let tokenizer = tokenizer();
            let encoder = Seq2SeqEncoder::new(&tokenizer, 20, 8).unwrap();
            let examples: Vec<_> = texts.iter().map(|text| Example::plain(text, "the")).collect();
            let all = encoder.encode_all("t", &examples).unwrap();
            let single: Vec<_> =
                examples.iter().map(|example| encoder.encode("t", example).unwrap()).collect();
            prop_assert_eq!(all, single);
        }
    }
}
