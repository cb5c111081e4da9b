//! `[[listener.authenticator]]`.

use super::*;

/// A native listener with such authenticators, a table each.
fn with(tables: &[&str]) -> String {
    let tables: Vec<_> = tables.iter().map(|table| format!("[[listener.authenticator]]\n{table}\n")).collect();
    native(&tables.concat())
}

#[test]
fn a_list_is_read_in_its_order_with_its_defaults() {
    let jwt = "kind = \"jwt\"\nfile = \"ca.pem\"\naudience = [\"a\"]\npublish_claim = \"/x/y\"\n";
    let hook = "kind = \"hook\"\nurl = \"https://id/auth\"\nca = \"ca.pem\"\non_error = \"allow-cached\"\ncache_bytes = 1048576\n";
    let token = "kind = \"token\"\nfile = \"devices.tokens\"\n";
    let Loaded { config, warnings, budget, .. } = loaded(&with(&[jwt, token, hook]));
    assert!(warnings.is_empty(), "{warnings:?}");
    let identity = &config.listeners[0].identity;
    let labels: Vec<_> = identity.authenticators.iter().map(Authenticator::label).collect();
    assert_eq!(labels, ["jwt", "secrets", "hook"]);
    let jwt = identity.jwt().unwrap();
    assert_eq!((jwt.position, jwt.leeway, jwt.device_claim.as_str()), (0, Duration::from_secs(30), "sub"));
    assert_eq!((jwt.publish_claim.as_deref(), jwt.subscribe_claim.as_deref()), (Some("/x/y"), None));
    assert_eq!(identity.secrets().unwrap().key, "authenticator[1].file");
    let hook = identity.hook().unwrap();
    assert_eq!((hook.position, hook.timeout, hook.in_flight), (2, Duration::from_secs(2), 8));
    assert_eq!((hook.cache, hook.cache_denied), (Duration::from_mins(5), Duration::from_secs(10)));
    assert_eq!((hook.on_error, hook.stale), (OnError::AllowCached, Duration::from_hours(1)));
    assert!(budget.items.iter().any(|item| item.what == "hook answers" && item.bytes() == 1 << 20));
}

#[test]
fn what_is_wrong_is_named_with_its_key_and_a_remedy() {
    let refused_one = |table: &str, parts: &[&str]| refused(&with(&[table]), parts);
    refused_one("file = \"x\"", &[":8: ", "authenticator[0].kind: it is missing: write \"certificate\""]);
    refused_one("kind = \"ldap\"", &[":9: ", "authenticator[0].kind: \"ldap\" is not known"]);
    refused_one("kind = \"jwt\"", &["authenticator[0].file: it is missing: name a file with public keys"]);
    refused_one("kind = \"jwt\"\nfile = \"none\"", &[":10: ", "authenticator[0].file: ", "cannot be read"]);
    refused_one("kind = \"jwt\"\nfile = \"ca.pem\"\nrefresh = \"1m\"", &["refresh: it is for keys that are fetched"]);
    refused_one("kind = \"jwt\"\nfile = \"ca.pem\"\nurl = \"http://a/\"", &["url: the keys come from a file already"]);
    refused_one("kind = \"jwt\"\nfile = \"ca.pem\"\nalgorithm = \"HS256\"", &["algorithm: \"HS256\" is not known"]);
    refused_one(
        "kind = \"jwt\"\nfile = \"ca.pem\"\ntimeout = \"1s\"",
        &["timeout: an authenticator of kind \"jwt\" has"],
    );
    refused_one("kind = \"jwt\"\nfile = \"ca.pem\"\ndevice_claim = \"\"", &["device_claim: it is empty"]);
    refused_one("kind = \"jwt\"\nfile = \"ca.pem\"\nwhat = 1", &["what", "unknown field"]);
    refused_one("kind = \"hook\"\nurl = \"ftp://a/\"", &["url: \"ftp://a/\" is no URL"]);
    refused_one("kind = \"hook\"\nurl = \"http://user@a/\"", &["is no URL"]);
    refused_one("kind = \"hook\"\nurl = \"https://a/\"", &["ca: https needs it: ", "/etc/ssl/certs"]);
    refused_one("kind = \"hook\"\nurl = \"http://a/\"\nca = \"ca.pem\"", &["ca: the url is not https"]);
    refused_one(
        "kind = \"hook\"\nurl = \"http://a/\"\ntimeout = \"10s\"",
        &["timeout: a device waits for 10s at most (limits.hello_time)"],
    );
    refused_one("kind = \"hook\"\nurl = \"http://a/\"\nin_flight = 65", &["in_flight: 65 is out of range"]);
    refused_one("kind = \"hook\"\nurl = \"http://a/\"\non_error = \"allow\"", &["on_error: \"allow\" is not known"]);
    refused_one(
        "kind = \"hook\"\nurl = \"http://a/\"\nbearer_file = \"empty.token\"",
        &["bearer_file: ", "openssl rand"],
    );
    refused_one("kind = \"token\"\nfile = \"nobody.tokens\"", &["authenticator[0].file: nobody.tokens names nobody"]);
    refused_one(
        "kind = \"password\"\nfile = \"devices.tokens\"",
        &["a native device sends a token: write kind = \"token\""],
    );
    refused_one("kind = \"certificate\"", &["a certificate proves nothing of a device that is named by \"hello\""]);
    let token = "kind = \"token\"\nfile = \"devices.tokens\"";
    let hook = "kind = \"hook\"\nurl = \"http://a/\"";
    refused(&with(&[token, token]), &[":12: ", "authenticator[1].kind: there is one of this kind already"]);
    refused(&with(&[hook, token]), &["authenticator[1].kind: a hook stands before it", "let the hook be the last"]);
    let raw = format!("[[listener.authenticator]]\n{hook}\n");
    refused(&second(&raw), &["listener[1] \"legacy\": authenticator[0].kind: a raw device sends nothing"]);
    let both = format!("[listener.identity]\ntoken_file = \"devices.tokens\"\n[[listener.authenticator]]\n{hook}\n");
    refused(&native(&both), &["identity.token_file: there is a list of authenticators beside it"]);
    // Beside others a file may name nobody as yet: they go on letting devices in.
    let nobody = "kind = \"token\"\nfile = \"nobody.tokens\"";
    let Loaded { config, warnings, .. } = loaded(&with(&[nobody, hook]));
    assert!(
        warnings.iter().any(|text| text.contains("authenticator[0].file: nobody.tokens names nobody as yet")),
        "{warnings:?}"
    );
    assert_eq!(config.listeners[0].identity.authenticators.len(), 2);
    let Loaded { warnings, .. } = loaded(&with(&["kind = \"jwt\"\nfile = \"ca.pem\""]));
    assert!(warnings[0].contains("authenticator[0].audience: without an audience"), "{warnings:?}");
}
