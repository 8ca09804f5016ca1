//! A million damaged blocks: each is decoded or refused, never more. `cargo test --test fuzz`.
//!
//! The cases depend on the seed alone (`FUZZ_SEED`, else the one below); `FUZZ_CASES` sets how many they are.

use _kernel::batch::{self, Request};
use _kernel::block::{Choice, Readings};
use _kernel::error::Error;
use _kernel::rounding::Precision;

const CASES: u64 = 1_000_000;
const SEED: u64 = 20_261_122;

/// splitmix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

fn number_from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Frames without their checksum, of every codec.
fn frames(random: &mut Random) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let signals: [fn(f64) -> f64; 8] = [
        |k| (k * 0.7).round() / 10.0,
        |k| f64::from((k / 7.0).sin() as f32),
        |k| (k / 7.0).sin(),
        |k| if k % 9.0 < 5.0 { 0.0 } else { k * 1.1 },
        |k| [0.054_711, 0.382_638, -0.273_216][k as usize % 3],
        |k| if k == 7.0 { f64::NAN } else { k },
        |_| 21.5,
        |k| k * 1.862_645_371e-5,
    ];
    for name in ["gorilla", "raw", "fast", "balanced", "small"] {
        for (kind, signal) in signals.iter().enumerate() {
            for count in [1, 2, 5, 20, 60, 300] {
                let timestamps: Vec<i64> = (0..count)
                    .map(|k| 1_700_000_000_000_000 + k * 1_000_000 + random.below(1 + kind) as i64 * 1000)
                    .collect();
                let values: Vec<f64> = (0..count).map(|k| signal(k as f64)).collect();
                let statuses: Vec<i32> =
                    (0..count).map(|k| if kind == 3 && k % 4 == 0 { i32::MIN } else { 0 }).collect();
                let readings = Readings::new(&timestamps, &values, &statuses).unwrap();
                for precision in [Precision::Exact, Precision::MaxError(0.01)] {
                    let request = Request { precisions: &[precision], ..Request::default() };
                    let (block, _) =
                        batch::encode(readings, &[0, count], Choice::from_name(name).unwrap(), request).unwrap();
                    frames.push(block[..block.len() - 4].to_vec());
                }
            }
        }
    }
    frames
}

fn mutate(frame: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..[1, 1, 1, 2, 4][random.below(5)] {
        let near_the_head = random.below(2) == 0;
        let at = random.below(if near_the_head { frame.len().min(24) } else { frame.len() });
        match random.below(6) {
            0 => frame[at] ^= 1 << random.below(8),
            1 => frame[at] = [0, 1, 2, 0x7F, 0x80, 0xFF][random.below(6)],
            2 => frame[at] = random.next() as u8,
            3 => frame.insert(at, random.next() as u8),
            4 if frame.len() > 1 => drop(frame.remove(at)),
            _ => frame.truncate(at + 1),
        }
    }
}

#[test]
fn fuzz_a_million_damaged_blocks() {
    let cases = number_from_environment("FUZZ_CASES", CASES);
    let seed = number_from_environment("FUZZ_SEED", SEED);
    let mut random = Random(seed);
    let frames = frames(&mut random);
    let (mut read, mut longest) = (0, 0);
    for case in 0..cases {
        let mut block = frames[random.below(frames.len())].clone();
        mutate(&mut block, &mut random);
        // With the right checksum, so that the damage reaches the decoders.
        block.extend(crc32c::crc32c(&block).to_le_bytes());
        match batch::decode(&block, &[block.len() as i64], 4096) {
            Ok(columns) => {
                assert_eq!(columns.values.len() as i64, columns.counts[0], "seed {seed}, case {case}");
                read += 1;
                longest = longest.max(columns.values.len());
            }
            Err(Error::Block(_)) => (),
            Err(Error::Input(message)) => panic!("seed {seed}, case {case}: {message}"),
        }
    }
    println!("{cases} cases, seed {seed}: {read} were still blocks, the longest of {longest} readings");
    // Were nearly all refused, the damage would not reach the sections.
    assert!(read > cases / 50);
}
