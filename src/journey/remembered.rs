//! Where places are kept for the next start (S17). In goes the file's path; out comes what an agent before this one knew, or why
//! that is lost. Nothing here is secret, and nothing grants anything: whoever loses it is told of old places as if they were the
//! measure again, so a loss is said, and the agent runs on.

use std::{
    collections::HashMap,
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::places::{MOST_IDENTITIES, MOST_NAME, MOST_PLACES, Place, Places};
use crate::keys::put_whole;

/// A file that is longer is none of ours.
const MOST_BYTES: u64 = 16 << 20;

/// The form of the file.
const FORM: u32 = 1;

/// Where from identities are used, and where that is kept.
#[derive(Clone, Debug, Default)]
pub struct Remembered {
    places: Arc<Mutex<Places>>,
    /// None keeps nothing.
    file: Option<Arc<Mutex<PathBuf>>>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Written {
    v: u32,
    identities: HashMap<Arc<str>, Vec<Place>>,
}

impl Remembered {
    /// What is kept at `path`, and what was wrong with it: then all is forgotten, and begun anew.
    pub fn open(path: PathBuf) -> (Self, Option<io::Error>) {
        let (known, wrong) = match read(&path) {
            Ok(known) => (known, None),
            Err(error) => (HashMap::new(), Some(error)),
        };
        let places = Arc::new(Mutex::new(Places::knowing(known)));
        (Self { places, file: Some(Arc::new(Mutex::new(path))) }, wrong)
    }

    /// Looks at it, or changes it.
    pub(super) fn with<T>(&self, look: impl FnOnce(&mut Places) -> T) -> T {
        look(&mut self.places.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes what is known now. Waits for the disk.
    ///
    /// # Errors
    /// What the file system says; the file is as it was then.
    pub(super) fn keep(&self) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        // One at a time, and each writes what is known when its turn comes: the last is never the older.
        let path = file.lock().unwrap_or_else(PoisonError::into_inner);
        let text =
            self.with(|places| serde_json::to_vec(&Written { v: FORM, identities: places.known().clone() }))?;
        put_whole(&path, &text)
    }
}

fn read(path: &Path) -> io::Result<HashMap<Arc<str>, Vec<Place>>> {
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(HashMap::new()),
        file => file?,
    };
    let mut text = Vec::new();
    file.take(MOST_BYTES).read_to_end(&mut text)?;
    let written: Written = serde_json::from_slice(&text)?;
    let sound = |places: &Vec<Place>| {
        places.len() <= MOST_PLACES
            && places.iter().all(|place| {
                let sum = place.sha256.as_ref();
                place.name.len() <= MOST_NAME && sum.is_none_or(|sum| sum.len() == 64)
            })
    };
    if written.v != FORM
        || written.identities.len() > MOST_IDENTITIES
        || !written.identities.values().all(sound)
    {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is not of the form that this agent writes",
        ));
    }
    Ok(written.identities)
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt as _, time::Duration};

    use super::*;
    use crate::{clock::Boot, journey::places::News};

    fn place(name: &str) -> Place {
        Place { name: name.into(), sha256: None, unreadable: false, hosts_files: None, since: 0 }
    }

    fn note(remembered: &Remembered, name: &str) {
        let life = Duration::from_secs(1);
        assert!(remembered.with(|places| places.note(
            &"shop".into(),
            &place(name),
            life,
            Boot::from_nanos(0)
        )));
        remembered.keep().unwrap();
    }

    #[test]
    fn what_is_known_is_known_at_the_next_start() {
        // S17
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("places.json");
        let (first, wrong) = Remembered::open(path.clone());
        assert!(wrong.is_none(), "that there is none is the first start");
        note(&first, "unit a.service");
        note(&first, "unit b.service");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        let (second, wrong) = Remembered::open(path);
        assert!(wrong.is_none());
        let news = |name| second.with(|places| places.news("shop", &place(name), Boot::from_nanos(0)));
        assert_eq!((news("unit b.service"), news("unit c.service")), (vec![], vec![News::NewPlace(2)]));
    }

    #[test]
    fn a_broken_file_is_told_and_begun_anew() {
        // S17
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("places.json");
        let long = "x".repeat(MOST_NAME + 1);
        for broken in [
            String::new(),
            "{".into(),
            "[]".into(),
            r#"{"v":2,"identities":{}}"#.into(),
            r#"{"v":1,"identities":{},"more":1}"#.into(),
            format!(
                r#"{{"v":1,"identities":{{"shop":[{{"name":"{long}","sha256":null,"hosts_files":null,"since":1}}]}}}}"#
            ),
        ] {
            fs::write(&path, &broken).unwrap();
            let (anew, wrong) = Remembered::open(path.clone());
            assert!(wrong.is_some(), "{broken}");
            note(&anew, "unit a.service");
            assert!(Remembered::open(path.clone()).1.is_none());
        }
        // A directory in its place: told, and no crash at the next use.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let (anew, wrong) = Remembered::open(path);
        assert!(wrong.is_some() && anew.keep().is_err());
    }
}
