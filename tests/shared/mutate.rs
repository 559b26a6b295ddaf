//! Small breaks of text files, made with a seed.

use rand_chacha::ChaCha8Rng;
use rand_core::RngCore as _;

fn below(rng: &mut ChaCha8Rng, end: usize) -> usize {
    rng.next_u64() as usize % end.max(1)
}

pub(crate) fn pick<'a, T>(rng: &mut ChaCha8Rng, from: &'a [T]) -> &'a T {
    &from[below(rng, from.len())]
}

/// One to three small breaks of a file.
pub(crate) fn mutate(text: &str, rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..=below(rng, 3) {
        let mut lines: Vec<Vec<u8>> = bytes
            .split(|byte| *byte == b'\n')
            .map(<[u8]>::to_vec)
            .collect();
        let line = below(rng, lines.len());
        match below(rng, 10) {
            0 => {
                let at = below(rng, bytes.len());
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << below(rng, 8);
                }
                continue;
            }
            1 => {
                bytes.truncate(below(rng, bytes.len()));
                continue;
            }
            2 => {
                let at = below(rng, bytes.len());
                let odd: [&[u8]; 8] = [
                    b"\0",
                    b"\xff",
                    b"\"",
                    b"[[",
                    b"]",
                    b"\r",
                    "\u{202e}".as_bytes(),
                    b"'''",
                ];
                bytes.splice(at..at, pick(rng, &odd).iter().copied());
                continue;
            }
            3 => {
                let other = below(rng, lines.len());
                lines.swap(line, other);
            }
            4 => lines.insert(line, lines[line].clone()),
            5 => drop(lines.remove(line)),
            6 => {
                // Renames a key.
                let mut text = lines[line].clone();
                text.splice(0..text.len().min(1), *b"x");
                lines[line] = text;
            }
            _ => {
                // Another value, mostly of another type.
                let values: [&str; 16] = [
                    "5",
                    "-1",
                    "9223372036854775807",
                    "1.5",
                    "nan",
                    "true",
                    "[]",
                    "[[]]",
                    "{}",
                    "\"\"",
                    "\"\\u0000\"",
                    "1979-05-27T07:32:00Z",
                    "[\"10.77.0.0/0\", 5]",
                    "\"::ffff:10.0.0.1\"",
                    "{ a.b.c = [{ d = 1 }] }",
                    "\"[::]:1\"",
                ];
                let text = String::from_utf8_lossy(&lines[line]).into_owned();
                if let Some((key, _)) = text.split_once('=') {
                    lines[line] = format!("{key}= {}", pick(rng, &values)).into_bytes();
                }
            }
        }
        bytes = lines.join(&b'\n');
    }
    bytes
}
