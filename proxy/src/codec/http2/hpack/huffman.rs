//! HPACK's Huffman code (RFC 7541 section 5.2 and appendix B), read. We write none: it costs more time than the bytes it saves
//! (the figures stand in the crate's README).
//!
//! The code is canonical: how long each symbol's code is says what it is. Codes of up to eight bits, which nearly all text
//! is made of, are looked up; longer ones are found by comparing with where each length ends.

/// How many bits each byte has; behind them the end of a string, which is never written.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28,
    28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12,
    10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6,
    5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22,
    22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20,
    22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28,
    27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28,
    27, 27, 27, 27, 27, 26, 30,
];
const LONGEST: usize = 30;

/// How many codes have each number of bits.
const COUNTS: [u32; LONGEST + 1] = {
    let mut counts = [0; LONGEST + 1];
    let mut symbol = 0;
    while symbol < LENGTHS.len() {
        counts[LENGTHS[symbol] as usize] += 1;
        symbol += 1;
    }
    counts
};

/// The first code of each number of bits.
const FIRST: [u32; LONGEST + 1] = {
    let mut first = [0; LONGEST + 1];
    let mut bits = 1;
    while bits <= LONGEST {
        first[bits] = (first[bits - 1] + COUNTS[bits - 1]) << 1;
        bits += 1;
    }
    first
};

/// All symbols, ordered by their codes.
const ORDERED: [u16; 257] = {
    let mut ordered = [0; 257];
    let (mut at, mut bits) = (0, 1);
    while bits <= LONGEST {
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == bits {
                ordered[at] = symbol as u16;
                at += 1;
            }
            symbol += 1;
        }
        bits += 1;
    }
    ordered
};

/// By the next eight bits: the symbol that they begin with and how many bits it has; 0 bits: more than eight.
const SHORT: [(u8, u8); 256] = {
    let mut short = [(0, 0); 256];
    let (mut at, mut bits) = (0, 1);
    while bits <= 8 {
        let mut code = FIRST[bits];
        while code < FIRST[bits] + COUNTS[bits] {
            let from = (code << (8 - bits)) as usize;
            let mut spare = 0;
            while spare < 1 << (8 - bits) {
                short[from + spare] = (ORDERED[at] as u8, bits as u8);
                spare += 1;
            }
            at += 1;
            code += 1;
        }
        bits += 1;
    }
    short
};

/// Decodes `text` behind `out`.
///
/// # Errors
/// When it is not a whole number of symbols with at most seven 1 bits behind them.
pub(super) fn decode(text: &[u8], out: &mut Vec<u8>) -> Result<(), &'static str> {
    // The bits not yet read, at the top; zeros follow.
    let (mut window, mut held) = (0u64, 0u32);
    let mut rest = text;
    out.reserve(text.len() * 8 / 5 + 1);
    loop {
        if held < 32 {
            if let Some((word, after)) = rest.split_first_chunk::<4>() {
                window |= u64::from(u32::from_be_bytes(*word)) << (32 - held);
                (held, rest) = (held + 32, after);
            } else if let Some((byte, after)) = rest.split_first() {
                window |= u64::from(*byte) << (56 - held);
                (held, rest) = (held + 8, after);
                continue;
            }
        }
        let (symbol, bits) = match SHORT[(window >> 56) as usize] {
            (_, 0) => long((window >> 32) as u32)?,
            short => short,
        };
        let bits = u32::from(bits);
        if bits > held {
            return ending(window, held);
        }
        out.push(symbol);
        window <<= bits;
        held -= bits;
    }
}

/// The symbol of more than eight bits that `window` begins with, and how many.
#[inline(never)]
fn long(window: u32) -> Result<(u8, u8), &'static str> {
    let (mut at, mut bits) = (0, 1);
    loop {
        let (count, code) = (COUNTS[bits], window >> (32 - bits));
        // The codes of one length follow those of the shorter ones.
        if code < FIRST[bits] + count {
            let symbol = ORDERED[at + (code - FIRST[bits]) as usize];
            return match u8::try_from(symbol) {
                Ok(symbol) => Ok((symbol, bits as u8)),
                Err(_) => Err("the end of a string inside a Huffman-coded string"),
            };
        }
        at += count as usize;
        if bits == LONGEST {
            // Unreachable: the code is complete. Every 30 bits are below its last.
            return Err("a Huffman code that nobody knows");
        }
        bits += 1;
    }
}

/// What is left is too short for a symbol: the beginning of the end of a string, shorter than a byte.
fn ending(window: u64, held: u32) -> Result<(), &'static str> {
    if held >= 8 {
        return Err("a Huffman-coded string that ends with more than seven bits of padding");
    }
    if held > 0 && window >> (64 - held) != (1 << held) - 1 {
        return Err("a Huffman-coded string that is not padded with ones");
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Writes `text` as `decode` reads it.
    pub(in super::super) fn encode(text: &[u8]) -> Vec<u8> {
        let (mut out, mut window, mut held) = (Vec::new(), 0u64, 0u32);
        for &byte in text {
            let (code, bits) = code(usize::from(byte));
            window |= u64::from(code) << (64 - held - bits);
            held += bits;
            while held >= 8 {
                out.push((window >> 56) as u8);
                window <<= 8;
                held -= 8;
            }
        }
        if held > 0 {
            out.push((window >> 56) as u8 | (0xff >> held));
        }
        out
    }

    fn code(symbol: usize) -> (u32, u32) {
        let bits = usize::from(LENGTHS[symbol]);
        let place = ORDERED.iter().position(|each| usize::from(*each) == symbol).unwrap() as u32;
        (FIRST[bits] + place - COUNTS[..bits].iter().sum::<u32>(), bits as u32)
    }

    #[track_caller]
    fn decoded(text: &[u8]) -> Result<Vec<u8>, &'static str> {
        let mut out = b"kept".to_vec();
        decode(text, &mut out).map(|()| out.split_off(4))
    }

    #[test]
    fn codes_are_those_of_the_specification() {
        // RFC 7541 appendix B, a few of each length.
        for (symbol, expected) in [
            (b'0'.into(), (0x0, 5)),
            (b't'.into(), (0x9, 5)),
            (b' '.into(), (0x14, 6)),
            (b'u'.into(), (0x2d, 6)),
            (b':'.into(), (0x5c, 7)),
            (b'z'.into(), (0x7b, 7)),
            (b'&'.into(), (0xf8, 8)),
            (b'Z'.into(), (0xfd, 8)),
            (b'!'.into(), (0x3f8, 10)),
            (b'|'.into(), (0x7fc, 11)),
            (b'#'.into(), (0xffa, 12)),
            (0, (0x1ff8, 13)),
            (b'^'.into(), (0x3ffc, 14)),
            (b'<'.into(), (0x7ffc, 15)),
            (b'\\'.into(), (0x7fff0, 19)),
            (128, (0xfffe6, 20)),
            (153, (0x1fffdc, 21)),
            (129, (0x3fffd2, 22)),
            (1, (0x7fffd8, 23)),
            (9, (0xffffea, 24)),
            (199, (0x1ffffec, 25)),
            (192, (0x3ffffe0, 26)),
            (203, (0x7ffffde, 27)),
            (2, (0xfffffe2, 28)),
            (10, (0x3ffffffc, 30)),
            (256, (0x3fffffff, 30)),
        ] {
            assert_eq!(code(symbol), expected, "{symbol}");
        }
    }

    #[test]
    fn every_byte_beside_every_other_is_read_as_it_was_written() {
        for first in 0..=255u8 {
            for second in 0..=255u8 {
                for text in [&[first][..], &[first, second], &[b'a', first, second, second, b'0']] {
                    assert_eq!(decoded(&encode(text)).unwrap(), text);
                }
            }
        }
        let all: Vec<u8> = (0..=255).chain((0..=255).rev()).collect();
        assert_eq!(decoded(&encode(&all)).unwrap(), all);
        assert_eq!(decoded(b"").unwrap(), b"");
    }

    #[test]
    fn padding_is_the_beginning_of_the_end() {
        let zero_padded = "a Huffman-coded string that is not padded with ones";
        let too_long = "a Huffman-coded string that ends with more than seven bits of padding";
        let end = "the end of a string inside a Huffman-coded string";
        assert_eq!(decoded(&[0x07]).unwrap(), b"0");
        assert_eq!(decoded(&[0x00]).unwrap_err(), zero_padded);
        assert_eq!(decoded(&[0x05]).unwrap_err(), zero_padded);
        assert_eq!(decoded(&[0xff]).unwrap_err(), too_long);
        assert_eq!(decoded(&[0x07, 0xff]).unwrap_err(), too_long);
        assert_eq!(decoded(&[0xff, 0xff, 0xff]).unwrap_err(), too_long);
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xff]).unwrap_err(), end);
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xfc]).unwrap_err(), end);
        assert_eq!(decoded(&[0x07, 0xff, 0xff, 0xff, 0xff, 0xff]).unwrap_err(), end);
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xf3]).unwrap(), b"\n");
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xf0]).unwrap_err(), zero_padded);
        // A symbol cut in the middle.
        assert_eq!(decoded(&[0xfe]).unwrap_err(), too_long);
    }

    #[test]
    fn whatever_comes_is_read_or_refused_and_what_is_read_has_one_spelling() {
        let mut random = fastrand::Rng::with_seed(7541);
        for _ in 0..20_000 {
            let mut text = vec![0; random.usize(..24)];
            random.fill(&mut text);
            if let Ok(read) = decoded(&text) {
                assert_eq!(encode(&read), text);
            }
        }
    }
}
