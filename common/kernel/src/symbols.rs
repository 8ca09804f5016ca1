//! A few symbols, each in as few bits as it was unexpected after the one before it.
//!
//! An adaptive model of order one over the bits of a symbol, highest first (the bit-tree of Pavlov's LZMA).

use crate::error::{Result, damaged};
use crate::range::{Chance, RangeDecoder, RangeEncoder};

/// Symbols there may be.
pub const SYMBOLS_MAX: usize = 32;

struct Model {
    bits: u32,
    /// For each symbol, the nodes of the tree of the one that follows it.
    nodes: Vec<Chance>,
    last: usize,
}

impl Model {
    fn new(symbols: usize) -> Self {
        let bits = usize::BITS - (symbols - 1).leading_zeros();
        Self { bits, nodes: vec![Chance::new(32_768); symbols << bits], last: 0 }
    }

    fn tree(&mut self) -> &mut [Chance] {
        let size = 1 << self.bits;
        &mut self.nodes[self.last * size..(self.last + 1) * size]
    }
}

/// Append `column`, whose numbers are `low` and the next, `symbols` in all, which are 2 to [`SYMBOLS_MAX`].
pub fn encode(column: &[i64], low: i64, symbols: usize, out: &mut Vec<u8>) {
    out.push(symbols as u8);
    let mut model = Model::new(symbols);
    let mut coder = RangeEncoder::new(out);
    for &number in column {
        let number = number.wrapping_sub(low);
        let bits = model.bits;
        let tree = model.tree();
        let mut node = 1;
        for bit in (0..bits).rev() {
            let answer = number >> bit & 1 == 1;
            coder.put(&mut tree[node], answer);
            node = node << 1 | usize::from(answer);
        }
        model.last = number as usize;
    }
    coder.finish();
}

/// Fill `out` from a section.
///
/// # Errors
/// It does not hold so many symbols, or one that is not there.
pub fn decode(section: &[u8], low: i64, out: &mut [i64]) -> Result<()> {
    let Some((&symbols, bytes)) = section.split_first() else {
        return damaged("a section ends in its header");
    };
    let symbols = usize::from(symbols);
    if !(2..=SYMBOLS_MAX).contains(&symbols) {
        return damaged("a number of symbols is impossible");
    }
    let mut model = Model::new(symbols);
    let mut coder = RangeDecoder::new(bytes);
    for number in out {
        let bits = model.bits;
        let tree = model.tree();
        let mut node = 1;
        for _ in 0..bits {
            node = node << 1 | usize::from(coder.take(&mut tree[node]));
        }
        model.last = node - (1 << bits);
        if model.last >= symbols {
            return damaged("a symbol is not there");
        }
        *number = low.wrapping_add(model.last as i64);
    }
    if coder.is_at_end() { Ok(()) } else { damaged("a section goes on after its last reading") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_come_back() {
        for symbols in 2..=SYMBOLS_MAX {
            let column: Vec<i64> = (0..500).map(|k| ((k * k) % symbols) as i64 - 3).collect();
            let mut section = Vec::new();
            encode(&column, -3, symbols, &mut section);
            let mut decoded = vec![-1; 500];
            decode(&section, -3, &mut decoded).unwrap();
            assert_eq!(decoded, column);
            section.extend([0; 8]);
            assert!(decode(&section, -3, &mut decoded).is_err());
        }
        assert!(decode(&[], 0, &mut [0]).is_err());
        assert!(decode(&[1], 0, &mut [0]).is_err());
        assert!(decode(&[33], 0, &mut [0]).is_err());
        assert!(decode(&[3, 0], 0, &mut [0; 4]).is_err());
    }
}
