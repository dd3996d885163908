//! Where values stand in a text, by its [`Form`]. In goes a text; out come names and values, line by line. Each reader has the light
//! structure of its form and no more: what it cannot make sense of it passes over, since shapes are looked for everywhere anyway.

mod assigned;
mod quoted;
mod shell;
mod tables;
mod unit;
mod yaml;

use super::{Form, Place};

/// A value, behind its name.
#[derive(Clone, Copy)]
pub(super) struct Spot<'a> {
    /// From 1.
    pub(super) line: usize,
    pub(super) name: &'a str,
    pub(super) value: &'a str,
    pub(super) place: Place,
}

/// Who is told of each.
pub(super) type Each<'e> = &'e mut dyn FnMut(Spot<'_>);

/// Tells `each` of every value in `text`.
pub(super) fn spots(form: Form, text: &str, each: Each<'_>) {
    match form {
        Form::Unit => unit::spots(text, each),
        Form::Env => assigned::env(text, each),
        Form::Settings => assigned::settings(text, each),
        Form::Yaml => yaml::spots(text, each),
        Form::Quoted => quoted::spots(text, each),
        Form::Shell => shell::spots(text, each),
        Form::Netrc => tables::netrc(text, each),
        Form::Pgpass => tables::pgpass(text, each),
        Form::Prose => {}
    }
}

/// The files that a unit reads its environment from, by their absolute paths.
pub(super) fn environment_files(text: &str) -> Vec<String> {
    unit::environment_files(text)
}

/// Lines, those that end in a backslash with the ones after them; each with the number of its first.
fn joined(text: &str) -> impl Iterator<Item = (usize, std::borrow::Cow<'_, str>)> {
    let mut lines = text.lines().enumerate();
    std::iter::from_fn(move || {
        let (at, first) = lines.next()?;
        let Some(cut) = first.strip_suffix('\\') else { return Some((at + 1, first.into())) };
        let mut whole = cut.to_owned();
        for (_, next) in lines.by_ref() {
            whole.push(' ');
            let Some(cut) = next.strip_suffix('\\') else {
                whole.push_str(next);
                break;
            };
            whole.push_str(cut);
        }
        Some((at + 1, whole.into()))
    })
}

fn is_comment(line: &str) -> bool {
    line.starts_with(['#', ';']) || line.starts_with("//") && !line.contains(":_")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read, as `line name=value`.
    pub(super) fn read(form: Form, text: &str) -> Vec<String> {
        let mut seen = vec![];
        spots(form, text, &mut |spot| seen.push(format!("{} {}={}", spot.line, spot.name, spot.value)));
        seen
    }

    #[test]
    fn every_form_is_read_in_its_own_way() {
        let env = "# A=1\nA=plain # why\nexport B=\"two \\\"words\\\"\"\nC='first\nsecond'\nD=\"open\n; x\n E = spaced\n";
        assert_eq!(
            read(Form::Env, env),
            ["2 A=plain", "3 B=two \"words\"", "4 C=first\nsecond", "6 D=\"open", "8 E=spaced"]
        );
        let settings = "[a]\nuser = u\n//npm.internal/:_authToken=t\npass: \"p # p\" ; why\nrequirepass r\nfiles a b\nx = y # z\n";
        assert_eq!(
            read(Form::Settings, settings),
            ["2 user=u", "3 _authToken=t", "4 pass=p # p", "5 requirepass=r", "7 x=y"]
        );
        let unit = "[Service]\nEnvironment=\"A=1 2\" B=3 \\\n  'C=4'\nExecStart=/bin/app --token=t -p 5 --db-password q\n\
                    SetCredential=id:v\\x20w\nSetCredentialEncrypted=x: abc\n[WireGuard]\nPrivateKey=k\n";
        assert_eq!(
            read(Form::Unit, unit),
            ["2 A=1 2", "2 B=3", "2 C=4", "4 token=t", "4 db-password=q", "5 id=v w", "8 PrivateKey=k"]
        );
        let quoted = "{\"a\": \"1\", \"b\":{\"c\" : \"2\\\"\"}}\n<add key=\"Pw\" value=\"3\"/>\n<password>4</password>\n\
                      variable \"db_password\" {\n  default = \"5\"\n}\n$x['k'] = 'v';\ndefine('K', 'w');\n";
        assert_eq!(
            read(Form::Quoted, quoted),
            ["1 a=1", "1 c=2\"", "2 key=Pw", "2 Pw=3", "3 password=4", "5 db_password=5", "7 k=v", "8 K=w"]
        );
        let yaml = "a: 1 # x\n- b: 'two'\n\"c\":\n  d: |\n    block\n  list:\n    - E=5\n    - name: F\n      value: six\ng: {h: 7, i: \"8\"}\n";
        assert_eq!(
            read(Form::Yaml, yaml),
            ["1 a=1", "2 b=two", "5 d=block", "7 E=5", "8 name=F", "9 F=six", "10 i=8", "10 h=7"]
        );
        let shell = "# A=1\nexport A=1 B='2 3'\nENV C 4\nARG D=5\nPGPASSWORD=6 psql -h db\ncurl -u me:7 x\nmysql -p8 db\n\
                     sh -c 'sshpass -p 9 ssh h'\n";
        assert_eq!(
            read(Form::Shell, shell),
            [
                "2 A=1",
                "2 B=2 3",
                "3 C=4",
                "4 D=5",
                "5 PGPASSWORD=6",
                "6 password=7",
                "7 password=8",
                "8 password=9"
            ]
        );
        assert_eq!(read(Form::Netrc, "machine h\n login l\n password p q\n"), ["3 password=p"]);
        assert_eq!(read(Form::Pgpass, "#x\nh:5432:d:u:p\\:w\nh:1:2\n"), ["2 password=p:w"]);
    }

    #[test]
    fn entries_of_a_kubernetes_secret_are_decoded() {
        let text = "apiVersion: v1\ndata:\n  pw: aHVudGVyMjI=\nstringData:\n  key: open\nkind: Secret\n---\nkind: ConfigMap\ndata:\n  pw: aGk=\n";
        assert_eq!(
            read(Form::Yaml, text),
            [
                "1 apiVersion=v1",
                "3 pw=hunter22",
                "5 key=open",
                "6 kind=Secret",
                "8 kind=ConfigMap",
                "10 pw=aGk="
            ]
        );
    }

    #[test]
    fn the_files_of_a_unit_are_named() {
        let text = "[Service]\nEnvironmentFile=-/etc/default/shop\nEnvironmentFile=%t/x\nEnvironmentFile=/run/*.env\nEnvironmentFile=/a b\n";
        assert_eq!(environment_files(text), ["/etc/default/shop", "/a b"]);
    }
}
