//! Both forms of an importance matrix, and files that are none.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure is the test's result")]

use rstest::rstest;

use super::*;

fn example() -> Importance {
    let row = |n: usize, from: f32| (0..n).map(|i| from + i as f32 * 0.37).collect::<Vec<f32>>();
    let columns = [(Role::Query(0), row(8, 0.0)), (Role::Down(11), row(12, 1.5)), (Role::Output, row(8, 100.0))];
    Importance::new(columns.into_iter().collect()).unwrap()
}

fn bytes_of(write: impl Fn(&Importance, &Path) -> Result<()>) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("imatrix");
    write(&example(), &path).unwrap();
    assert_close(&Importance::read(&path).unwrap(), &example());
    std::fs::read(path).unwrap()
}

/// Equal but for the rounding of a product with the count and of the division by it.
fn assert_close(a: &Importance, b: &Importance) {
    assert_eq!(a.columns.keys().collect::<Vec<_>>(), b.columns.keys().collect::<Vec<_>>());
    for (a, b) in a.columns.values().flatten().zip(b.columns.values().flatten()) {
        assert!((a - b).abs() <= 2e-7 * b, "{a} {b}");
    }
}

fn gguf_form() -> Vec<u8> {
    bytes_of(|importance, path| importance.write(path, 4096, "text"))
}

fn legacy_form() -> Vec<u8> {
    bytes_of(|importance, path| importance.write_legacy(path, 4096, "text"))
}

#[test]
fn what_is_written_is_read_again() {
    assert!(gguf_form().starts_with(b"GGUF"));
    assert!(!legacy_form().starts_with(b"GGUF"));
}

/// A file of the older form, byte by byte: one known tensor, one of a mixture of experts, and the tail.
#[test]
fn the_older_form_divides_sums_by_calls() {
    let mut bytes = 2i32.to_le_bytes().to_vec();
    for (name, calls, sums) in
        [("blk.3.attn_v.weight", 4i32, [2.0f32, 6.0]), ("blk.3.ffn_up_exps.weight", 1, [1.0, 1.0])]
    {
        bytes.extend((name.len() as i32).to_le_bytes());
        bytes.extend(name.as_bytes());
        bytes.extend(calls.to_le_bytes());
        bytes.extend((sums.len() as i32).to_le_bytes());
        bytes.extend(sums.iter().flat_map(|v| v.to_le_bytes()));
    }
    bytes.extend(7i32.to_le_bytes());
    let read = Importance::parse(&bytes, "old.dat").unwrap();
    assert_eq!((read.len(), read.get(Role::Value(3))), (1, Some(&[0.5, 1.5][..])));
}

#[test]
fn a_file_that_ends_early_is_refused() {
    let (gguf, legacy) = (gguf_form(), legacy_form());
    // The older form's last 12 bytes, calls and data set, say nothing that is needed.
    for (bytes, needed) in [(&gguf, gguf.len() - 31), (&legacy, legacy.len() - 12)] {
        for len in 0..needed {
            let error = Importance::parse(&bytes[..len], "cut").unwrap_err().to_string();
            assert!(error.starts_with("cut: "), "{len}: {error}");
        }
    }
}

/// Counts that a file cannot hold are refused before memory is taken for them.
#[rstest]
#[case::tensors(0)]
#[case::name(4)]
#[case::columns(4 + 4 + "output.weight".len() + 4)]
fn impossible_counts_are_refused(#[case] at: usize) {
    let mut only = Importance::default();
    only.columns.insert(Role::Output, vec![1.0; 4]);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("one.dat");
    only.write_legacy(&path, 1, "").unwrap();
    for count in [i32::MAX, -1, i32::MIN, 1 << 20] {
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[at..at + 4].copy_from_slice(&count.to_le_bytes());
        let error = Importance::parse(&bytes, "huge").unwrap_err().to_string();
        assert!(error.contains(&count.to_string()), "{error}");
    }
}

#[test]
fn values_that_no_mean_of_squares_has_are_refused() {
    for wrong in [-1.0, f32::NAN, f32::INFINITY] {
        let error = Importance::new([(Role::Gate(2), vec![1.0, wrong])].into_iter().collect()).unwrap_err();
        assert!(error.to_string().contains("blk.2.ffn_gate.weight, column 1"), "{error}");
    }
    let error = Importance::parse(&0i32.to_le_bytes(), "empty").unwrap_err();
    assert!(error.to_string().contains("no importance of any tensor"), "{error}");
}

/// Whatever bytes change, reading ends with a result, not a panic, and what it accepts is sound.
#[test]
fn damaged_files_never_panic() {
    for bytes in [gguf_form(), legacy_form()] {
        for at in 0..bytes.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] ^= flip;
                if let Ok(read) = Importance::parse(&damaged, "damaged") {
                    assert!(read.columns.values().flatten().all(|v| v.is_finite() && *v >= 0.0));
                }
            }
        }
    }
}
