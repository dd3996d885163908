//! `keybearer doctor`: what is wrong with this host as a place for the agent, and what to do about it.

use clap::Args;
use serde_json::json;

use super::{ConfigFile, Exit, environment, paint, print_json};
use crate::{
    clock::{SystemClock, SystemDice},
    doctor::{Verdict, examine},
};

#[derive(Args, Debug)]
pub(super) struct Doctor {
    #[command(flatten)]
    file: ConfigFile,
    /// Only what is wrong or could be better.
    #[arg(long, short)]
    quiet: bool,
    /// For machines.
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub(super) async fn run(self) -> Result<(), Exit> {
        let clock = SystemClock::shared();
        let mut found = examine(&self.file.config, &environment(), &*clock, SystemDice::shared()).await;
        // The worst first, and otherwise as they were found.
        found.sort_by_key(|finding| finding.verdict);
        let count = |verdict| found.iter().filter(|finding| finding.verdict == verdict).count();
        let (failed, warned, good) = (count(Verdict::Fail), count(Verdict::Warn), count(Verdict::Ok));
        if self.json {
            let all: Vec<_> = found
                .iter()
                .map(|it| json!({"about": it.about, "verdict": it.verdict.as_str(), "what": it.what, "remedy": it.remedy}))
                .collect();
            print_json(&json!({"ok": failed == 0, "findings": all}))?;
        } else {
            for finding in found.iter().filter(|finding| !self.quiet || finding.verdict != Verdict::Ok) {
                let verdict = match finding.verdict {
                    Verdict::Fail => paint::bad("fail"),
                    Verdict::Warn => paint::bold("warn"),
                    Verdict::Ok => paint::good("ok  "),
                };
                paint::line(&format!("{verdict}  {}: {}", paint::bold(&finding.about), finding.what))?;
                if !finding.remedy.is_empty() {
                    paint::line(&format!("      {} {}", paint::dim("->"), finding.remedy))?;
                }
            }
            paint::line(&format!("{failed} failed, {warned} to look at, {good} as they should be"))?;
        }
        if failed == 0 { Ok(()) } else { Err(Exit::new(Exit::DATA, "")) }
    }
}
