//! `--job`: which share of a conversion this process does, as it is told or as the scheduler says that started it.
//!
//! | scheduler | index | how many |
//! |---|---|---|
//! | Slurm array | `SLURM_ARRAY_TASK_ID`, from `_MIN` in steps of `_STEP` | `SLURM_ARRAY_TASK_COUNT` |
//! | Kubernetes Indexed Job | `JOB_COMPLETION_INDEX`, from 0 | `--jobs` or `REQUANT_JOBS` |
//! | AWS Batch array | `AWS_BATCH_JOB_ARRAY_INDEX`, from 0 | `AWS_BATCH_JOB_ARRAY_SIZE` |
//! | SkyPilot | `SKYPILOT_JOB_RANK`, from 0 | `SKYPILOT_NUM_JOBS` |
//! | PBS array | `PBS_ARRAY_INDEX`, from 1 | `--jobs` or `REQUANT_JOBS` |
//! | LSF array | `LSB_JOBINDEX`, from 1 (0: no array) | `--jobs` or `REQUANT_JOBS`, else `LSB_JOBINDEX_END` |
//!
//! A single task of a Slurm array that is submitted again is in an array of its own: then the array counts that the first
//! share was in, which the shares have written down.

use std::path::Path;

use clap::{Arg, ArgMatches};

use super::headings;
use crate::error::{Error, Result};
use crate::pipeline::{self, Agreed, ArraySpan, Share};
use crate::plan::MAX_SHARES;

/// Number of shares, for schedulers that do not say it.
const COUNT_VARIABLE: &str = "REQUANT_JOBS";
/// How to have all of it in one process all the same.
const WHOLE: &str = "for all of it in one process, --job 1/1";

/// A share that was asked for, and by whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) share: Share,
    /// What the scheduler calls the shares.
    pub(super) array: Option<ArraySpan>,
    /// The scheduler that said so: `"Slurm array task 3"`.
    pub(super) said_by: Option<String>,
}

/// A value of `--job`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Auto,
    Given(Share),
}

/// A scheduler, and the variables that it gives a task.
struct Scheduler {
    /// What a task of it is called.
    task: &'static str,
    index: &'static str,
    /// How many tasks there are.
    count: Option<&'static str>,
    first: First,
}

/// The index of a scheduler's first task.
enum First {
    Always(u64),
    /// This variable says it, and that one the distance to the next.
    Said(&'static str, &'static str),
}

/// Every scheduler that is known.
const SCHEDULERS: &[Scheduler] = &[
    Scheduler {
        task: "Slurm array task",
        index: "SLURM_ARRAY_TASK_ID",
        count: Some("SLURM_ARRAY_TASK_COUNT"),
        first: First::Said("SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP"),
    },
    Scheduler {
        task: "Kubernetes index",
        index: "JOB_COMPLETION_INDEX",
        count: None,
        first: First::Always(0),
    },
    Scheduler {
        task: "AWS Batch array index",
        index: "AWS_BATCH_JOB_ARRAY_INDEX",
        count: Some("AWS_BATCH_JOB_ARRAY_SIZE"),
        first: First::Always(0),
    },
    Scheduler {
        task: "SkyPilot job rank",
        index: "SKYPILOT_JOB_RANK",
        count: Some("SKYPILOT_NUM_JOBS"),
        first: First::Always(0),
    },
    Scheduler { task: "PBS array index", index: "PBS_ARRAY_INDEX", count: None, first: First::Always(1) },
    Scheduler {
        task: LSF_TASK,
        index: "LSB_JOBINDEX",
        count: Some("LSB_JOBINDEX_END"),
        first: First::Always(1),
    },
];
/// LSF gives a job that is no task of an array the index 0.
const LSF_TASK: &str = "LSF job index";

/// `--job` and `--jobs` of `convert`.
pub(super) fn arguments() -> [Arg; 2] {
    [
        Arg::new("job")
            .long("job")
            .help_heading(headings::SHARES)
            .value_name("I/N")
            .value_parser(parse)
            // -1/4 is a share that makes no sense, and no option.
            .allow_hyphen_values(true)
            .help("Do share I of N of the work, beside the others; `auto`: as the scheduler says [default: the same, if there is one]")
            .long_help(
                "Do share I of N of the work, counted from 1; the others run at the same time or later, on this or other \
                 machines that share the file system, and `requant join` makes one result of them. Without it, and with `auto`, I and N come from \
                 the scheduler that started the process: Slurm, Kubernetes, AWS Batch, SkyPilot, PBS, LSF. 1/1 is the whole work",
            ),
        jobs_argument("Number of shares, where the scheduler does not say it [default: REQUANT_JOBS]"),
    ]
}

/// `--jobs`.
pub(super) fn jobs_argument(help: &'static str) -> Arg {
    Arg::new("jobs")
        .long("jobs")
        .help_heading(headings::SHARES)
        .value_name("N")
        .value_parser(clap::value_parser!(u32).range(1..=i64::from(MAX_SHARES)))
        .help(help)
}

/// The share of the result at `output` that this process is to do, which may be all of it; `None` when nobody says. `variable` looks up
/// an environment variable.
///
/// # Errors
/// When what is given, or what the scheduler says, makes no sense or contradicts itself.
pub(super) fn resolve(
    matches: &ArgMatches,
    output: &Path,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<Job>> {
    let given = matches.get_one::<u32>("jobs").copied();
    let asked = matches.get_one::<Asked>("job").copied();
    if let Some(Asked::Given(share)) = asked {
        if given.is_some_and(|jobs| jobs != share.jobs) {
            return usage(format!("--job {}/{} and --jobs contradict each other", share.job, share.jobs));
        }
        return Ok(Some(Job { share, array: None, said_by: None }));
    }
    let variable = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
    let known = pipeline::agreed(output);
    let mut found: Vec<Job> = Vec::new();
    for scheduler in SCHEDULERS {
        found.extend(scheduler.job(given, known.as_ref(), &variable)?);
    }
    match found.as_slice() {
        [] if asked == Some(Asked::Auto) => {
            let names: Vec<&str> = SCHEDULERS.iter().map(|scheduler| scheduler.index).collect();
            usage(format!(
                "--job auto: no scheduler has started this (looked for {}); give --job I/N",
                names.join(", ")
            ))
        }
        [] if given.is_some() => {
            usage("--jobs says how many shares there are, but not which is this: give --job I/N".into())
        }
        [] => Ok(None),
        [first, others @ ..] => {
            if let Some(other) = others.iter().find(|other| other.share != first.share) {
                let say = |job: &Job| {
                    format!("{} says share {}", job.said_by.as_deref().unwrap_or_default(), job.share)
                };
                return usage(format!("{}, and {}: give --job I/N, or {WHOLE}", say(first), say(other)));
            }
            Ok(Some(first.clone()))
        }
    }
}

impl Scheduler {
    /// The share that this scheduler says, if it has started this process.
    fn job(
        &self,
        given: Option<u32>,
        known: Option<&Agreed>,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Option<Job>> {
        let Some(index) = self.number(self.index, variable)? else { return Ok(None) };
        if self.task == LSF_TASK && index == 0 {
            return Ok(None);
        }
        let count = self.count.map_or(Ok(None), |name| self.number(name, variable))?;
        let given = match given {
            Some(given) => Some(("--jobs", u64::from(given))),
            None => self.number(COUNT_VARIABLE, variable)?.map(|count| (COUNT_VARIABLE, count)),
        };
        let span = match self.first {
            First::Always(first) => ArraySpan { first, step: 1 },
            First::Said(first, step) => ArraySpan {
                first: self.number(first, variable)?.unwrap_or(0),
                step: self.number(step, variable)?.unwrap_or(1).max(1),
            },
        };
        let wanted = given.map(|(_, count)| count).or(count);
        // Tasks of an array that are submitted again are an array of their own.
        let again = known.and_then(|known| {
            let array = known.array?;
            let is_other = count.is_some_and(|count| count != u64::from(known.jobs));
            let is_wanted = given.is_none_or(|(_, given)| given == u64::from(known.jobs));
            (is_other && is_wanted).then_some((u64::from(known.jobs), array))
        });
        let (count, span) = match (again, count, given) {
            (Some((jobs, array)), ..) => (jobs, array),
            (None, Some(count), Some((by, given))) if count != given && self.task != LSF_TASK => {
                return usage(format!(
                    "{} says {count} shares ({}), and {by} says {given}: leave one of them out, or give --job I/N",
                    self.task,
                    self.count.unwrap_or_default()
                ));
            }
            _ => match wanted {
                Some(wanted) => (wanted, span),
                None => {
                    return usage(format!(
                        "{} is {index}: this is a task of several, and nothing says of how many. Give --jobs N or set \
                         {COUNT_VARIABLE}; {WHOLE}",
                        self.index
                    ));
                }
            },
        };
        let jobs = u32::try_from(count).ok().filter(|jobs| (1..=MAX_SHARES).contains(jobs));
        let Some(jobs) = jobs else {
            return usage(format!("{count} shares: from 1 to {MAX_SHARES} are possible"));
        };
        let beyond = index.checked_sub(span.first).filter(|beyond| beyond.is_multiple_of(span.step));
        let number = beyond.map(|beyond| beyond / span.step).filter(|&number| number < count);
        let Some(job) = number.and_then(|number| u32::try_from(number + 1).ok()) else {
            let last = span.first.saturating_add((count - 1).saturating_mul(span.step));
            let steps = if span.step == 1 { String::new() } else { format!(" in steps of {}", span.step) };
            return usage(format!(
                "{} is {index}, and {count} shares are numbered from {} to {last}{steps}; number the tasks so, or give --job \
                 I/N",
                self.index, span.first
            ));
        };
        let said_by = Some(format!("{} {index}", self.task));
        let array = self.count.map(|_| span);
        Ok(Some(Job { share: Share { job, jobs }, array, said_by }))
    }

    /// The number in a variable.
    fn number(&self, name: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<u64>> {
        let Some(text) = variable(name) else { return Ok(None) };
        match text.trim().parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => usage(format!("{name} is {text:?}, which is no number; give --job I/N, or {WHOLE}")),
        }
    }
}

impl Job {
    /// For stderr: who said that this is a share.
    pub(super) fn note(&self, output: &Path) -> Option<String> {
        let said_by = self.said_by.as_ref()?;
        if self.share.jobs == 1 {
            return Some(format!("{said_by} is the only one: it does all of {}", output.display()));
        }
        Some(format!("{said_by}: this is share {} of {} ({WHOLE})", self.share, output.display()))
    }
}

/// The command line without what says which share it is: as one machine would have been given it.
pub(super) fn without_job(words: impl Iterator<Item = String>) -> Vec<String> {
    let mut kept = Vec::new();
    let mut skip = false;
    for word in words {
        if std::mem::take(&mut skip) {
            continue;
        }
        skip = word == "--job" || word == "--jobs";
        if !skip && !word.starts_with("--job=") && !word.starts_with("--jobs=") {
            kept.push(word);
        }
    }
    kept
}

fn parse(text: &str) -> std::result::Result<Asked, String> {
    if text.eq_ignore_ascii_case("auto") {
        return Ok(Asked::Auto);
    }
    let wanted = "expected I/N, such as 2/4 for the second of four shares, or auto";
    let (job, jobs) = text.split_once('/').ok_or(wanted)?;
    // Not +1: only digits.
    let number = |text: &str| {
        let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        is_plain.then(|| text.parse::<u32>().ok()).flatten().ok_or(wanted)
    };
    let share = Share { job: number(job)?, jobs: number(jobs)? };
    match share {
        Share { jobs: 0, .. } => Err("there is at least one share".into()),
        Share { jobs, .. } if jobs > MAX_SHARES => Err(format!("at most {MAX_SHARES} shares are possible")),
        Share { job, jobs } if job == 0 || job > jobs => Err(format!("shares are numbered from 1 to {jobs}")),
        share => Ok(Asked::Given(share)),
    }
}

fn usage<T>(message: String) -> Result<T> {
    Err(Error::Usage(message))
}

#[cfg(test)]
mod tests {
    use clap::Command;

    use super::*;

    /// What is found with these arguments and variables: share and array, or the error.
    fn found(
        arguments: &[&str],
        variables: &[(&str, &str)],
        output: &Path,
    ) -> std::result::Result<Option<Job>, String> {
        let command = Command::new("convert").args(arguments_of_convert());
        let words = ["convert"].iter().chain(arguments);
        let matches = command.try_get_matches_from(words).map_err(|error| error.to_string())?;
        let lookup = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        resolve(&matches, output, &lookup).map_err(|error| error.to_string())
    }

    fn arguments_of_convert() -> [Arg; 2] {
        super::arguments()
    }

    fn share(arguments: &[&str], variables: &[(&str, &str)]) -> Option<(u32, u32)> {
        let job = found(arguments, variables, Path::new("/nowhere/m.gguf"));
        job.unwrap().map(|job| (job.share.job, job.share.jobs))
    }

    fn refused(arguments: &[&str], variables: &[(&str, &str)], words: &[&str]) {
        let error = found(arguments, variables, Path::new("/nowhere/m.gguf")).expect_err("it was accepted");
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }

    type Variables<'a> = &'a [(&'a str, &'a str)];

    const SLURM: [&str; 4] =
        ["SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP"];

    fn slurm(values: [&'static str; 4]) -> Vec<(&'static str, &'static str)> {
        SLURM.into_iter().zip(values).filter(|(_, value)| !value.is_empty()).collect()
    }

    #[test]
    fn every_scheduler_says_which_share() {
        let cases: &[(&[&str], Variables<'_>, (u32, u32))] = &[
            (&[], &slurm(["0", "4", "0", "1"]), (1, 4)),
            (&[], &slurm(["3", "4", "0", ""]), (4, 4)),
            (&[], &slurm(["1", "4", "1", "1"]), (1, 4)),
            (&["--job", "auto"], &slurm(["17", "4", "14", "1"]), (4, 4)),
            (&["--job", "auto"], &slurm(["30", "4", "10", "10"]), (3, 4)),
            (&[], &slurm(["2", "4", "", ""]), (3, 4)),
            (&["--jobs", "4"], &slurm(["2", "4", "0", "1"]), (3, 4)),
            (&["--jobs", "8"], &[("JOB_COMPLETION_INDEX", "0")], (1, 8)),
            (&[], &[("JOB_COMPLETION_INDEX", "7"), ("REQUANT_JOBS", "8")], (8, 8)),
            (&["--jobs", "8"], &[("JOB_COMPLETION_INDEX", "7"), ("REQUANT_JOBS", "9")], (8, 8)),
            (&[], &[("AWS_BATCH_JOB_ARRAY_INDEX", "2"), ("AWS_BATCH_JOB_ARRAY_SIZE", "5")], (3, 5)),
            (&[], &[("SKYPILOT_JOB_RANK", "1"), ("SKYPILOT_NUM_JOBS", "2")], (2, 2)),
            (&["--jobs", "3"], &[("PBS_ARRAY_INDEX", "3")], (3, 3)),
            (&["--jobs", "3"], &[("LSB_JOBINDEX", "1")], (1, 3)),
            (&[], &[("LSB_JOBINDEX", "2"), ("LSB_JOBINDEX_END", "3")], (2, 3)),
            // One task of an LSF array again: its end is not the number of shares.
            (&["--jobs", "3"], &[("LSB_JOBINDEX", "2"), ("LSB_JOBINDEX_END", "2")], (2, 3)),
            // What is given counts.
            (&["--job", "2/9"], &slurm(["0", "4", "0", "1"]), (2, 9)),
            // Two that say the same.
            (
                &["--jobs", "2"],
                &[("JOB_COMPLETION_INDEX", "1"), ("SKYPILOT_JOB_RANK", "1"), ("SKYPILOT_NUM_JOBS", "2")],
                (2, 2),
            ),
        ];
        for (arguments, variables, expected) in cases {
            assert_eq!(share(arguments, variables), Some(*expected), "{arguments:?} {variables:?}");
        }
    }

    #[test]
    fn without_a_scheduler_there_are_none_and_alone_all_of_it_is_done() {
        assert_eq!(share(&[], &[]), None);
        assert_eq!(share(&[], &[("REQUANT_JOBS", "8")]), None);
        assert_eq!(
            share(&[], &[("SLURM_JOB_ID", "8"), ("LSB_JOBINDEX", "0"), ("JOB_COMPLETION_INDEX", "")]),
            None
        );
        assert_eq!(share(&["--job", "1/1"], &slurm(["3", "4", "0", "1"])), Some((1, 1)));
        assert_eq!(share(&[], &slurm(["3", "1", "3", "1"])), Some((1, 1)));
        let alone = found(&[], &slurm(["3", "1", "3", "1"]), Path::new("m.gguf")).unwrap().unwrap();
        let note = alone.note(Path::new("m.gguf")).unwrap();
        assert_eq!(note, "Slurm array task 3 is the only one: it does all of m.gguf");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        refused(&["--job", "auto"], &[], &["--job auto", "SLURM_ARRAY_TASK_ID", "--job I/N"]);
        refused(&["--jobs", "4"], &[], &["--jobs", "--job I/N"]);
        refused(&["--job", "2/4", "--jobs", "5"], &[], &["contradict"]);
        for job in [
            "0/4",
            "5/4",
            "1/0",
            "1",
            "1/",
            "/4",
            "a/b",
            "1/4/2",
            "-1/4",
            "+1/4",
            "1/99999999999",
            "1/70000",
            "",
        ] {
            refused(&["--job", job], &[], &["--job"]);
        }
        refused(&["--jobs", "0"], &[], &["--jobs"]);
        refused(&[], &slurm(["4", "4", "0", "1"]), &["SLURM_ARRAY_TASK_ID is 4", "from 0 to 3"]);
        refused(&[], &slurm(["0", "4", "1", "1"]), &["SLURM_ARRAY_TASK_ID is 0", "from 1 to 4"]);
        refused(&[], &slurm(["15", "4", "10", "10"]), &["in steps of 10"]);
        refused(&[], &slurm(["1", "4", "0", "18446744073709551615"]), &["from 0 to 18446744073709551615"]);
        refused(&[], &slurm(["x", "4", "0", "1"]), &["SLURM_ARRAY_TASK_ID", "no number", "1/1"]);
        refused(&[], &slurm(["1", "-4", "0", "1"]), &["SLURM_ARRAY_TASK_COUNT"]);
        refused(&[], &slurm(["0", "0", "0", "1"]), &["0 shares"]);
        refused(&["--jobs", "5"], &slurm(["0", "4", "0", "1"]), &["4 shares", "--jobs says 5"]);
        refused(
            &[],
            &[("JOB_COMPLETION_INDEX", "1")],
            &["of how many", "--jobs N", "REQUANT_JOBS", "--job 1/1"],
        );
        refused(&[], &[("JOB_COMPLETION_INDEX", "4"), ("REQUANT_JOBS", "4")], &["from 0 to 3"]);
        refused(
            &[],
            &[("JOB_COMPLETION_INDEX", "1"), ("REQUANT_JOBS", "four")],
            &["REQUANT_JOBS", "no number"],
        );
        refused(&["--jobs", "4"], &[("PBS_ARRAY_INDEX", "0")], &["from 1 to 4"]);
        refused(&[], &[("AWS_BATCH_JOB_ARRAY_INDEX", "2")], &["of how many"]);
        let both =
            [slurm(["1", "4", "0", "1"]), vec![("SKYPILOT_JOB_RANK", "0"), ("SKYPILOT_NUM_JOBS", "4")]]
                .concat();
        refused(
            &[],
            &both,
            &["Slurm array task 1 says share 2 of 4", "SkyPilot job rank 0 says share 1 of 4"],
        );
    }

    #[test]
    fn the_command_of_a_share_is_that_of_one_machine() {
        let words = [
            "requant",
            "convert",
            "m",
            "--job",
            "2/4",
            "--to",
            "q4_0",
            "--jobs=4",
            "--job=auto",
            "--jobs",
            "4",
            "-q",
        ];
        let kept = without_job(words.iter().map(|word| (*word).to_owned()));
        assert_eq!(kept, ["requant", "convert", "m", "--to", "q4_0", "-q"]);
    }
}
