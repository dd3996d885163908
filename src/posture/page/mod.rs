//! The report as one page of HTML that needs nothing else: no script, no other file, no network. In goes a [`Report`]; out comes the
//! page. Every name goes through [`esc`], because a ledger and settings hold what strangers chose.

mod picture;

use std::fmt::Write as _;

use super::{
    CredentialPart, IdentityPart, Report, Trust, Verdict, count, length,
    text::{days_left, sealed, what_it_is},
};
use crate::secret::is_obeyed;

const STYLE: &str = include_str!("page.css");

/// The page. It says of itself that nothing may be loaded into it.
pub fn page(report: &Report) -> String {
    let mut out = String::with_capacity(64 << 10);
    // Writing to a String cannot fail; so for all that follows.
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>Posture of {0}, {1}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <a class=\"skip\" href=\"#main\">To the report</a>\n<header>\n<h1>Posture of <em>{0}</em></h1>\n<p class=\"meta\">Made {3}, from settings \
         <code>{2}</code>; use counts since {4}. All times are UTC.</p>\n</header>\n",
        esc(&report.environment),
        esc(&report.time),
        esc(report.config_digest.get(..12).unwrap_or(&report.config_digest)),
        when(Some(&report.time)),
        when(Some(&report.since)),
    );
    out.push_str("<main id=\"main\">\n");
    trust(&mut out, report);
    summary(&mut out, report);
    remedies(&mut out, report);
    picture::lifetimes(&mut out, report);
    picture::reach(&mut out, report);
    identities(&mut out, report);
    controls(&mut out, report);
    out.push_str("</main>\n<footer><p>Made by <code>keybearer posture</code>. It says what settings and ledger say, and no more.</p></footer>\n");
    out.push_str("</body>\n</html>\n");
    out
}

/// Text that is nothing but text, in HTML and in SVG, in an element and in a quoted attribute.
fn esc(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if is_obeyed(c) && c != '\n' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A moment to the minute, with all of it for machines.
fn when(time: Option<&str>) -> String {
    let Some(time) = time else { return "never seen".into() };
    let short = time.get(..16).unwrap_or(time).replace('T', "\u{a0}");
    format!("<time datetime=\"{}\">{}</time>", esc(time), esc(&short))
}

fn trust(out: &mut String, report: &Report) {
    let ledger = &report.ledger;
    let _ = match (&ledger.trust, &ledger.first) {
        (Trust::Tampered { seq, fault }, _) => writeln!(
            out,
            "<section class=\"alarm\" role=\"alert\"><h2>The ledger is not what was written</h2><p>Record {seq}: {}. Only the {} before \
             the fault were counted here. Keep the directory as evidence.</p></section>",
            esc(fault),
            count(ledger.counted, "record")
        ),
        (Trust::Missing, _) | (_, None) => {
            writeln!(out, "<p class=\"note\">There is no ledger yet: what is used, nobody can tell.</p>")
        }
        (Trust::Whole { records, signed, .. }, Some(first)) => writeln!(
            out,
            "<p class=\"note\">The ledger is whole: {records} records from {} on, {signed} of them signed.{}</p>",
            when(Some(first)),
            if ledger.covers {
                ""
            } else {
                " It does not go back as far as was asked: what is not used, it cannot tell."
            }
        ),
    };
}

fn summary(out: &mut String, report: &Report) {
    let now = &report.maturity;
    let total = now.credentials.max(1) as f64;
    let _ = write!(
        out,
        "<section aria-labelledby=\"maturity\">\n<h2 id=\"maturity\">How far</h2>\n<p class=\"lead\">{}</p>\n",
        esc(&now.sentence)
    );
    let kinds =
        [("static", now.fixed), ("bridged", now.bridged), ("dynamic", now.dynamic), ("bound", now.bound)];
    let _ = write!(
        out,
        "<svg class=\"share\" viewBox=\"0 0 1000 14\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"Of {}: {}\">",
        count(now.credentials as u64, "credential"),
        kinds.iter().map(|(kind, of)| format!("{of} {kind}")).collect::<Vec<_>>().join(", ")
    );
    let mut from = 0.0;
    for (kind, of) in kinds {
        let wide = 1000.0 * of as f64 / total;
        let _ = write!(out, "<rect class=\"k-{kind}\" x=\"{from:.1}\" width=\"{wide:.1}\" height=\"14\"/>");
        from += wide;
    }
    out.push_str("</svg>\n<ul class=\"counts\">\n");
    for (kind, of) in kinds {
        let _ = writeln!(out, "<li><span class=\"dot k-{kind}\"></span><b>{of}</b> {kind}</li>");
    }
    let _ = writeln!(out, "<li><b>{}</b> attested</li>", now.attested);
    let _ = writeln!(
        out,
        "<li class=\"apart\"><b>{}</b> controls pass</li><li class=\"bad\"><b>{}</b> fail</li><li><b>{}</b> not applicable</li>\n</ul>\n</section>",
        report.count(Verdict::Pass),
        report.count(Verdict::Fail),
        report.count(Verdict::NotApplicable)
    );
}

fn remedies(out: &mut String, report: &Report) {
    out.push_str("<section aria-labelledby=\"todo\">\n<h2 id=\"todo\">What to do</h2>\n");
    if report.remedies.is_empty() {
        out.push_str("<p>Nothing.</p>\n</section>\n");
        return;
    }
    out.push_str(
        "<div class=\"wide\"><table class=\"todo\">\n<caption>The most needed first: by assurance, then exposure, then age.</caption>\n<thead><tr><th scope=\"col\">#</th>\
         <th scope=\"col\">Where</th><th scope=\"col\">Why</th><th scope=\"col\">What to do</th><th scope=\"col\">Assurance</th><th scope=\"col\">Exposure</th>\
         <th scope=\"col\" class=\"n\">Days</th></tr></thead>\n<tbody>\n",
    );
    for (at, one) in report.remedies.iter().enumerate() {
        let about = match &one.credential {
            Some(credential) => format!("{}.<wbr>{}", esc(&one.identity), esc(credential)),
            None => esc(&one.identity),
        };
        let _ = writeln!(
            out,
            "<tr><td class=\"n\">{}</td><th scope=\"row\">{about}</th><td><code>{}</code><br>{}</td><td>{}</td><td>{}</td><td>{}</td><td class=\"n\">{}</td></tr>",
            at + 1,
            one.code,
            esc(&one.what),
            esc(&one.remedy),
            esc(&one.assurance),
            one.exposure.as_str(),
            one.age_days.map_or_else(|| "–".into(), |days| days.to_string())
        );
    }
    out.push_str("</tbody>\n</table></div>\n</section>\n");
}

fn identities(out: &mut String, report: &Report) {
    out.push_str("<section aria-labelledby=\"identities\">\n<h2 id=\"identities\">Identities</h2>\n");
    for one in &report.identities {
        identity(out, one);
    }
    for gone in &report.gone {
        let lives = match &gone.lives_until {
            Some(until) => format!("Something of it lives until {}.", when(Some(until))),
            None => "Nothing of it lives.".into(),
        };
        let _ = writeln!(
            out,
            "<article><h3>{} <small>gone</small></h3><p>It is in the ledger and not in the settings. {lives}</p></article>",
            esc(&gone.name)
        );
    }
    out.push_str("</section>\n");
}

fn identity(out: &mut String, one: &IdentityPart) {
    let off =
        one.disabled.as_ref().map(|why| format!(" <small class=\"bad\">switched off: {}</small>", esc(why)));
    let _ = write!(
        out,
        "<article>\n<h3>{} <small>{}</small>{}</h3>\n<dl>\n",
        esc(&one.name),
        esc(&one.assurance),
        off.unwrap_or_default()
    );
    let mut row = |term: &str, told: String| {
        let _ = writeln!(out, "<div><dt>{term}</dt><dd>{told}</dd></div>");
    };
    row("Is", esc(&one.matches.join("; or ")));
    row("Owner", esc(&one.owner));
    let seen = match (&one.level_worst, &one.level_best) {
        (Some(worst), Some(best)) if worst == best => format!("seen {worst}"),
        (Some(worst), Some(best)) => format!("seen {worst} to {best}"),
        _ => "none seen".into(),
    };
    row("Evidence", format!("demands {}, {}", esc(&one.demands), esc(&seen)));
    let used = format!("{}, {} denied", count(one.handed_out, "time"), one.denied);
    row("Use", format!("{}; last {}", esc(&used), when(one.last_used.as_deref())));
    let mut keys = vec![];
    if let Some(key) = &one.key {
        let sealed = sealed(key.custody, key.sealed);
        keys.push(format!(
            "{} in {}{sealed}, at most {}",
            key.algorithm,
            key.custody,
            length(key.age_limit_s)
        ));
    }
    if let Some(own) = &one.certificate {
        let life = own.life_s.map_or_else(String::new, |life| format!(", at most {}", length(life)));
        let sealed = sealed(own.custody, own.sealed);
        keys.push(format!("certificate in {}{sealed}{life}", own.custody));
    }
    row("Key", if keys.is_empty() { "none of its own".into() } else { esc(&keys.join("; ")) });
    let reach = &one.reach;
    let life = reach
        .longest_life_s
        .map_or_else(|| "until somebody changes it".into(), |life| format!("for {}", length(life)));
    let places = match reach.audiences.len().max(reach.origins.len()) {
        0 => "no place in particular".into(),
        places => count(places as u64, "API"),
    };
    let reaches = format!("{places}, {}, {life}", count(reach.scopes.len() as u64, "scope"));
    row("Blast radius", esc(&reaches));
    if !reach.same_key.is_empty() {
        row("Same key", esc(&reach.same_key.join("; ")));
    }
    let _ = write!(
        out,
        "</dl>\n<div class=\"wide\"><table class=\"credentials\">\n<caption>Credentials of {}</caption>\n<thead><tr><th scope=\"col\">Name</th><th scope=\"col\">What it is</th>\
         <th scope=\"col\">Issuer</th><th scope=\"col\">For</th><th scope=\"col\">Scope</th><th scope=\"col\">Life</th><th scope=\"col\">Exception</th>\
         <th scope=\"col\">Last used</th></tr></thead>\n<tbody>\n",
        esc(&one.name)
    );
    for credential in &one.credentials {
        credential_row(out, one, credential);
    }
    out.push_str("</tbody>\n</table></div>\n</article>\n");
}

fn credential_row(out: &mut String, identity: &IdentityPart, one: &CredentialPart) {
    let scope = one.scope.iter().map(|scope| {
        if one.scopes_unused.contains(scope) {
            format!("<del title=\"in no token in this time\">{}</del> <small>unused</small>", esc(scope))
        } else {
            esc(scope)
        }
    });
    let scope = scope.collect::<Vec<_>>().join("<br>");
    let exception = one.exception.as_ref().map_or_else(
        || "–".into(),
        |it| {
            let (owner, reason) = (esc(&it.owner), esc(&it.reason));
            format!("<b>{}</b><br>{reason}<br><small>{owner}</small>", days_left(it.days_left))
        },
    );
    let seen =
        one.life_seen_s.map_or_else(String::new, |seen| format!("<br><small>seen {}</small>", length(seen)));
    let _ = writeln!(
        out,
        "<tr><th scope=\"row\">{}</th><td><span class=\"dot k-{}\"></span>{}</td><td>{}<br><small>as {}</small></td><td>{}</td><td>{scope}</td><td>{}{seen}</td>\
         <td>{exception}</td><td>{}</td></tr>",
        esc(&one.name),
        one.kind.as_str(),
        esc(&what_it_is(identity, one)),
        esc(&one.issuer),
        esc(if one.client_id.is_empty() { "nobody" } else { &one.client_id }),
        esc(one
            .audience
            .as_deref()
            .or(one.origins.first().map(String::as_str))
            .unwrap_or("no API in particular")),
        length(one.life_allowed_s),
        when(one.last_used.as_deref())
    );
}

/// The catalogues, by how their ids begin.
const CATALOGUES: [(&str, &str, &str); 3] = [
    ("NHI-", "nhi", "OWASP Non-Human Identities Top 10, 2025"),
    ("GA-", "ga", "OWASP Top 10 for Agentic Applications, 2026"),
    ("N63-", "n63", "NIST SP 800-63-4, mapped to programs"),
];

fn controls(out: &mut String, report: &Report) {
    out.push_str("<section aria-labelledby=\"controls\">\n<h2 id=\"controls\">Controls</h2>\n");
    for (prefix, id, title) in CATALOGUES {
        let _ = write!(
            out,
            "<div class=\"wide\"><table class=\"controls\" id=\"{id}\">\n<caption>{title}</caption>\n<thead><tr><th scope=\"col\">Id</th><th scope=\"col\">Control</th>\
             <th scope=\"col\">Verdict</th><th scope=\"col\">Evidence, and what to do</th></tr></thead>\n<tbody>\n"
        );
        for one in report.controls.iter().filter(|one| one.id.starts_with(prefix)) {
            let (class, word) = match one.verdict {
                Verdict::Pass => ("pass", "pass"),
                Verdict::Fail => ("fail", "fail"),
                Verdict::NotApplicable => ("na", "n/a"),
            };
            let remedy = one.remedy.as_ref().map(|remedy| format!("<p class=\"do\">{}</p>", esc(remedy)));
            let _ = writeln!(
                out,
                "<tr class=\"{class}\"><td><code>{}</code></td><th scope=\"row\">{}</th><td><span class=\"verdict\">{word}</span></td><td><p>{}</p>{}</td></tr>",
                one.id,
                esc(one.title),
                esc(&one.evidence),
                remedy.unwrap_or_default()
            );
        }
        out.push_str("</tbody>\n</table></div>\n");
    }
    out.push_str("</section>\n");
}

#[cfg(test)]
mod tests {
    use super::esc;

    #[test]
    fn a_name_is_nothing_but_text() {
        assert_eq!(
            esc("<script>\"'&\u{0}\u{202e}x</script>"),
            "&lt;script&gt;&quot;&#39;&amp;\u{fffd}\u{fffd}x&lt;/script&gt;"
        );
    }
}
