//! The description at `/v1/openapi.json` against what the routes do: every answer of every test in this directory comes
//! through [`check_answer`].

use std::collections::BTreeSet;
use std::sync::LazyLock;

use super::*;
use crate::control::api::{openapi::description, routes};

static DESCRIPTION: LazyLock<Value> = LazyLock::new(|| serde_json::from_str(&description()).unwrap());

/// Panics unless the description knows this answer to this request: path, method, status, content type and form.
pub(super) fn check_answer(method: &str, path: &str, answer: &Answer) {
    let path = path.split('?').next().unwrap();
    let code = || -> String { answer.json()["error"]["code"].as_str().unwrap().to_owned() };
    let Some((template, operations)) = find_path(path) else {
        assert!([401, 403, 404, 421].contains(&answer.status), "{method} {path} is not described: {}", answer.status);
        assert!(["unauthorized", "forbidden", "not_found", "host_not_allowed"].contains(&&*code()));
        return;
    };
    let verb = if method == "HEAD" { "get".to_owned() } else { method.to_lowercase() };
    let operation = &operations[verb];
    if operation.is_null() {
        assert!(
            [401, 403, 405, 421].contains(&answer.status),
            "{method} {template} is not described: {}",
            answer.status
        );
        return;
    }
    let response = resolve(&operation["responses"][answer.status.to_string()]);
    assert!(response.is_object(), "{method} {template}: {} is not described: {}", answer.status, answer.text);
    if method == "HEAD" {
        return;
    }
    let Some(content) = response["content"].as_object() else {
        assert_eq!(answer.text, "");
        return;
    };
    let kind = answer.headers["content-type"].split(';').next().unwrap();
    assert!(content.contains_key(kind), "{method} {template}: {} as {kind}", answer.status);
    if kind == "application/json" {
        check(&answer.json(), &content[kind]["schema"], &format!("{method} {template} {}", answer.status));
    }
}

/// Panics unless this is the data of an event.
pub(super) fn check_event(data: &Value) {
    check(data, &json!({"$ref": "#/components/schemas/Event"}), "event");
}

/// Panics unless this is the data of an event of a trace.
pub(super) fn check_trace_event(data: &Value) {
    check(data, &json!({"$ref": "#/components/schemas/TraceEvent"}), "trace event");
}

/// By kind: the fields that every event of a trace has besides that, and those that it may have.
pub(super) fn trace_fields() -> BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)> {
    let mut fields = BTreeMap::new();
    for one in DESCRIPTION.pointer("/components/schemas/TraceEvent/oneOf").unwrap().as_array().unwrap() {
        let schema = resolve(one);
        let kind = &schema["properties"]["kind"];
        let kinds = kind["enum"].as_array().cloned().unwrap_or_else(|| vec![kind["const"].clone()]);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let mut all: BTreeSet<String> = schema["properties"].as_object().unwrap().keys().cloned().collect();
        let mut always: BTreeSet<String> = schema["required"].as_array().unwrap().iter().map(text).collect();
        assert!(all.remove("kind") && always.remove("kind"));
        let sometimes: BTreeSet<String> = all.difference(&always).cloned().collect();
        for kind in kinds {
            assert!(fields.insert(text(&kind), (always.clone(), sometimes.clone())).is_none(), "{kind} is there twice");
        }
    }
    fields
}

fn find_path(path: &str) -> Option<(&'static str, &'static Value)> {
    let segments: Vec<_> = path.split('/').collect();
    let matches = |template: &str| {
        let pattern: Vec<_> = template.split('/').collect();
        let fits = |(of, is): (&&str, &&str)| of == is || of.starts_with('{') && !is.is_empty();
        pattern.len() == segments.len() && pattern.iter().zip(&segments).all(fits)
    };
    let paths = DESCRIPTION["paths"].as_object().unwrap();
    paths.iter().find(|(template, _)| matches(template)).map(|(template, operations)| (&**template, operations))
}

fn resolve(value: &'static Value) -> &'static Value {
    value["$ref"].as_str().map_or(value, |reference| {
        let found = DESCRIPTION.pointer(reference.strip_prefix('#').unwrap());
        found.unwrap_or_else(|| panic!("{reference} leads nowhere"))
    })
}

/// The part of JSON Schema that the description uses. A keyword that is not known here fails.
fn check(value: &Value, schema: &Value, at: &str) {
    if let Err(fault) = validate(value, schema) {
        panic!("{at}: {fault}\n{value:#}");
    }
}

fn validate(value: &Value, schema: &Value) -> Result<(), String> {
    for (keyword, wanted) in schema.as_object().unwrap() {
        let each = |schemas: &Value| -> Vec<Result<(), String>> {
            schemas.as_array().unwrap().iter().map(|schema| validate(value, schema)).collect()
        };
        match keyword.as_str() {
            "$ref" => {
                let reference = wanted.as_str().unwrap().strip_prefix('#').unwrap();
                validate(value, DESCRIPTION.pointer(reference).expect("a schema"))?;
            }
            "type" => {
                let is = |name: &str| match name {
                    "object" => value.is_object(),
                    "array" => value.is_array(),
                    "string" => value.is_string(),
                    "integer" => value.is_u64() || value.is_i64(),
                    "number" => value.is_number(),
                    "boolean" => value.is_boolean(),
                    "null" => value.is_null(),
                    other => panic!("type {other}"),
                };
                let fits = match wanted {
                    Value::String(name) => is(name),
                    names => names.as_array().unwrap().iter().any(|name| is(name.as_str().unwrap())),
                };
                ensure(fits, || format!("{value} is no {wanted}"))?;
            }
            "enum" => ensure(wanted.as_array().unwrap().contains(value), || format!("{value} is none of {wanted}"))?,
            "const" => ensure(value == wanted, || format!("{value} is not {wanted}"))?,
            "minimum" => ensure(value.as_f64() >= wanted.as_f64(), || format!("{value} is below {wanted}"))?,
            "maximum" => ensure(value.as_f64() <= wanted.as_f64(), || format!("{value} is above {wanted}"))?,
            "allOf" => each(wanted).into_iter().collect::<Result<(), _>>()?,
            "oneOf" => {
                let count = each(wanted).iter().filter(|result| result.is_ok()).count();
                ensure(count == 1, || format!("{count} of oneOf"))?;
            }
            "items" => {
                for item in value.as_array().into_iter().flatten() {
                    validate(item, wanted)?;
                }
            }
            "required" => {
                for key in wanted.as_array().unwrap() {
                    ensure(value.get(key.as_str().unwrap()).is_some(), || format!("{key} is missing"))?;
                }
            }
            "properties" => {
                for (key, schema) in wanted.as_object().unwrap() {
                    if let Some(property) = value.get(key) {
                        validate(property, schema).map_err(|fault| format!("{key}: {fault}"))?;
                    }
                }
            }
            "additionalProperties" => {
                for (key, property) in value.as_object().into_iter().flatten() {
                    if schema["properties"].get(key).is_none() {
                        ensure(wanted != &Value::Bool(false), || format!("{key} is not described"))?;
                        validate(property, wanted).map_err(|fault| format!("{key}: {fault}"))?;
                    }
                }
            }
            "format" if wanted == "date-time" => {
                let time = humantime::parse_rfc3339(value.as_str().unwrap());
                ensure(time.is_ok(), || format!("{value} is no time"))?;
            }
            "description" | "default" | "contentEncoding" => {}
            other => panic!("the keyword {other} is not known to this test"),
        }
    }
    Ok(())
}

fn ensure(holds: bool, fault: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(fault()) }
}

#[test]
fn the_validator_can_say_no() {
    let device = json!({"$ref": "#/components/schemas/Sent"});
    assert!(validate(&json!({"outcome": "delivered"}), &device).is_ok());
    for wrong in [json!({}), json!({"outcome": "maybe"}), json!({"outcome": "delivered", "x": 1}), json!(7)] {
        assert!(validate(&wrong, &device).is_err(), "{wrong}");
    }
    let count = json!({"type": "integer", "minimum": 0});
    assert!(validate(&json!(0), &count).is_ok() && validate(&json!(-1), &count).is_err());
    assert!(validate(&json!(null), &count).is_err() && validate(&json!(1.5), &count).is_err());
}

#[test]
fn what_is_described_is_what_is_routed() {
    let described: BTreeSet<&str> = DESCRIPTION["paths"].as_object().unwrap().keys().map(|path| &**path).collect();
    let routed: BTreeSet<&str> = routes().iter().map(|(path, _)| *path).collect();
    assert_eq!(described, routed);

    // The Allow header is made from the routes.
    let stage = Stage::new(Plan::default());
    for (path, operations) in DESCRIPTION["paths"].as_object().unwrap() {
        let answer =
            stage.request("PUT", &path.replace("{id}", "x").replace("{name}", "x"), &[("content-length", "0")]);
        assert_eq!(answer.status, 405, "{path}");
        let allowed: BTreeSet<_> = answer.headers["allow"].split(',').map(str::trim).collect();
        let mut methods: BTreeSet<String> = operations.as_object().unwrap().keys().map(|m| m.to_uppercase()).collect();
        if methods.contains("GET") {
            methods.insert("HEAD".to_owned());
        }
        assert_eq!(allowed, methods.iter().map(|method| &**method).collect(), "{path}");
    }
}

#[test]
fn the_description_is_served_whole_and_of_this_version() {
    let stage = Stage::new(Plan::default());
    let served = stage.get("/v1/openapi.json").json();
    assert_eq!(served, *DESCRIPTION);
    assert_eq!(served["info"]["version"], env!("CARGO_PKG_VERSION"));
    // Every reference leads somewhere, and everything that can be referred to is.
    let text = description();
    let used: BTreeSet<&str> =
        text.split("\"$ref\": \"#").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    for pointer in &used {
        assert!(DESCRIPTION.pointer(pointer).is_some(), "{pointer}");
    }
    for part in ["responses", "schemas"] {
        for name in DESCRIPTION["components"][part].as_object().unwrap().keys() {
            let pointer = format!("/components/{part}/{name}");
            let body_only =
                ["Message", "BroadcastOrder", "PublishOrder", "UplinkAck", "UplinkSeek", "SinkSeek"].contains(&&**name);
            assert!(used.contains(&*pointer) || body_only, "{pointer} is used nowhere");
        }
    }
}

#[test]
fn every_error_code_is_described_and_in_the_page() {
    let page = include_str!("../../../docs/API.md");
    let codes: BTreeSet<String> = DESCRIPTION["components"]["responses"]
        .as_object()
        .unwrap()
        .values()
        .flat_map(|response| {
            let schema = &response["content"]["application/json"]["schema"]["allOf"][1];
            let codes = &schema["properties"]["error"]["properties"]["code"]["enum"];
            codes.as_array().unwrap().iter().map(|code| code.as_str().unwrap().to_owned())
        })
        .collect();
    for code in &codes {
        assert!(page.contains(&format!("`{code}`")), "docs/API.md lacks {code}");
    }
    for (path, _) in routes() {
        assert!(page.contains(path), "docs/API.md lacks {path}");
    }
}
