//! Writes what the GPU's kernels are compiled from and into, for tools that look at it (`make cuda-check`):
//!
//! ```text
//! FOLDER/UNIT.cu        the source of a translation unit
//! FOLDER/UNIT-*.cubin   the image that a worker with this NVRTC makes of it, behind the worker's own header of 48 bytes
//! FOLDER/images         the names of these images, a line for each unit
//! FOLDER/options        what NVRTC is told, a line each
//! FOLDER/entries.tsv    unit, entry point, threads of a block, most dynamic shared memory in bytes
//! ```

use std::{error::Error, fmt::Write as _, fs, path::PathBuf};

use modelprofile_kernels::cuda::{entry_points, nvrtc_options, ship, units};

/// Hopper.
const CAPABILITY: (i32, i32) = (9, 0);

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args().nth(1).ok_or("usage: cuda-kernels FOLDER")?);
    fs::create_dir_all(&folder)?;
    for unit in units() {
        fs::write(folder.join(unit.name).with_extension("cu"), unit.source())?;
    }
    fs::write(folder.join("options"), nvrtc_options(CAPABILITY).join("\n"))?;
    let mut table = String::new();
    for entry in entry_points() {
        writeln!(table, "{}\t{}\t{}\t{}", entry.unit, entry.name, entry.threads, entry.shared)?;
    }
    fs::write(folder.join("entries.tsv"), table)?;
    let images = ship(&folder, CAPABILITY)?;
    let names: Vec<_> = images.iter().filter_map(|image| image.file_name()?.to_str()).collect();
    fs::write(folder.join("images"), names.join("\n"))?;
    Ok(())
}
