//! Every way a log can be changed, and that each is found.

use super::*;

/// Ten entries; a checkpoint after the fifth and at the end.
fn log(key: &SigningKey) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut head = Head::beginning();
    for n in 0_u64..10 {
        let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(1_800_000_000_123 + n);
        let entry = match n {
            5 | 9 => Entry::checkpoint(&head, key, at),
            n => {
                Note::done(By::name("ada"), "apply", vec![format!("Service shop/orders-{n} created")]).after(&head, at)
            }
        };
        let line = entry.line();
        head = Head::of(entry.seq, &line);
        lines.push(line);
    }
    lines
}

fn key() -> SigningKey {
    SigningKey::create().unwrap().0
}

fn judged(lines: &[String], key: Option<&SigningKey>, known: Option<Head>) -> Result<Proved, Tampered> {
    let mut verifier = Verifier::new(key.map(SigningKey::verifying_key).as_ref(), known);
    lines.iter().try_for_each(|line| verifier.line(line))?;
    verifier.finish()
}

#[test]
fn a_log_as_it_was_written_proves_itself() {
    let key = key();
    let lines = log(&key);
    let proved = judged(&lines, Some(&key), None).unwrap();
    assert_eq!((proved.first, proved.head.seq, proved.signed), (1, 10, 9));
    assert_eq!(judged(&lines, Some(&key), Some(proved.head.clone())), Ok(proved));
    assert!(lines[0].contains("\"time\":\"2027-01-15T08:00:00.123Z\""), "{}", lines[0]);
}

#[test]
fn an_edit_anywhere_is_found() {
    let key = key();
    for edited in 0..9 {
        let mut lines = log(&key);
        lines[edited] = lines[edited].replace("2027-", "2026-");
        let found = judged(&lines, Some(&key), None).unwrap_err();
        assert_eq!(found, Tampered::Edited { seq: edited as u64 + 2 });
    }
}

#[test]
fn an_edit_of_the_last_entry_is_found_by_who_knows_the_head() {
    let key = key();
    let mut lines = log(&key);
    let head = judged(&lines, None, None).unwrap().head;
    lines[9] = lines[9].replace("2027-", "2026-");
    assert_eq!(judged(&lines, None, Some(head)), Err(Tampered::OtherHead { seq: 10 }));
}

#[test]
fn a_removal_and_a_move_are_found() {
    let key = key();
    for removed in 1..9 {
        let mut lines = log(&key);
        lines.remove(removed);
        assert!(matches!(judged(&lines, None, None), Err(Tampered::Gap { .. })), "{removed}");
    }
    let mut lines = log(&key);
    lines.swap(2, 3);
    assert!(matches!(judged(&lines, None, None), Err(Tampered::Gap { line: 3, expected: 3, found: 4 })));
    assert_eq!(judged(&log(&key)[1..], None, None), Err(Tampered::NoBeginning { first: 2 }));
}

#[test]
fn an_end_that_is_missing_is_found_by_who_knows_the_head() {
    let key = key();
    let lines = log(&key);
    let head = judged(&lines, None, None).unwrap().head;
    assert_eq!(judged(&lines[..7], None, Some(head)), Err(Tampered::Truncated { found: 7, expected: 10 }));
    let proved = judged(&lines[..7], None, None).unwrap();
    assert_eq!((proved.head.seq, proved.signed), (7, 5), "without it, what is signed is told");
}

#[test]
fn a_chain_made_anew_is_found_by_its_signatures() {
    let (ours, theirs) = (key(), key());
    let lines = log(&theirs);
    assert!(matches!(judged(&lines, Some(&ours), None), Err(Tampered::OtherKey { seq: 6, .. })));
    let mixed: Vec<String> = lines
        .iter()
        .map(|line| line.replace(&theirs.verifying_key().to_string(), &ours.verifying_key().to_string()))
        .collect();
    let mut head = Head::beginning();
    let rechained: Vec<String> = mixed
        .iter()
        .map(|line| {
            let mut entry: Entry = serde_json::from_str(line).unwrap();
            entry.previous = head.hash.clone();
            let line = entry.line();
            head = Head::of(entry.seq, &line);
            line
        })
        .collect();
    assert_eq!(judged(&rechained, Some(&ours), None), Err(Tampered::BadSignature { seq: 6 }));
}

#[test]
fn what_is_added_to_an_entry_is_found() {
    let mut lines = log(&key());
    lines[3] = lines[3].replacen('{', "{\"note\":\"harmless\",", 1);
    assert!(matches!(judged(&lines, None, None), Err(Tampered::NoEntry { line: 4, .. })));
    lines[3] = "not JSON".to_owned();
    assert!(matches!(judged(&lines, None, None), Err(Tampered::NoEntry { line: 4, .. })));
}

#[test]
fn old_entries_that_were_removed_on_purpose_leave_a_chain_that_proves_itself() {
    let key = key();
    let mut lines = log(&key);
    let removed = Head::of(4, &lines[3]);
    let head = Head::of(10, &lines[9]);
    lines.push(Entry::retention(&head, removed, SystemTime::UNIX_EPOCH).line());
    let proved = judged(&lines[4..], Some(&key), None).unwrap();
    assert_eq!((proved.first, proved.head.seq), (5, 11));
    assert_eq!(judged(&lines[5..], Some(&key), None), Err(Tampered::NoBeginning { first: 6 }), "one more was removed");
}
