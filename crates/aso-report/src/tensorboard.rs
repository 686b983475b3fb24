//! TensorBoard event files.
//!
//! A file is a sequence of records, `length: u64 | crc(length): u32 | data | crc(data): u32`, little-endian, with
//! masked CRC-32C sums; each datum is a protocol buffer `Event`. The messages are the part of TensorFlow's
//! `event.proto` and `summary.proto` that scalars need.

use std::path::Path;

use aso_trainer::files::{atomic_write, create_dir_all};
use prost::Message;

use crate::ReportError;
use crate::record::RunRecord;

/// What the first event of a file says.
const FILE_VERSION: &str = "brain.Event:2";

#[derive(Clone, PartialEq, Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Scalars>,
}

#[derive(Clone, PartialEq, Message)]
struct Scalars {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Scalar>,
}

#[derive(Clone, PartialEq, Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    tag: String,
    /// One of several kinds of values in TensorFlow's definition, so a 0 must be written.
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

/// TensorBoard takes every file whose name holds `tfevents`. One name, so that a later file takes the place of this one.
const FILE: &str = "events.out.tfevents.aso";

/// Writes a run's scalars into `dir`: `loss`, `cross_entropy`, `lr`, `grad_norm` and `soft_weight` at each step,
/// counted over all tasks, and `score/TASK` after each task, in percent.
///
/// Times are those of the run, as far as its log tells, so that the file of a run is always the same.
///
/// # Errors
/// [`ReportError::Files`] names the file.
pub fn write_run(run: &RunRecord, dir: &Path) -> Result<(), ReportError> {
    create_dir_all(dir)?;
    atomic_write(&dir.join(FILE), &events(run))?;
    Ok(())
}

/// The content of the file.
fn events(run: &RunRecord) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut time = run.started;
    let version = Event {
        wall_time: time,
        step: 0,
        file_version: Some(FILE_VERSION.to_owned()),
        summary: None,
    };
    record(&mut bytes, &version);
    time += run.results.timings.zero_shot;
    scores(&mut bytes, run, "score", &run.results.zero_shot, time, 0);
    let offsets = offsets(&run.steps_per_task());
    let mut lines = run.steps.iter().peekable();
    for (task, row) in run.results.accuracy.iter().enumerate() {
        while let Some(line) = lines.next_if(|line| line.task == task) {
            time += line.seconds;
            let values = [
                ("loss", Some(line.loss)),
                ("cross_entropy", Some(line.cross_entropy)),
                ("lr", Some(line.lr)),
                ("grad_norm", Some(line.grad_norm)),
                ("soft_weight", line.soft_weight),
            ];
            let values = values.map(|(tag, value)| (tag.to_owned(), value));
            scalars(&mut bytes, values, time, offsets[task] + line.step);
        }
        time += run.results.timings.evaluation[task];
        scores(&mut bytes, run, "score", row, time, offsets[task + 1]);
    }
    let steps = offsets.last().copied().unwrap_or_default();
    scores(&mut bytes, run, "chosen", &run.results.chosen, time, steps);
    bytes
}

/// The first step of each task, counted over all tasks, and at the end their number.
fn offsets(steps: &[usize]) -> Vec<usize> {
    let sums = steps.iter().scan(0, |sum, steps| {
        *sum += steps;
        Some(*sum)
    });
    std::iter::once(0).chain(sums).collect()
}

fn scores(
    bytes: &mut Vec<u8>,
    run: &RunRecord,
    tag: &str,
    row: &[Option<f64>],
    time: f64,
    step: usize,
) {
    let values = run.results.tasks.iter().zip(row);
    let values = values.map(|(task, score)| (format!("{tag}/{task}"), *score));
    scalars(bytes, values, time, step);
}

/// One event with all values there are.
fn scalars(
    bytes: &mut Vec<u8>,
    values: impl IntoIterator<Item = (String, Option<f64>)>,
    time: f64,
    step: usize,
) {
    let values = values.into_iter().filter_map(|(tag, value)| {
        let simple_value = Some(value? as f32);
        Some(Scalar { tag, simple_value })
    });
    let value: Vec<Scalar> = values.collect();
    if !value.is_empty() {
        let event = Event {
            wall_time: time,
            step: step as i64,
            file_version: None,
            summary: Some(Scalars { value }),
        };
        record(bytes, &event);
    }
}

fn record(bytes: &mut Vec<u8>, event: &Event) {
    let data = event.encode_to_vec();
    let length = (data.len() as u64).to_le_bytes();
    bytes.extend(length);
    bytes.extend(masked_crc(&length).to_le_bytes());
    bytes.extend(&data);
    bytes.extend(masked_crc(&data).to_le_bytes());
}

/// TensorFlow's masked CRC-32C, `rotate_right(crc, 15) + 0xa282ead8`: the sum of data that holds sums itself.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::StepRecord;
    use crate::testing::{results, write_run as write_results};

    /// Reads a file as TensorBoard does: every length and sum is checked.
    fn read(mut bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        while !bytes.is_empty() {
            let (length, rest) = bytes.split_at(8);
            let (crc, rest) = rest.split_at(4);
            assert_eq!(crc, masked_crc(length).to_le_bytes());
            let (data, rest) =
                rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
            let (crc, rest) = rest.split_at(4);
            assert_eq!(crc, masked_crc(data).to_le_bytes());
            events.push(Event::decode(data).unwrap());
            bytes = rest;
        }
        events
    }

    // The first record of TensorBoard's own files, whose length is always 24:
    // Event(wall_time=1.5, file_version='brain.Event:2').SerializeToString().hex()
    // The sums were computed bit by bit from the polynomial 0x82f63b78.
    #[test]
    fn the_version_record() {
        let mut bytes = Vec::new();
        let event = Event {
            wall_time: 1.5,
            step: 0,
            file_version: Some(FILE_VERSION.to_owned()),
            summary: None,
        };
        record(&mut bytes, &event);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let data = "09000000000000f83f1a0d627261696e2e4576656e743a32";
        assert_eq!(hex, format!("1800000000000000a37f4b22{data}2a28646c"));
    }

    // Event(wall_time=1.5, step=3, summary=Summary(value=[Summary.Value(tag='x', simple_value=0.0)])), encoded by hand: a
    // member of a oneof is written also where it is 0.
    #[test]
    fn zeros_are_values() {
        let mut bytes = Vec::new();
        scalars(&mut bytes, [("x".to_owned(), Some(0.0))], 1.5, 3);
        let hex: String = bytes[12..bytes.len() - 4]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(hex, "09000000000000f83f10032a0a0a080a01781500000000");
    }

    #[test]
    fn everything_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        write_results(&run, &results("aso-lora", 1, &[80.0, 25.0, 60.0, 90.0]));
        let mut record = RunRecord::read(&run).unwrap();
        let step = |task, step, soft_weight| StepRecord {
            task,
            step,
            loss: 2.0,
            cross_entropy: 1.5,
            soft_weight,
            lr: 0.5,
            grad_norm: 3.0,
            seconds: 1.0,
        };
        record.steps = vec![step(0, 0, None), step(0, 1, None), step(1, 0, Some(0.25))];
        let out = dir.path().join("board").join("aso-lora");
        write_run(&record, &out).unwrap();
        let files: Vec<_> = std::fs::read_dir(&out).unwrap().collect();
        assert_eq!(files.len(), 1);
        let events = read(&std::fs::read(files[0].as_ref().unwrap().path()).unwrap());
        assert_eq!(events[0].file_version.as_deref(), Some(FILE_VERSION));
        let value = |event: &Event, tag: &str| {
            let values = &event.summary.as_ref().unwrap().value;
            let value = values.iter().find(|value| value.tag == tag);
            value.and_then(|value| value.simple_value)
        };
        let steps: Vec<i64> = events.iter().map(|event| event.step).collect();
        assert_eq!(steps, [0, 0, 0, 1, 2, 2, 3, 3]);
        assert_eq!(value(&events[1], "score/b"), Some(20.0));
        assert_eq!(value(&events[2], "loss"), Some(2.0));
        assert_eq!(value(&events[2], "soft_weight"), None);
        assert_eq!(value(&events[4], "score/a"), Some(80.0));
        assert_eq!(value(&events[5], "soft_weight"), Some(0.25));
        assert_eq!(value(&events[6], "score/a"), Some(60.0));
        assert_eq!(value(&events[7], "chosen/a"), Some(70.0));
        assert!(
            events
                .windows(2)
                .all(|pair| pair[0].wall_time <= pair[1].wall_time)
        );
    }
}
