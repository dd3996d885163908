//! `keybearer env-file`: what a program gets, as the file that its service manager, container engine, shell or library reads variables
//! from. In go names and fields, from the command line or from what agent.toml declares for whoever runs this; out comes the file, whole
//! and right for its reader, or the variable that is in the way.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry as Slot},
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;

use super::{
    Exit, WorkloadSocket,
    delivered::{Freshness, Last, Output, Place, warn_of_disk},
};
use crate::{
    deliver::{CannotCarry, Delivery, Dialect, Entry, Manifest, ObjectName, Source, Variable},
    secret::Secret,
    shim::{Fetched, declared},
};

#[derive(Args, Debug)]
#[command(
    after_help = "Without --env and --file, what agent.toml declares for this program ([identities.NAME.deliver]).\n\
    EnvironmentFile= of systemd:  keybearer env-file --format systemd --out /run/shop/env\n\
    docker run --env-file:        keybearer env-file --format docker --env TOKEN=ledger.token --out /run/shop/env"
)]
pub(super) struct EnvFile {
    /// Who reads it: systemd, docker, dotenv, sh, json or k8s-secret.
    #[arg(long, value_name = "FORMAT")]
    format: Dialect,
    /// A variable, and the field that is its value; may be repeated.
    #[arg(long = "env", value_name = "NAME=CREDENTIAL.FIELD", value_parser = pair)]
    env: Vec<(Variable, Source)>,
    /// A variable that is the path of a file with the field's value, in the directory that --files-in names; may be repeated.
    #[arg(long = "file", value_name = "NAME=CREDENTIAL.FIELD", value_parser = pair, requires = "files_in")]
    file: Vec<(Variable, Source)>,
    /// Where those files are: a directory of their own, in which they switch together.
    #[arg(long, value_name = "DIRECTORY")]
    files_in: Option<PathBuf>,
    /// The file to write; `-` for standard output.
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// The Secret's name (k8s-secret).
    #[arg(long, value_name = "NAME")]
    name: Option<ObjectName>,
    /// The Secret's namespace (k8s-secret).
    #[arg(long, value_name = "NAME", requires = "name")]
    namespace: Option<ObjectName>,
    /// Allow variables that a loader or an interpreter obeys, such as LD_PRELOAD.
    #[arg(long)]
    allow_loader_variables: bool,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    freshness: Freshness,
    #[command(flatten)]
    socket: WorkloadSocket,
}

fn pair(text: &str) -> Result<(Variable, Source), String> {
    let (name, source) =
        text.split_once('=').ok_or("write NAME=CREDENTIAL.FIELD, as in TOKEN=ledger.token")?;
    Ok((name.parse()?, source.parse()?))
}

impl EnvFile {
    pub(super) async fn run(self) -> Result<(), Exit> {
        let dialect = self.dialect()?;
        let output = self.place.output(&self.out, &self.freshness)?;
        output.warn_of_disk()?;
        let files_in = self.files_in(&output)?;
        let delivery = self.delivery().await?;
        let wanted: BTreeSet<Arc<str>> =
            delivery.sources().map(|source| Arc::clone(&source.credential)).collect();
        let mut writer =
            Writer { dialect, output, files_in, delivery, last: Last::default(), last_set: Last::default() };
        self.freshness.deliver(&self.socket.socket, &wanted, |fetched| writer.write(fetched)).await
    }

    fn dialect(&self) -> Result<Dialect, Exit> {
        match (&self.format, &self.name) {
            (Dialect::KubernetesSecret(_), Some(name)) => Ok(Dialect::KubernetesSecret(Manifest {
                name: name.clone(),
                namespace: self.namespace.clone(),
            })),
            (Dialect::KubernetesSecret(_), None) => {
                Err(Exit::new(Exit::USAGE, "a Secret has a name: say which (--name)"))
            }
            (_, Some(_)) => Err(Exit::new(Exit::USAGE, "--name is of --format k8s-secret")),
            (dialect, None) => Ok(dialect.clone()),
        }
    }

    /// The directory of the files, by a path that is right from anywhere.
    fn files_in(&self, output: &Output) -> Result<Option<PathBuf>, Exit> {
        let Some(directory) = &self.files_in else { return Ok(None) };
        let directory = std::path::absolute(directory)?;
        warn_of_disk(&output.beside(&directory)?, &directory);
        Ok(Some(directory))
    }

    /// What the command line says, or else what is declared.
    async fn delivery(&self) -> Result<Delivery, Exit> {
        if self.env.is_empty() && self.file.is_empty() {
            let delivery = declared(&self.socket.socket, self.freshness.start_timeout()).await?;
            let config = |why: String| Err(Exit::new(Exit::CONFIG, why));
            if delivery.sources().next().is_none() {
                return config(
                    "nothing is declared for this program: name what it gets (--env NAME=CREDENTIAL.FIELD), or declare it in \
                     agent.toml ([identities.NAME.deliver])"
                        .into(),
                );
            }
            if let (None, Some(name)) = (&self.files_in, delivery.files.keys().next()) {
                return config(format!(
                    "{name} is declared as a file: say where such files are to be (--files-in DIRECTORY), or name what you want of \
                     it all (--env)"
                ));
            }
            return Ok(delivery);
        }
        let delivery = Delivery {
            env: once("--env", &self.env)?,
            files: once("--file", &self.file)?,
            loader_variables: self.allow_loader_variables,
            ..Delivery::default()
        };
        match delivery.problems().into_iter().next() {
            None => Ok(delivery),
            Some((key, why)) => {
                let why = why.replace("say loader_variables = true", "say --allow-loader-variables");
                Err(Exit::new(Exit::USAGE, format!("--{}: {why}", key.replace('.', " "))))
            }
        }
    }
}

fn once(flag: &str, pairs: &[(Variable, Source)]) -> Result<BTreeMap<Variable, Source>, Exit> {
    let mut named = BTreeMap::new();
    for (name, source) in pairs {
        match named.entry(name.clone()) {
            Slot::Vacant(slot) => drop(slot.insert(source.clone())),
            Slot::Occupied(_) => {
                return Err(Exit::new(
                    Exit::USAGE,
                    format!("{flag} {name} is there twice: a variable has one meaning"),
                ));
            }
        }
    }
    Ok(named)
}

struct Writer {
    dialect: Dialect,
    output: Output,
    files_in: Option<PathBuf>,
    delivery: Delivery,
    last: Last,
    last_set: Last,
}

impl Writer {
    /// The files first: the variables lead to them.
    fn write(&mut self, fetched: &Fetched) -> Result<(), Exit> {
        let mut entries = Vec::new();
        for (variable, source) in &self.delivery.env {
            entries.push(Entry {
                variable: variable.clone(),
                source: source.clone(),
                value: fetched.value(source)?,
            });
        }
        let files = self.files(fetched, &mut entries)?;
        entries.sort_by(|one, other| one.variable.cmp(&other.variable));
        // Nothing is written unless all of it can be.
        let bytes = self.dialect.write(&entries)?;
        if let Some(directory) = &self.files_in {
            let files: Vec<(&str, &[u8])> =
                files.iter().map(|(name, value)| (name.as_str(), value.expose())).collect();
            let all = Secret::new(
                files.iter().flat_map(|(name, bytes)| [name.as_bytes(), *bytes]).collect::<Vec<_>>().concat(),
            );
            if !files.is_empty() && self.last_set.differs(all.expose()) {
                self.output.write_set(directory, &files)?;
                self.last_set.is(all.expose());
            }
        }
        if self.last.differs(bytes.expose()) {
            self.output.write(&bytes)?;
            self.last.is(bytes.expose());
        }
        Ok(())
    }

    /// The files' values, and the variables with their paths.
    fn files(&self, fetched: &Fetched, entries: &mut Vec<Entry>) -> Result<Vec<(Variable, Secret)>, Exit> {
        let mut files = Vec::new();
        let directory = self.files_in.as_deref().unwrap_or(Path::new(""));
        for (variable, source) in &self.delivery.files {
            let path = directory.join(variable.as_str()).into_os_string();
            let value = Secret::new(std::os::unix::ffi::OsStringExt::into_vec(path));
            entries.push(Entry { variable: variable.clone(), source: source.clone(), value });
            files.push((variable.clone(), fetched.value(source)?));
        }
        Ok(files)
    }
}

impl From<CannotCarry> for Exit {
    fn from(error: CannotCarry) -> Self {
        Self::new(Self::DATA, error.to_string())
    }
}
