//! `natpunch top`: peers, paths, rates and events on a terminal, live. It asks the agent at its
//! control socket, and changes nothing.

mod screen;
mod state;
#[cfg(test)]
mod tests;

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event as Input, KeyEventKind};

use super::agents::agent_of;
use super::live::feed::{Feed, now_s};
use super::status::view::View;
use crate::cli::CliError;
use crate::cli::args::TopArgs;
use crate::control::runtime_dir;

use state::State;

/// How often the agent is asked.
const INTERVAL: Duration = Duration::from_secs(1);
/// How soon a status is shown that has come.
const GLANCE: Duration = Duration::from_millis(200);

/// Shows the mesh until `q`.
///
/// # Errors
/// No agent runs here, or this is no terminal.
pub(in crate::cli) fn run(args: &TopArgs) -> Result<ExitCode, CliError> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(CliError::new("this is no terminal")
            .help("`natpunch status --watch` prints again and again, `--json` for a program"));
    }
    let interface = agent_of(&runtime_dir(), args.interface.as_deref())?;
    let statuses = follow(interface);
    let mut terminal = ratatui::try_init()?;
    let shown = show(&mut terminal, &statuses);
    ratatui::restore();
    shown?;
    Ok(ExitCode::SUCCESS)
}

type Answer = Result<View, String>;

/// Asks the agent from a thread, so that one that hangs does not hold up the keys.
fn follow(interface: String) -> Receiver<Answer> {
    let (tell, told) = sync_channel(1);
    std::thread::spawn(move || {
        let directory = runtime_dir();
        let mut feed = Feed::of(&directory, &interface);
        while tell.send(feed.ask()).is_ok() {
            std::thread::sleep(INTERVAL);
        }
    });
    told
}

fn show(terminal: &mut DefaultTerminal, statuses: &Receiver<Answer>) -> io::Result<()> {
    let mut state = State::default();
    loop {
        while let Ok(answer) = statuses.try_recv() {
            state.take(answer, now_s());
        }
        terminal.draw(|frame| screen::draw(&mut state, now_s(), frame))?;
        if event::poll(GLANCE)?
            && let Input::Key(key) = event::read()?
            && key.kind != KeyEventKind::Release
            && state.press(key).is_break()
        {
            return Ok(());
        }
    }
}
