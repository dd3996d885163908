//! One wish, from whoever has just logged in for it. In go a path, what is written there, and who asks; out comes an answer, and the
//! login where something may hang on it. A server that does not know the new key or certificate yet is shown the one before
//! (KEY-06, MT-05).

use super::{
    login::{Login, Way, nothing_to_show, ways},
    reply::{self, Document, Step},
    server::{Caller, Server, TOKEN},
    settings::OpenBaoSettings,
};
use crate::{
    issuer::{
        IssueError, IssueFacts, Reason,
        http::{Body, Request},
    },
    secret::Secret,
};

/// What is asked of the server, beside who asks.
#[derive(Clone, Copy)]
pub(super) struct Wish<'a> {
    /// The path, without `/v1/`.
    pub(super) at: &'a str,
    /// What is written there, as JSON; without it, the path is read.
    pub(super) body: Option<&'a str>,
    /// Whether the login may go with the request.
    pub(super) inline: bool,
}

/// An answer, and who it was given to.
pub(super) struct Answered {
    pub(super) document: Document,
    /// None where the login went with the request.
    pub(super) login: Option<Login>,
}

/// A yes, a no that holds, or a no that only says that the request has to be made with a token.
enum Inline {
    Done(Document),
    NeedsToken,
}

impl Server {
    /// Asks once, as somebody who has just logged in for it. Whatever was logged in as is for the caller to end.
    ///
    /// # Errors
    /// [`IssueError`]; there is no login left then.
    pub(super) async fn ask(
        &self,
        caller: Caller<'_>,
        wish: Wish<'_>,
        facts: &mut IssueFacts,
    ) -> Result<Answered, IssueError> {
        let mut ways = ways(caller)?.into_iter().peekable();
        let mut fell_back = false;
        while let Some(way) = ways.next() {
            match self.ask_by(way, caller, wish, facts).await {
                Err(IssueError::Misconfigured { reason: Reason::ClientAuthRejected, .. })
                    if ways.peek().is_some() =>
                {
                    tracing::warn!(issuer = %self.settings.name, "the new key or certificate is not known yet: falling back to the one before");
                    fell_back = true;
                }
                answered => {
                    facts.key_fallback = fell_back && answered.is_ok();
                    return answered;
                }
            }
        }
        Err(nothing_to_show())
    }

    async fn ask_by(
        &self,
        way: Way<'_>,
        caller: Caller<'_>,
        wish: Wish<'_>,
        facts: &mut IssueFacts,
    ) -> Result<Answered, IssueError> {
        if wish.inline
            && let Inline::Done(document) = self.ask_inline(way, caller, wish, facts).await?
        {
            return Ok(Answered { document, login: None });
        }
        let login = self.log_in(way, caller, facts).await?;
        let shown = way.shown(caller);
        let request = wish.request(&self.settings).with(TOKEN, copy(&login.token));
        let answered = match self.send(shown, request, facts).await {
            Ok(response) => Document::read(&response, Step::Do(wish.at), self.clock.wall()),
            Err(error) => Err(error),
        };
        match answered {
            Ok(document) => Ok(Answered { document, login: Some(login) }),
            Err(error) => {
                self.let_go(&login.token, caller).await;
                Err(error)
            }
        }
    }

    /// With the login in the request, if the server does that.
    async fn ask_inline(
        &self,
        way: Way<'_>,
        caller: Caller<'_>,
        wish: Wish<'_>,
        facts: &mut IssueFacts,
    ) -> Result<Inline, IssueError> {
        let request = self.carrying(wish.request(&self.settings), way, caller).await?;
        let response = self.send(way.shown(caller), request, facts).await?;
        if reply::leases_something(&response) {
            return Ok(Inline::NeedsToken);
        }
        Document::read(&response, Step::DoInline(wish.at), self.clock.wall()).map(Inline::Done)
    }
}

impl Wish<'_> {
    fn request(self, settings: &OpenBaoSettings) -> Request {
        match self.body {
            Some(body) => {
                let content = Secret::new(body);
                Request::post(settings.at(self.at), Body { media_type: "application/json", content })
            }
            None => Request::get(settings.at(self.at)),
        }
    }
}

fn copy(secret: &Secret) -> Secret {
    Secret::new(secret.expose())
}
