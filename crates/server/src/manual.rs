//! `octet completions` and `octet man`: what packages carry beside the binary, from the flags
//! themselves.

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Cli;

/// The completion script of a shell.
///
/// # Errors
/// When standard output cannot be written to.
pub fn completions(shell: Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "octet", &mut script);
    crate::say(&String::from_utf8(script)?)
}

/// The manual page, every flag included.
///
/// # Errors
/// When standard output cannot be written to.
pub fn man() -> Result<()> {
    let command = Cli::command().mut_args(|arg| arg.hide(false));
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    crate::say(&String::from_utf8(page)?)
}
