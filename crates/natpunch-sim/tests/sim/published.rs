//! Every kind of NAT against every kind, as docs/nat.md and its picture show it.

use std::collections::BTreeMap;
use std::time::Duration;

use natpunch_sim::{LinkConfig, Random, Reach, reach_with_other_ports};

use crate::kinds::kinds;
use crate::lab::{Lab, NEAR, SECOND, Side, UPLINK};
use crate::matrix::seeds_or;
use crate::picture;
use crate::punch::{Run, USUAL, at, run_lab};

/// How a pair becomes direct.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cell {
    Direct,
    Sequential,
    BothSequential,
    Block,
    Birthday,
    Suspicion,
    Luck,
    Relay,
}

impl Cell {
    /// In the order of the legend.
    pub(crate) const ALL: [Self; 8] = [
        Self::Direct,
        Self::Sequential,
        Self::BothSequential,
        Self::Block,
        Self::Birthday,
        Self::Suspicion,
        Self::Luck,
        Self::Relay,
    ];

    fn of(reach: Reach, strategy: Option<&str>) -> Self {
        match (reach, strategy) {
            (Reach::Direct, _) => Self::Direct,
            (Reach::Luck, _) => Self::Luck,
            (Reach::Relay, _) => Self::Relay,
            (Reach::Guessed, Some("sequential")) => Self::Sequential,
            (Reach::Guessed, Some("both sequential")) => Self::BothSequential,
            (Reach::Guessed, Some("block")) => Self::Block,
            (Reach::Guessed, Some("birthday")) => Self::Birthday,
            (Reach::Guessed, Some("rotation" | "birthday on suspicion")) => Self::Suspicion,
            (Reach::Guessed, None) => Self::Relay,
            (Reach::Guessed, Some(other)) => panic!("no cell for the strategy {other}"),
        }
    }

    pub(crate) fn letter(self) -> &'static str {
        match self {
            Self::Direct => "·",
            Self::Sequential => "S",
            Self::BothSequential => "2S",
            Self::Block => "K",
            Self::Birthday => "B",
            Self::Suspicion => "?",
            Self::Luck => "l",
            Self::Relay => "–",
        }
    }

    pub(crate) fn meaning(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Sequential => "a sequence of ports",
            Self::BothSequential => "two sequences",
            Self::Block => "a block of ports",
            Self::Birthday => "the birthday strategy",
            Self::Suspicion => "a strategy on suspicion",
            Self::Luck => "direct with luck",
            Self::Relay => "by a relay",
        }
    }
}

/// By row and column, of which the row is never the greater.
pub(crate) type Cells = BTreeMap<(usize, usize), Cell>;

/// One run of a pair; how it became direct.
fn verdict(seed: u64, a: &Side, b: &Side, rough: bool) -> (Reach, Run) {
    let links = match rough {
        true => {
            let mut random = Random::new(seed, 9);
            let delay = Duration::from_millis(1 + random.below(50));
            let loss = random.below(2_001) as f64 / 100_000.0;
            [LinkConfig { delay, ..UPLINK }.with_loss(loss), NEAR]
        }
        false => USUAL,
    };
    let lab = Lab::punching(seed, a.clone(), b.clone(), links[0], links[1]);
    let reach = reach_with_other_ports(&lab.world.network, lab.a, lab.b);
    let patience = match reach {
        Reach::Direct => 30 * SECOND,
        Reach::Guessed => 60 * SECOND,
        Reach::Relay | Reach::Luck => 40 * SECOND,
    };
    // With luck a pair may lose what it has found.
    let stays = reach != Reach::Luck;
    let (run, lab) = run_lab(lab.start(), patience, stays);
    let is_wrong = match reach {
        Reach::Direct => run.direct.is_none(),
        // A guess may hit where the mathematics gives it next to nothing.
        Reach::Relay => run.direct.is_some() && run.guesses == 0,
        // Judged over many, or not at all.
        Reach::Guessed | Reach::Luck => false,
    };
    if is_wrong {
        lab.fail(&format!("{reach:?} expected"));
    }
    (reach, run)
}

/// What a campaign came to.
struct Campaign {
    /// Guesses that came true, of how many.
    hits: u64,
    tries: u64,
    cells: Cells,
}

/// Every kind against every kind, so many seeds each.
fn campaign(seeds: u64, rough: bool) -> Campaign {
    let kinds = kinds();
    let mut cells = BTreeMap::new();
    let (mut hits, mut tries, mut direct) = (0, 0, Vec::new());
    let mut lost = (0, 0);
    for seed in 0..seeds {
        for (row, (_, a)) in kinds.iter().enumerate() {
            for (column, (_, b)) in kinds.iter().enumerate().skip(row) {
                let number = seed * 1_000_000 + (row * 100 + column) as u64;
                let (reach, run) = verdict(number, a, b, rough);
                let cell = Cell::of(reach, run.strategy);
                cells.insert((row, column), cell);
                if reach == Reach::Guessed {
                    if run.direct.is_none() {
                        println!(
                            "not found: {} with {}, {cell:?}",
                            kinds[row].0, kinds[column].0
                        );
                    }
                    tries += 1;
                    hits += u64::from(run.direct.is_some());
                }
                direct.extend(run.direct);
                lost = (lost.0 + run.lost.0, lost.1 + run.lost.1);
            }
        }
    }
    println!(
        "{} kinds, {seeds} seeds: {hits} of {tries} guesses came true; time to direct p50 {:?} p95 \
         {:?} worst {:?}; {} of {} pings lost",
        kinds.len(),
        at(direct.clone(), 50),
        at(direct.clone(), 95),
        direct.iter().max(),
        lost.0,
        lost.1,
    );
    Campaign { hits, tries, cells }
}

/// The matrix as a table in Markdown.
fn table(cells: &Cells) -> String {
    let kinds = kinds();
    let numbers: Vec<String> = (1..=kinds.len()).map(|n| n.to_string()).collect();
    let mut text = format!("| | NAT | {} |\n", numbers.join(" | "));
    text += &format!("|---|---|{}\n", "---|".repeat(kinds.len()));
    for (row, (name, _)) in kinds.iter().enumerate() {
        let letter = |column| cells[&(row.min(column), row.max(column))].letter();
        let letters: Vec<&str> = (0..kinds.len()).map(letter).collect();
        text += &format!("| {} | {name} | {} |\n", row + 1, letters.join(" | "));
    }
    text
}

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/nat.md");
const PICTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/nat-matrix.svg");

/// `docs/nat.md` has this table, and `docs/nat-matrix.svg` is this picture; with `BLESS=1` they are
/// written there.
fn expect_published(table: &str, picture: &str) {
    const MARKS: [&str; 2] = ["<!-- matrix -->\n", "<!-- end of matrix -->"];
    let text = std::fs::read_to_string(PAGE).unwrap_or_default();
    let parts = text
        .split_once(MARKS[0])
        .and_then(|(before, rest)| Some((before, rest.split_once(MARKS[1])?)));
    let Some((before, (published, after))) = parts else {
        panic!("{PAGE} has no place for the matrix");
    };
    if std::env::var_os("BLESS").is_some() {
        let text = format!("{before}{}{table}{}{after}", MARKS[0], MARKS[1]);
        std::fs::write(PAGE, text).unwrap();
        std::fs::write(PICTURE, picture).unwrap();
    } else {
        let drawn = std::fs::read_to_string(PICTURE).unwrap_or_default();
        assert_eq!(
            (published, drawn.as_str()),
            (table, picture),
            "run with BLESS=1, and read what changed in {PAGE} and {PICTURE}"
        );
    }
}

#[test]
fn every_kind_of_nat_against_every_kind_is_direct_or_relayed_as_the_oracle_says() {
    let Campaign { hits, tries, cells } = campaign(1, false);
    // One try of a birthday misses with 1.7 %, two of them with 0.03 %.
    assert!(hits * 100 >= tries * 90, "{hits} of {tries}");
    let names: Vec<&str> = kinds().iter().map(|(name, _)| *name).collect();
    expect_published(&table(&cells), &picture::matrix(&names, &cells));
}

#[test]
#[ignore = "long: run by `make sim`"]
fn every_kind_against_every_kind_over_many_seeds_and_rough_links() {
    let seeds = seeds_or(20);
    let Campaign { hits, tries, .. } = campaign(seeds.end - seeds.start, true);
    assert!(hits * 100 >= tries * 90, "{hits} of {tries}");
}
