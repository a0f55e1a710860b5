//! Shows what a running recorder does, from the OpenMetrics text that it serves: in a terminal, or line by line.

#![forbid(unsafe_code)]

mod format;
mod metrics;
mod source;
mod view;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use metrics::Metrics;
use source::Source;
use view::{Look, View};

/// A key, a new size or a signal is noticed after at most this time.
const TICK: Duration = Duration::from_millis(100);

/// Shows rates, losses, latency and frames of a running recorder (q quits, Tab shows the next context). Without a
/// terminal it prints a line per interval, and ends when the recorder ends
#[derive(Debug, Parser)]
#[command(name = "unified-top", version)]
struct Arguments {
    /// http://HOST:PORT/metrics, or the path of a Unix socket with HTTP on it
    source: Source,
    /// Seconds between two updates
    #[arg(short, long, default_value_t = 1.0, value_parser = interval)]
    interval: f64,
    /// Print lines even to a terminal
    #[arg(short, long)]
    plain: bool,
    /// End after this many updates
    #[arg(short = 'n', long)]
    count: Option<u64>,
}

fn interval(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("seconds are 0.1 to 3600".into()),
    }
}

/// The result of one update, or why it failed.
type Found = Result<Vec<Metrics>, String>;

fn look(source: &Source) -> Found {
    let text = source.fetch()?;
    metrics::parse(&text).map_err(|what| format!("{source}: {what}"))
}

/// Updates in a thread of its own, so that a recorder that does not answer does not block the keyboard.
fn watch(source: Source, interval: Duration) -> Receiver<(Instant, Found)> {
    let (to, from) = channel();
    thread::spawn(move || {
        let mut next = Instant::now();
        loop {
            // Looks that were missed are not made up for.
            next = (next + interval).max(Instant::now());
            thread::sleep(next - Instant::now());
            let found = look(&source);
            if to.send((Instant::now(), found)).is_err() {
                return;
            }
        }
    });
    from
}

fn is_utf8() -> bool {
    // As setlocale does: the first that is set and not empty decides.
    let set = ["LC_ALL", "LC_CTYPE", "LANG"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
    let locale = set.unwrap_or_default().to_ascii_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}

/// One view for each context, in the order in which they came.
#[derive(Default)]
struct Views(Vec<View>);

impl Views {
    fn add(&mut self, seconds: f64, contexts: Vec<Metrics>) {
        self.0.truncate(contexts.len());
        self.0.resize_with(contexts.len(), View::default);
        for (view, metrics) in self.0.iter_mut().zip(contexts) {
            view.add(seconds, metrics);
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // The first look is made before the terminal is touched: a wrong address is told on an ordinary line.
    let first = match look(&arguments.source) {
        Ok(contexts) => contexts,
        Err(what) => return fail(&what),
    };
    let plain = arguments.plain || !io::stdout().is_terminal() || !io::stdin().is_terminal();
    let stop = Arc::new(AtomicBool::new(false));
    if let Err(error) = heed_signals(stop.clone(), plain) {
        return fail(&format!("taking signals: {error}"));
    }
    let ended = match plain {
        true => lines(&arguments, first, &stop),
        false => screen(&arguments, first, &stop),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => fail(&what),
    }
}

/// Asks for the end, and ends the process if that has no effect: reading the keys of a terminal that is gone never returns.
fn heed_signals(stop: Arc<AtomicBool>, plain: bool) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            stop.store(true, Ordering::Relaxed);
            thread::sleep(10 * TICK);
            if !plain {
                let _ = ratatui::try_restore();
            }
            std::process::exit(1);
        }
    });
    Ok(())
}

fn fail(what: &str) -> ExitCode {
    let _ = writeln!(io::stderr(), "unified-top: {what}");
    ExitCode::FAILURE
}

fn lines(arguments: &Arguments, first: Vec<Metrics>, stop: &AtomicBool) -> Result<(), String> {
    let interval = Duration::from_secs_f64(arguments.interval);
    let start = Instant::now();
    let (mut views, mut looks) = (Views::default(), 1);
    views.add(0.0, first);
    let from = watch(arguments.source.clone(), interval);
    loop {
        for view in &views.0 {
            match writeln!(io::stdout(), "{}", view.plain()) {
                // Whoever reads has had enough: `unified-top ... | head`.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                result => result.map_err(|e| format!("writing: {e}"))?,
            }
        }
        if arguments.count.is_some_and(|count| looks >= count) {
            return Ok(());
        }
        let (at, found) = loop {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            match from.recv_timeout(TICK) {
                Ok(look) => break look,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err("looking has ended".into()),
            }
        };
        views.add(at.duration_since(start).as_secs_f64(), found?);
        looks += 1;
    }
}

fn screen(arguments: &Arguments, first: Vec<Metrics>, stop: &AtomicBool) -> Result<(), String> {
    let look = Look {
        colour: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        utf8: is_utf8(),
        answered: true,
    };
    // Restores the terminal even if this program panics.
    let mut terminal = ratatui::try_init().map_err(|e| format!("the terminal: {e}"))?;
    let result = show(&mut terminal, arguments, first, look, stop);
    ratatui::restore();
    result
}

fn show(
    terminal: &mut ratatui::DefaultTerminal,
    arguments: &Arguments,
    first: Vec<Metrics>,
    look: Look,
    stop: &AtomicBool,
) -> Result<(), String> {
    let start = Instant::now();
    let from = watch(
        arguments.source.clone(),
        Duration::from_secs_f64(arguments.interval),
    );
    let mut views = Views::default();
    views.add(0.0, first);
    let (mut shown, mut looks) = (0, 1);
    let mut answered = Instant::now();
    let mut trouble: Option<String> = None;
    let mut dirty = true;
    while !stop.load(Ordering::Relaxed) {
        while let Ok((at, found)) = from.try_recv() {
            dirty = true;
            match found {
                Ok(contexts) => {
                    views.add(at.duration_since(start).as_secs_f64(), contexts);
                    looks += 1;
                    answered = at;
                    trouble = None;
                }
                // What was shown stays: the recorder may come back.
                Err(what) => trouble = Some(what),
            }
        }
        if arguments.count.is_some_and(|count| looks > count) {
            return Ok(());
        }
        shown = shown.min(views.0.len().saturating_sub(1));
        if dirty {
            let status = match &trouble {
                Some(what) => Line::styled(
                    format!("no answer for {} s: {what}", answered.elapsed().as_secs()),
                    look.lost(),
                ),
                None => hint(arguments, shown, views.0.len()),
            };
            terminal
                .draw(|frame| {
                    let area = frame.area();
                    if let Some(view) = views.0.get(shown) {
                        let look = Look {
                            answered: trouble.is_none(),
                            ..look
                        };
                        let lines = view.screen(area.width, area.height, look, status);
                        frame.render_widget(Paragraph::new(lines), area);
                    }
                })
                .map_err(|e| format!("drawing: {e}"))?;
            dirty = false;
        }
        match event::poll(TICK) {
            Ok(false) => continue,
            Ok(true) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(format!("the keyboard: {error}")),
        }
        match event::read().map_err(|e| format!("the keyboard: {e}"))? {
            Event::Key(key) if key.kind != KeyEventKind::Release => match key.code {
                KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                    return Ok(());
                }
                KeyCode::Tab => {
                    shown = (shown + 1) % views.0.len().max(1);
                    dirty = true;
                }
                _ => {}
            },
            Event::Resize(..) => dirty = true,
            _ => {}
        }
    }
    Ok(())
}

fn hint(arguments: &Arguments, shown: usize, contexts: usize) -> Line<'static> {
    let mut spans = vec![
        Span::styled("q", Style::new().add_modifier(Modifier::BOLD)),
        Span::raw(" quits"),
    ];
    if contexts > 1 {
        spans.push(Span::styled(
            "   Tab",
            Style::new().add_modifier(Modifier::BOLD),
        ));
        spans.push(Span::raw(format!(" next of {contexts} ({})", shown + 1)));
    }
    spans.push(Span::styled(
        format!(
            "   every {} s from {}",
            arguments.interval, arguments.source
        ),
        Style::new().add_modifier(Modifier::DIM),
    ));
    Line::from(spans)
}
