#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| t3c_fuzz::safetensors(data));

#[path = "../src/unsafe_main.rs"]
mod unsafe_main;
