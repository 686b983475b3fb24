//! `aso demo`: forgetting is visible with seq-lora and much smaller with aso-lora.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{results, succeed, text};

#[test]
fn aso_lora_forgets_less_for_every_seed() {
    let dir = tempfile::tempdir().unwrap();
    for seed in ["1", "2", "3"] {
        let out = dir.path().join(seed);
        let printed = succeed(&["demo", "--seed", seed, "--out", text(&out)]);
        assert!(
            printed.contains("seq-lora") && printed.contains("aso-lora"),
            "{printed}"
        );
        // A finished demo is printed again.
        let again = succeed(&["demo", "--seed", seed, "--out", text(&out)]);
        assert_eq!(again, printed);
        let forgetting = ["seq-lora", "aso-lora"].map(|method| {
            let results = results(&out.join(method));
            assert!(results["tasks"].as_array().unwrap().len() >= 4);
            results["forgetting"].as_f64().unwrap()
        });
        let [seq, aso] = forgetting;
        assert!(
            seq >= 10.0,
            "seed {seed}: seq-lora forgets only {seq:.1} points"
        );
        assert!(
            aso <= 0.6 * seq,
            "seed {seed}: aso-lora forgets {aso:.1}, seq-lora {seq:.1}"
        );
    }
}
