//! How the picture is drawn. Pure: a picture and a frame in, cells out.

use super::{
    picture::{KeyState, NodePicture, Panel, Picture},
    report::short,
    watch::Told,
};
use crate::{
    cli::table,
    lab::MemberLook,
    model::{
        moment::Span,
        record::{Lag, MemberRole},
    },
};
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style, Stylize},
    text::{Line, Span as Words},
    widgets::{Block, BorderType, Cell, Paragraph, Row, Sparkline, Table, Wrap},
};
use std::collections::BTreeMap;

const DIM: Style = Style::new().fg(Color::DarkGray);
const GOOD: Style = Style::new().fg(Color::Green);
const BAD: Style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
const ODD: Style = Style::new().fg(Color::Yellow);
const KEY: Style = Style::new().fg(Color::Cyan).add_modifier(Modifier::BOLD);

/// A gap of writes that a person would notice.
const NOTICEABLE: Span = Span::from_millis(300);
/// What a node said this long ago is not worth showing as the present.
const OLD: Span = Span::from_secs(2);

/// Draws a picture on the whole frame.
pub(super) fn draw(frame: &mut Frame<'_>, picture: &Picture) {
    let nodes = u16::try_from(picture.nodes.len()).unwrap_or(9).saturating_add(3);
    let not_here = not_here(picture);
    let keys = if not_here.is_some() { 5 } else { 4 };
    let rows = [Constraint::Length(1), Constraint::Length(nodes), Constraint::Length(4), Constraint::Min(6), Constraint::Length(keys)];
    let [head, top, writer, middle, keys] = Layout::vertical(rows).areas(frame.area());
    frame.render_widget(headline(picture), head);
    frame.render_widget(nodes_table(picture), top);
    draw_writer(frame, writer, picture);
    match picture.panel {
        Panel::Both => {
            let [left, right] = Layout::horizontal([Constraint::Percentage(50), Constraint::Percentage(50)]).areas(middle);
            frame.render_widget(last_fault(picture), left);
            frame.render_widget(events(picture, right), right);
        }
        Panel::Why => frame.render_widget(why(picture, middle), middle),
        Panel::Help => frame.render_widget(help(picture), middle),
    }
    draw_keys(frame, keys, picture, not_here);
}

fn block(title: &str) -> Block<'static> {
    Block::bordered().border_type(BorderType::Rounded).border_style(DIM).title(Line::from(format!(" {title} ")).bold())
}

fn headline(picture: &Picture) -> Line<'static> {
    let leader = picture.nodes.iter().filter_map(|node| node.says.as_ref()?.leader.as_ref()).max_by_key(|leader| leader.term);
    let (text, style) = match leader {
        None => ("nobody is known to lead".to_owned(), ODD),
        Some(leader) if leader.state == "serving" => {
            (format!("{} serves in term {} on timeline {}", leader.node, leader.term, leader.tli), GOOD)
        }
        Some(leader) => (format!("term {}: {} {} {}", leader.term, leader.node, leader.state, leader.note), ODD),
    };
    let mut words = vec![Words::from(" pgbaton demo ").bold().reversed(), Words::from("  "), Words::styled(text, style)];
    words.push(Words::styled("   etcd ", DIM));
    for (name, look) in &picture.etcd {
        let (mark, style) = match look {
            MemberLook::Leads => ("★", GOOD),
            MemberLook::Follows => ("", GOOD),
            MemberLook::Leaderless => ("?", ODD),
            MemberLook::Silent => ("✗", BAD),
        };
        words.push(Words::styled(format!("{name}{mark} "), style));
    }
    words.push(Words::styled(format!("  {}  up {}", picture.hosts, clock(picture.up)), DIM));
    Line::from(words)
}

fn nodes_table(picture: &Picture) -> Table<'static> {
    let widths = [6, 12, 22, 4, 12, 9, 9, 8, 14].map(Constraint::Length).into_iter().chain([Constraint::Min(8)]);
    let heads = ["NODE", "ROLE", "STATE", "TL", "LSN", "LAG", "REPLAY", "TIME", "LEASE", "HOST"];
    let rows: Vec<Row<'static>> = picture.nodes.iter().map(|node| node_row(picture, node)).collect();
    Table::new(rows, widths).header(Row::new(heads).style(DIM)).column_spacing(1).block(block("Nodes"))
}

fn node_row(picture: &Picture, node: &NodePicture) -> Row<'static> {
    let host = match node.harm {
        Some(harm) => Words::styled(harm, BAD),
        None => Words::styled("on", DIM),
    };
    let name = Cell::from(node.name.clone()).bold();
    let Some(says) = node.says.as_ref().filter(|says| says.age < OLD) else {
        let silent = Cell::from(Words::styled("says nothing", DIM));
        let rest = (0..6).map(|_| Cell::from(""));
        return Row::new([name, Cell::from("?"), silent].into_iter().chain(rest).chain([host.into()]));
    };
    let (role, style) = match (says.role, says.lease_seconds_left.is_some()) {
        (MemberRole::Primary, true) => ("PRIMARY", GOOD.add_modifier(Modifier::BOLD)),
        (MemberRole::Primary, false) => ("old primary", BAD),
        (MemberRole::Replica, _) => ("replica", Style::new()),
        (MemberRole::Down, _) => ("down", ODD),
    };
    let seen = lag_of(picture, &node.name).filter(|_| says.role == MemberRole::Replica);
    let lag = |stage: Option<u64>| stage.map(|count| table::bytes(Some(count))).unwrap_or_default();
    Row::new([
        name,
        Cell::from(Words::styled(role, style)),
        Cell::from(says.state.clone()),
        Cell::from(says.tli.map(|tli| tli.to_string()).unwrap_or_default()),
        Cell::from(says.lsn.map(|lsn| lsn.to_string()).unwrap_or_default()),
        Cell::from(seen.map(|seen| lag(seen.write)).unwrap_or_default()),
        Cell::from(seen.map(|seen| lag(seen.replay)).unwrap_or_default()),
        Cell::from(seen.and_then(|seen| seen.replay_ms).map(table::millis).unwrap_or_default()),
        lease(says.lease_seconds_left.map(|left| left - says.age.as_secs_f64()), says.leader.as_ref().map(|leader| leader.hold)),
        host.into(),
    ])
}

/// How far a node is behind, by the word of the primary that sees it.
fn lag_of(picture: &Picture, name: &str) -> Option<Lag> {
    let holders = picture.nodes.iter().filter_map(|node| node.says.as_ref()).filter(|says| says.lease_seconds_left.is_some());
    holders.max_by_key(|says| says.term)?.lags.get(name).copied()
}

fn lease(left: Option<f64>, hold: Option<Span>) -> Cell<'static> {
    let Some((left, hold)) = left.zip(hold) else { return Cell::from("") };
    let left = left.max(0.0);
    let part = left / hold.as_secs_f64().max(0.001);
    // Six cells for the whole hold.
    let bar: String = (0..6).map(|cell| if part * 6.0 > f64::from(cell) { '▮' } else { '▯' }).collect();
    let style = if part > 0.5 { GOOD } else { ODD };
    Cell::from(Line::from(vec![Words::styled(bar, style), Words::from(format!(" {left:.1}s"))]))
}

fn draw_writer(frame: &mut Frame<'_>, area: Rect, picture: &Picture) {
    let writer = &picture.writer;
    let frame_block = block("A client that inserts a row every 10 ms");
    let inner = frame_block.inner(area);
    frame.render_widget(frame_block, area);
    let [left, right] = Layout::horizontal([Constraint::Length(58), Constraint::Min(10)]).areas(inner);
    let held = writer.gap > NOTICEABLE;
    let now = if held {
        Words::styled(format!("no write for {}", short(writer.gap)), BAD)
    } else {
        Words::styled(format!("{} rows/s to {}", writer.rate, writer.to.clone().unwrap_or_default()), GOOD)
    };
    let second = format!("{} acknowledged; longest gap of the last minute {}", writer.acked, short(writer.longest));
    frame.render_widget(Paragraph::new(vec![Line::from(now), Line::styled(second, DIM)]), left);
    let width = usize::from(right.width);
    let rates: Vec<u64> = writer.rates[writer.rates.len().saturating_sub(width)..].to_vec();
    frame.render_widget(Sparkline::default().data(rates).max(55).style(if held { BAD } else { GOOD }), right);
}

fn last_fault(picture: &Picture) -> Paragraph<'static> {
    let mut lines = Vec::new();
    if let Some(busy) = &picture.busy {
        lines.push(Line::styled(format!("▶ {busy}"), ODD.add_modifier(Modifier::BOLD)));
    }
    match &picture.report {
        None if picture.busy.is_none() => lines.push(Line::styled("Nothing was broken yet. Press a key below.", DIM)),
        None => {}
        Some(report) => {
            lines.push(Line::from(format!("{}. {}", picture.reports, report.fault)).bold());
            lines.extend(report.lines().into_iter().map(|line| {
                let style = if line.starts_with("TWO WRITERS") || line.starts_with("LOST") || line.starts_with("no write since") {
                    BAD
                } else if line.starts_with("two writers: never") || line.starts_with("lost: 0") || line.starts_with("no outage") {
                    GOOD
                } else {
                    Style::new()
                };
                Line::styled(line, style)
            }));
        }
    }
    Paragraph::new(lines).wrap(Wrap { trim: false }).block(block("Last fault"))
}

fn events(picture: &Picture, area: Rect) -> Paragraph<'static> {
    let width = usize::from(area.width.saturating_sub(2));
    let entry = |(at, told): &(Span, Told)| -> Vec<Line<'static>> {
        let text = format!("{} {} {}", clock(*at), told.node, told.text);
        wrap(&text, width).into_iter().map(|line| Line::styled(line, style_of(told))).collect()
    };
    let shown = picture.events.iter().filter(|(_, told)| told.kind != "ended");
    let (lines, _) = newest(shown.map(entry), area);
    Paragraph::new(lines).block(block("Events"))
}

/// Newest at the bottom: whole entries, as many as a frame has room for; and how many older ones it has none for.
fn newest(entries: impl DoubleEndedIterator<Item = Vec<Line<'static>>>, area: Rect) -> (Vec<Line<'static>>, usize) {
    let room = usize::from(area.height.saturating_sub(2));
    let mut entries = entries.rev();
    let mut lines = Vec::new();
    for entry in entries.by_ref() {
        if lines.len() + entry.len() > room {
            lines.reverse();
            return (lines, 1 + entries.count());
        }
        lines.extend(entry.into_iter().rev());
    }
    lines.reverse();
    (lines, 0)
}

/// Lines of at most `width` characters, broken between words, the later ones indented.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last().map_or(0, |line| line.chars().count());
        if line > 0 && line + 1 + word.chars().count() > width {
            lines.push(format!("  {word}"));
        } else if let Some(last) = lines.last_mut() {
            if line > 0 {
                last.push(' ');
            }
            last.push_str(word);
        }
    }
    lines
}

fn style_of(told: &Told) -> Style {
    match told.kind.as_str() {
        "alarm" => BAD,
        "refused" => ODD,
        "leader" | "routing" => GOOD,
        "waits" => DIM,
        _ => Style::new(),
    }
}

fn why(picture: &Picture, area: Rect) -> Paragraph<'static> {
    /// When, who, and the kind.
    const BEFORE: usize = 22;
    let Some(report) = &picture.report else {
        return Paragraph::new(Line::styled("Nothing was broken yet.", DIM)).block(block("Why"));
    };
    let width = usize::from(area.width.saturating_sub(2));
    let entry = |(after, told): &(Span, Told)| {
        let mut texts = wrap(&told.text, width.saturating_sub(BEFORE)).into_iter();
        let first = Line::from(vec![
            Words::styled(format!("{:>9}  ", format!("+{}", short(*after))), DIM),
            Words::from(format!("{:<3}", told.node)).bold(),
            Words::styled(format!("{:<8}", told.kind), DIM),
            Words::styled(texts.next().unwrap_or_default(), style_of(told)),
        ]);
        let rest = texts.map(|text| Line::styled(format!("{}{text}", " ".repeat(BEFORE)), style_of(told)));
        std::iter::once(first).chain(rest).collect()
    };
    let (lines, older) = newest(report.reasons.iter().map(entry), area);
    let title = if older > 0 { format!("Why: {} ({older} older not shown)", report.fault) } else { format!("Why: {}", report.fault) };
    Paragraph::new(lines).block(block(&title).title_bottom(" w: back "))
}

fn help(picture: &Picture) -> Paragraph<'static> {
    let mut lines = vec![
        Line::from("Every key below harms whoever is primary at that moment; the same key takes it back. Several may be broken at once."),
        Line::from(
            "The client tries all nodes at once, so that what you see is the cluster and not an endpoint. On the host that is harmed a",
        ),
        Line::from(
            "second client goes on writing for as long as anybody there answers: what it was told and what is missing later is counted",
        ),
        Line::from("as lost, and an answer after the new primary's first one as two writers."),
        Line::from(""),
    ];
    for key in &picture.keys {
        if let KeyState::Disabled(why) = &key.state {
            lines.push(Line::styled(format!("{}  {}: {why}", key.key, key.text), DIM));
        }
    }
    Paragraph::new(lines).wrap(Wrap { trim: false }).block(block("Help").title_bottom(" ?: back "))
}

/// The keys that cannot work, with why.
fn not_here(picture: &Picture) -> Option<Line<'static>> {
    let mut whys: BTreeMap<&str, String> = BTreeMap::new();
    for key in &picture.keys {
        if let KeyState::Disabled(why) = &key.state {
            whys.entry(why).or_default().push_str(&format!("[{}] ", key.key));
        }
    }
    let texts: Vec<String> = whys.iter().map(|(why, keys)| format!("{keys}{why}")).collect();
    (!texts.is_empty()).then(|| Line::styled(format!("not here: {}", texts.join("; ")), DIM))
}

fn draw_keys(frame: &mut Frame<'_>, area: Rect, picture: &Picture, not_here: Option<Line<'static>>) {
    let key = |key: char, text: &str, state: &KeyState| {
        let (mark, words) = match state {
            KeyState::Ready => (KEY, Style::new()),
            KeyState::Undoes => (KEY, ODD),
            KeyState::Disabled(_) => (DIM, DIM),
        };
        vec![Words::styled(format!("[{key}] "), mark), Words::styled(format!("{text}  "), words)]
    };
    let half = picture.keys.len().div_ceil(2);
    let line = |keys: &[super::picture::KeyPicture]| keys.iter().flat_map(|one| key(one.key, &one.text, &one.state)).collect::<Vec<_>>();
    let (first, second) = picture.keys.split_at(half);
    let mut last = line(second);
    for (mark, text) in [('h', "heal all"), ('w', "why"), ('?', "help"), ('q', "quit")] {
        last.extend(key(mark, text, &KeyState::Ready));
    }
    let lines: Vec<Line<'static>> = [Line::from(line(first)), Line::from(last)].into_iter().chain(not_here).collect();
    frame.render_widget(Paragraph::new(lines).block(block("Keys: to the primary")), area);
}

/// Minutes and seconds.
fn clock(span: Span) -> String {
    let seconds = span.as_millis() / 1_000;
    format!("{:02}:{:02}", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            act::Act,
            picture::{Says, WriterPicture, keys},
            report::tests::report,
        },
        *,
    };
    use crate::model::{moment::Moment, term::Term, timeline::TimelineId};
    use ratatui::{Terminal, backend::TestBackend};

    fn says(role: MemberRole, state: &str) -> Says {
        let leader = r#"{"node":"n2","data":"d2","state":"serving","note":"","term":2,"tli":2,"lsn":"0/5000100","postgres":"10.77.0.12:5432",
            "hold":"2.8s","wait":"3.3s","stood_still_seconds":0.1}"#;
        let lag = Lag { sent: Some(0), write: Some(0), flush: Some(96), replay: Some(192), replay_ms: Some(6) };
        Says {
            age: Span::from_millis(100),
            role,
            state: state.into(),
            tli: TimelineId::new(2),
            lsn: "0/5000100".parse().ok(),
            term: Term::new(2),
            lease_seconds_left: (role == MemberRole::Primary).then_some(2.5),
            leader: serde_json::from_str(leader).ok(),
            lags: BTreeMap::from([("n3".to_owned(), lag)]),
        }
    }

    fn picture() -> Picture {
        let node = |name: &str, harm, says| NodePicture { name: name.into(), harm, says };
        let told = |kind: &str, node: &str, text: &str| Told {
            at: Moment::ZERO,
            node: node.into(),
            kind: kind.into(),
            id: kind.into(),
            text: text.into(),
        };
        let mut report = report();
        report.reasons = vec![
            (Span::from_millis(1_400), told("waits", "n3", "n1 has not renewed for 1.424s; after 3.3s its lease is over")),
            (Span::from_millis(3_240), told("leader", "n2", "n2 has claimed term 2")),
        ];
        let without_network = BTreeMap::from([(Act::CutOff, "network namespaces need root, and this lab is not".to_owned())]);
        Picture {
            up: Span::from_secs(83),
            hosts: "hosts: loopback ports".into(),
            nodes: vec![
                node("n1", Some("off"), None),
                node("n2", None, Some(says(MemberRole::Primary, "running"))),
                node("n3", None, Some(says(MemberRole::Replica, "streaming"))),
            ],
            etcd: BTreeMap::from([("e1".into(), MemberLook::Silent), ("e2".into(), MemberLook::Leads), ("e3".into(), MemberLook::Follows)]),
            writer: WriterPicture {
                rate: 97,
                rates: vec![48, 50, 0, 0, 24, 49],
                acked: 4_211,
                to: Some("n2".into()),
                gap: Span::from_millis(9),
                longest: Span::from_millis(3_600),
            },
            events: report.reasons.iter().map(|(at, told)| (Span::from_secs(60).plus(*at), told.clone())).collect(),
            report: Some(report),
            reports: 1,
            busy: Some("press p to power on n1".into()),
            keys: keys(&BTreeMap::from([(Act::PowerOff, "n1".to_owned())]), &without_network),
            panel: Panel::Both,
        }
    }

    fn drawn(picture: &Picture, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("terminal");
        terminal.draw(|frame| draw(frame, picture)).expect("drawn");
        terminal.backend().to_string()
    }

    #[test]
    fn the_screen_shows_the_cluster_the_outage_and_the_keys() {
        insta::assert_snapshot!(drawn(&picture(), 120, 32));
    }

    #[test]
    fn why_and_help_take_the_large_panel() {
        let mut picture = picture();
        picture.panel = Panel::Why;
        picture.writer.gap = Span::from_millis(1_400);
        let why = drawn(&picture, 100, 24);
        assert!(why.contains("no write for 1.40 s") && why.contains("+3.24 s  n2 leader  n2 has claimed term 2"), "{why}");
        picture.panel = Panel::Help;
        let help = drawn(&picture, 100, 28);
        assert!(help.contains("c  cut the host off: network namespaces need root"), "{help}");
    }

    #[test]
    fn a_long_why_keeps_the_newest_and_says_how_many_it_leaves_out() {
        let mut picture = picture();
        picture.panel = Panel::Why;
        let report = picture.report.as_mut().expect("a report");
        let (_, told) = report.reasons.pop().expect("a reason");
        report.reasons = (0..40)
            .map(|nth| (Span::from_millis(1_000 + nth * 10), Told { text: format!("number {nth} {}", "word ".repeat(20)), ..told.clone() }))
            .collect();
        let why = drawn(&picture, 100, 32);
        assert!(why.contains("number 39 word") && !why.contains("number 0 word"), "{why}");
        assert!(why.contains("older not shown)"), "{why}");
    }

    #[test]
    fn any_size_of_a_terminal_is_drawn() {
        for (width, height) in [(1, 1), (20, 5), (80, 24), (300, 90)] {
            assert!(!drawn(&picture(), width, height).is_empty());
        }
        assert!(!drawn(&Picture::default(), 80, 24).is_empty());
    }
}
