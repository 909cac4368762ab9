//! The CUDA run-time compiler as a library that is opened, not linked.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr::null_mut;

use anyhow::{Context, Result, bail};
use libloading::{Library, Symbol};

/// The opened library.
pub struct Nvrtc {
    library: Library,
    /// Found by name when the compiler asks for it, because it is already open.
    _builtins: Library,
}

/// What a compilation left.
pub struct Compiled {
    /// A binary for a real architecture, PTX for a virtual one.
    pub code: Vec<u8>,
    /// Messages, the assembler's report among them.
    pub log: String,
}

type Program = *mut c_void;
type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Text = unsafe extern "C" fn(Program, *mut u8) -> c_int;
type Create = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;
type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;

impl Nvrtc {
    /// Opens the library and its companion in a folder.
    ///
    /// # Errors
    /// When either is missing.
    pub fn open(folder: &Path) -> Result<Self> {
        let open = |name: &str| {
            // SAFETY: a file whose hash was checked; its initialisers only prepare the compiler.
            unsafe { Library::new(folder.join(name)) }
                .with_context(|| format!("cannot open {name}"))
        };
        let builtins = open("libnvrtc-builtins.so.12.8")?;
        Ok(Self {
            library: open("libnvrtc.so.12")?,
            _builtins: builtins,
        })
    }

    /// Compiles one file with its headers.
    ///
    /// # Errors
    /// The compiler's messages.
    pub fn compile(
        &self,
        name: &str,
        source: &str,
        headers: &[(String, String)],
        options: &[String],
    ) -> Result<Compiled> {
        let strings = |values: &mut dyn Iterator<Item = &str>| -> Result<Vec<CString>> {
            values.map(|value| Ok(CString::new(value)?)).collect()
        };
        let names = strings(&mut headers.iter().map(|(name, _)| name.as_str()))?;
        let texts = strings(&mut headers.iter().map(|(_, text)| text.as_str()))?;
        let options = strings(&mut options.iter().map(String::as_str))?;
        let (name, source) = (CString::new(name)?, CString::new(source)?);
        let pointers = |strings: &[CString]| -> Vec<*const c_char> {
            strings.iter().map(|s| s.as_ptr()).collect()
        };
        let (names, texts, flags) = (pointers(&names), pointers(&texts), pointers(&options));
        let is_binary = options
            .iter()
            .any(|option| option.to_bytes().starts_with(b"--gpu-architecture=sm_"));
        let code = if is_binary {
            ("nvrtcGetCUBINSize", "nvrtcGetCUBIN")
        } else {
            ("nvrtcGetPTXSize", "nvrtcGetPTX")
        };
        let mut program: Program = null_mut();
        // SAFETY: signatures as nvrtc.h of version 12 has them; every pointer outlives its call, and the
        // program is destroyed once, at the end.
        unsafe {
            let create: Symbol<Create> = self.library.get(b"nvrtcCreateProgram")?;
            let count = names.len() as c_int;
            let made = create(
                &raw mut program,
                source.as_ptr(),
                name.as_ptr(),
                count,
                texts.as_ptr(),
                names.as_ptr(),
            );
            if made != 0 {
                bail!("the compiler refused the program: error {made}");
            }
            let compile: Symbol<Compile> = self.library.get(b"nvrtcCompileProgram")?;
            let status = compile(program, flags.len() as c_int, flags.as_ptr());
            let log = self.text(program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog")?;
            let log = String::from_utf8_lossy(&log)
                .trim_end_matches('\0')
                .to_owned();
            let result = if status == 0 {
                self.text(program, code.0, code.1)
                    .map(|code| Compiled { code, log })
            } else {
                Err(anyhow::anyhow!("error {status}\n{log}"))
            };
            let destroy: Symbol<Destroy> = self.library.get(b"nvrtcDestroyProgram")?;
            destroy(&raw mut program);
            result
        }
    }

    /// # Safety
    /// `program` is alive, and the names are those of a function for a size and one that fills as much.
    unsafe fn text(&self, program: Program, size: &str, text: &str) -> Result<Vec<u8>> {
        // SAFETY: the caller's promise.
        unsafe {
            let size_of: Symbol<Size> = self.library.get(size.as_bytes())?;
            let fill: Symbol<Text> = self.library.get(text.as_bytes())?;
            let mut size = 0;
            if size_of(program, &raw mut size) != 0 {
                bail!("the compiler has no {text}");
            }
            let mut bytes = vec![0; size];
            if fill(program, bytes.as_mut_ptr()) != 0 {
                bail!("the compiler gave no {text}");
            }
            Ok(bytes)
        }
    }
}
