use super::*;

fn args() -> ServeArgs {
    ServeArgs {
        listen: vec![],
        key_file: None,
        compat: vec![],
        admission_secret_file: vec![],
        open: false,
        relay_ports: None,
        no_relay: false,
        http: None,
        tls: None,
        tls_cert: None,
        tls_key: None,
        websocket: None,
        store: None,
        store_secret_file: None,
        config: None,
        command: None,
    }
}

#[test]
fn tls_asks_for_a_certificate_its_key_and_a_rendezvous_to_serve() {
    let base = |text: &str| {
        let text = format!("listen = [\"0.0.0.0:51900\"]\nkey_file = \"/a\"\n{text}");
        with_file(&text, args())
    };
    let all = "tls = \"0.0.0.0:443\"\ntls_cert = \"/c\"\ntls_key = \"/k\"\n";
    let streams = base(&format!("open = true\n{all}")).unwrap().streams;
    let (address, files) = streams.tls.unwrap();
    assert_eq!(address.port(), 443);
    assert_eq!(files.certificate, Path::new("/c"));
    let without = |line: &str| base(&format!("open = true\n{}", all.replace(line, "")));
    for file in ["tls_cert = \"/c\"\n", "tls_key = \"/k\"\n"] {
        assert!(matches!(without(file), Err(SettingsError::TlsWithoutFiles)));
    }
    let nowhere = without("tls = \"0.0.0.0:443\"\n");
    assert!(matches!(nowhere, Err(SettingsError::CertificateForNothing)));
    let nobody = base(&format!("compat = [\"natpunch-go\"]\n{all}"));
    assert!(matches!(nobody, Err(SettingsError::StreamsForNobody)));
    let proxied = base("open = true\nwebsocket = \"127.0.0.1:8443\"\n").unwrap();
    let loopback = IpAddr::from([127, 0, 0, 1]);
    assert!(proxied.streams.trusted_proxies.contains(&loopback));
}

fn with_file(text: &str, mut args: ServeArgs) -> Result<Settings, SettingsError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    args.config = Some(file.path().to_owned());
    Settings::from_args(&args)
}

const FILE: &str = r#"
    listen = ["0.0.0.0:51900", "[::]:51900"]
    key_file = "/var/lib/natpunch/server.key"
    compat = ["natpunch-go", "nat-hole-punching"]
    http = "127.0.0.1:8080"
"#;

#[test]
fn a_file_says_the_same_as_flags() {
    let flags = ServeArgs {
        listen: vec![
            "0.0.0.0:51900".parse().unwrap(),
            "[::]:51900".parse().unwrap(),
        ],
        key_file: Some("/var/lib/natpunch/server.key".into()),
        compat: vec!["natpunch-go".into(), "nat-hole-punching".into()],
        http: Some("127.0.0.1:8080".parse().unwrap()),
        ..args()
    };
    assert_eq!(
        with_file(FILE, args()).unwrap(),
        Settings::from_args(&flags).unwrap()
    );
}

#[test]
fn a_flag_overrides_its_key_and_no_other() {
    let settings = with_file(
        FILE,
        ServeArgs {
            compat: vec!["natpunch-go".into()],
            ..args()
        },
    )
    .unwrap();
    assert_eq!(settings.compat, [Compat::NatpunchGo]);
    assert_eq!(settings.listen.len(), 2);
    let settings = with_file(
        FILE,
        ServeArgs {
            listen: vec!["127.0.0.1:1".parse().unwrap()],
            ..args()
        },
    )
    .unwrap();
    assert_eq!(settings.listen, ["127.0.0.1:1".parse().unwrap()]);
}

#[test]
fn without_a_word_of_whom_it_admits_no_server_starts() {
    let base = || ServeArgs {
        listen: vec!["[::1]:1".parse().unwrap()],
        key_file: Some("k".into()),
        ..args()
    };
    let error = Settings::from_args(&base()).unwrap_err();
    assert!(matches!(error, SettingsError::ForNobody));
    let error = error.in_full();
    for choice in [
        "--admission-secret-file",
        "allowed_identities",
        "--open",
        "--compat natpunch-go",
        "allowed_keys",
    ] {
        assert!(error.contains(choice), "{error}");
    }
    let none = ServeArgs {
        compat: vec![String::new()],
        ..base()
    };
    assert_eq!(
        Settings::from_args(&none).unwrap().compat,
        [],
        "STUN alone, by an explicit word"
    );
    let listed = with_file("allowed_keys = []", base()).unwrap();
    assert_eq!(
        (listed.compat, listed.rendezvous),
        (vec![Compat::NatpunchGo], None)
    );
    let records = ServeArgs {
        listen: vec![],
        http: Some("[::1]:1".parse().unwrap()),
        ..base()
    };
    assert_eq!(
        Settings::from_args(&records).unwrap().compat,
        [],
        "records admit whoever knows a tag"
    );
}

#[test]
fn natpunchs_own_rendezvous_is_spoken_only_to_whom_the_settings_name() {
    let base = || ServeArgs {
        listen: vec!["[::1]:1".parse().unwrap()],
        key_file: Some("k".into()),
        ..args()
    };
    let compat = ServeArgs {
        compat: vec!["natpunch-go".into()],
        ..base()
    };
    assert_eq!(Settings::from_args(&compat).unwrap().rendezvous, None);
    let open = Settings::from_args(&ServeArgs {
        open: true,
        ..base()
    })
    .unwrap();
    assert_eq!(
        (open.rendezvous, open.compat),
        (Some(Rendezvous::default()), vec![])
    );
    let secret = ServeArgs {
        admission_secret_file: vec!["s".into()],
        ..base()
    };
    let settings = Settings::from_args(&ServeArgs {
        compat: vec!["natpunch-go".into()],
        ..secret
    })
    .unwrap();
    assert_eq!(
        settings.rendezvous.unwrap().secret_files,
        [PathBuf::from("s")]
    );
    assert_eq!(settings.compat, [Compat::NatpunchGo]);
    let both = with_file(
        "admission_secret_files = [\"s\"]",
        ServeArgs {
            open: true,
            ..base()
        },
    );
    assert!(matches!(both, Err(SettingsError::OpenAndClosed)));
    let nobody = with_file("next_key_file = \"n\"", base());
    assert!(matches!(nobody, Err(SettingsError::NextKeyForNobody)));
}

#[test]
fn an_error_in_the_file_names_its_line() {
    for (text, line, words) in [
        (
            "listen = [\"0.0.0.0:1\"]\nkey_fil = \"k\"\n",
            "line 2",
            "key_file",
        ),
        ("listen = [\"0.0.0.0\"]\n", "line 1", "socket address"),
        (
            "\ncompat = [\"natpunchgo\"]\n",
            "line 2",
            "did you mean `natpunch-go`",
        ),
        ("alternate_port = 70000\n", "line 1", "65535"),
        ("workers = 0\n", "line 1", "nonzero"),
        (
            "[limits]\nsessions = 5\nsesions_per_network = 5\n",
            "line 3",
            "sessions_per_network",
        ),
        ("[limits]\nhellos_per_second = 0\n", "line 2", "nonzero"),
        ("key_file = 7\n", "line 1", "expected"),
        ("allowed_keys = [\"AAEC\"]\n", "line 1", "a key has 32"),
        (
            "http = \"[::]:1\"\nhttp = \"[::]:2\"\n",
            "line 2",
            "duplicate",
        ),
    ] {
        let error = with_file(text, args()).unwrap_err().to_string();
        assert!(
            error.contains(line) && error.contains(words),
            "{text:?} gave: {error}"
        );
    }
}

#[test]
fn limits_that_are_not_written_are_the_usual_ones() {
    let flags = || ServeArgs {
        open: true,
        ..args()
    };
    let text = |limits| format!("listen = [\"[::1]:1\"]\nkey_file = \"k\"\n{limits}");
    assert_eq!(
        with_file(&text(""), flags()).unwrap().limits,
        Limits::default()
    );
    let limits = with_file(
        &text("[limits]\nsessions = 131072\nhellos_per_second = 5000\n"),
        flags(),
    )
    .unwrap()
    .limits;
    assert_eq!(
        limits,
        Limits {
            sessions: 131_072,
            hellos_per_second: 5_000,
            ..Limits::default()
        }
    );
}

#[test]
fn metrics_for_everybody_need_a_word() {
    let text = |more| format!("listen = [\"[::1]:1\"]\nkey_file = \"k\"\n{more}");
    let metrics = |more| {
        with_file(
            &text(more),
            ServeArgs {
                open: true,
                ..args()
            },
        )
        .map(|settings| settings.metrics)
    };
    assert_eq!(
        metrics("metrics = \"[::1]:9469\"").unwrap(),
        Some("[::1]:9469".parse().unwrap())
    );
    assert!(matches!(
        metrics("metrics = \"0.0.0.0:9469\""),
        Err(SettingsError::PublicMetrics(_))
    ));
    assert!(
        metrics("metrics = \"0.0.0.0:9469\"\nmetrics_public = true")
            .unwrap()
            .is_some()
    );
}

#[test]
fn what_is_missing_is_an_error() {
    assert!(matches!(
        Settings::from_args(&args()),
        Err(SettingsError::NothingToServe)
    ));
    let listen = vec!["0.0.0.0:1".parse().unwrap()];
    let no_key = ServeArgs {
        listen: listen.clone(),
        open: true,
        ..args()
    };
    assert!(matches!(
        Settings::from_args(&no_key),
        Err(SettingsError::NoKeyFile)
    ));
    let twice = ServeArgs {
        listen: [listen.clone(), listen].concat(),
        ..no_key
    };
    assert!(matches!(
        Settings::from_args(&twice),
        Err(SettingsError::Twice(_))
    ));
    let typo = ServeArgs {
        http: Some("0.0.0.0:1".parse().unwrap()),
        compat: vec!["natpunch".into()],
        ..args()
    };
    assert!(
        Settings::from_args(&typo)
            .unwrap_err()
            .to_string()
            .contains("did you mean")
    );
}
