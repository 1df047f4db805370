//! Files under faults: cuts, busy servers, wrong bytes, changes under way.

use std::fs;

use super::*;

#[test]
fn a_cut_connection_goes_on_where_it_was_cut() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    checkpoint(&hub, 60_000);
    hub.fault(WEIGHTS, Fault::Cut(40_000));
    hub.fault(WEIGHTS, Fault::Stall(10_000));
    let located = get(&settings(&hub, cache.path())).unwrap();
    assert_eq!(fs::read(located.path.join(WEIGHTS)).unwrap(), bytes(60_000));
    let ranges: Vec<_> =
        hub.hits(WEIGHTS).into_iter().filter(|hit| hit.cdn).map(|hit| hit.range.unwrap_or_default()).collect();
    assert_eq!(ranges, ["", "bytes=40000-59999", "bytes=50000-59999"]);
}

#[test]
fn a_later_start_asks_only_for_the_rest() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    checkpoint(&hub, 4 * CHUNK as usize);
    for _ in 0..100 {
        hub.fault(WEIGHTS, Fault::Status(503, None));
    }
    let settings = settings(&hub, cache.path());
    let error = get(&settings).unwrap_err();
    assert!(matches!(error, SourceError::Unreachable { attempts: 3, .. }), "{error}");
    assert!(error.to_string().contains("503") && error.to_string().contains("goes on from there"), "{error}");

    // A second hub with the same content, whose first answer breaks off for good.
    let hub = Hub::start();
    checkpoint(&hub, 60_000);
    let cache = tempfile::tempdir().unwrap();
    hub.fault(WEIGHTS, Fault::Cut(40_000));
    for _ in 0..2 {
        hub.fault(WEIGHTS, Fault::Status(500, None));
    }
    let settings = Settings { endpoint: Endpoint { url: hub.url.clone(), ..settings.endpoint }, ..settings };
    let settings = Settings { cache: cache.path().to_owned(), ..settings };
    get(&settings).unwrap_err();
    hub.forget_hits();
    let located = get(&settings).unwrap();
    assert_eq!(fs::read(located.path.join(WEIGHTS)).unwrap(), bytes(60_000));
    let ranges: Vec<_> = hub.hits(WEIGHTS).into_iter().filter(|hit| hit.cdn).map(|hit| hit.range.unwrap()).collect();
    assert_eq!(ranges, ["bytes=40000-59999"]);
    // What was complete is not asked for again.
    assert!(hub.hits("tokenizer.json").is_empty());
}

#[test]
fn busy_servers_are_asked_again_when_they_say_so() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    checkpoint(&hub, 1000);
    hub.fault("config.json", Fault::Status(429, Some(1)));
    hub.fault(WEIGHTS, Fault::Status(500, None));
    hub.fault(WEIGHTS, Fault::Slow(Duration::from_millis(50)));
    let start = std::time::Instant::now();
    get(&settings(&hub, cache.path())).unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
    // One that asks for too much patience is given up at once, with its wish named.
    let cache = tempfile::tempdir().unwrap();
    hub.fault("config.json", Fault::Status(429, Some(3600)));
    let error = get(&settings(&hub, cache.path())).unwrap_err().to_string();
    assert!(error.contains("429") && error.contains("asks to wait 3600 s"), "{error}");
}

#[test]
fn a_wrong_checksum_is_an_error_and_the_file_is_not_used() {
    for (path, wrong) in [(WEIGHTS, "0".repeat(64)), ("config.json", "1".repeat(40))] {
        let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
        checkpoint(&hub, 1000);
        hub.announce(path, &wrong);
        let error = get(&settings(&hub, cache.path())).unwrap_err();
        assert!(matches!(error, SourceError::Corrupt { .. }), "{error}");
        assert!(error.to_string().contains(path) && error.to_string().contains(&wrong), "{error}");
        let root = cache.path().join("hub/models--acme--tiny");
        assert!(!root.join("snapshots").join(COMMIT).join(path).exists());
        assert!(!root.join("complete").exists());
        let wrong_blobs = fs::read_dir(root.join("blobs"))
            .unwrap()
            .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with(&wrong));
        assert_eq!(wrong_blobs.count(), 0);
    }
}

#[test]
fn old_bytes_that_are_wrong_cost_one_more_transfer_and_no_error() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    checkpoint(&hub, 60_000);
    hub.fault(WEIGHTS, Fault::Cut(40_000));
    for _ in 0..2 {
        hub.fault(WEIGHTS, Fault::Status(500, None));
    }
    let settings = settings(&hub, cache.path());
    get(&settings).unwrap_err();
    let blobs = cache.path().join("hub/models--acme--tiny/blobs");
    let partial =
        fs::read_dir(&blobs).unwrap().map(|e| e.unwrap().path()).find(|p| p.to_string_lossy().ends_with(".incomplete"));
    let partial = partial.unwrap();
    let mut damaged = fs::read(&partial).unwrap();
    damaged[123] ^= 1;
    fs::write(&partial, damaged).unwrap();
    let located = get(&settings).unwrap();
    assert_eq!(fs::read(located.path.join(WEIGHTS)).unwrap(), bytes(60_000));
}

#[test]
fn a_file_that_changes_between_two_tries_starts_over() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    let (old, new) = (gguf("mit", 50_000), gguf("mit", 51_000));
    hub.web("a.gguf", &old, "v1");
    // The head and the probe go through; the transfer breaks off.
    hub.fault("a.gguf", Fault::NoRange);
    hub.fault("a.gguf", Fault::Slow(Duration::ZERO));
    hub.fault("a.gguf", Fault::Cut(20_000));
    for _ in 0..2 {
        hub.fault("a.gguf", Fault::Status(503, None));
    }
    let settings = settings(&hub, cache.path());
    get_as(&settings, &web(&hub, "a.gguf"), None, None).unwrap_err();
    hub.web("a.gguf", &new, "v2");
    let located = get_as(&settings, &web(&hub, "a.gguf"), None, None).unwrap();
    assert_eq!(fs::read(&located.path).unwrap(), new);

    // And within one start: the second request meets the new file.
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    hub.web("a.gguf", &old, "v1");
    for fault in [
        Fault::Slow(Duration::ZERO),
        Fault::Slow(Duration::ZERO),
        Fault::Cut(20_000),
        Fault::Slow(Duration::from_millis(300)),
    ] {
        hub.fault("a.gguf", fault);
    }
    let settings = Settings { cache: cache.path().to_owned(), ..settings };
    let target = web(&hub, "a.gguf");
    let located = std::thread::scope(|scope| {
        let fetching = scope.spawn(|| get_as(&settings, &target, None, None).unwrap());
        while hub.hits("a.gguf").len() < 3 || hub.hits("a.gguf")[2].sent == 0 {
            std::thread::yield_now();
        }
        hub.web("a.gguf", &new, "v2");
        fetching.join().unwrap()
    });
    assert_eq!(fs::read(&located.path).unwrap(), new);
}

#[test]
fn a_server_without_ranges_sends_the_whole_file() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    checkpoint(&hub, 300_000);
    for _ in 0..20 {
        hub.fault(WEIGHTS, Fault::NoRange);
    }
    let located = get(&settings(&hub, cache.path())).unwrap();
    assert_eq!(fs::read(located.path.join(WEIGHTS)).unwrap(), bytes(300_000));
}
