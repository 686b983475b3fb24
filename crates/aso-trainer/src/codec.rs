//! Between text and the batches of a model.

use aso_backbones::{BackboneError, ModelKind, SpecialTokens, StopCriterion, TokenBatch};
use aso_data::{
    CausalEncoder, ChatTemplate, DataError, EncodedExample, ExampleEncoder, PaddedBatch,
    Seq2SeqEncoder, TextTokenizer, collate_causal, collate_prompts, collate_seq2seq,
};
use sha2::{Digest, Sha256};

/// A tokenizer together with what a model makes of its ids: which special tokens it expects, and whether
/// prompt and answer are two sequences or one.
#[derive(Debug, Clone)]
pub struct TextCodec {
    kind: ModelKind,
    tokenizer: TextTokenizer,
    template: Option<ChatTemplate>,
    /// Text of the template.
    template_source: Option<String>,
    bos: Option<u32>,
    pad: u32,
}

impl TextCodec {
    /// The codec of a model of the given kind. Where model and tokenizer disagree on a special token, the
    /// model is right, except that a begin token which the tokenizer adds by itself is always used.
    pub fn new(kind: ModelKind, special: &SpecialTokens, tokenizer: TextTokenizer) -> Self {
        let tokenizer = tokenizer.with_pad_id(special.pad);
        let tokenizer = match special.ends.first() {
            Some(end) => tokenizer.with_eos_id(*end),
            None => tokenizer,
        };
        let added = tokenizer.bos_id().filter(|_| tokenizer.adds_bos());
        Self {
            kind,
            bos: added.or(special.bos).filter(|_| kind == ModelKind::Causal),
            pad: special.pad,
            template: None,
            template_source: None,
            tokenizer,
        }
    }

    /// Ends answers with another token than the first of the model's end tokens.
    #[must_use]
    pub fn with_end_token(self, id: u32) -> Self {
        Self {
            tokenizer: self.tokenizer.with_eos_id(id),
            ..self
        }
    }

    /// Renders every prompt with a Jinja chat template; causal models only.
    ///
    /// # Errors
    /// [`DataError::ChatTemplate`].
    pub fn with_template(self, source: &str) -> Result<Self, DataError> {
        let spelling = |id: Option<u32>| {
            let token = id.and_then(|id| self.tokenizer.inner().id_to_token(id));
            token.unwrap_or_default()
        };
        let (bos, eos) = (spelling(self.bos), spelling(self.tokenizer.eos_id()));
        Ok(Self {
            template: Some(ChatTemplate::new(source, &bos, &eos)?),
            template_source: Some(source.to_owned()),
            ..self
        })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// An encoder with limits in tokens, special tokens included.
    ///
    /// # Errors
    /// [`DataError::NoSpecialToken`], [`DataError::BadLimits`].
    pub fn encoder(
        &self,
        max_source: usize,
        max_target: usize,
    ) -> Result<ExampleEncoder<'_>, DataError> {
        let tokenizer = &self.tokenizer;
        Ok(match self.kind {
            ModelKind::EncoderDecoder => {
                ExampleEncoder::Seq2Seq(Seq2SeqEncoder::new(tokenizer, max_source, max_target)?)
            }
            ModelKind::Causal => {
                let encoder = CausalEncoder::new(tokenizer, self.bos, max_source, max_target)?;
                ExampleEncoder::Causal(match &self.template {
                    Some(template) => encoder.with_template(template),
                    None => encoder,
                })
            }
        })
    }

    /// All that decides how an example is tokenised, but the limits; `None` if that cannot be told.
    pub(crate) fn fingerprint(&self) -> Option<[u8; 32]> {
        let mut hasher = Sha256::new();
        hasher.update(self.tokenizer.digest()?);
        let settings = format!(
            "{:?} {:?} {:?} {:?}",
            self.kind,
            self.bos,
            self.tokenizer.eos_id(),
            self.template_source
        );
        hasher.update(settings);
        Some(hasher.finalize().into())
    }

    /// Pads examples to a batch with labels.
    ///
    /// # Errors
    /// [`BackboneError::BatchShape`] if there is no example.
    pub fn batch(&self, examples: &[&EncodedExample]) -> Result<TokenBatch, BackboneError> {
        token_batch(match self.kind {
            ModelKind::EncoderDecoder => collate_seq2seq(examples, self.pad),
            ModelKind::Causal => collate_causal(examples, self.pad),
        })
    }

    /// Pads the prompts of examples to a batch for generation.
    ///
    /// # Errors
    /// [`BackboneError::BatchShape`] if there is no example.
    pub fn prompts(&self, examples: &[&EncodedExample]) -> Result<TokenBatch, BackboneError> {
        token_batch(match self.kind {
            ModelKind::EncoderDecoder => collate_seq2seq(examples, self.pad),
            ModelKind::Causal => collate_prompts(examples, self.pad),
        })
    }
}

fn token_batch(batch: PaddedBatch) -> Result<TokenBatch, BackboneError> {
    let PaddedBatch {
        rows,
        input_ids,
        attention_mask,
        labels,
        ..
    } = batch;
    TokenBatch::new(rows, input_ids, attention_mask, labels)
}

/// Ends a row as soon as its text contains one of some strings.
#[derive(Debug, Clone)]
pub struct StopStrings<'a> {
    /// Decodes new tokens.
    pub tokenizer: &'a TextTokenizer,
    /// The strings; empty ones never match.
    pub strings: &'a [String],
}

impl StopStrings<'_> {
    /// The text up to the first stop string.
    pub fn cut<'t>(&self, text: &'t str) -> &'t str {
        let strings = self.strings.iter().filter(|stop| !stop.is_empty());
        let first = strings.filter_map(|stop| text.find(stop.as_str())).min();
        &text[..first.unwrap_or(text.len())]
    }
}

impl StopCriterion for StopStrings<'_> {
    fn is_finished(&self, new_tokens: &[u32]) -> bool {
        let text = self.tokenizer.decode(new_tokens).unwrap_or_default();
        self.cut(&text).len() < text.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::EmbeddedModel;

    #[test]
    fn answers_end_before_the_first_stop_string() {
        let model = EmbeddedModel::find("demo").unwrap();
        let tokenizer = &model.tokenizer().unwrap();
        let strings = ["", "good", "and b"].map(str::to_owned);
        let stop = StopStrings {
            tokenizer,
            strings: &strings,
        };
        assert_eq!(stop.cut("bad and bad and good"), "bad ");
        assert_eq!(stop.cut("bad and"), "bad and");
        // A string may reach over tokens, a word each here: the one that completes it is the last.
        let ids = tokenizer.encode("bad and bad").unwrap();
        let ends = [0, 1, 2, 3].map(|len| stop.is_finished(&ids[..len]));
        assert_eq!(ends, [false, false, false, true]);
    }
}
