//! The published orders of tasks by name.

use crate::error::{DataError, nearest};

/// A published task order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OrderPreset {
    /// The canonical name, such as `order1` or `order1p`.
    pub name: &'static str,
    /// The data sets in the order they are learned.
    pub tasks: &'static [&'static str],
    /// Where the order was published.
    pub source: &'static str,
}

const STANDARD: &str = "O-LoRA (Wang et al., Findings of EMNLP 2023), scripts; standard benchmark";
const LONG: &str = "O-LoRA (Wang et al., Findings of EMNLP 2023), long benchmark; SAPT and GainLoRA number the long orders differently";
const PRIMED: &str = "the standard order without yahoo";
const TRACE: &str = "TRACE (Wang et al., 2023), scripts";
const SUPER_NI: &str = "SAPT (Zhao et al., ACL 2024), 15 tasks of Super-NaturalInstructions";

/// Orders 1-3 are the standard benchmark (O-LoRA's scripts), 4-6 the long one (N-LoRA's scripts; 6 is
/// O-LoRA's `scripts/long.sh`); other papers number the long ones differently, so the sequence is what
/// counts.
///
/// Orders 1', 2' and 3' (`order1p` ..) are 1, 2 and 3 without yahoo, whose training file is often
/// not at hand. 1' and 2' are therefore the same sequence.
const PRESETS: &[OrderPreset] = &[
    OrderPreset {
        name: "order1",
        tasks: &["dbpedia", "amazon", "yahoo", "agnews"],
        source: STANDARD,
    },
    OrderPreset {
        name: "order2",
        tasks: &["dbpedia", "amazon", "agnews", "yahoo"],
        source: STANDARD,
    },
    OrderPreset {
        name: "order3",
        tasks: &["yahoo", "amazon", "agnews", "dbpedia"],
        source: STANDARD,
    },
    OrderPreset {
        name: "order4",
        tasks: &[
            "MNLI", "CB", "WiC", "COPA", "QQP", "BoolQA", "RTE", "IMDB", "yelp", "amazon", "SST-2",
            "dbpedia", "agnews", "MultiRC", "yahoo",
        ],
        source: LONG,
    },
    OrderPreset {
        name: "order5",
        tasks: &[
            "MultiRC", "BoolQA", "WiC", "MNLI", "CB", "COPA", "QQP", "RTE", "IMDB", "SST-2",
            "dbpedia", "agnews", "yelp", "amazon", "yahoo",
        ],
        source: LONG,
    },
    OrderPreset {
        name: "order6",
        tasks: &[
            "yelp", "amazon", "MNLI", "CB", "COPA", "QQP", "RTE", "IMDB", "SST-2", "dbpedia",
            "agnews", "yahoo", "MultiRC", "BoolQA", "WiC",
        ],
        source: LONG,
    },
    OrderPreset {
        name: "order1p",
        tasks: &["dbpedia", "amazon", "agnews"],
        source: PRIMED,
    },
    OrderPreset {
        name: "order2p",
        tasks: &["dbpedia", "amazon", "agnews"],
        source: PRIMED,
    },
    OrderPreset {
        name: "order3p",
        tasks: &["amazon", "agnews", "dbpedia"],
        source: PRIMED,
    },
    OrderPreset {
        name: "trace",
        tasks: &[
            "C-STANCE",
            "FOMC",
            "MeetingBank",
            "Py150",
            "ScienceQA",
            "NumGLUE-cm",
            "NumGLUE-ds",
            "20Minuten",
        ],
        source: TRACE,
    },
    OrderPreset {
        name: "superni1",
        tasks: &[
            "task1572_samsum_summary",
            "task363_sst2_polarity_classification",
            "task1290_xsum_summarization",
            "task181_outcome_extraction",
            "task002_quoref_answer_generation",
            "task1510_evalution_relation_extraction",
            "task639_multi_woz_user_utterance_generation",
            "task1729_personachat_generate_next",
            "task073_commonsenseqa_answer_generation",
            "task1590_diplomacy_text_generation",
            "task748_glucose_reverse_cause_event_detection",
            "task511_reddit_tifu_long_text_summarization",
            "task591_sciq_answer_generation",
            "task1687_sentiment140_classification",
            "task875_emotion_classification",
        ],
        source: SUPER_NI,
    },
    OrderPreset {
        name: "superni2",
        tasks: &[
            "task748_glucose_reverse_cause_event_detection",
            "task073_commonsenseqa_answer_generation",
            "task1590_diplomacy_text_generation",
            "task639_multi_woz_user_utterance_generation",
            "task1572_samsum_summary",
            "task1687_sentiment140_classification",
            "task591_sciq_answer_generation",
            "task363_sst2_polarity_classification",
            "task1510_evalution_relation_extraction",
            "task1729_personachat_generate_next",
            "task181_outcome_extraction",
            "task511_reddit_tifu_long_text_summarization",
            "task002_quoref_answer_generation",
            "task1290_xsum_summarization",
            "task875_emotion_classification",
        ],
        source: SUPER_NI,
    },
];

/// Every preset.
pub fn order_presets() -> &'static [OrderPreset] {
    PRESETS
}

impl OrderPreset {
    /// The preset of that name.
    ///
    /// Case, blanks, `-` and `_` do not matter, and a final `'` or `p` marks a primed order:
    /// `order1p`, `order1'` and `Order-1'` are the same.
    ///
    /// # Errors
    /// [`DataError::UnknownOrder`], listing the presets.
    pub fn find(name: &str) -> Result<&'static Self, DataError> {
        let key = canonical(name);
        PRESETS
            .iter()
            .find(|preset| preset.name == key)
            .ok_or_else(|| DataError::UnknownOrder {
                name: name.to_owned(),
                nearest: nearest(&key, PRESETS.iter().map(|preset| preset.name)),
                known: PRESETS
                    .iter()
                    .map(|preset| preset.name.to_owned())
                    .collect(),
            })
    }
}

fn canonical(name: &str) -> String {
    name.trim()
        .to_lowercase()
        .chars()
        .filter(|character| !matches!(character, '-' | '_' | ' '))
        .map(|character| {
            if matches!(character, '\'' | '’' | '′') {
                'p'
            } else {
                character
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case("order1p")]
    #[case("order1'")]
    #[case("order-1'")]
    #[case("Order 1′")]
    #[case("ORDER_1P")]
    fn spellings_of_a_primed_order(#[case] name: &str) {
        let tasks = OrderPreset::find(name).unwrap().tasks;
        assert_eq!(tasks, ["dbpedia", "amazon", "agnews"]);
    }

    /// As in the scripts of O-LoRA (1 to 3), N-LoRA (4 to 6), TRACE and SAPT.
    #[rstest::rstest]
    #[case("order1", "dbpedia amazon yahoo agnews")]
    #[case("order2", "dbpedia amazon agnews yahoo")]
    #[case("order3", "yahoo amazon agnews dbpedia")]
    #[case(
        "order4",
        "MNLI CB WiC COPA QQP BoolQA RTE IMDB yelp amazon SST-2 dbpedia agnews MultiRC yahoo"
    )]
    #[case(
        "order5",
        "MultiRC BoolQA WiC MNLI CB COPA QQP RTE IMDB SST-2 dbpedia agnews yelp amazon yahoo"
    )]
    #[case(
        "order6",
        "yelp amazon MNLI CB COPA QQP RTE IMDB SST-2 dbpedia agnews yahoo MultiRC BoolQA WiC"
    )]
    #[case(
        "trace",
        "C-STANCE FOMC MeetingBank Py150 ScienceQA NumGLUE-cm NumGLUE-ds 20Minuten"
    )]
    #[case(
        "superni1",
        "task1572_samsum_summary task363_sst2_polarity_classification task1290_xsum_summarization \
         task181_outcome_extraction task002_quoref_answer_generation \
         task1510_evalution_relation_extraction task639_multi_woz_user_utterance_generation \
         task1729_personachat_generate_next task073_commonsenseqa_answer_generation \
         task1590_diplomacy_text_generation task748_glucose_reverse_cause_event_detection \
         task511_reddit_tifu_long_text_summarization task591_sciq_answer_generation \
         task1687_sentiment140_classification task875_emotion_classification"
    )]
    #[case(
        "superni2",
        "task748_glucose_reverse_cause_event_detection task073_commonsenseqa_answer_generation \
         task1590_diplomacy_text_generation task639_multi_woz_user_utterance_generation \
         task1572_samsum_summary task1687_sentiment140_classification \
         task591_sciq_answer_generation task363_sst2_polarity_classification \
         task1510_evalution_relation_extraction task1729_personachat_generate_next \
         task181_outcome_extraction task511_reddit_tifu_long_text_summarization \
         task002_quoref_answer_generation task1290_xsum_summarization \
         task875_emotion_classification"
    )]
    fn published_sequences(#[case] name: &str, #[case] tasks: &str) {
        let tasks: Vec<&str> = tasks.split_whitespace().collect();
        assert_eq!(OrderPreset::find(name).unwrap().tasks, tasks);
    }

    #[test]
    fn primed_orders_are_the_orders_without_yahoo() {
        for number in 1..=3 {
            let full = OrderPreset::find(&format!("order{number}")).unwrap();
            let primed = OrderPreset::find(&format!("order{number}'")).unwrap();
            let rest: Vec<_> = full.tasks.iter().filter(|&&task| task != "yahoo").collect();
            assert_eq!(rest, primed.tasks.iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn long_orders_permute_the_same_tasks() {
        let sorted = |name| {
            let mut tasks = OrderPreset::find(name).unwrap().tasks.to_vec();
            tasks.sort_unstable();
            tasks
        };
        assert_eq!(sorted("order4"), sorted("order5"));
        assert_eq!(sorted("order4"), sorted("order6"));
        assert_eq!(sorted("superni1"), sorted("superni2"));
        assert_eq!(sorted("order1"), sorted("order2"));
        assert_eq!(sorted("order1"), sorted("order3"));
    }

    #[test]
    fn an_unknown_order_lists_the_known_ones() {
        let message = OrderPreset::find("ordre1").unwrap_err().to_string();
        assert!(
            message.contains("`ordre1`, did you mean `order1`?"),
            "{message}"
        );
        assert!(
            message.contains("known orders: order1, order2") && message.contains("`aso orders`"),
            "{message}"
        );
        assert!(matches!(
            OrderPreset::find("order7"),
            Err(DataError::UnknownOrder { .. })
        ));
    }
}
