//! A stand-in for NVIDIA's driver library: the functions of its interface that `backend-cuda` calls, over the
//! emulator. With it the real program runs on a machine without a GPU, its driver calls included.
//!
//! It is as late as a driver may be. A copy from pinned memory reads it when the stream's next operation begins;
//! a copy to pinned memory leaves garbage there until somebody waits for the stream. Dynamic shared memory
//! above 48 KB has to be asked for, and a capture takes launches only.
//!
//! It is compute capability 8.0, or 9.0 where `OCTET_EMULATED_CAPABILITY` says so; that one runs every kernel under
//! the emulator's checks and takes launches that may begin before the one before has ended.
//!
//! cuBLASLt's 8-bit product is there too, by the slow loop, for the shapes, layouts and addresses that NVIDIA's
//! documentation allows it.
//!
//! A device that fails: once the file that `OCTET_EMULATED_FAULT` names exists, every call returns
//! `CUDA_ERROR_ILLEGAL_ADDRESS`, as a real driver's do after a kernel's wild access.
#![allow(unsafe_code)]

mod calls;
mod cublaslt;
mod state;

use std::path::PathBuf;

use libloading::Library;

/// The library, beside the test programs of the same build.
///
/// # Errors
/// When the running program's place is unknown, or the library is not there.
pub fn library() -> std::io::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let path = program.with_file_name("libcuda_driver.so");
    match path.exists() {
        true => Ok(path),
        false => Err(std::io::Error::other(format!("no {}", path.display()))),
    }
}

/// Makes this process find the stand-in when it looks for the driver.
///
/// # Errors
/// When the library is missing or cannot be opened.
pub fn install() -> std::io::Result<()> {
    let path = library()?;
    // SAFETY: our own library, whose initialisers only allocate; it is never closed, so that the name under
    // which it was built stands for it from now on.
    let library = unsafe { Library::new(path) }.map_err(std::io::Error::other)?;
    std::mem::forget(library);
    Ok(())
}
