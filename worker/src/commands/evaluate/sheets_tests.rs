use proptest::prelude::*;
use rstest::rstest;

use super::*;

fn pairs() -> Vec<Pair> {
    (0..12)
        .map(|i| Pair {
            prompt: format!("Question {i}, with a comma?"),
            answers: [format!("A says \"{i}\"\nand more"), format!("- B says {i}; so there")],
        })
        .collect()
}

fn sheet() -> Sheet {
    Sheet::new(["bf16".into(), "q4_1".into()], &pairs(), 7, "nonce")
}

fn key(sheet: &Sheet) -> String {
    serde_json::to_string_pretty(&sheet.key).unwrap()
}

/// Fills the last column of the sheet.
fn filled(sheet: &Sheet, judge: impl Fn(usize) -> &'static str) -> String {
    let mut records = parse_csv(&sheet.csv());
    for (index, record) in records.iter_mut().skip(2).enumerate() {
        record[4] = judge(index).into();
    }
    write(&records, ",")
}

fn write(records: &[Vec<String>], separator: &str) -> String {
    records.iter().map(|record| record.iter().map(|c| quote(c)).collect::<Vec<_>>().join(separator) + "\n").collect()
}

#[test]
fn a_judge_who_prefers_one_profile_is_counted_for_it_whatever_the_order() {
    let sheet = sheet();
    // Prefers the answers of A, wherever they stand.
    let judge = |index: usize| match (index, sheet.key.rows[index].first) {
        (10, _) => "=",
        (11, _) => "",
        (_, 0) => "1",
        _ => " 2 ",
    };
    let found = tally(&filled(&sheet, judge), &key(&sheet)).unwrap();
    let profiles = ["bf16".to_owned(), "q4_1".to_owned()];
    assert_eq!(found, Tally { profiles, wins: [10, 0], ties: 1, open: 1 });
    assert!(found.summary().contains("bf16 is better"), "{}", found.summary());
    let firsts: usize = sheet.key.rows.iter().map(|r| r.first).sum();
    assert!((1..12).contains(&firsts), "the order is not mixed");
}

#[test]
fn a_sheet_shows_no_profile_and_names_the_commitment() {
    let sheet = sheet();
    for text in [sheet.csv(), sheet.markdown()] {
        assert!(text.contains(&sheet.key.commitment()));
        assert!(!text.contains("bf16") && !text.contains("q4_1") && !text.contains("nonce"));
    }
}

#[test]
fn the_order_comes_from_seed_and_nonce() {
    let order = |seed, nonce| -> Vec<usize> {
        Sheet::new(["a".into(), "b".into()], &pairs(), seed, nonce).key.rows.iter().map(|r| r.first).collect()
    };
    assert_eq!(order(7, "nonce"), order(7, "nonce"));
    assert_ne!(order(7, "nonce"), order(8, "nonce"));
    assert_ne!(order(7, "nonce"), order(7, "other"));
}

#[test]
fn what_a_spreadsheet_does_to_a_file_changes_nothing() {
    let sheet = sheet();
    let plain = filled(&sheet, |_| "1");
    let expected = tally(&plain, &key(&sheet)).unwrap();
    let semicolons = write(&parse_csv(&plain), ";");
    let mut padded = parse_csv(&plain);
    padded[0].extend(vec![String::new(); 4]);
    padded.push(vec![String::new(); 5]);
    for text in [plain.replace('\n', "\r\n"), format!("\u{feff}{plain}"), semicolons, write(&padded, ",")] {
        assert_eq!(tally(&text, &key(&sheet)).unwrap(), expected, "{text}");
    }
}

#[rstest]
#[case::an_answer_changed(2, 2, "A says nothing", "row 1 was changed")]
#[case::a_prompt_changed(13, 1, "Question?", "row 12 was changed")]
#[case::a_row_renumbered(3, 0, "9", "row 2 is missing or out of order")]
#[case::a_wrong_judgement(2, 4, "3", "use 1, 2 or =")]
#[case::another_commitment(0, 0, "# ModelProfile blind sheet, commitment 00", "do not belong together")]
#[case::no_commitment(0, 0, "row", "not a blind sheet")]
fn tampering_with_the_sheet_is_found(
    #[case] row: usize,
    #[case] column: usize,
    #[case] text: &str,
    #[case] expected: &str,
) {
    let sheet = sheet();
    let mut records = parse_csv(&sheet.csv());
    records[row][column] = text.into();
    let error = tally(&write(&records, ","), &key(&sheet)).unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
}

#[test]
fn answers_that_change_places_are_found() {
    let sheet = sheet();
    let mut records = parse_csv(&sheet.csv());
    records[4].swap(2, 3);
    assert!(tally(&write(&records, ","), &key(&sheet)).unwrap_err().to_string().contains("row 3 was changed"));
    let mut records = parse_csv(&sheet.csv());
    records.pop();
    assert!(tally(&write(&records, ","), &key(&sheet)).unwrap_err().to_string().contains("11 rows"));
}

#[rstest]
#[case::names_exchanged(|key: &mut Key| key.profiles.swap(0, 1))]
#[case::an_order_turned(|key: &mut Key| key.rows[3].first ^= 1)]
#[case::another_row(|key: &mut Key| key.rows[3].sha256 = "00".into())]
#[case::a_row_less(|key: &mut Key| drop(key.rows.pop()))]
#[case::another_nonce(|key: &mut Key| key.nonce.push('x'))]
fn tampering_with_the_key_is_found(#[case] change: fn(&mut Key)) {
    let sheet = sheet();
    let mut changed = sheet.key.clone();
    change(&mut changed);
    let error = tally(&sheet.csv(), &serde_json::to_string(&changed).unwrap()).unwrap_err().to_string();
    assert!(error.contains("do not belong together"), "{error}");
}

#[test]
fn a_damaged_key_is_an_error() {
    let sheet = sheet();
    for key in ["", "{}", "[]"] {
        assert!(tally(&sheet.csv(), key).is_err());
    }
    let mut key = sheet.key.clone();
    key.rows[0].first = 2;
    assert!(tally(&sheet.csv(), &serde_json::to_string(&key).unwrap()).unwrap_err().to_string().contains("damaged"));
}

#[rstest]
#[case(10, 0, 2.0 / 1024.0)]
#[case(8, 2, 112.0 / 1024.0)]
#[case(2, 8, 112.0 / 1024.0)]
#[case(5, 5, 1.0)]
#[case(0, 0, 1.0)]
#[case(1, 0, 1.0)]
#[case(15, 5, 0.041_389_465_332_031_25)]
fn the_sign_test_has_its_known_values(#[case] a: u64, #[case] b: u64, #[case] expected: f64) {
    assert!((sign_test(a, b) - expected).abs() < 1e-9, "{} not {expected}", sign_test(a, b));
}

#[test]
fn a_fence_is_longer_than_any_in_the_text() {
    assert!(fenced("a ```` b").starts_with("`````text\n"));
    assert!(fenced("plain").starts_with("```text\n"));
}

proptest! {
    #[test]
    fn csv_reads_back_what_was_written(cells in prop::collection::vec("[ a-c\",;\n\r=·x]{0,12}", 1..6)) {
        let record: Vec<String> = cells.iter().map(|c| clean(c)).chain(["x".to_owned()]).collect();
        let text = write(std::slice::from_ref(&record), ",");
        prop_assert_eq!(records(&text, ','), vec![record]);
    }

    #[test]
    fn no_text_makes_the_reader_fail(text in "\\PC{0,200}") {
        let _ = parse_csv(&text);
        prop_assert!(tally(&text, &key(&sheet())).is_err());
    }

    #[test]
    fn any_answers_come_back_whole(prompt in "\\PC{0,40}", a in "\\PC{0,40}", b in "\\PC{0,40}", nonce in "[a-f]{8}") {
        let sheet = Sheet::new(["a".into(), "b".into()], &[Pair { prompt, answers: [a, b] }], 1, &nonce);
        let found = tally(&sheet.csv(), &key(&sheet)).unwrap();
        prop_assert_eq!((found.open, found.wins), (1, [0, 0]));
    }
}
