//! `octet completions` and `octet man`: what packages carry beside the binary, from the flags
//! themselves.

use std::io::Write;

use anyhow::Result;
use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::args::Cli;

/// The generator lists every flag here; there are too many of them for that.
const SYNOPSIS: &str = "\
.SH SYNOPSIS
\\fBoctet\\fR [\\fBserve\\fR] [\\fIOPTIONS\\fR] [\\fIMODEL\\fR]
.br
\\fBoctet\\fR \\fICOMMAND\\fR [\\fIOPTIONS\\fR]
";

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
    crate::say(&page()?)
}

/// One page for the program and all of its commands.
fn page() -> Result<String> {
    let command = Cli::command().mut_args(|arg| arg.hide(false));
    let man = Man::new(command.clone());
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    page.write_all(SYNOPSIS.as_bytes())?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    for other in command.get_subcommands() {
        if other.get_name() != "serve" {
            page.write_all(section(&command, other)?.as_bytes())?;
        }
    }
    Ok(String::from_utf8(page)?)
}

/// What a command does, and those of its options that the program itself lacks.
fn section(program: &Command, command: &Command) -> Result<String> {
    let is_common = |arg: &clap::Arg| {
        let mut all = program.get_arguments();
        all.any(|other| other.get_id() == arg.get_id() && other.get_help() == arg.get_help())
    };
    let (common, own): (Vec<_>, Vec<_>) = command.get_arguments().partition(|arg| is_common(arg));
    let about = command.get_about().map(ToString::to_string);
    let heading = format!(
        ".SH OCTET {}\n{}.",
        command.get_name().to_uppercase(),
        about.unwrap_or_default().trim_end_matches('.')
    );
    let tail = match (common.is_empty(), own.is_empty()) {
        (true, true) => return Ok(heading + "\n"),
        (false, true) => return Ok(heading + " The options of serving apply.\n"),
        (false, false) => " The options of serving apply, and:",
        (true, false) => "",
    };
    // Without a name of its own the section would repeat that of the program.
    let mut shown = Command::new("octet").disable_help_flag(true);
    shown = shown.args(own.into_iter().map(|arg| arg.clone().hide(false)));
    let mut options = Vec::new();
    Man::new(shown).render_options_section(&mut options)?;
    let options = String::from_utf8(options)?;
    Ok(options.replacen(".SH OPTIONS", &format!("{heading}{tail}"), 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_page_is_that_of_the_flags() {
        let committed = include_str!("../../../deploy/man/octet.1");
        assert!(
            page().expect("a page") == committed,
            "run `octet man > deploy/man/octet.1`"
        );
    }

    #[test]
    fn the_page_names_every_flag_and_command() {
        let page = page().expect("a page").replace('\\', "");
        let program = Cli::command();
        for command in program.get_subcommands() {
            let name = command.get_name();
            let heading = format!(".SH OCTET {}", name.to_uppercase());
            assert!(name == "serve" || page.contains(&heading), "{name}");
            for long in command.get_arguments().filter_map(clap::Arg::get_long) {
                assert!(page.contains(&format!("--{long}fR")), "{name} --{long}");
            }
        }
    }
}
