//! A tokenizer for a corpus.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use aso_backbones::ModelKind;
use aso_data::TextTokenizer;
use serde_json::{Value, json};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::BpeTrainer;
use tokenizers::{
    AddedToken, NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString,
    PreTokenizer, Tokenizer,
};

use super::super::PretrainError;
use super::super::tokenizer::{Layout, metaspace, sentinel_tokens, special_tokens};

/// `tokenizer.json` with byte-pair pieces (Sennrich et al. 2016) of the texts, lower-cased; digits and punctuation stand
/// alone. `vocabulary` counts special tokens and sentinels.
pub(in crate::pretrain) fn tokenizer_json(
    texts: &[String],
    kind: ModelKind,
    vocabulary: usize,
    sentinels: usize,
) -> Result<Vec<u8>, PretrainError> {
    let special = special_tokens(kind);
    let pre_tokenizer = json!({"type": "Sequence", "pretokenizers": [
        metaspace(),
        {"type": "Punctuation", "behavior": "Isolated"},
        {"type": "Digits", "individual_digits": true},
    ]});
    let mut empty = json!({"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
        "vocab": {}, "merges": []});
    for (id, token) in special.iter().enumerate() {
        empty["vocab"][*token] = id.into();
    }
    let mut layout = Layout {
        kind,
        first_sentinel: 0,
        sentinels: 0,
        line_breaks: true,
    };
    let json = layout.document(pre_tokenizer.clone(), empty);
    let failed = |problem: tokenizers::Error| PretrainError::Tokenizer {
        problem: problem.to_string(),
    };
    let mut tokenizer = Tokenizer::from_bytes(&json).map_err(failed)?;
    let tokens = special.iter().map(|token| AddedToken::from(*token, true));
    // Line breaks stand between the parts of a prompt and in most texts; behind every text one is learned.
    let lines: Vec<String> = texts.iter().map(|text| format!("{text}\n")).collect();
    let alphabet = alphabet(&tokenizer, &lines).map_err(failed)?;
    let needed = special.len() + sentinels + alphabet.len();
    let Some(pieces) = vocabulary
        .checked_sub(sentinels)
        .filter(|_| needed <= vocabulary)
    else {
        return Err(PretrainError::Tokenizer {
            problem: format!(
                "a vocabulary of {vocabulary} tokens; special tokens, sentinels and characters alone are {needed}"
            ),
        });
    };
    let trainer = BpeTrainer::builder()
        .vocab_size(pieces)
        .min_frequency(3)
        .initial_alphabet(alphabet.into_iter().collect())
        .limit_alphabet(ALPHABET)
        .special_tokens(tokens.collect())
        .show_progress(false)
        .build();
    let mut trainer = TrainerWrapper::from(trainer);
    tokenizer
        .train(&mut trainer, lines.iter())
        .map_err(failed)?;
    let mut model =
        serde_json::to_value(tokenizer.get_model()).map_err(|error| PretrainError::Tokenizer {
            problem: error.to_string(),
        })?;
    model["unk_token"] = "<unk>".into();
    let size = tokenizer.get_vocab_size(true);
    if let Some(vocabulary) = model["vocab"].as_object_mut() {
        for (at, sentinel) in sentinel_tokens(sentinels).enumerate() {
            vocabulary.insert(sentinel, Value::from(size + at));
        }
    }
    (layout.first_sentinel, layout.sentinels) = (size, sentinels);
    let json = layout.document(pre_tokenizer, model);
    TextTokenizer::from_bytes(&json)?;
    Ok(json)
}

/// Characters that are pieces of their own, at most.
const ALPHABET: usize = 256;

/// The most frequent characters of the texts as the tokenizer sees them; of equally frequent ones the first. The trainer's own choice among
/// those depends on the order of a hash map.
fn alphabet(tokenizer: &Tokenizer, texts: &[String]) -> tokenizers::Result<Vec<char>> {
    let mut counts: BTreeMap<char, usize> = BTreeMap::new();
    for text in texts {
        let mut normalized = NormalizedString::from(text.as_str());
        if let Some(normalizer) = tokenizer.get_normalizer() {
            normalizer.normalize(&mut normalized)?;
        }
        let mut pieces = PreTokenizedString::from(normalized);
        if let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        for (piece, ..) in pieces.get_splits(OffsetReferential::Normalized, OffsetType::Byte) {
            for character in piece.chars() {
                *counts.entry(character).or_default() += 1;
            }
        }
    }
    let mut characters: Vec<(char, usize)> = counts.into_iter().collect();
    characters.sort_by_key(|(_, count)| Reverse(*count));
    characters.truncate(ALPHABET);
    Ok(characters
        .into_iter()
        .map(|(character, _)| character)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts() -> Vec<String> {
        let words = [
            "Science or Technology",
            "science, and 2004 sport.",
            "sport or science?",
        ];
        words
            .iter()
            .cycle()
            .take(30)
            .map(ToString::to_string)
            .collect()
    }

    /// More characters than there is room for, all of them equally frequent.
    #[test]
    fn the_alphabet_is_always_the_same() {
        let rare: String = ('\u{4e00}'..).take(400).collect();
        let texts = [texts(), vec![rare; 3]].concat();
        let first = tokenizer_json(&texts, ModelKind::Causal, 600, 0).unwrap();
        for _ in 0..3 {
            assert!(first == tokenizer_json(&texts, ModelKind::Causal, 600, 0).unwrap());
        }
        let small = tokenizer_json(&texts, ModelKind::EncoderDecoder, 100, 8).unwrap_err();
        assert!(
            small.to_string().contains("a vocabulary of 100 tokens"),
            "{small}"
        );
    }

    #[test]
    fn pieces_are_words_and_text_comes_back() {
        for kind in [ModelKind::EncoderDecoder, ModelKind::Causal] {
            let sentinels = if kind == ModelKind::Causal { 0 } else { 4 };
            let json = tokenizer_json(&texts(), kind, 120, sentinels).unwrap();
            assert_eq!(
                json,
                tokenizer_json(&texts(), kind, 120, sentinels).unwrap()
            );
            let tokenizer = TextTokenizer::from_bytes(&json).unwrap();
            let ids = tokenizer.encode("Science or sport").unwrap();
            assert_eq!(ids.len(), 3);
            assert_eq!(tokenizer.decode(&ids).unwrap(), "science or sport");
            let text = "sport, 2004.";
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(ids.len(), 8, "{:?}", ids);
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
            let ids = tokenizer.encode("sport, \n science").unwrap();
            assert_eq!(ids.len(), 4, "{:?}", ids);
            assert_eq!(tokenizer.decode(&ids).unwrap(), "sport,\n science");
            assert_eq!((tokenizer.pad_id(), tokenizer.eos_id()), (Some(0), Some(1)));
            let found = super::super::super::tokenizer::sentinel_ids(&tokenizer);
            let size = tokenizer.vocab_size() as u32;
            let expected: Vec<u32> = (1..=sentinels as u32).map(|n| size - n).collect();
            assert_eq!(found, expected);
        }
    }
}
