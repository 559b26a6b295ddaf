//! The settings, and what is to be known of an instance.

use std::time::Duration;

use natpunch_plugin::{
    Abilities, Description, Discovery, Flaw, Instance, Runs, Secrets, Warning, check_seconds,
    check_stun, is_near,
};
use schemars::JsonSchema;
use serde::Deserialize;
use url::Url;

use crate::Plugin;

/// `[discovery.NAME]` with `plugin = "http"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where the records are: `https://HOST/v1` for a `natpunch serve --http` behind TLS, or any
    /// directory on a web server.
    pub url: String,
    /// STUN servers, `HOST:PORT`, that tell this node its address as the internet sees it. HTTP
    /// can't: its port is another one. `natpunch serve` answers STUN on its UDP port.
    #[serde(default)]
    pub stun: Vec<String>,
    /// Seconds between two looks for a wanted peer's record on a server without long poll; for
    /// other peers it is 20 times as long.
    #[serde(default = "default_interval")]
    #[schemars(range(min = 1, max = 3600))]
    pub interval: u64,
}

fn default_interval() -> u64 {
    3
}

/// A directory of records on a web server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    /// Ends in a slash: tags are appended.
    pub(crate) base: Url,
    pub(crate) interval: Duration,
    stun: Vec<String>,
}

impl natpunch_plugin::Settings for Settings {
    const PLUGIN: &'static str = "http";
    const ABOUT: &'static str = "records on a web server, found by polling";
    const ABILITIES: Abilities = Abilities {
        records: true,
        ..Abilities::NONE
    };
    type Instance = Store;

    fn check(self) -> Result<Store, Vec<Flaw>> {
        let mut flaws = check_stun(&self.stun);
        let range = (1..=3_600, "expected 1 to 3600 seconds");
        flaws.extend(check_seconds("interval", self.interval, range, 3).err());
        match check_url(&self.url) {
            Ok(base) if flaws.is_empty() => Ok(Store {
                base,
                interval: Duration::from_secs(self.interval),
                stun: self.stun,
            }),
            url => {
                flaws.extend(url.err());
                Err(flaws)
            }
        }
    }
}

/// The URL under which the records are, with a slash at its end.
fn check_url(text: &str) -> Result<Url, Flaw> {
    let flaw = |problem: &str, help: &str| Flaw {
        key: "url",
        problem: problem.to_owned(),
        expected: "expected a URL",
        help: help.to_owned(),
    };
    const EXAMPLE: &str = "write it like \"https://rv.example.org/v1\"";
    let url = Url::parse(text.trim()).ok().filter(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.host_str().is_some_and(|host| !host.is_empty())
    });
    let Some(mut url) = url else {
        return Err(flaw("this is not a web address", EXAMPLE));
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err(flaw(
            "a password must not be in the mesh file",
            "remove what stands before the @: records need no password",
        ));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(flaw(
            "tags are appended to it, so it can have no ? and no #",
            EXAMPLE,
        ));
    }
    // Joining replaces what follows the last slash.
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    Ok(url)
}

impl Instance for Store {
    fn describe(&self) -> Description {
        Description {
            abilities: Abilities {
                records: true,
                ..Abilities::default()
            },
            finds_peers: true,
            servers: self
                .base
                .host_str()
                .map(str::to_owned)
                .into_iter()
                .collect(),
            stun: self.stun.clone(),
            warnings: self.plain_http().into_iter().collect(),
            ..Description::default()
        }
    }
}

impl Store {
    /// Records that cross the internet in plain. They are sealed, but their tags are not.
    fn plain_http(&self) -> Option<Warning> {
        let host = self.base.host_str()?;
        (self.base.scheme() == "http" && !is_near(host)).then(|| Warning {
            rule: "plain-http",
            problem: format!("asks {host} over plain HTTP"),
            label: "its requests can be read on the way",
            help: "write an https URL: the records are sealed, but whoever reads their tags can put \
                   others in their place, and the pair no longer finds each other there",
        })
    }
}

impl Runs for Store {
    fn plugin(&self, _: &Secrets) -> Box<dyn Discovery> {
        Box::new(Plugin::new(self.clone()))
    }
}

#[cfg(test)]
mod tests {
    use natpunch_plugin::Settings as _;

    use super::*;

    fn settings(url: &str) -> Settings {
        Settings {
            url: url.to_owned(),
            stun: vec![],
            interval: 3,
        }
    }

    #[test]
    fn a_tag_is_appended_to_the_url_with_or_without_a_slash() {
        for url in [
            "https://rv.example.org/v1",
            "https://rv.example.org/v1/",
            " https://rv.example.org/v1 ",
        ] {
            assert_eq!(
                settings(url).check().unwrap().base.as_str(),
                "https://rv.example.org/v1/"
            );
        }
    }

    #[test]
    fn a_wrong_setting_is_named() {
        for (url, words) in [
            ("rv.example.org", "web address"),
            ("ftp://rv.example.org", "web address"),
            ("https://a:b@rv.example.org", "password"),
            ("https://rv.example.org/?a", "?"),
        ] {
            let flaws = settings(url).check().unwrap_err();
            assert_eq!(flaws[0].key, "url");
            assert!(flaws[0].problem.contains(words), "{flaws:?}");
        }
        let zero = Settings {
            interval: 0,
            stun: vec!["nowhere".to_owned()],
            ..settings("https://rv.example.org")
        };
        let keys: Vec<_> = zero
            .check()
            .unwrap_err()
            .iter()
            .map(|flaw| flaw.key)
            .collect();
        assert_eq!(keys, ["stun", "interval"]);
    }
}
