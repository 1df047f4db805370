//! Kernels compiled at start, kept, and shipped.

use std::{fs, path::Path};

use modelprofile_kernels::cuda::{Cuda, CudaOptions, Images, Origin, Unit};

use crate::sim::{alone, options};

const UNIT: Unit = Unit { name: "doubled", files: &["#define FACTOR 2\n", DOUBLE] };
const DOUBLE: &str = "extern \"C\" __global__ void doubled(float* x) { x[threadIdx.x] *= FACTOR; }\n";

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_unit_is_compiled_once_and_a_damaged_image_anew() {
    let folder = tempfile::tempdir().unwrap();
    let images = Images { cache: Some(folder.path().join("cache")), shipped: None };
    let get = |images: &Images| images.get(&UNIT, (9, 0), 13_000).unwrap();
    let (image, origin) = get(&images);
    assert_eq!(origin, Origin::Compiled);
    assert!(image.starts_with(b"\x7fELF"));
    assert_eq!(get(&images), (image.clone(), Origin::Cached));

    let [file] = &files(&folder.path().join("cache"))[..] else { panic!("one file and no temporary one") };
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    fs::write(file, &bytes).unwrap();
    assert_eq!(get(&images), (image.clone(), Origin::Compiled), "a flipped bit");
    assert_eq!(get(&images), (image.clone(), Origin::Cached), "it was replaced");
    fs::write(file, &bytes[..40]).unwrap();
    assert_eq!(get(&images).1, Origin::Compiled, "half a file");
}

#[test]
fn another_source_architecture_or_driver_has_an_image_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let images = Images { cache: Some(folder.path().into()), shipped: None };
    let other = Unit { files: &["#define FACTOR 3\n", DOUBLE], ..UNIT };
    for (unit, capability, driver) in
        [(UNIT, (9, 0), 13_000), (other, (9, 0), 13_000), (UNIT, (10, 0), 13_000), (UNIT, (9, 0), 13_010)]
    {
        assert_eq!(
            images.get(&unit, capability, driver).unwrap().1,
            Origin::Compiled,
            "{unit:?} {capability:?} {driver}"
        );
    }
    assert_eq!(files(folder.path()).len(), 4);
}

#[test]
fn a_source_that_does_not_compile_shows_the_compilers_words() {
    let broken = Unit { name: "broken", files: &["extern \"C\" __global__ void broken() { undeclared = 1; }"] };
    let error = Images::default().get(&broken, (9, 0), 13_000).unwrap_err().to_string();
    assert!(error.contains("broken") && error.contains("undeclared"), "{error}");
}

#[test]
fn a_cache_that_cannot_be_written_costs_time_only() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let images = Images { cache: Some(file.path().join("not a folder")), shipped: None };
    assert_eq!(images.get(&UNIT, (9, 0), 13_000).unwrap().1, Origin::Compiled);
}

#[test]
fn a_device_starts_with_shipped_kernels_and_finds_damaged_ones_elsewhere() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    // What is shipped was compiled by someone else, here by an earlier start: the file of a unit under its other name.
    let start = |shipped: Option<&Path>| {
        Cuda::new(CudaOptions { shipped: shipped.map(Into::into), ..options() }).unwrap().kernel_origins()
    };
    start(None);
    assert!(start(None).iter().all(|(_, origin)| *origin == Origin::Cached));
    let shipped = Images::ship(folder.path(), &UNIT, (9, 0)).unwrap();
    let images = Images { shipped: Some(folder.path().into()), cache: None };
    assert_eq!(images.get(&UNIT, (9, 0), 1).unwrap().1, Origin::Shipped, "whatever the driver is");
    fs::write(&shipped, b"broken").unwrap();
    assert_eq!(images.get(&UNIT, (9, 0), 1).unwrap().1, Origin::Compiled);
    assert!(start(Some(folder.path())).iter().all(|(_, origin)| *origin == Origin::Cached), "not among the shipped");
}
