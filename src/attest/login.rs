//! Whether a person is behind a process (NHI-10). In go its login uid, its controlling terminal and its cgroup; out comes the sign
//! that gives the person away, none, or why that cannot be told.
//!
//! Each of the three is evidence that there is one, and none is evidence that there is none: a person can leave a terminal
//! (setsid(2)), and a cgroup with the help of a service manager. The login uid is the strongest: it is written at a login, every
//! child has it, and to be rid of it takes CAP_AUDIT_CONTROL. A process that has none may give itself one, which harms only itself.
//! A cgroup below user.slice is where logind and users' own managers put what a login starts. A terminal is what no service manager
//! gives to a service that did not ask for one; it tells of `docker exec -it`, `systemd-run --pty` and consoles, where nobody logged in.
//!
//! Noise that is known: cron and at jobs have the login uid of their user, by PAM; a daemon that was started from somebody's shell has
//! his. What a person does through the service manager (`systemctl restart`) has no sign, and is the unit's.

use super::{Missing, unit::Place};

/// What gives a person away.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sign {
    /// Somebody logged in, and this is what he started: his uid then.
    LoginUid(u32),
    /// It has a controlling terminal.
    Terminal,
    /// Its cgroup is below user.slice.
    UserSlice,
}

impl Sign {
    /// The reason code.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LoginUid(_) => "LOGIN_UID",
            Self::Terminal => "TERMINAL",
            Self::UserSlice => "USER_SLICE",
        }
    }

    /// In words, of a process.
    pub fn words(self) -> String {
        match self {
            Self::LoginUid(uid) => format!("it was started by a login of uid {uid}"),
            Self::Terminal => "it has a controlling terminal".into(),
            Self::UserSlice => "its cgroup is below user.slice".into(),
        }
    }
}

/// The evidence of it, and why the rest is not there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Login {
    /// The uid that logged in, if any.
    pub uid: Result<Option<u32>, Missing>,
    /// Whether it has a controlling terminal.
    pub terminal: Result<bool, Missing>,
    /// Whether its cgroup is below user.slice.
    pub user_slice: Result<bool, Missing>,
}

impl Login {
    /// Nobody logged in, and that is certain.
    pub const NONE: Self = Self { uid: Ok(None), terminal: Ok(false), user_slice: Ok(false) };

    pub(super) fn of(
        uid: Result<Option<u32>, Missing>,
        terminal: Result<bool, Missing>,
        cgroup: &str,
    ) -> Self {
        Self { uid, terminal, user_slice: is_below_user_slice(cgroup) }
    }

    /// The strongest sign of a person.
    ///
    /// # Errors
    /// What could not be read, if it might have told of one and nothing else does.
    pub fn sign(&self) -> Result<Option<Sign>, Missing> {
        match (self.uid, self.user_slice, self.terminal) {
            (Ok(Some(uid)), ..) => Ok(Some(Sign::LoginUid(uid))),
            (_, Ok(true), _) => Ok(Some(Sign::UserSlice)),
            (_, _, Ok(true)) => Ok(Some(Sign::Terminal)),
            (Err(missing), ..) | (_, Err(missing), _) | (_, _, Err(missing)) => Err(missing),
            (Ok(None), Ok(false), Ok(false)) => Ok(None),
        }
    }

    /// The same where a user's own manager is meant to run it: whose login uid and slice it then has, and a terminal all the same
    /// only if somebody sits at it.
    ///
    /// # Errors
    /// As above.
    pub fn sign_in_users_manager(&self) -> Result<Option<Sign>, Missing> {
        Self { uid: Ok(None), user_slice: Ok(false), ..*self }.sign()
    }
}

fn is_below_user_slice(cgroup: &str) -> Result<bool, Missing> {
    match Place::of(cgroup) {
        Ok(place) => {
            let mut parts = place.path.split('/').skip(1);
            match parts.next() {
                // Out of sight of this cgroup namespace: it says nothing about this host's tree.
                Some("..") | None => Err(Missing::CgroupForm),
                first => Ok(first == Some("user.slice")),
            }
        }
        // The top of the tree is below nothing.
        Err(Missing::NoUnit) => Ok(false),
        Err(missing) => Err(missing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sign_of_a_person_is_enough_and_the_strongest_is_named() {
        // NHI-10, S17
        let none = Login::NONE;
        let sign = |login: Login| login.sign();
        assert_eq!(sign(none), Ok(None));
        assert_eq!(sign(Login { uid: Ok(Some(1000)), ..none }), Ok(Some(Sign::LoginUid(1000))));
        assert_eq!(
            sign(Login { uid: Ok(Some(0)), ..none }),
            Ok(Some(Sign::LoginUid(0))),
            "root is somebody too"
        );
        assert_eq!(sign(Login { user_slice: Ok(true), ..none }), Ok(Some(Sign::UserSlice)));
        assert_eq!(sign(Login { terminal: Ok(true), ..none }), Ok(Some(Sign::Terminal)));
        let all = Login { uid: Ok(Some(7)), terminal: Ok(true), user_slice: Ok(true) };
        assert_eq!(sign(all), Ok(Some(Sign::LoginUid(7))));
        assert_eq!(sign(Login { uid: Ok(None), ..all }), Ok(Some(Sign::UserSlice)));
    }

    #[test]
    fn what_cannot_be_read_is_missing_and_never_nobody() {
        // NHI-10
        let none = Login::NONE;
        for (login, missing) in [
            (Login { uid: Err(Missing::NoAudit), ..none }, Missing::NoAudit),
            (Login { terminal: Err(Missing::Exited), ..none }, Missing::Exited),
            (Login { user_slice: Err(Missing::CgroupForm), ..none }, Missing::CgroupForm),
        ] {
            assert_eq!(login.sign(), Err(missing));
        }
        let seen = Login { uid: Err(Missing::NoAudit), terminal: Ok(true), ..none };
        assert_eq!(seen.sign(), Ok(Some(Sign::Terminal)), "another tells all the same");
    }

    #[test]
    fn in_a_users_manager_only_a_terminal_tells() {
        // NHI-10
        let of_user = Login { uid: Ok(Some(1000)), user_slice: Ok(true), terminal: Ok(false) };
        assert_eq!(of_user.sign_in_users_manager(), Ok(None));
        let sits = Login { terminal: Ok(true), ..of_user };
        assert_eq!(sits.sign_in_users_manager(), Ok(Some(Sign::Terminal)));
    }

    #[test]
    fn a_login_session_is_known_by_its_slice() {
        // NHI-10
        for (cgroup, is) in [
            ("0::/user.slice/user-1000.slice/session-3.scope\n", Ok(true)),
            ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/vte-spawn-1.scope\n", Ok(true)),
            ("9:name=systemd:/user.slice/user-0.slice/session-1.scope\n0::/\n", Ok(true)),
            ("0::/system.slice/user.slice\n", Ok(false)),
            ("0::/system.slice/shop.service\n", Ok(false)),
            ("0::/docker/0123\n", Ok(false)),
            ("0::/\n", Ok(false)),
            ("0::/../user.slice/user-1000.slice\n", Err(Missing::CgroupForm)),
            ("9:name=systemd:/user.slice/a\n0::/system.slice/b.service\n", Err(Missing::CgroupsDisagree)),
            ("nonsense\n", Err(Missing::CgroupForm)),
        ] {
            assert_eq!(is_below_user_slice(cgroup), is, "{cgroup}");
        }
    }
}
