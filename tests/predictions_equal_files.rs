//! A record's scores are those of the same bytes in a file, to the bit, however many workers there are and whatever
//! else they do.

use std::{collections::BTreeMap, io::Write, sync::OnceLock};

use tonearm_schemas::prediction::{Audio, Label, Model, Prediction, Window};
use tonearm_tests::{
    audio::{music, wav},
    broker::Topics,
    program::{Run, answer, command},
    records::{Input, Reader, publish, read_all},
};

/// Pieces of several lengths, among them one long enough to be spread over all workers.
fn pieces() -> Vec<(String, Vec<u8>)> {
    let mut pieces = music();
    pieces.push(("long".to_owned(), wav(98.0, 75.0, 22_050, 1)));
    pieces.push(("short".to_owned(), wav(440.0, 0.7, 48_000, 2)));
    pieces
}

/// What may not depend on where the bytes came from. Compared for equality: the same bits give the same text.
#[derive(Debug, PartialEq)]
struct Said {
    audio: Audio,
    model: Model,
    labels: Vec<Label>,
    windows: Option<Vec<Window>>,
}

impl From<Prediction> for Said {
    fn from(prediction: Prediction) -> Self {
        let Prediction { audio, model, labels, windows, .. } = prediction;
        Self { audio, model, labels, windows }
    }
}

/// What `tonearm predict` says of all pieces at once.
fn of_files(workers: u32) -> BTreeMap<String, Said> {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = command(["predict", "--json", "--windows", "--labels", "all", "--workers", &workers.to_string()]);
    for (name, bytes) in pieces() {
        let path = folder.path().join(name);
        std::fs::File::create(&path).and_then(|mut file| file.write_all(&bytes)).expect("a file");
        command.arg(path);
    }
    let answer = answer(command);
    assert_eq!((answer.code, answer.err.as_str()), (Some(0), ""));
    let said: Vec<Prediction> =
        answer.out.lines().map(|line| serde_json::from_str(line).expect("a prediction")).collect();
    let names = pieces().into_iter().map(|(name, _)| name);
    assert_eq!(said.len(), names.len(), "one line per file");
    names.zip(said).map(|(name, said)| (name, said.into())).collect()
}

/// One worker, one file after the other: nothing else runs.
fn reference() -> &'static BTreeMap<String, Said> {
    static REFERENCE: OnceLock<BTreeMap<String, Said>> = OnceLock::new();
    REFERENCE.get_or_init(|| of_files(1))
}

fn of_records(workers: u32) {
    let topics = Topics::new(3);
    let inputs: Vec<Input> = pieces()
        .into_iter()
        .enumerate()
        .map(|(index, (name, bytes))| Input::new(index as i32 % 3, &name, bytes))
        .collect();
    publish(&topics.audio, &inputs);
    let running = Run::new(&topics)
        .set("runtime.workers", workers)
        .set("output.labels", "all")
        .set("output.windows", true)
        .start();
    Reader::new(&[&topics.predictions]).take(inputs.len());
    running.stop();
    let records = read_all(&topics.predictions);
    let said: BTreeMap<String, Said> =
        records.iter().map(|record| (record.key_text(), record.prediction().into())).collect();
    assert_eq!(&said, reference());
}

#[test]
fn files_get_the_same_scores_from_four_workers_as_from_one() {
    assert_eq!(&of_files(4), reference());
}

#[test]
fn records_get_the_scores_of_files_from_one_worker() {
    of_records(1);
}

#[test]
fn records_get_the_scores_of_files_from_four_workers() {
    of_records(4);
}

#[test]
fn a_piece_among_others_gets_the_scores_it_gets_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let (name, bytes) = pieces().pop().expect("there are pieces");
    let path = folder.path().join(&name);
    std::fs::write(&path, bytes).expect("a file");
    let mut command = command(["predict", "--json", "--windows", "--labels", "all"]);
    command.arg(path);
    let alone: Prediction = serde_json::from_str(&answer(command).out).expect("a prediction");
    assert_eq!(&Said::from(alone), &reference()[&name]);
}
