//! `keybearer template`: a configuration file with credentials in it, for programs that read nothing else. In go a template and the
//! name of the file; out comes the file, or the template's line that is in the way.

use std::{io::Read as _, path::PathBuf};

use clap::Args;

use super::{
    Exit, WorkloadSocket,
    delivered::{Freshness, Last, Place},
    paint,
};
use crate::shim::{Template, TemplateError, offers};

#[derive(Args, Debug)]
#[command(
    after_help = "In a template, {{ ledger.token }} is the field token of the credential ledger; a credential's - is _ there.\n\
    Filters: base64, curlrc, json, mycnf, pgpass, sh, urlencode. There is no other way to quote: nothing is escaped by itself."
)]
pub(super) struct TemplateCommand {
    /// The template.
    #[arg(value_name = "TEMPLATE")]
    template: PathBuf,
    /// The file to write; `-` for standard output.
    #[arg(value_name = "FILE", required_unless_present = "check")]
    out: Option<PathBuf>,
    /// Only read the template and say which credentials it is about; no agent is asked.
    #[arg(long, conflicts_with = "out")]
    check: bool,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    freshness: Freshness,
    #[command(flatten)]
    socket: WorkloadSocket,
}

impl TemplateCommand {
    pub(super) async fn run(self) -> Result<(), Exit> {
        let template = self.read()?;
        let Some(out) = self.out.as_deref().filter(|_| !self.check) else {
            let names: Vec<&str> = template.names().collect();
            return paint::line(&format!("{}: {}", self.template.display(), names.join(" ")));
        };
        let output = self.place.output(out, &self.freshness)?;
        output.warn_of_disk()?;
        let socket = &self.socket.socket;
        let offers = offers(socket, self.freshness.start_timeout()).await?;
        let offered: Vec<&str> = offers.iter().map(|offer| offer.name.as_str()).collect();
        let cast = template.cast(&offered)?;
        let mut last = Last::default();
        let write = |fetched: &_| {
            let bytes = template.render(&cast, fetched)?;
            if last.differs(bytes.expose()) {
                output.write(&bytes)?;
                last.is(bytes.expose());
            }
            Ok(())
        };
        self.freshness.deliver(socket, &cast.credentials(), write).await
    }

    fn read(&self) -> Result<Template, Exit> {
        let failed = |error| Exit::new(Exit::NO_INPUT, format!("{}: {error}", self.template.display()));
        let file = std::fs::File::open(&self.template).map_err(failed)?;
        let mut text = String::new();
        file.take(Template::LONGEST as u64 + 1).read_to_string(&mut text).map_err(failed)?;
        Ok(Template::parse(&self.template, text)?)
    }
}

impl From<TemplateError> for Exit {
    fn from(error: TemplateError) -> Self {
        Self::new(Self::DATA, error.to_string())
    }
}
