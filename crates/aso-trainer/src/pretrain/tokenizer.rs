//! The tokenizer of the generated language.

use std::collections::BTreeSet;

use aso_backbones::ModelKind;
use aso_data::TextTokenizer;
use aso_data::synthetic::{PUNCTUATION, lexicon};
use serde_json::{Value, json};

use super::PretrainError;

/// Ids 0, 1, 2 and, for a causal model, 3.
const SPECIAL: [&str; 4] = ["<pad>", "</s>", "<unk>", BEGIN];
const BEGIN: &str = "<s>";

/// `tokenizer.json` with every word of the generated language as one piece: a Unigram model with
/// Metaspace (white space becomes `▁`) like T5's, text lower-cased, `sentinels` sentinel tokens at the end
/// with `<extra_id_0>` last. Like T5's it puts the end token behind a text, or, for a causal model, like
/// LLaMA's a begin token in front.
///
/// Other text is spelled: the letters, digits and ASCII marks are pieces too.
pub(super) fn tokenizer_json(kind: ModelKind, sentinels: usize) -> Vec<u8> {
    let words = lexicon();
    let pieces: BTreeSet<String> = words.iter().map(|word| format!("▁{word}")).collect();
    let spelling: BTreeSet<String> = (0x21..0x7f_u8)
        .map(char::from)
        .filter(|character| !character.is_ascii_uppercase())
        .map(String::from)
        .chain(["▁".to_owned()])
        .chain(PUNCTUATION.map(str::to_owned))
        .collect();
    // Scores are log probabilities in a trained Unigram model. Here it is enough that a word costs less
    // than spelling it.
    let vocabulary: Vec<Value> = special_tokens(kind)
        .iter()
        .map(|token| json!([token, 0.0]))
        .chain(pieces.iter().map(|piece| json!([piece, -1.0])))
        .chain(spelling.iter().map(|piece| json!([piece, -4.0])))
        .chain(sentinel_tokens(sentinels).map(|token| json!([token, 0.0])))
        .collect();
    let first_sentinel = vocabulary.len() - sentinels;
    let model =
        json!({"type": "Unigram", "unk_id": 2, "vocab": vocabulary, "byte_fallback": false});
    let layout = Layout {
        kind,
        first_sentinel,
        sentinels,
        line_breaks: false,
    };
    layout.document(metaspace(), model)
}

/// The special tokens, with ids from 0.
pub(super) fn special_tokens(kind: ModelKind) -> &'static [&'static str] {
    match kind {
        ModelKind::EncoderDecoder => &SPECIAL[..3],
        ModelKind::Causal => &SPECIAL[..],
    }
}

/// The sentinels in the order of their ids: `<extra_id_0>` is the last token.
pub(super) fn sentinel_tokens(count: usize) -> impl Iterator<Item = String> {
    (0..count).rev().map(|n| format!("<extra_id_{n}>"))
}

/// White space as `▁` in front of words.
pub(super) fn metaspace() -> Value {
    json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true})
}

/// What a `tokenizer.json` has around a model's pieces.
pub(super) struct Layout {
    pub(super) kind: ModelKind,
    /// Id of the first sentinel.
    pub(super) first_sentinel: usize,
    pub(super) sentinels: usize,
    /// Whether a line break is a token, [`LINE_BREAK`], instead of white space like any other: it tells a prompt's options
    /// from its text.
    pub(super) line_breaks: bool,
}

/// What a line break becomes before texts are split.
const LINE_BREAK: &str = "⏎";

impl Layout {
    /// The whole `tokenizer.json`.
    pub(super) fn document(&self, pre_tokenizer: Value, model: Value) -> Vec<u8> {
        let Self {
            kind,
            first_sentinel,
            sentinels,
            line_breaks,
        } = *self;
        let special = |(id, content): (usize, String)| {
            json!({
                "id": id, "content": content, "special": true, "normalized": false,
                "single_word": false, "lstrip": false, "rstrip": false,
            })
        };
        let names = special_tokens(kind).iter().map(|name| (*name).to_owned());
        let sentinels = (first_sentinel..).zip(sentinel_tokens(sentinels));
        let added: Vec<Value> = names.enumerate().chain(sentinels).map(special).collect();
        let sequence = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
        let token = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
        let template = |id: u32, name: &str, single: Value, pair: Value| {
            json!({
                "type": "TemplateProcessing",
                "single": single,
                "pair": pair,
                "special_tokens": {name: {"id": name, "ids": [id], "tokens": [name]}},
            })
        };
        let (a, b) = (sequence("A"), sequence("B"));
        let post_processor = match kind {
            ModelKind::EncoderDecoder => {
                let end = token("</s>");
                template(1, "</s>", json!([a, end]), json!([a, end, b, end]))
            }
            ModelKind::Causal => {
                let begin = token(BEGIN);
                template(3, BEGIN, json!([begin, a]), json!([begin, a, b]))
            }
        };
        let mut normalizers = vec![json!({"type": "Lowercase"})];
        let mut decoder = metaspace();
        if line_breaks {
            let (pattern, content) = (json!({"Regex": r"\s*\n\s*"}), format!(" {LINE_BREAK} "));
            normalizers.push(json!({"type": "Replace", "pattern": pattern, "content": content}));
            let piece = json!({"String": format!("▁{LINE_BREAK}")});
            let back = json!({"type": "Replace", "pattern": piece, "content": "\n"});
            decoder = json!({"type": "Sequence", "decoders": [back, decoder]});
        }
        normalizers.extend([
            json!({"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}),
            json!({"type": "Strip", "strip_left": true, "strip_right": true}),
        ]);
        let tokenizer = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "pre_tokenizer": pre_tokenizer,
            "post_processor": post_processor,
            "decoder": decoder,
            "model": model,
        });
        format!("{tokenizer:#}\n").into_bytes()
    }
}

/// Ids of `<extra_id_0>`, `<extra_id_1>`, .. as far as the tokenizer has them.
pub(super) fn sentinel_ids(tokenizer: &TextTokenizer) -> Vec<u32> {
    (0..)
        .map_while(|n| tokenizer.inner().token_to_id(&format!("<extra_id_{n}>")))
        .collect()
}

/// Parses [`tokenizer_json`].
pub(super) fn parse(json: &[u8]) -> Result<TextTokenizer, PretrainError> {
    Ok(TextTokenizer::from_bytes(json)?)
}

#[cfg(test)]
mod tests {
    use aso_data::SyntheticSuite;

    use super::*;

    #[test]
    fn every_word_of_the_demo_is_one_token() {
        let tokenizer = parse(&tokenizer_json(ModelKind::EncoderDecoder, 8)).unwrap();
        assert_eq!(
            (tokenizer.pad_id(), tokenizer.eos_id(), tokenizer.unk_id()),
            (Some(0), Some(1), Some(2))
        );
        let sentinels = sentinel_ids(&tokenizer);
        let size = tokenizer.vocab_size() as u32;
        assert_eq!(sentinels, (1..=8).map(|n| size - n).collect::<Vec<_>>());
        for task in SyntheticSuite::demo(1).tasks() {
            for example in task.train.iter().take(20) {
                let prompt = example.prompt();
                let ids = tokenizer.encode(&prompt).unwrap();
                let marks = prompt.matches([',', ':', '.', '?', '!']).count();
                assert_eq!(
                    ids.len(),
                    prompt.split_whitespace().count() + marks,
                    "{prompt}"
                );
                assert_eq!(tokenizer.decode(&ids).unwrap(), prompt);
                assert_eq!(tokenizer.encode(&example.target).unwrap().len(), 1);
            }
        }
    }

    #[test]
    fn a_causal_models_tokenizer_begins_texts() {
        let tokenizer = parse(&tokenizer_json(ModelKind::Causal, 0)).unwrap();
        assert_eq!((tokenizer.bos_id(), tokenizer.adds_bos()), (Some(3), true));
        let ids = [tokenizer.pad_id(), tokenizer.eos_id(), tokenizer.unk_id()];
        assert_eq!(ids, [Some(0), Some(1), Some(2)]);
        assert!(sentinel_ids(&tokenizer).is_empty());
    }

    #[test]
    fn other_text_is_spelled() {
        let tokenizer = parse(&tokenizer_json(ModelKind::EncoderDecoder, 8)).unwrap();
        let ids = tokenizer.encode("  Zyzzyva \t 42% ").unwrap();
        assert!(!ids.contains(&2), "{ids:?}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), "zyzzyva 42%");
        // What cannot be spelled is unknown, behind the mark that begins a word.
        let mark = tokenizer.inner().token_to_id("▁").unwrap();
        assert_eq!(tokenizer.encode("é").unwrap(), [mark, 2]);
    }
}
