//! Runs a parser on mutated files until its time is up.
//!
//! ```text
//! test --ulimit -v, own process--> the same test: samples -> mutate -> folder -> read -> next
//!                                  |  a panic, or more memory than a case may take: the folder is kept, the run goes on
//!                                  +- an abort, or more time than a case may take:  the run ends, the folder is there
//! ```
//!
//! | variable | meaning |
//! |---|---|
//! | `MODELPROFILE_FUZZ_SECONDS` | time of each harness; 3 |
//! | `MODELPROFILE_FUZZ_SEED` | another seed gives other cases; 1 |
//! | `MODELPROFILE_FUZZ_CASE` | the one case to run again |

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    io::{BufRead, BufReader},
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{dice::Dice, mutate::mutate};

/// Names the folder of the cases to the process that runs them.
const FOLDER: &str = "MODELPROFILE_FUZZ_FOLDER";
/// Address space of a run. It ends a run that asks for more with an abort.
const ADDRESS_KIB: u64 = 6 << 20;
/// Memory by which one case may raise the most that the run ever had.
const CASE_KIB: u64 = 512 << 10;
/// Processor time of a case.
const CASE_SECONDS: f64 = 2.0;
/// Time of a case where processor time cannot be read, or does not pass.
const CASE_WALL: Duration = Duration::from_secs(60);
/// Different panics after which a run has found enough.
const ENOUGH: usize = 12;

/// Files by name, relative to the case's folder.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// Real files that the reader takes.
pub(crate) struct Sample {
    /// Name in messages.
    pub(crate) name: String,
    /// All files.
    pub(crate) files: Files,
    /// Those that are changed.
    pub(crate) mutable: Vec<String>,
    /// Pieces of such files: JSON values, or texts.
    pub(crate) words: &'static [&'static str],
    /// Makes checksums right again, so that what lies behind them is reached: all files and the changed ones.
    pub(crate) seal: Option<fn(&Files, &mut Files)>,
    /// The reader changes the folder.
    pub(crate) consumed: bool,
}

impl Sample {
    /// A sample all of whose files are changed.
    pub(crate) fn new(name: impl Into<String>, files: Files) -> Self {
        let mutable = files.keys().cloned().collect();
        Self { name: name.into(), files, mutable, words: &[], seal: None, consumed: false }
    }
}

/// Runs `read` on mutations of the samples. It gets the folder of a case; what it refuses is as good as what it reads.
///
/// `name` is the test's.
pub(crate) fn fuzz(
    name: &str,
    samples: impl FnOnce() -> Vec<Sample>,
    mut read: impl FnMut(&Path, &mut Dice) -> Result<(), String>,
) {
    match std::env::var_os(FOLDER) {
        Some(folder) => Run::new(name, PathBuf::from(folder), samples()).all(&mut read),
        None => supervise(name),
    }
}

/// Starts the test again under a limit of memory.
fn supervise(name: &str) {
    let folder = tempfile::Builder::new().prefix("modelprofile-fuzz-").tempdir().unwrap();
    let mut child = Command::new("sh")
        // Not every system can limit the address space.
        .args(["-c", "ulimit -v \"$0\" 2>/dev/null; exec \"$@\"", &ADDRESS_KIB.to_string()])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(FOLDER, folder.path())
        .env("TMPDIR", folder.path())
        // glibc reserves 64 MiB of address space for each thread that allocates, and uses none of them.
        .env("MALLOC_ARENA_MAX", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = Vec::new();
    for line in BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok) {
        eprintln!("{line}");
        lines.push(line);
    }
    let status = child.wait().unwrap();
    if !status.success() {
        let kept = folder.keep();
        panic!("{name}: {status}; the files are in {}\n{}", kept.display(), lines.join("\n"));
    }
}

/// What the last panic said.
static PANIC: Mutex<String> = Mutex::new(String::new());
/// The case that runs, for the watch on time.
static CASE: AtomicU64 = AtomicU64::new(0);

struct Run<'a> {
    name: &'a str,
    folder: PathBuf,
    samples: Vec<Sample>,
    /// Changed files that lie in each sample's folder; `None` before it is written.
    dirty: Vec<Option<Vec<String>>>,
    seed: u64,
    started: Instant,
    counts: Counts,
    found: BTreeSet<String>,
}

#[derive(Default)]
struct Counts {
    cases: u64,
    read: u64,
    slowest: (Duration, u64),
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cases, read, slowest: (time, case) } = self;
        write!(f, "{cases} cases, {read} read, {} refused; slowest case {case}: {time:.2?}", cases - read)
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{variable} is {value:?}")))
}

impl<'a> Run<'a> {
    fn new(name: &'a str, folder: PathBuf, samples: Vec<Sample>) -> Self {
        let (dirty, seed) = (vec![None; samples.len()], number("MODELPROFILE_FUZZ_SEED").unwrap_or(1));
        let (started, counts, found) = (Instant::now(), Counts::default(), BTreeSet::new());
        Self { name, folder, samples, dirty, seed, started, counts, found }
    }

    fn all(mut self, read: &mut dyn FnMut(&Path, &mut Dice) -> Result<(), String>) {
        assert!(!self.samples.is_empty(), "{}: no samples", self.name);
        for index in 0..self.samples.len() {
            // A reader that refuses the sample itself would refuse all that is made of it.
            self.write(index, Files::new());
            let result = read(&self.sample_folder(index), &mut Dice::new(self.seed, 0));
            assert_eq!(result, Ok(()), "{}: the sample {} is not read", self.name, self.samples[index].name);
        }
        panic::set_hook(Box::new(|info| {
            if let Ok(mut last) = PANIC.lock() {
                *last = info.to_string();
            }
        }));
        std::thread::spawn(watch);

        self.started = Instant::now();
        let limit = Duration::from_secs(number("MODELPROFILE_FUZZ_SECONDS").unwrap_or(3));
        let only = number("MODELPROFILE_FUZZ_CASE");
        let mut told = self.started;
        for case in only.unwrap_or(1).. {
            self.case(case, read);
            let done = only.is_some() || self.started.elapsed() >= limit || self.found.len() >= ENOUGH;
            if done || told.elapsed() > Duration::from_secs(30) {
                told = Instant::now();
                let seconds = self.started.elapsed().as_secs();
                eprintln!(
                    "fuzz {}: seed {}, {seconds} s, {}, {} found",
                    self.name,
                    self.seed,
                    self.counts,
                    self.found.len()
                );
            }
            if done {
                break;
            }
        }
        let _ = panic::take_hook();
        assert!(self.found.is_empty(), "{} found:\n{}", self.name, Vec::from_iter(self.found).join("\n"));
    }

    fn sample_folder(&self, index: usize) -> PathBuf {
        self.folder.join(format!("sample-{index}"))
    }

    fn case(&mut self, case: u64, read: &mut dyn FnMut(&Path, &mut Dice) -> Result<(), String>) {
        let mut dice = Dice::new(self.seed, case);
        let index = dice.below(self.samples.len());
        let changed = self.changed(index, &mut dice);
        self.write(index, changed);
        let folder = self.sample_folder(index);
        fs::write(self.folder.join("case"), format!("seed {} case {case} in {}", self.seed, folder.display())).unwrap();

        CASE.store(case, Ordering::Relaxed);
        let (begun, memory) = (Instant::now(), peak_kib());
        let result = panic::catch_unwind(AssertUnwindSafe(|| read(&folder, &mut dice)));
        let time = begun.elapsed();
        CASE.store(0, Ordering::Relaxed);

        self.counts.cases += 1;
        self.counts.read += u64::from(matches!(result, Ok(Ok(()))));
        self.counts.slowest = self.counts.slowest.max((time, case));
        let grown = peak_kib().saturating_sub(memory);
        if result.is_err() {
            let message = PANIC.lock().map(|last| last.clone()).unwrap_or_default();
            self.keep(case, index, &message);
        } else if grown > CASE_KIB {
            self.keep(case, index, &format!("{} MiB of memory", grown >> 10));
        }
    }

    /// Mutations of one file of a sample, now and then of two.
    fn changed(&self, index: usize, dice: &mut Dice) -> Files {
        let sample = &self.samples[index];
        let mut changed = Files::new();
        for _ in 0..if dice.chance(1, 6) { 2 } else { 1 } {
            let Some(name) = dice.pick(&sample.mutable) else { continue };
            let extension = Path::new(name).extension();
            let same_kind = |other: &&String| Path::new(other).extension() == extension;
            let other = dice.pick(&self.samples).unwrap_or(sample);
            let names: Vec<&String> = other.files.keys().filter(same_kind).collect();
            let other =
                dice.pick(&names).and_then(|name| other.files.get(*name)).map(Vec::as_slice).unwrap_or_default();
            let bytes = mutate(name, &sample.files[name], other, sample.words, dice);
            changed.insert(name.clone(), bytes);
        }
        if let Some(seal) = sample.seal.filter(|_| dice.chance(3, 4)) {
            seal(&sample.files, &mut changed);
        }
        changed
    }

    /// Puts a sample with these changes into its folder.
    fn write(&mut self, index: usize, changed: Files) {
        let (folder, sample) = (self.sample_folder(index), &self.samples[index]);
        let mut put: BTreeMap<&String, &Vec<u8>> = BTreeMap::new();
        let dirty = self.dirty[index].as_ref().filter(|_| !sample.consumed);
        if let Some(dirty) = dirty {
            put.extend(dirty.iter().filter_map(|name| sample.files.get_key_value(name)));
        } else {
            let _ = fs::remove_dir_all(&folder);
            put.extend(&sample.files);
        }
        put.extend(&changed);
        for (name, bytes) in put {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        self.dirty[index] = Some(changed.into_keys().collect());
    }

    /// Keeps the folder of a case that went wrong, once for each place in the code.
    fn keep(&mut self, case: u64, index: usize, message: &str) {
        let place = message.lines().next().unwrap_or_default().to_owned();
        if self.found.iter().any(|found| found.contains(&place)) {
            return;
        }
        let to = self.folder.join(format!("found-{case}"));
        copy(&self.sample_folder(index), &to);
        let sample = &self.samples[index].name;
        let line = format!("seed {} case {case}, {sample}, in {}: {message}", self.seed, to.display());
        eprintln!("fuzz {}: {line}", self.name);
        self.found.insert(line);
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() { copy(&entry.path(), &target) } else { drop(fs::copy(entry.path(), target)) }
    }
}

/// The most address space that this process ever had; 0 where that is not told.
fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Processor time of this process in seconds, in steps of a clock tick.
fn processor_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name in parentheses may hold spaces; user and system time are the 12th and 13th field after it.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(ticks as f64 / 100.0)
}

/// Ends the process when a case takes too long.
fn watch() {
    let mut since = (0, Instant::now(), processor_seconds());
    loop {
        std::thread::sleep(Duration::from_millis(100));
        let case = CASE.load(Ordering::Relaxed);
        if case == 0 || case != since.0 {
            since = (case, Instant::now(), processor_seconds());
            continue;
        }
        let spent = processor_seconds().zip(since.2).map_or(0.0, |(now, then)| now - then);
        if spent > CASE_SECONDS || since.1.elapsed() > CASE_WALL {
            eprintln!("case {case} does not end: {spent:.1} s of processor time, {:.1?} in all", since.1.elapsed());
            std::process::exit(3);
        }
    }
}
