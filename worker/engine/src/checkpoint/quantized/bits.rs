//! Codes of 4 or 8 bits in little-endian 32-bit words: the arrangements that quantized checkpoints use.
//!
//! All of them fill a word from its lowest bits; they differ in the axis along which neighbours share a word, and AutoAWQ
//! in their order inside it.

/// Code `i` of a word of AutoAWQ is column `AWQ_ORDER[i]` of its eight.
pub(crate) const AWQ_ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// Order of codes in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// First code lowest.
    Sequential,
    /// [`AWQ_ORDER`]; 4 bits only.
    Awq,
}

/// Codes of a word.
pub(crate) fn per_word(bits: u8) -> usize {
    32 / usize::from(bits)
}

/// Packs a row-major `[rows, cols]` matrix of codes along its rows: `[rows, ceil(cols / per word)]` words.
pub(crate) fn pack_cols(codes: &[u8], cols: usize, bits: u8, order: Order) -> Vec<u8> {
    let per = per_word(bits);
    let mut out = Vec::with_capacity(codes.len() * usize::from(bits) / 8);
    for row in codes.chunks_exact(cols.max(1)) {
        // Whole words of the usual layout, without a look at each code's place.
        let whole = match (order, bits) {
            (Order::Sequential, 4) => {
                let (words, _) = row.as_chunks::<8>();
                let pairs = |w: &[u8; 8]| [0, 2, 4, 6].map(|i: usize| w[i] | w[i + 1] << 4);
                out.extend_from_slice(words.iter().map(pairs).collect::<Vec<_>>().as_flattened());
                words.len() * 8
            }
            (Order::Sequential, 8) => {
                let (words, _) = row.as_chunks::<4>();
                out.extend_from_slice(words.as_flattened());
                words.len() * 4
            }
            _ => 0,
        };
        for codes in row[whole..].chunks(per) {
            out.extend(word(|i| codes.get(position(order, i)).copied().unwrap_or(0), bits).to_le_bytes());
        }
    }
    out
}

/// Packs a row-major `[rows, cols]` matrix of codes along its columns: `[ceil(rows / per word), cols]` words.
pub(crate) fn pack_rows(codes: &[u8], cols: usize, bits: u8) -> Vec<u8> {
    let per = per_word(bits);
    let mut out = Vec::with_capacity(codes.len() * usize::from(bits) / 8);
    for band in codes.chunks((cols * per).max(1)) {
        for col in 0..cols {
            out.extend(word(|i| band.get(i * cols + col).copied().unwrap_or(0), bits).to_le_bytes());
        }
    }
    out
}

/// Undoes [`pack_cols`]; `bytes` holds the words of whole rows of `cols` codes.
pub(crate) fn unpack_cols(bytes: &[u8], cols: usize, bits: u8, order: Order) -> Vec<u8> {
    let per = per_word(bits);
    let row_bytes = cols.div_ceil(per) * 4;
    let mut out = vec![0; bytes.len() / row_bytes.max(1) * cols];
    for (row, words) in out.chunks_exact_mut(cols.max(1)).zip(bytes.chunks_exact(row_bytes.max(1))) {
        for (codes, bytes) in row.chunks_mut(per).zip(words.chunks_exact(4)) {
            for i in 0..per {
                if let Some(code) = codes.get_mut(position(order, i)) {
                    *code = code_of(bytes, i, bits);
                }
            }
        }
    }
    out
}

/// Undoes [`pack_rows`] into `rows` rows of `cols` codes.
pub(crate) fn unpack_rows(bytes: &[u8], rows: usize, cols: usize, bits: u8) -> Vec<u8> {
    let per = per_word(bits);
    let mut out = vec![0; rows * cols];
    for (band, words) in out.chunks_mut((cols * per).max(1)).zip(bytes.chunks_exact((cols * 4).max(1))) {
        for (at, code) in band.iter_mut().enumerate() {
            let (i, col) = (at / cols, at % cols);
            *code = code_of(&words[col * 4..col * 4 + 4], i, bits);
        }
    }
    out
}

/// Rows become columns.
pub(crate) fn transpose<T: Copy>(values: &[T], cols: usize) -> Vec<T> {
    let rows = values.len() / cols.max(1);
    (0..cols).flat_map(|col| (0..rows).map(move |row| values[row * cols + col])).collect()
}

fn position(order: Order, i: usize) -> usize {
    match order {
        Order::Sequential => i,
        Order::Awq => AWQ_ORDER[i % 8],
    }
}

fn word(code: impl Fn(usize) -> u8, bits: u8) -> u32 {
    (0..per_word(bits)).fold(0, |word, i| word | u32::from(code(i)) << (i as u32 * u32::from(bits)))
}

fn code_of(word: &[u8], i: usize, bits: u8) -> u8 {
    match bits {
        4 => (word[i / 2] >> (i % 2 * 4)) & 15,
        _ => word[i],
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // Words written out by hand from the layouts' definitions: digit `i` from the right is code `i` of the word.
    #[test]
    fn words_are_filled_from_the_lowest_bits() {
        let codes: Vec<u8> = (0..16).collect();
        let sequential = [0x7654_3210u32.to_le_bytes(), 0xfedc_ba98u32.to_le_bytes()].concat();
        assert_eq!(pack_cols(&codes, 16, 4, Order::Sequential), sequential);
        // Columns 0 2 4 6 1 3 5 7 from the lowest digit up.
        let awq = [0x7531_6420u32.to_le_bytes(), 0xfdb9_eca8u32.to_le_bytes()].concat();
        assert_eq!(pack_cols(&codes, 16, 4, Order::Awq), awq);
        // Eight rows of two: the first word takes the even codes, the second the odd ones.
        let rows = [0xeca8_6420u32.to_le_bytes(), 0xfdb9_7531u32.to_le_bytes()].concat();
        assert_eq!(pack_rows(&codes, 2, 4), rows);
        assert_eq!(pack_cols(&[1, 2, 3, 255], 4, 8, Order::Sequential), [1, 2, 3, 255]);
        assert_eq!(pack_rows(&[1, 2, 3, 4, 5, 6, 7, 8], 2, 8), [1, 3, 5, 7, 2, 4, 6, 8]);
    }

    proptest! {
        #[test]
        fn unpacking_undoes_packing(rows in 1usize..20, cols in 1usize..20, eight in any::<bool>(), seed in any::<u32>()) {
            let bits = if eight { 8 } else { 4 };
            let mask = if eight { 255 } else { 15 };
            let codes: Vec<u8> =
                (0..rows * cols).map(|i| (seed.wrapping_mul(i as u32 + 1) >> 11) as u8 & mask).collect();
            let order = if eight { Order::Sequential } else { Order::Awq };
            prop_assert_eq!(&unpack_cols(&pack_cols(&codes, cols, bits, order), cols, bits, order), &codes);
            prop_assert_eq!(&unpack_rows(&pack_rows(&codes, cols, bits), rows, cols, bits), &codes);
            prop_assert_eq!(&transpose(&transpose(&codes, cols), rows), &codes);
        }
    }
}
