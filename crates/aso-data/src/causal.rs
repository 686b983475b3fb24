//! From examples to token ids for a causal language model.

use crate::chat::ChatTemplate;
use crate::encode::{
    AnswerSet, CHUNK, EncodedExample, Limits, Seq2SeqEncoder, TextTokenizer, Truncation,
    cannot_encode, cut_sentence,
};
use crate::error::DataError;
use crate::example::Example;

/// Encodes examples for a causal language model: the source is the begin token (if the model has one) and the
/// prompt, the target the answer and the end token.
///
/// The begin token comes exactly once, whoever spells it: tokenizer, template or prompt. Prompt and answer are
/// tokenised apart, so that training and generation see the same prompt ids, but the answer as it reads
/// behind the prompt: `Answer: Sports`, with one blank where neither side has white space.
///
/// A source of more than `max_source` tokens loses tokens at one side of its *sentence*, as with
/// [`Seq2SeqEncoder`]; a target of more than `max_target` is cut before its end token.
#[derive(Debug, Clone, Copy)]
pub struct CausalEncoder<'a> {
    tokenizer: &'a TextTokenizer,
    template: Option<&'a ChatTemplate>,
    bos: Option<u32>,
    limits: Limits,
}

/// An encoder for either kind of model.
#[derive(Debug, Clone, Copy)]
pub enum ExampleEncoder<'a> {
    /// Encoder-decoder.
    Seq2Seq(Seq2SeqEncoder<'a>),
    /// Causal.
    Causal(CausalEncoder<'a>),
}

/// A prompt as the model reads it.
struct Rendered {
    text: String,
    cut: Truncation,
}

impl<'a> CausalEncoder<'a> {
    /// An encoder with limits in tokens, begin and end token included. `bos` is the model's begin token;
    /// `None` for a model that has none.
    ///
    /// # Errors
    /// [`DataError::NoSpecialToken`] if the tokenizer has no end token, [`DataError::BadLimits`] if a limit
    /// is below 2.
    pub fn new(
        tokenizer: &'a TextTokenizer,
        bos: Option<u32>,
        max_source: usize,
        max_target: usize,
    ) -> Result<Self, DataError> {
        Ok(Self {
            tokenizer,
            template: None,
            bos,
            limits: Limits::new(tokenizer, max_source, max_target)?,
        })
    }

    /// Renders every prompt with a chat template; the answer follows its generation prompt.
    #[must_use]
    pub fn with_template(self, template: &'a ChatTemplate) -> Self {
        Self {
            template: Some(template),
            ..self
        }
    }

    /// Encodes one example; `task` is for error messages.
    ///
    /// # Errors
    /// [`DataError::InstructionTooLong`] if what may not be cut exceeds `max_source`;
    /// [`DataError::ChatTemplate`].
    pub fn encode(&self, task: &str, example: &Example) -> Result<EncodedExample, DataError> {
        let mut encoded = self.encode_from(task, 0, std::slice::from_ref(example))?;
        encoded.pop().ok_or_else(|| DataError::Encode {
            what: format!("`{task}`"),
            problem: "no encoding".to_owned(),
        })
    }

    /// Encodes a whole split in parallel, in order; the result does not depend on the threads.
    ///
    /// # Errors
    /// Those of [`CausalEncoder::encode`], for the first example that has one.
    pub fn encode_all(
        &self,
        task: &str,
        examples: &[Example],
    ) -> Result<Vec<EncodedExample>, DataError> {
        let mut encoded = Vec::with_capacity(examples.len());
        for chunk in examples.chunks(CHUNK) {
            encoded.extend(self.encode_from(task, encoded.len(), chunk)?);
        }
        let cut = encoded.iter().filter(|example| example.truncated()).count();
        tracing::debug!(task, examples = encoded.len(), cut, "examples tokenised");
        Ok(encoded)
    }

    /// Encodes some examples of a split; the first is number `start`.
    fn encode_from(
        &self,
        task: &str,
        start: usize,
        examples: &[Example],
    ) -> Result<Vec<EncodedExample>, DataError> {
        let tokenizer = self.tokenizer.inner();
        let failed = cannot_encode(task);
        let prompts: Vec<Rendered> = examples
            .iter()
            .map(|example| self.render(example))
            .collect::<Result<_, _>>()?;
        let texts: Vec<&str> = prompts.iter().map(|prompt| prompt.text.as_str()).collect();
        let sources = tokenizer.encode_batch(texts, false).map_err(&failed)?;
        let pairs = prompts.iter().zip(examples);
        let contexts: Vec<Context> = pairs
            .map(|(prompt, example)| Context::new(&prompt.text, &example.target))
            .collect();
        let texts: Vec<&str> = contexts
            .iter()
            .map(|context| context.text.as_str())
            .collect();
        let answers = tokenizer.encode_batch(texts, false).map_err(&failed)?;
        let mut encoded = Vec::with_capacity(examples.len());
        for (at, (prompt, source)) in prompts.iter().zip(&sources).enumerate() {
            let (source, source_removed) = self
                .source(source.get_ids(), source.get_offsets(), &prompt.cut)
                .map_err(|fixed| DataError::InstructionTooLong {
                    task: task.to_owned(),
                    example: start + at,
                    fixed,
                    max_source: self.limits.max_source,
                })?;
            let answer = &answers[at];
            let target = match contexts[at].behind(answer.get_ids(), answer.get_offsets()) {
                Some(ids) => ids.to_vec(),
                None => self.tokenizer.encode(&examples[at].target)?,
            };
            let (target, target_removed) = self.limits.target(&target);
            encoded.push(EncodedExample {
                source,
                target,
                source_removed,
                target_removed,
            });
        }
        Ok(encoded)
    }

    /// Encodes every label as the answer to each of the examples.
    ///
    /// # Errors
    /// [`DataError::ChatTemplate`]; if the tokenizer rejects a label.
    pub fn answers(&self, examples: &[Example], labels: &[String]) -> Result<AnswerSet, DataError> {
        // All that matters of a prompt is its last character.
        let mut known: Vec<Option<char>> = Vec::new();
        let mut set = AnswerSet {
            lists: Vec::new(),
            of: Vec::with_capacity(examples.len()),
        };
        for example in examples {
            let prompt = self.render(example)?.text;
            let last = prompt.chars().next_back();
            let list = match known.iter().position(|known| *known == last) {
                Some(list) => list,
                None => {
                    let answer = |label: &String| self.answer(&prompt, label);
                    let list = labels.iter().map(answer).collect::<Result<_, _>>()?;
                    known.push(last);
                    set.lists.push(list);
                    known.len() - 1
                }
            };
            set.of.push(list);
        }
        Ok(set)
    }

    /// One answer behind a prompt, as [`encode_from`](Self::encode_from) encodes it.
    fn answer(&self, prompt: &str, answer: &str) -> Result<Vec<u32>, DataError> {
        let context = Context::new(prompt, answer);
        let tokenizer = self.tokenizer.inner();
        let encoding = tokenizer
            .encode(context.text.as_str(), false)
            .map_err(cannot_encode(answer))?;
        let ids = match context.behind(encoding.get_ids(), encoding.get_offsets()) {
            Some(ids) => ids.to_vec(),
            None => self.tokenizer.encode(answer)?,
        };
        Ok(self.limits.target(&ids).0)
    }

    fn render(&self, example: &Example) -> Result<Rendered, DataError> {
        let prompt = example.prompt();
        let sentence = example.prefix.len()..example.prefix.len() + example.sentence.len();
        let side = example.truncation_side;
        let Some(template) = self.template else {
            return Ok(Rendered {
                text: prompt,
                cut: Truncation { sentence, side },
            });
        };
        let text = template.render(&prompt)?;
        // Most templates trim the message.
        let trimmed = prompt.trim();
        let leading = prompt.len() - prompt.trim_start().len();
        let Some(at) = text.find(trimmed) else {
            return Err(DataError::ChatTemplate {
                line: None,
                problem: "the rendered text does not contain the prompt as it is".to_owned(),
            });
        };
        let place = |byte: usize| at + byte.saturating_sub(leading).min(trimmed.len());
        let sentence = place(sentence.start)..place(sentence.end);
        Ok(Rendered {
            text,
            cut: Truncation { sentence, side },
        })
    }

    /// Ids with the begin token and the number of removed ones, or the length of what may not be cut.
    fn source(
        &self,
        ids: &[u32],
        offsets: &[(usize, usize)],
        cut: &Truncation,
    ) -> Result<(Vec<u32>, usize), usize> {
        let spelled = ids.iter().take_while(|&&id| Some(id) == self.bos).count();
        let own = usize::from(self.bos.is_some());
        let (kept, removed) = cut_sentence(
            &ids[spelled..],
            &offsets[spelled..],
            cut,
            self.limits.max_source - own,
        )
        .map_err(|fixed| fixed + own)?;
        Ok((self.bos.into_iter().chain(kept).collect(), removed))
    }
}

/// An answer behind the last character of its prompt: what surrounds a word decides how it is tokenised, and a
/// character is enough of a surrounding for every tokenizer that splits at blanks.
struct Context {
    text: String,
    /// Bytes of the character.
    len: usize,
}

impl Context {
    fn new(prompt: &str, answer: &str) -> Self {
        let last = prompt.chars().next_back();
        let mut text: String = last.into_iter().collect();
        let len = text.len();
        let apart = last.is_none_or(char::is_whitespace) || answer.starts_with(char::is_whitespace);
        if !apart && !answer.is_empty() {
            text.push(' ');
        }
        text.push_str(answer);
        Self { text, len }
    }

    /// The ids behind the character; `None` if a token reaches over its end.
    fn behind<'i>(&self, ids: &'i [u32], offsets: &[(usize, usize)]) -> Option<&'i [u32]> {
        let first = offsets.iter().position(|(_, end)| *end > self.len);
        let Some(first) = first else {
            return Some(&ids[ids.len()..]);
        };
        (offsets[first].0 >= self.len).then_some(&ids[first..])
    }
}

impl ExampleEncoder<'_> {
    /// Encodes one example; `task` is for error messages.
    ///
    /// # Errors
    /// Those of the encoder.
    pub fn encode(&self, task: &str, example: &Example) -> Result<EncodedExample, DataError> {
        match self {
            Self::Seq2Seq(encoder) => encoder.encode(task, example),
            Self::Causal(encoder) => encoder.encode(task, example),
        }
    }

    /// Encodes every label as the answer to each of the examples, as [`encode`](Self::encode) would if it were the
    /// example's.
    ///
    /// # Errors
    /// Those of the encoder.
    pub fn answers(&self, examples: &[Example], labels: &[String]) -> Result<AnswerSet, DataError> {
        match self {
            Self::Seq2Seq(encoder) => encoder.answers(examples, labels),
            Self::Causal(encoder) => encoder.answers(examples, labels),
        }
    }

    /// Encodes a whole split in parallel, in order.
    ///
    /// # Errors
    /// Those of the encoder, for the first example that has one.
    pub fn encode_all(
        &self,
        task: &str,
        examples: &[Example],
    ) -> Result<Vec<EncodedExample>, DataError> {
        match self {
            Self::Seq2Seq(encoder) => encoder.encode_all(task, examples),
            Self::Causal(encoder) => encoder.encode_all(task, examples),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const BOS: u32 = 1;
    const END: u32 = 2;

    fn added(names: &[&str]) -> Vec<Value> {
        let names = (0u32..).zip(names);
        names
            .map(|(id, content)| {
                json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                       "rstrip": false, "normalized": false, "special": true})
            })
            .collect()
    }

    /// A tokenizer in LLaMA 2's form: BPE on characters with a blank put in front, `<s>` added.
    fn llama2() -> TextTokenizer {
        let special = ["<unk>", "<s>", "</s>"];
        let mut pieces: Vec<String> = special.map(str::to_owned).into();
        pieces.extend(["▁", ":", "\n"].map(str::to_owned));
        pieces.extend(('a'..='z').map(String::from));
        pieces.extend(["th", "the", "▁the"].map(str::to_owned));
        let vocabulary: serde_json::Map<String, Value> = (0u32..)
            .zip(pieces)
            .map(|(id, piece)| (piece, id.into()))
            .collect();
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": added(&special),
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
            "pre_tokenizer": null,
            "post_processor": {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "fuse_unk": true,
                "byte_fallback": false, "ignore_merges": false, "vocab": vocabulary,
                "merges": [["t", "h"], ["th", "e"], ["▁", "the"]]},
        });
        TextTokenizer::from_bytes(file.to_string().as_bytes()).unwrap()
    }

    /// A tokenizer in LLaMA 3's form: byte-level BPE behind a splitting expression with look-ahead. `Ġ` is a
    /// blank and `Ċ` a line feed.
    fn llama3() -> TextTokenizer {
        let special = ["<pad>", "<|begin_of_text|>", "<|eot_id|>"];
        let mut pieces: Vec<String> = special.map(str::to_owned).into();
        pieces.extend(["Ġ", "Ċ", ":", "ĠĠ", "Ġt", "Ġthe", "the", "th"].map(str::to_owned));
        pieces.extend(('a'..='z').chain('0'..='9').map(String::from));
        let vocabulary: serde_json::Map<String, Value> = (0u32..)
            .zip(pieces)
            .map(|(id, piece)| (piece, id.into()))
            .collect();
        let expression = r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": added(&special),
            "normalizer": null,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false},
                byte_level]},
            "post_processor": null,
            "decoder": byte_level,
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false,
                "byte_fallback": false, "ignore_merges": false, "vocab": vocabulary,
                "merges": [["t", "h"], ["th", "e"], ["Ġ", "the"], ["Ġ", "t"], ["Ġ", "Ġ"]]},
        });
        TextTokenizer::from_bytes(file.to_string().as_bytes()).unwrap()
    }

    fn pieces(tokenizer: &TextTokenizer, ids: &[u32]) -> Vec<String> {
        let piece = |id: &u32| tokenizer.inner().id_to_token(*id).unwrap();
        ids.iter().map(piece).collect()
    }

    fn encode(tokenizer: &TextTokenizer, prompt: &str, answer: &str) -> EncodedExample {
        let encoder = CausalEncoder::new(tokenizer, Some(BOS), 100, 20).unwrap();
        encoder
            .encode("t", &Example::plain(prompt, answer))
            .unwrap()
    }

    // By hand, from the expression and the merges.
    #[test]
    fn a_splitting_expression_with_look_ahead() {
        let tokenizer = llama3();
        let tokens = |text: &str| pieces(&tokenizer, &tokenizer.encode(text).unwrap());
        assert_eq!(tokens("the the"), ["the", "Ġthe"]);
        // All but the last blank of a run stand alone; the last one belongs to the word.
        assert_eq!(tokens("a   the"), ["a", "ĠĠ", "Ġthe"]);
        assert_eq!(tokens("a  "), ["a", "ĠĠ"]);
        assert_eq!(
            tokens("a:\n\n9876"),
            ["a", ":", "Ċ", "Ċ", "9", "8", "7", "6"]
        );
    }

    #[test]
    fn the_begin_token_comes_once() {
        for (tokenizer, bos, adds) in [
            (llama2(), "<s>", true),
            (llama3(), "<|begin_of_text|>", false),
        ] {
            assert_eq!(
                (tokenizer.bos_id(), tokenizer.adds_bos()),
                (Some(BOS), adds)
            );
            let plain = encode(&tokenizer, "the", "a").source;
            assert_eq!(plain.iter().filter(|&&id| id == BOS).count(), 1);
            assert_eq!(plain[0], BOS);
            let spelled = encode(&tokenizer, &format!("{bos}{bos}the"), "a").source;
            assert_eq!((spelled[0], spelled[1] == BOS), (BOS, false));
            let none = CausalEncoder::new(&tokenizer, None, 100, 20).unwrap();
            let none = none.encode("t", &Example::plain("the", "a")).unwrap();
            assert_eq!(none.source, plain[1..]);
        }
    }

    #[test]
    fn the_answer_reads_on_behind_the_prompt() {
        let (old, new) = (llama2(), llama3());
        let answer = |tokenizer: &TextTokenizer, prompt: &str, answer: &str| {
            pieces(tokenizer, &encode(tokenizer, prompt, answer).target)
        };
        assert_eq!(answer(&old, "a:", "the"), ["▁the", "</s>"]);
        assert_eq!(answer(&new, "a:", "the"), ["Ġthe", "<|eot_id|>"]);
        // No second blank where there is one, and none behind a line feed.
        assert_eq!(answer(&new, "a: ", "the"), ["the", "<|eot_id|>"]);
        assert_eq!(answer(&new, "a:", " the"), ["Ġthe", "<|eot_id|>"]);
        assert_eq!(answer(&new, "a:\n", "the"), ["the", "<|eot_id|>"]);
        assert_eq!(answer(&new, "a:", ""), ["<|eot_id|>"]);
        assert_eq!(answer(&old, "a:", "the</s>"), ["▁the", "</s>"]);
    }

    #[test]
    fn only_the_sentence_is_cut() {
        for tokenizer in [llama2(), llama3()] {
            let example = Example {
                prefix: "task:\n".into(),
                sentence: "abcdefgh".into(),
                suffix: "\nend:".into(),
                target: "the the the".into(),
                ..Example::default()
            };
            let full = CausalEncoder::new(&tokenizer, Some(BOS), 100, 20).unwrap();
            let full = full.encode("t", &example).unwrap();
            let max = full.source.len() - 5;
            let cut = CausalEncoder::new(&tokenizer, Some(BOS), max, 2).unwrap();
            let cut = cut.encode("t", &example).unwrap();
            assert_eq!((cut.source.len(), cut.source_removed), (max, 5));
            assert_eq!(cut.source[0], BOS);
            assert_eq!(tokenizer.decode(&cut.source).unwrap(), "task:\nabc\nend:");
            assert_eq!((cut.target.len(), cut.target_removed), (2, 2));
            assert_eq!(cut.target[1], END);
            let short = CausalEncoder::new(&tokenizer, Some(BOS), 8, 2).unwrap();
            let error = short
                .encode_all("mine", std::slice::from_ref(&example))
                .unwrap_err();
            assert!(
                matches!(error, DataError::InstructionTooLong { .. }),
                "{error}"
            );
        }
    }

    #[test]
    fn a_template_surrounds_what_may_be_cut() {
        let tokenizer = llama3();
        let source = "{{ bos_token }}{% for m in messages %}user\n{{ m.content | trim }}{{ eos_token }}\
            {% endfor %}{% if add_generation_prompt %}bot\n{% endif %}";
        let template = ChatTemplate::new(source, "<|begin_of_text|>", "<|eot_id|>").unwrap();
        let example = Example {
            prefix: " task:\n".into(),
            sentence: "abcdefgh".into(),
            suffix: "\nend: ".into(),
            target: "the".into(),
            ..Example::default()
        };
        let encoder = CausalEncoder::new(&tokenizer, Some(BOS), 100, 20).unwrap();
        let full = encoder
            .with_template(&template)
            .encode("t", &example)
            .unwrap();
        let text = pieces(&tokenizer, &full.source).concat();
        assert_eq!(
            text,
            "<|begin_of_text|>userĊtask:ĊabcdefghĊend:<|eot_id|>botĊ"
        );
        assert_eq!(pieces(&tokenizer, &full.target), ["the", "<|eot_id|>"]);
        let encoder = CausalEncoder::new(&tokenizer, Some(BOS), full.source.len() - 6, 20).unwrap();
        let cut = encoder
            .with_template(&template)
            .encode("t", &example)
            .unwrap();
        let text = pieces(&tokenizer, &cut.source).concat();
        assert_eq!(text, "<|begin_of_text|>userĊtask:ĊabĊend:<|eot_id|>botĊ");

        let losing = ChatTemplate::new("{{ messages[0].content | upper }}", "", "").unwrap();
        let error = encoder
            .with_template(&losing)
            .encode("t", &example)
            .unwrap_err();
        assert!(
            error.to_string().contains("does not contain the prompt"),
            "{error}"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn sources_begin_once_and_targets_end_once(
            prefix in "[a-c \n]{0,10}",
            sentence in "[d-f \n]{0,30}",
            suffix in "[\n ]{0,2}[x-z:]{0,6}",
            target in "[a-z ]{0,12}",
            max_source in 2_usize..60,
            byte_level: bool,
        ) {
            let tokenizer = if byte_level { llama3() } else { llama2() };
            let example = Example { prefix, sentence, suffix, target, ..Example::default() };
            let full = CausalEncoder::new(&tokenizer, Some(BOS), 1000, 40).unwrap();
            let full = full.encode("t", &example).unwrap();
            let cut = CausalEncoder::new(&tokenizer, Some(BOS), max_source, 40).unwrap();
            match cut.encode("t", &example) {
                Ok(cut) => {
                    prop_assert_eq!(cut.source.len(), full.source.len().min(max_source));
                    prop_assert_eq!(cut.source.iter().filter(|&&id| id == BOS).count(), 1);
                    prop_assert_eq!(cut.source[0], BOS);
                    prop_assert_eq!(cut.target.iter().filter(|&&id| id == END).count(), 1);
                    prop_assert_eq!(cut.target.last(), Some(&END));
                    let head = cut.source.iter().zip(&full.source).take_while(|(a, b)| a == b).count();
                    let tail = cut.source.len() - head;
                    prop_assert!(cut.source[head..] == full.source[full.source.len() - tail..]);
                }
                Err(DataError::InstructionTooLong { fixed, .. }) => {
                    prop_assert!(fixed > max_source && fixed <= full.source.len());
                }
                Err(other) => prop_assert!(false, "{other}"),
            }
            // Training and generation see the same prompt.
            let other = Example { target: "other".into(), ..example };
            let encoder = CausalEncoder::new(&tokenizer, Some(BOS), 1000, 40).unwrap();
            prop_assert_eq!(encoder.encode("t", &other).unwrap().source, full.source);
        }
    }
}
