//! A tokenizer for a corpus.

use aso_backbones::ModelKind;
use aso_data::TextTokenizer;
use serde_json::{Value, json};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::BpeTrainer;
use tokenizers::{AddedToken, Tokenizer};

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
    let trainer = BpeTrainer::builder()
        .vocab_size(vocabulary - sentinels)
        .min_frequency(3)
        .limit_alphabet(256)
        .special_tokens(tokens.collect())
        .show_progress(false)
        .build();
    let mut trainer = TrainerWrapper::from(trainer);
    // Line breaks occur between the parts of a prompt, not in texts; behind every text one is learned.
    let lines = texts.iter().map(|text| format!("{text}\n"));
    tokenizer.train(&mut trainer, lines).map_err(failed)?;
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
