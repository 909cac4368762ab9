//! The compiled kernels inside the program, and which of them a device runs.
//!
//! `build.rs` embeds what `cargo xtask kernels` left; a build without that has none.

/// A device's compute capability, major and minor.
pub type Capability = (u32, u32);

/// One compiled file: `NAME.sm_MINOR.cubin`, or `NAME.ptx` for drivers to compile.
#[derive(Debug, Clone, Copy)]
pub struct Image {
    /// Its file name.
    pub file: &'static str,
    /// Its contents.
    pub bytes: &'static [u8],
}

include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// What one part alone runs: no other has its instructions.
const WARPGROUPS: (Capability, &str) = ((9, 0), ".sm_90a.cubin");
/// Driver versions as the driver gives them. Compiled kernels need the compiler's major version; its
/// PTX needs a driver at least as new as the compiler.
const CUBIN_DRIVER: u32 = 12_000;
const PTX_DRIVER: u32 = 12_080;
/// From where on kernels wait for those launched before them, and drivers capture launches of such kernels.
const DEPENDENT_CAPABILITY: Capability = (9, 0);
const DEPENDENT_DRIVER: u32 = 12_030;
/// What the PTX is made for.
const PTX_CAPABILITY: Capability = (8, 0);

/// Which images a device loads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Images {
    /// Those compiled for this capability: the same major version and no later minor.
    Binary(Capability),
    /// Text that the driver compiles at start.
    Ptx,
}

impl std::fmt::Display for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Binary((major, minor)) => write!(f, "sm_{major}{minor}"),
            Self::Ptx => f.write_str("PTX"),
        }
    }
}

impl Image {
    /// The capability of a binary.
    fn capability(&self) -> Option<Capability> {
        let digits = self.file.strip_suffix(".cubin")?.rsplit_once(".sm_")?.1;
        let number: u32 = digits.parse().ok()?;
        Some((number / 10, number % 10))
    }
}

/// Fingerprint of the kernel sources that the build saw.
pub fn sources() -> &'static str {
    SOURCES
}

/// Capabilities with binaries, in order.
pub fn built_in() -> Vec<Capability> {
    let mut known: Vec<Capability> = IMAGES.iter().filter_map(Image::capability).collect();
    known.sort_unstable();
    known.dedup();
    known
}

/// The images for a device, or why there are none.
///
/// # Errors
/// A sentence for people.
pub fn choose(
    built_in: &[Capability],
    has_ptx: bool,
    capability: Capability,
    driver: u32,
) -> Result<Images, String> {
    let (major, minor) = capability;
    if built_in.is_empty() && !has_ptx {
        return Err(
            "this build holds no CUDA kernels; `cargo xtask kernels` and another build put them in"
                .to_owned(),
        );
    }
    let binary = built_in
        .iter()
        .filter(|known| known.0 == major && known.1 <= minor)
        .max();
    if let Some(binary) = binary {
        if driver >= CUBIN_DRIVER {
            return Ok(Images::Binary(*binary));
        }
        return Err(format!(
            "the driver speaks CUDA {}, the kernels need 12.0 (driver 525 or newer)",
            version(driver)
        ));
    }
    if has_ptx && capability > PTX_CAPABILITY {
        if driver >= PTX_DRIVER {
            return Ok(Images::Ptx);
        }
        return Err(format!(
            "compute capability {major}.{minor} needs a driver that speaks CUDA 12.8 (570 or newer); this one speaks {}",
            version(driver)
        ));
    }
    let known: Vec<String> = built_in.iter().map(|(a, b)| format!("{a}.{b}")).collect();
    Err(format!(
        "compute capability {major}.{minor} is not served; kernels are built for {}",
        known.join(", ")
    ))
}

/// As [`choose`], of what is in the program.
///
/// # Errors
/// As [`choose`].
pub fn choose_built_in(capability: Capability, driver: u32) -> Result<Images, String> {
    choose(&built_in(), has_ptx(), capability, driver)
}

fn has_ptx() -> bool {
    IMAGES.iter().any(|image| image.file.ends_with(".ptx"))
}

/// The images of a choice.
pub(crate) fn of(choice: &Images) -> impl Iterator<Item = &'static Image> {
    IMAGES.iter().filter(move |image| match choice {
        Images::Binary(capability) => image.capability() == Some(*capability),
        Images::Ptx => image.file.ends_with(".ptx"),
    })
}

/// Whether the kernels that a device loads wait for those launched before them, and its driver captures such
/// launches (CUDA 12.3). PTX is made for devices on which nothing has to wait.
pub(crate) fn may_depend(capability: Capability, driver: u32) -> bool {
    let waits =
        |images| matches!(images, Ok(Images::Binary(known)) if known >= DEPENDENT_CAPABILITY);
    driver >= DEPENDENT_DRIVER && waits(choose_built_in(capability, driver))
}

/// Whether a device has the kernels for products of warpgroups.
pub(crate) fn have_warpgroups(capability: Capability, driver: u32) -> bool {
    capability == WARPGROUPS.0 && driver >= CUBIN_DRIVER && of_warpgroups().next().is_some()
}

/// Those kernels, which are loaded beside the chosen images.
pub(crate) fn of_warpgroups() -> impl Iterator<Item = &'static Image> {
    let is_one = |image: &&Image| image.file.ends_with(WARPGROUPS.1);
    IMAGES.iter().filter(is_one)
}

fn version(driver: u32) -> String {
    format!("{}.{}", driver / 1000, driver % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Capability; 5] = [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0)];

    #[test]
    fn a_device_gets_the_newest_binary_that_runs_on_it() {
        for (capability, expected) in [
            ((7, 5), Images::Binary((7, 5))),
            ((8, 0), Images::Binary((8, 0))),
            ((8, 7), Images::Binary((8, 6))),
            ((8, 9), Images::Binary((8, 9))),
            ((9, 0), Images::Binary((9, 0))),
            ((10, 0), Images::Ptx),
            ((12, 0), Images::Ptx),
        ] {
            assert_eq!(choose(&ALL, true, capability, 12_080), Ok(expected));
        }
        // A binary never crosses a major version, whatever else is there.
        assert_eq!(choose(&[(8, 0)], true, (9, 0), 12_080), Ok(Images::Ptx));
    }

    #[test]
    fn what_cannot_run_is_refused_by_name() {
        for (built_in, has_ptx, capability, driver, expected) in [
            (&[][..], false, (8, 6), 12_080, "holds no CUDA kernels"),
            (&ALL, true, (7, 0), 12_080, "7.0 is not served"),
            (&ALL, true, (6, 1), 12_080, "7.5, 8.0, 8.6, 8.9, 9.0"),
            (&ALL, true, (8, 6), 11_080, "the driver speaks CUDA 11.8"),
            (&ALL, true, (12, 0), 12_040, "this one speaks 12.4"),
            (&ALL, false, (12, 0), 12_080, "12.0 is not served"),
        ] {
            let error = choose(built_in, has_ptx, capability, driver).expect_err("cannot run");
            assert!(error.contains(expected), "{error}");
        }
    }

    /// Newer devices load the PTX, whose kernels wait for nothing.
    #[test]
    fn only_kernels_that_wait_are_launched_early() {
        let has_any = !IMAGES.is_empty();
        assert_eq!(may_depend((9, 0), 12_080), has_any);
        for (capability, driver) in [((8, 9), 12_080), ((9, 0), 12_020), ((10, 0), 12_080)] {
            assert!(!may_depend(capability, driver), "{capability:?} {driver}");
        }
    }

    #[test]
    fn file_names_say_the_capability() {
        let image = |file| Image { file, bytes: &[] };
        assert_eq!(image("norm.sm_86.cubin").capability(), Some((8, 6)));
        assert_eq!(image("norm.sm_100.cubin").capability(), Some((10, 0)));
        assert_eq!(image("norm.ptx").capability(), None);
        // Loaded by exactly one part, whatever the others choose.
        assert_eq!(image("norm.sm_90a.cubin").capability(), None);
        for (capability, driver) in [((8, 9), 12_080), ((9, 0), 11_080), ((10, 0), 12_080)] {
            assert!(!have_warpgroups(capability, driver));
        }
        let has_any = !IMAGES.is_empty();
        assert_eq!(have_warpgroups((9, 0), 12_080), has_any);
        for image in IMAGES {
            let is_known = image.capability().is_some() || image.file.ends_with(".ptx");
            assert!(is_known || image.file.ends_with(WARPGROUPS.1));
        }
        assert_eq!(sources().len(), 64);
    }
}
