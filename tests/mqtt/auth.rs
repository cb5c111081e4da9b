//! Tokens that others make: who comes in by them, for how long, and what it may do. AUTH (v5 4.12).

use std::time::Duration;

use serde_json::{Value, json};

use crate::script::Stage;
use crate::support::token::{Issuer, seconds_from_now, symmetric, unsigned};
use crate::support::{Gateway, Listener, SOON, Site, hold_for, wait_until};

/// A listener that takes tokens for the audience `gateway`.
fn by_jwt(keys: &str, more: &str) -> Listener {
    let list = format!("kind = \"jwt\"\naudience = [\"gateway\"]\nleeway = \"0s\"\n{keys}\n{more}");
    Listener::new("mqtt", "mqtt").authenticator(&list)
}

fn claims(device: &str, seconds: i64) -> Value {
    json!({"sub": device, "aud": "gateway", "exp": seconds_from_now(seconds)})
}

#[track_caller]
fn play(site: &Site, gateway: &Gateway, row: &str) {
    let listeners = [("mqtt", gateway.address("mqtt"))].into();
    let tls = site.tls_with(None, |options| options.alpn = &[b"mqtt"]);
    if let Err(fault) = Stage::new(&listeners, &tls, 1).play(row) {
        panic!("{fault}\n{:?}", gateway.all_closed());
    }
}

/// CONNECT of version 5 with a token as password.
fn v5(device: &str, token: &str) -> String {
    format!("10 < 'MQTT' 05 42 003C {{}} '{device}' '{token}' >")
}

#[test]
fn a_token_opens_for_its_device_and_a_false_one_for_nobody() {
    let site = Site::new();
    let (ec, rsa, other) = (Issuer::ec(&site, "ec"), Issuer::rsa(&site, "rsa"), Issuer::ec(&site, "other"));
    site.write("keys.json", &json!({"keys": [ec.jwk(), rsa.jwk()]}).to_string());
    let gateway = site.start("workers = 2", &[by_jwt("file = \"keys.json\"", "issuer = \"us\"")]);
    let mut good = claims("m1", 600);
    good["iss"] = "us".into();
    let with = |key: &str, value: Value| {
        let mut claims = good.clone();
        claims[key] = value;
        claims
    };
    let without = |key: &str| {
        let mut claims = good.clone();
        claims.as_object_mut().unwrap().remove(key);
        claims
    };
    for token in [
        ec.token(&good),
        rsa.token(&good),
        // Without the name of a key all of its algorithm are tried.
        ec.token_with(&json!({"alg": "ES256"}), &good),
        ec.token(&with("aud", json!(["another", "gateway"]))),
    ] {
        let v4 = format!("10 < 'MQTT' 04 C2 003C 'm1' 'anybody' '{token}' >");
        play(
            &site,
            &gateway,
            &format!("a > {}; a < [k5]; a -; b > {v4}; b < [k4]; a < E0 01 8E; b -", v5("m1", &token)),
        );
    }
    let public = rsa.public();
    let hs = json!({"alg": "HS256", "kid": "rsa"});
    let refused = [
        ("nobody signed it", unsigned(&good)),
        ("the public key as a secret", symmetric(&site, public.as_bytes(), &hs, &good)),
        ("the same without its last line's end", symmetric(&site, public.trim_end().as_bytes(), &hs, &good)),
        ("another key under a name of ours", other.token_with(&json!({"alg": "ES256", "kid": "ec"}), &good)),
        ("a key that is not ours", other.token(&good)),
        ("an algorithm that is not the key's", ec.token_with(&json!({"alg": "RS256", "kid": "ec"}), &good)),
        ("it is over", ec.token(&with("exp", json!(seconds_from_now(-5))))),
        ("it has no end", ec.token(&without("exp"))),
        ("it has not begun", ec.token(&with("nbf", json!(seconds_from_now(500))))),
        ("for somebody else", ec.token(&with("aud", json!("another")))),
        ("for nobody", ec.token(&without("aud"))),
        ("by somebody else", ec.token(&with("iss", json!("them")))),
        ("of no device", ec.token(&without("sub"))),
        ("of a device that cannot be", ec.token(&with("sub", json!("a\nb")))),
        ("longer than is looked at", ec.token(&with("more", json!("x".repeat(4_096))))),
    ];
    for (position, (what, token)) in refused.iter().enumerate() {
        let v4 = format!("10 < 'MQTT' 04 C2 003C 'm1' 'anybody' '{token}' >");
        let row = format!("a > {}; a < 20 < 00 87 {{}} >; a x; b > {v4}; b < 20 02 0005; b x", v5("m1", token));
        println!("{what}");
        play(&site, &gateway, &row);
        gateway.expect_closed("jwt_rejected", 2 * (position as u64 + 1));
    }
    gateway.expect_metric("pulsegate_jwt_rejected_total", 2 * refused.len() as u64);
    // One signature is cut short by a byte.
    let whole = ec.token(&good);
    play(&site, &gateway, &format!("a > {}; a < 20 < 00 87 {{}} >; a x", v5("m1", &whole[..whole.len() - 2])));
    // The right token of another device, and no token at all.
    play(&site, &gateway, &format!("a > {}; a < 20 < 00 85 {{}} >; a x", v5("m2", &whole)));
    gateway.expect_closed("identity_mismatch", 1);
    play(&site, &gateway, "a > 10 < 'MQTT' 05 02 003C {} 'm1' >; a < 20 < 00 86 {} >; a x");
    play(&site, &gateway, &format!("a > {}; a < 20 < 00 86 {{}} >; a x", v5("m1", "a password")));
    gateway.expect_closed("token_rejected", 2);
    // Whatever it is, nobody looks at so long a one, and nobody keeps it.
    play(&site, &gateway, &format!("a > {}; a < 20 < 00 86 {{}} >; a x", v5("m1", &"x".repeat(4_097))));
    gateway.expect_closed("token_rejected", 3);
    let words = gateway.get_json("/v1/devices/m1/history").to_string();
    assert!(words.contains("jwt_rejected") && words.contains("InvalidAudience"), "{words}");
    assert!(words.contains("longer than 4096 bytes"), "{words}");
}

/// Whoever gives no client identifier is called as its token says.
#[test]
fn a_token_names_a_device_that_says_no_name() {
    let site = Site::new();
    let issuer = Issuer::ec(&site, "ec");
    site.write("key.pem", &issuer.public());
    let gateway = site.start("workers = 3", &[by_jwt("file = \"key.pem\"", "device_claim = \"/device/id\"")]);
    for device in ["m1", "m2", "m3", "m4"] {
        let token = issuer.token(&json!({"device": {"id": device}, "aud": "gateway", "exp": seconds_from_now(600)}));
        let assigned = format!("20 < 00 00 {{ 21 0040 27 00040000 22 0010 12 '{device}' }} >");
        play(&site, &gateway, &format!("a > {}; a < {assigned}; a -", v5("", &token)));
    }
    gateway.wait_until_empty();
}

#[test]
fn keys_are_rotated_under_live_connections() {
    let site = Site::new();
    let (old, new) = (Issuer::ec(&site, "old"), Issuer::rsa(&site, "new"));
    let write = |keys: &[Value]| site.write("keys.json", &json!({"keys": keys}).to_string());
    write(&[old.jwk()]);
    let gateway = site.start("workers = 2", &[by_jwt("file = \"keys.json\"", "")]);
    let listeners = [("mqtt", gateway.address("mqtt"))].into();
    let tls = site.tls_with(None, |options| options.alpn = &[b"mqtt"]);
    let mut live = Stage::new(&listeners, &tls, 1);
    live.play(&format!("a > {}; a < [k5]; a -", v5("live", &old.token(&claims("live", 3_600))))).unwrap();
    let [by_old, by_new] = [&old, &new].map(|issuer| v5("m1", &issuer.token(&claims("m1", 3_600))));
    let reloads = |count| wait_until("it was reloaded", SOON, || gateway.metric("pulsegate_reloads_total") >= count);
    play(&site, &gateway, &format!("a > {by_new}; a < 20 < 00 87 {{}} >; a x"));
    write(&[old.jwk(), new.jwk()]);
    reloads(1);
    play(&site, &gateway, &format!("a > {by_new}; a < [k5]; a > [bye]; a x; b > {by_old}; b < [k5]; b > [bye]; b x"));
    write(&[new.jwk()]);
    reloads(2);
    play(&site, &gateway, &format!("a > {by_new}; a < [k5]; a > [bye]; a x; b > {by_old}; b < 20 < 00 87 {{}} >; b x"));
    // A file that holds no keys changes nothing.
    site.write("keys.json", "{\"keys\": []}");
    wait_until("it was refused", 2 * SOON, || gateway.metric("pulsegate_reload_refused") == 1);
    play(&site, &gateway, &format!("a > {by_new}; a < [k5]; a > [bye]; a x"));
    live.play("a -").unwrap();
}

#[test]
fn a_grant_ends_with_its_token_and_the_will_is_published() {
    let site = Site::new();
    let issuer = Issuer::ec(&site, "ec");
    site.write("key.pem", &issuer.public());
    let gateway = site.start("workers = 2", &[by_jwt("file = \"key.pem\"", "subscribe_claim = \"sub_to\"")]);
    let token = issuer.token(&claims("m1", 4));
    let mut watcher = claims("watcher", 600);
    watcher["sub_to"] = json!(["devices/+/will"]);
    let watcher = v5("watcher", &issuer.token(&watcher));
    // A will on its own topic, with QoS 0.
    let connect = format!("10 < 'MQTT' 05 46 003C {{}} 'm1' {{}} 'devices/m1/will' 'gone' '{token}' >");
    let row = format!(
        "w > {watcher}; w < [k5]; w > [sub5 devices/+/will 00]; w < [ack5 00]; a > {connect}; a < [k5]; a -; \
         a < E0 01 A0; a x; w < [pub5 devices/m1/will gone]; w -"
    );
    play(&site, &gateway, &row);
    gateway.expect_closed("grant_expired", 1);
    assert_eq!(gateway.closed("expired"), 0);
}

#[test]
fn auth_renews_what_was_granted() {
    let site = Site::new();
    let issuer = Issuer::ec(&site, "ec");
    site.write("key.pem", &issuer.public());
    let gateway = site.start("workers = 2", &[by_jwt("file = \"key.pem\"", "subscribe_claim = \"sub_to\"")]);
    let token = |device: &str, seconds, filter: &str| {
        let mut claims = claims(device, seconds);
        claims["sub_to"] = json!(filter);
        issuer.token(&claims)
    };
    let connect = |token: &str| format!("10 < 'MQTT' 05 02 003C {{ 15 'token' 16 '{token}' }} 'm1' >");
    // [MQTT-4.12.0-5]
    let welcome = "20 < 00 00 { 21 0040 27 00040000 22 0010 15 'token' } >";
    let auth = |token: &str| format!("F0 < 19 {{ 15 'token' 16 '{token}' }} >");
    let renewed = "F0 < 00 { 15 'token' } >";
    let listeners = [("mqtt", gateway.address("mqtt"))].into();
    let tls = site.tls_with(None, |options| options.alpn = &[b"mqtt"]);

    let mut stage = Stage::new(&listeners, &tls, 1);
    let first = token("m1", 5, "a/#");
    let row = format!(
        "a > {}; a < {welcome}; a > [sub5 a/b 00]; a < [ack5 00]; a > {}; a < {renewed}; \
         a > [sub5 a/b 00]; a < [ack5 87]; a > [sub5 c 00]; a < [ack5 00]; a -",
        connect(&first),
        auth(&token("m1", 600, "c")),
    );
    stage.play(&row).unwrap();
    // The end of the first one comes, and nothing happens.
    hold_for("it stays", Duration::from_secs(6), || gateway.closed("grant_expired") == 0);
    // What it subscribed to under the first one was ended with it.
    let filters = gateway.get_json("/v1/devices/m1")["session"]["subscriptions"].to_string();
    assert!(filters.contains("\"c\"") && !filters.contains("a/b"), "{filters}");
    stage.play("a -; a > [bye]; a x").unwrap();

    // One that is wrong ends it [MQTT-4.12.1-2]; so does one for another device.
    let row = |second: &str, end: &str| {
        format!("a > {}; a < {welcome}; a > {}; a < {end}; a x", connect(&token("m1", 600, "c")), auth(second))
    };
    play(&site, &gateway, &row(&token("m1", -5, "c"), "E0 01 87"));
    gateway.expect_closed("jwt_rejected", 1);
    play(&site, &gateway, &row(&token("m2", 600, "c"), "E0 01 87"));
    gateway.expect_closed("identity_mismatch", 1);
    // Another method than CONNECT had [MQTT-4.12.1-1], a step of nothing, and AUTH of who had named no method
    // [MQTT-4.12.0-7].
    let begun = format!("a > {}; a < {welcome}", connect(&token("m1", 600, "c")));
    for wrong in ["F0 < 19 { 15 'other' 16 'x' } >", "F0 < 19 {} >", "F0 < 18 { 15 'token' } >", "F0 00"] {
        play(&site, &gateway, &format!("{begun}; a > {wrong}; a < E0 01 82; a x"));
    }
    let plain = v5("m1", &token("m1", 600, "c"));
    play(&site, &gateway, &format!("a > {plain}; a < [k5]; a > {}; a < E0 01 82; a x", auth("x")));
    // A method that is not known [MQTT-4.12.0-1], and the known one with a wrong token [MQTT-4.12.0-4].
    play(&site, &gateway, "a > 10 < 'MQTT' 05 02 003C { 15 'SCRAM' } 'm1' >; a < 20 < 00 8C {} >; a x");
    play(&site, &gateway, &format!("a > {}; a < 20 < 00 87 {{}} >; a x", connect(&token("m1", -5, "c"))));
}

#[test]
fn a_grant_says_where_a_device_may_publish_and_subscribe() {
    let site = Site::new();
    let issuer = Issuer::ec(&site, "ec");
    site.write("key.pem", &issuer.public());
    let more = "publish_claim = \"/acl/pub\"\nsubscribe_claim = \"/acl/sub\"";
    let gateway = site.start("workers = 3", &[by_jwt("file = \"key.pem\"", more)]);
    let token = |device: &str, publish: Value, subscribe: Value| {
        let mut claims = claims(device, 600);
        claims["acl"] = json!({"pub": publish, "sub": subscribe});
        v5(device, &issuer.token(&claims))
    };
    let row = |connect: &str, rest: &str| play(&site, &gateway, &format!("a > {connect}; a < [k5]; {rest}; a -"));
    for device in ["m1", "m2", "m3"] {
        row(
            &token(device, json!(["up/{device}", "all/#"]), json!(["down/{device}/+"])),
            &format!(
                "a > [sub5 down/{device}/x 00]; a < [ack5 00]; a > [sub5 down/other/x 00]; a < [ack5 87]; \
                 a > [sub5 devices/{device}/x 00]; a < [ack5 87]; \
                 a > [pub51 up/{device} 0001 y]; a < 40 < 0001 >; a > [pub51 all/x 0002 y]; a < 40 < 0002 >; \
                 a > [pub51 devices/{device}/x 0003 y]; a < 40 < 0003 87 >"
            ),
        );
    }
    // What is not said is not allowed: the listener's own rules are for those of whom no token speaks.
    row(
        &token("m4", Value::Null, json!([])),
        "a > [sub5 devices/m4/x 00]; a < [ack5 87]; a > [pub51 devices/m4/x 0001 y]; a < 40 < 0001 87 >",
    );
    for wrong in [json!(["a/#/b"]), json!([7]), json!({"a": 1}), json!(["{other}/x"]), json!(vec!["x"; 65])] {
        let connect = token("m5", wrong, Value::Null);
        play(&site, &gateway, &format!("a > {connect}; a < 20 < 00 87 {{}} >; a x"));
    }
}
