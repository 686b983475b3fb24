//! Writes the adapters that `xtask/fixtures/verify_peft.py` gives to PEFT: `write-adapters DIR`.

fn main() {
    let dir = std::env::args_os()
        .nth(1)
        .expect("usage: write-adapters DIR");
    aso_tests::write_adapters(dir.as_ref());
}
